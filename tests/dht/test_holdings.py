"""The record table: what it keeps, replaces, refuses and forgets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.holdings import NAME_KEPT_S, Holdings, Limits, keys_of
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    PROVIDER_LIFETIME_S,
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    ShardClaims,
    Signed,
    contents_key,
    decode,
    node_id,
    sign,
)
from dhtdata.signing import SigningKey

KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 9)]
CONTENTS = Digest.of(b"contents")
START_S = 1_800_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = float(START_S)

    def __call__(self) -> float:
        return self.now_s


def claim(key: SigningKey, sequence: int = 1, lives_s: int = PROVIDER_LIFETIME_S, contents: Digest = CONTENTS) -> bytes:
    record = ProviderClaim(contents=contents, seed=True, sequence=sequence, expires=START_S + lives_s)
    return sign(record, key).data


def peer(key: SigningKey, sequence: int = 1) -> bytes:
    wire = AddressWire.of(Address("10.0.0.1", 8470))
    return sign(PeerRecord(addresses=(wire,), sequence=sequence, expires=START_S + 3600), key).data


def shards(key: SigningKey, numbers: list[int], sequence: int = 1) -> bytes:
    keys = b"".join(number.to_bytes(20, "big") for number in sorted(numbers))
    return sign(ShardClaims(keys=keys, sequence=sequence, expires=START_S + 3600), key).data


def name(sequence: int, manifest: bytes = b"manifest") -> Signed:
    root, release = KEYS[0], KEYS[1]
    delegation = Delegation(root=root.public, number=1, release=release.public).signed(root)
    record = NameRecord(
        delegation=delegation, name="set", sequence=sequence, manifest=Digest.of(manifest), fresh_until=START_S
    )
    return sign(record, release)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2), st.integers(1, 4), st.sets(st.integers(0, 6), min_size=1)),
            st.integers(1, 3000),
        ),
        max_size=25,
    )
)
def test_keys_agree_with_a_plain_model(steps: list[tuple[int, int, set[int]] | int]) -> None:
    """Model: per key and signer the highest sequence that came first, until it expires."""
    clock = Clock()
    holdings = Holdings(clock)
    model: dict[tuple[int, int], tuple[int, bytes]] = {}
    for step in steps:
        if isinstance(step, int):
            clock.now_s += step
            holdings.forget_expired()
            if clock.now_s >= START_S + 3600 + CLOCK_TOLERANCE_S:
                model.clear()
            continue
        signer, sequence, numbers = step
        data = shards(KEYS[signer], list(numbers), sequence)
        if clock.now_s >= START_S + 3600 + CLOCK_TOLERANCE_S:
            with pytest.raises(FormatError):
                holdings.keep(data)
            continue
        newer = [number for number in numbers if model.get((number, signer), (0, b""))[0] < sequence]
        known = any(data == kept for _, kept in model.values())
        assert holdings.keep(data) == (bool(newer) or known)
        if not known:
            model |= {(number, signer): (sequence, data) for number in newer}
    for number in range(7):
        expected = {data for (key, _), (_, data) in model.items() if key == number}
        assert set(holdings.stream(number.to_bytes(20, "big"))) == expected
    assert holdings.record_count == len({data for _, data in model.values()})
    assert holdings.key_count == len({key for key, _ in model})
    assert (
        sum(holdings._bytes_of.values()) == holdings._bytes == sum(entry.size for entry in holdings._entries.values())
    )


def test_a_claim_follows_its_signers_peer_record_which_comes_once() -> None:
    holdings = Holdings(Clock())
    for key in KEYS[:2]:
        holdings.keep(claim(key))
    holdings.keep(peer(KEYS[0]))
    holdings.keep(peer(KEYS[0], sequence=2))
    expected = (peer(KEYS[0], sequence=2), claim(KEYS[0]), claim(KEYS[1]))
    assert holdings[contents_key(CONTENTS)] == expected
    assert holdings.get(node_id(KEYS[0].public)) == (peer(KEYS[0], sequence=2),)
    assert holdings.get(bytes(20)) is None
    with pytest.raises(KeyError):
        holdings[bytes(20)]


def test_an_older_record_never_replaces_a_newer_one() -> None:
    holdings = Holdings(Clock())
    assert holdings.keep(name(3).data) and not holdings.keep(name(2).data)
    assert not holdings.keep(name(3, b"another manifest of equal rank").data)
    assert holdings.keep(name(4).data)
    (key, records), *others = holdings
    assert records == (name(4).data,) and keys_of(name(4)) == [key] and not others


def test_replaying_a_claim_does_not_prolong_it() -> None:
    clock = Clock()
    holdings = Holdings(clock)
    for _ in range(100):
        clock.now_s += (PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S - 1) / 100
        assert holdings.keep(claim(KEYS[0]))
    clock.now_s += 2
    assert holdings.get(contents_key(CONTENTS)) is None
    with pytest.raises(FormatError, match="too long ago"):
        holdings.keep(claim(KEYS[0]))
    assert holdings.forget_expired() == 1 and holdings.record_count == 0


def test_a_name_lives_two_days_after_it_was_last_put() -> None:
    clock = Clock()
    holdings = Holdings(clock)
    for _ in range(3):
        assert holdings.keep(name(1).data)
        clock.now_s += NAME_KEPT_S - 1
        assert holdings.forget_expired() == 0
    clock.now_s += 2
    assert holdings.forget_expired() == 1 and holdings.key_count == 0


@pytest.mark.parametrize("lives_s", [-CLOCK_TOLERANCE_S, PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S + 1])
def test_claims_that_have_expired_or_live_too_long_are_refused(lives_s: int) -> None:
    with pytest.raises(FormatError, match="expires in"):
        Holdings(Clock()).keep(claim(KEYS[0], lives_s=lives_s))


def test_a_forged_record_is_refused() -> None:
    data = bytearray(claim(KEYS[0]))
    data[-1] ^= 1
    with pytest.raises(IntegrityError):
        Holdings(Clock()).keep(bytes(data))


def test_a_full_key_refuses_newcomers_and_accepts_renewals() -> None:
    holdings = Holdings(Clock(), Limits(records_per_key=2))
    assert [holdings.keep(claim(key)) for key in KEYS[:4]] == [True, True, False, False]
    assert holdings.keep(claim(KEYS[0], sequence=2))


def test_one_source_cannot_fill_the_table() -> None:
    holdings = Holdings(Clock(), Limits(bytes_per_source=3_000, bytes_in_all=6_000))
    kept = [holdings.keep(claim(KEYS[0], contents=Digest.of(bytes([n]))), "10.0.0.1") for n in range(50)]
    assert 1 <= sum(kept) <= 3
    assert holdings.keep(claim(KEYS[1]), "10.0.0.2")
    for number in range(50):
        holdings.keep(claim(KEYS[2], contents=Digest.of(bytes([number]))), f"10.0.1.{number}")
    assert sum(holdings._bytes_of.values()) <= 6_000


def test_replaced_records_leave_nothing_behind() -> None:
    holdings = Holdings(Clock())
    for sequence in range(1, 400):
        assert holdings.keep(claim(KEYS[0], sequence=sequence), "10.0.0.1")
    assert holdings.record_count == 1 and len(holdings._ends) < 100 and len(holdings._bytes_of) == 1


def test_the_interface_of_the_package_is_kept() -> None:
    clock = Clock()
    holdings = Holdings(clock)
    holdings[contents_key(CONTENTS)] = claim(KEYS[0])
    with pytest.raises(FormatError, match="cannot be kept"):
        holdings[bytes(20)] = claim(KEYS[0])
    clock.now_s += 60
    assert list(holdings.iter_older_than(60)) == [(contents_key(CONTENTS), claim(KEYS[0]))]
    assert list(holdings.iter_older_than(61)) == []
    assert isinstance(decode(claim(KEYS[0])).record, ProviderClaim)
