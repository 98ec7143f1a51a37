from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.transfer.availability import MAX_SHARDS, Availability

PEERS = [Address("192.0.2.1", 8_470 + number) for number in range(4)]
SHARDS = [Digest.of(bytes([number])) for number in range(2)]
MASKS = st.integers(0, 255)
STEPS = st.one_of(
    st.tuples(st.just("told"), st.sampled_from(PEERS), st.lists(st.tuples(MASKS, MASKS), min_size=2, max_size=2)),
    st.tuples(st.just("lacks"), st.sampled_from(PEERS), st.tuples(st.sampled_from(SHARDS), MASKS)),
    st.tuples(st.just("complete"), st.sampled_from(PEERS), st.none()),
    st.tuples(st.just("forget"), st.sampled_from(PEERS), st.none()),
)


@given(steps=st.lists(STEPS, max_size=30), asked_before=st.integers(0, 30))
def test_holdings_and_copies_agree_with_the_last_word_of_everybody(steps: list, asked_before: int) -> None:  # type: ignore[type-arg]
    have = Availability()
    partial: dict[Address, dict[Digest, tuple[int, int]]] = {}
    complete: dict[Address, dict[Digest, int]] = {}
    for number, (what, peer, word) in enumerate(steps):
        if number >= asked_before:
            have.copies(SHARDS[0])
        if what == "told":
            complete.pop(peer, None)
            partial[peer] = dict(zip(SHARDS, word, strict=True))
            have.told(peer, partial[peer].copy().__getitem__)
        elif what == "complete":
            partial.pop(peer, None)
            complete[peer] = {}
            have.complete(peer)
        elif what == "forget":
            partial.pop(peer, None)
            complete.pop(peer, None)
            have.forget(peer)
        else:
            shard, mask = word
            have.lacks(peer, shard, mask)
            if peer in complete:
                complete[peer][shard] = complete[peer].get(shard, 0) | mask
            elif peer in partial:
                held, coming = partial[peer][shard]
                partial[peer][shard] = held & ~mask, coming & ~mask
    for shard in SHARDS:
        for peer in PEERS:
            assert have.is_complete(peer) == (peer in complete)
            expected = (
                ~complete[peer].get(shard, 0) if peer in complete else partial.get(peer, {}).get(shard, (0, 0))[0]
            )
            assert have.held(peer, shard) == expected
        for position in range(8):
            copies = sum((held | coming) >> position & 1 for held, coming in (each[shard] for each in partial.values()))
            assert have.copies(shard).of(position) == copies


def test_shards_that_nobody_asked_about_for_long_are_forgotten_and_looked_up_again() -> None:
    have = Availability()
    looks = []

    def look(shard: Digest) -> tuple[int, int]:
        looks.append(shard)
        return 1, 0

    have.told(PEERS[0], look)
    assert not looks
    digests = [Digest.of(f"{number}".encode()) for number in range(MAX_SHARDS + 1)]
    for digest in digests:
        assert have.held(PEERS[0], digest) == 1
    assert have.held(PEERS[0], digests[0]) == 1
    assert looks == [*digests, digests[0]]
