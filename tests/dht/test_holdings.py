"""The record table: what it keeps, replaces, refuses and forgets, and what is left of it after a flood."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.holdings import NAME_KEPT_S, PEER_LIFETIME_S, Changes, Holdings, Limits, Origin, keys_of, record_id
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address, AddressWire
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
from dhtdata.signing import SigningKey, substitute
from tests.dht.plain_holdings import PlainHoldings
from tests.simulation.signer import FastScheme

KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 9)]
CONTENTS = Digest.of(b"contents")
START_S = 1_800_000_000
OWN_ID = bytes(20)
FULL_S = PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S


class Clock:
    def __init__(self) -> None:
        self.now_s = float(START_S)

    def __call__(self) -> float:
        return self.now_s


def table(limits: Limits | None = None) -> Holdings:
    return Holdings(Clock(), OWN_ID, limits)


def claim(key: SigningKey, sequence: int = 1, lives_s: int = PROVIDER_LIFETIME_S, contents: Digest = CONTENTS) -> bytes:
    record = ProviderClaim(contents=contents, seed=True, sequence=sequence, expires=START_S + lives_s)
    return sign(record, key).data


def withdrawal(key: SigningKey, sequence: int) -> bytes:
    return sign(ProviderClaim(contents=CONTENTS, seed=False, sequence=sequence, expires=0), key).data


def peer(key: SigningKey, sequence: int = 1, *addresses: str, lives_s: int = 3600) -> bytes:
    wires = tuple(AddressWire.of(Address.parse(text)) for text in addresses or ("10.0.0.1:8470",))
    return sign(PeerRecord(addresses=wires, sequence=sequence, expires=START_S + lives_s), key).data


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


def by(key: SigningKey, address: str = "10.0.0.1:8470") -> Origin:
    return Origin(Address.parse(address), key.public)


# Everything at once

ADDRESSES = [
    *(f"8.8.8.{n}:3000" for n in range(4)),
    "9.9.9.9:3000",
    "10.0.0.1:3000",
    "127.0.0.1:3000",
    "127.0.0.1:3001",
]
SMALL = Limits(
    records_per_key=4,
    records_per_key_and_group=2,
    bytes_in_all=9_000,
    bytes_per_group=6_500,
    bytes_per_ip=4_000,
)


@lru_cache(maxsize=4_096)
def any_record(kind: str, signer: int, sequence: int, lives_s: int, numbers: frozenset[int], address: str) -> bytes:
    expires = START_S + lives_s if lives_s else 0
    record: ProviderClaim | ShardClaims | PeerRecord
    if kind == "name":
        return name(sequence).data
    if kind == "claim":
        contents = Digest.of(bytes([min(numbers)]))
        record = ProviderClaim(contents=contents, seed=True, sequence=sequence, expires=expires)
    elif kind == "shards":
        keys = b"".join(number.to_bytes(20, "big") for number in sorted(numbers))
        record = ShardClaims(keys=keys, sequence=sequence, expires=expires)
    else:
        wire = AddressWire.of(Address.parse(address))
        record = PeerRecord(addresses=(wire,), sequence=sequence, expires=expires)
    return sign(record, KEYS[signer]).data


STORES = st.tuples(
    st.sampled_from(["claim", "claim", "shards", "shards", "peer", "name"]),
    st.integers(0, 5),
    st.integers(1, 3),
    st.sampled_from([3_000, 3_000, 6_000, 0]),
    st.frozensets(st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from(ADDRESSES),
)
STEPS = st.integers(0, 9).flatmap(lambda choice: STORES if choice else st.integers(1, 4_000))


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, min_size=20, max_size=150), ours=st.integers(0, 7))
def test_the_table_agrees_with_its_rules_said_plainly(
    steps: list[tuple[str, int, int, int, frozenset[int], str] | int], ours: int
) -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID, SMALL)
    plain = PlainHoldings(OWN_ID, SMALL)
    saved: set[bytes] = set()
    for step in steps:
        clock.now_s += step if isinstance(step, int) else 1
        assert holdings.forget_expired() == plain.forget(clock.now_s)
        if isinstance(step, int):
            apply(saved, holdings.changes())
            assert saved == {record_id(each.signed.data) for each in plain.records()}
            continue
        kind, signer, *_, address = step
        data = any_record(*step)
        origin = None if signer == ours else by(KEYS[signer], address)
        if step[3] and kind != "name" and clock.now_s >= START_S + step[3] + CLOCK_TOLERANCE_S:
            spent = origin is not None and plain.bytes_of_ip(plain_ip(origin)) > SMALL.bytes_per_ip - 1_000
            if not spent:
                with pytest.raises(FormatError, match="too long ago"):
                    holdings.keep(data, origin)
            continue
        assert holdings.keep(data, origin) == plain.keep(data, origin, clock.now_s)
        assert holdings.memory_bytes == plain.bytes_in_all() <= SMALL.bytes_in_all
        assert holdings.record_count == len(plain.records())
        assert {key: list(records) for key, records in holdings} == {key: plain.stream(key) for key in plain.under}
    assert holdings.key_count == len(plain.under)
    assert sorted(holdings.iter_older_than(-1)) == sorted(
        (key, each.signed.data) for key, here in plain.under.items() for each in here
    )


def plain_ip(origin: Origin) -> str:
    return str(origin.address) if origin.address.ip == "127.0.0.1" else origin.address.ip


def apply(saved: set[bytes], changes: Changes) -> None:
    saved.difference_update(changes.removed)
    saved.update(record_id(each.data) for each in changes.added)


# Who may put what


def test_claims_and_peer_records_come_from_their_signer_only_and_names_from_anybody() -> None:
    holdings = table()
    for data in (claim(KEYS[0]), shards(KEYS[0], [1]), peer(KEYS[0])):
        with pytest.raises(IntegrityError, match="replayed") as caught:
            holdings.keep(data, by(KEYS[1]))
        assert caught.value.culprit == "10.0.0.1:8470"
        assert holdings.keep(data, by(KEYS[0]))
        with pytest.raises(IntegrityError, match="replayed"):
            holdings.keep(data, by(KEYS[1]))
    assert holdings.keep(name(1).data, by(KEYS[5]))
    assert holdings.record_count == 4


def test_a_peer_record_leads_to_its_sender_and_nowhere_else() -> None:
    holdings = table()
    for addresses in (
        ("10.0.0.2:8470",),
        ("10.0.0.1:8470", "10.0.0.2:8470"),
        ("10.0.0.1:1023",),
        ("[::ffff:a00:1]:8470",),
    ):
        with pytest.raises(FormatError, match="did not prove"):
            holdings.keep(peer(KEYS[0], 1, *addresses), by(KEYS[0]))
    assert holdings.record_count == 0
    assert holdings.keep(peer(KEYS[0], 1, "10.0.0.1:1024", "10.0.0.1:9000"), by(KEYS[0], "10.0.0.1:8470"))
    assert holdings.keep(peer(KEYS[1], 1, "10.0.0.2:80"))


@pytest.mark.parametrize("size", [0, 1, 98])
def test_what_is_too_short_for_a_record_is_malformed_whoever_sends_it(size: int) -> None:
    with pytest.raises(FormatError, match=f"record of {size} bytes"):
        table().keep(claim(KEYS[0])[:size], by(KEYS[1]))


def test_a_forged_record_is_refused() -> None:
    data = bytearray(claim(KEYS[0]))
    data[-1] ^= 1
    with pytest.raises(IntegrityError):
        table().keep(bytes(data), by(KEYS[0]))


@pytest.mark.parametrize("lives_s", [-CLOCK_TOLERANCE_S, FULL_S + 1])
def test_claims_that_have_expired_or_live_too_long_are_refused(lives_s: int) -> None:
    with pytest.raises(FormatError, match="expires in"):
        table().keep(claim(KEYS[0], lives_s=lives_s))


# What replaces what, and for how long it stays


def test_an_older_record_never_replaces_a_newer_one() -> None:
    holdings = table()
    assert holdings.keep(name(3).data) and not holdings.keep(name(2).data)
    assert not holdings.keep(name(3, b"another manifest of equal rank").data)
    assert holdings.keep(name(4).data)
    assert dict(holdings) == {key: (name(4).data,) for key in keys_of(name(4))}


def test_replaying_a_claim_does_not_prolong_it() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    for _ in range(100):
        clock.now_s += (FULL_S - 1) / 100
        assert holdings.keep(claim(KEYS[0]), by(KEYS[0]))
    clock.now_s += 2
    assert holdings.get(contents_key(CONTENTS)) is None
    with pytest.raises(FormatError, match="too long ago"):
        holdings.keep(claim(KEYS[0]), by(KEYS[0]))
    assert holdings.record_count == 0


def test_a_name_lives_two_days_after_it_was_last_put_by_anybody() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    for signer in range(3):
        assert holdings.keep(name(1).data, by(KEYS[signer]))
        clock.now_s += NAME_KEPT_S - 1
        assert holdings.forget_expired() == 0
    clock.now_s += 2
    assert holdings.get(keys_of(name(1))[0]) is None
    assert holdings.keep(name(1).data, by(KEYS[0]))
    assert holdings.forget_expired() == 0 and holdings.record_count == 1


def test_a_withdrawal_hides_a_claim_until_no_holder_can_have_it_any_more() -> None:
    """Each second of the claim's life, and beyond: it never comes back."""
    clock = Clock()
    holdings, other = Holdings(clock, OWN_ID), Holdings(clock, OWN_ID)
    longest = claim(KEYS[0], 1, FULL_S)
    assert other.keep(longest, by(KEYS[0]))
    assert holdings.keep(longest, by(KEYS[0]))
    assert holdings.keep(withdrawal(KEYS[0], 2), by(KEYS[0]))
    assert holdings[contents_key(CONTENTS)] == (withdrawal(KEYS[0], 2),)
    while other.get(contents_key(CONTENTS)) is not None:
        assert not holdings.keep(longest, by(KEYS[0]))
        assert holdings.keep(withdrawal(KEYS[0], 2), by(KEYS[0]))  # which does not prolong it
        clock.now_s += 100
    with pytest.raises(FormatError, match="too long ago"):
        holdings.keep(longest, by(KEYS[0]))
    clock.now_s = START_S + FULL_S + CLOCK_TOLERANCE_S
    assert holdings.forget_expired() == 1 and holdings.record_count == 0


def test_a_withdrawal_gives_way_to_a_newer_claim_and_is_kept_where_nothing_was() -> None:
    holdings = table()
    assert holdings.keep(withdrawal(KEYS[0], 2), by(KEYS[0]))
    assert not holdings.keep(claim(KEYS[0], 1), by(KEYS[0]))
    assert holdings.keep(claim(KEYS[0], 3), by(KEYS[0]))
    assert holdings[contents_key(CONTENTS)] == (claim(KEYS[0], 3),)


def test_a_withdrawal_that_is_out_of_date_does_not_stand_in_the_way_before_it_is_forgotten() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    holdings.keep(withdrawal(KEYS[0], 9))
    clock.now_s += FULL_S + CLOCK_TOLERANCE_S
    later = claim(KEYS[0], 1, 2 * FULL_S)
    assert holdings.keep(later) and holdings[contents_key(CONTENTS)] == (later,)


def test_renewing_some_of_a_claims_keys_leaves_the_rest_to_the_old_one() -> None:
    holdings = table()
    old, new = shards(KEYS[0], [1, 2, 3]), shards(KEYS[0], [2], sequence=2)
    assert holdings.keep(old) and holdings.keep(new)
    assert [holdings[number.to_bytes(20, "big")] for number in (1, 2, 3)] == [(old,), (new,), (old,)]
    assert not holdings.keep(shards(KEYS[0], [2], sequence=1))
    assert holdings.keep(shards(KEYS[0], [1, 3], sequence=2)) and holdings.record_count == 2


# In which order records are told


def test_peer_records_of_all_ips_come_before_a_signers_first_claim_newest_first() -> None:
    holdings = table()
    holdings.keep(claim(KEYS[0]))
    holdings.keep(claim(KEYS[1]))
    one, two = peer(KEYS[0], 5, "10.0.0.1:8470"), peer(KEYS[0], 7, "10.0.0.2:8470")
    for data, address in ((one, "10.0.0.1:1"), (two, "10.0.0.2:1")):
        assert holdings.keep(data, by(KEYS[0], address))
    assert not holdings.keep(peer(KEYS[0], 6, "10.0.0.2:8470"), by(KEYS[0], "10.0.0.2:1"))
    assert holdings[contents_key(CONTENTS)] == (two, one, claim(KEYS[0]), claim(KEYS[1]))
    assert holdings[node_id(KEYS[0].public)] == (two, one)
    gone = sign(PeerRecord(addresses=decode(two).record.addresses, sequence=8, expires=0), KEYS[0]).data  # type: ignore[union-attr]  # a PeerRecord
    assert holdings.keep(gone, by(KEYS[0], "10.0.0.2:1"))
    assert holdings[contents_key(CONTENTS)] == (one, claim(KEYS[0]), claim(KEYS[1]))
    assert holdings[node_id(KEYS[0].public)] == (one, gone)
    assert holdings.get(bytes(20)) is None
    with pytest.raises(KeyError):
        holdings[bytes(20)]


def test_no_more_than_eight_peer_records_of_a_signer_are_told() -> None:
    holdings = table()
    for number in range(20):
        ip = f"10.0.1.{number}"
        assert holdings.keep(peer(KEYS[0], number, f"{ip}:8470"), by(KEYS[0], f"{ip}:8470"))
    holdings.keep(claim(KEYS[0]))
    *peers, last = holdings[contents_key(CONTENTS)]
    assert last == claim(KEYS[0]) and len(peers) == MAX_ADDRESSES
    assert peers[0] == peer(KEYS[0], 19, "10.0.1.19:8470")


def test_pages_of_a_key_stay_as_they_are_while_newcomers_join_the_end() -> None:
    holdings = table()
    for key in KEYS[:3]:
        holdings.keep(claim(key))
    before = holdings[contents_key(CONTENTS)]
    for key in KEYS[3:]:
        holdings.keep(claim(key))
    assert holdings[contents_key(CONTENTS)][:3] == before
    holdings.keep(withdrawal(KEYS[0], 2))
    assert holdings[contents_key(CONTENTS)][-1] == withdrawal(KEYS[0], 2)


# Bounds


def test_a_full_key_goes_to_many_networks_rather_than_to_one() -> None:
    holdings = table(Limits(records_per_key=4, records_per_key_and_group=3))
    for number in range(4):
        assert holdings.keep(claim(KEYS[number]), by(KEYS[number], f"8.8.8.{number}:3000")) == (number < 3)
    assert holdings.keep(claim(KEYS[4]), by(KEYS[4], "9.9.9.1:3000"))
    assert holdings.keep(claim(KEYS[5]), by(KEYS[5], "1.1.1.1:3000"))  # in the place of the third of 8.8.8.0/24
    assert holdings[contents_key(CONTENTS)] == tuple(claim(KEYS[number]) for number in (0, 4, 5, 1))
    assert not holdings.keep(claim(KEYS[6]), by(KEYS[6], "9.9.9.2:3000"))  # two each would be no fairer
    assert holdings.keep(claim(KEYS[0], 2), by(KEYS[0], "8.8.8.0:3000"))
    assert holdings.keep(claim(KEYS[7]))  # ours, always
    assert len(holdings[contents_key(CONTENTS)]) == 4


def test_claims_to_its_key_crowd_out_neither_a_name_nor_a_peer_record() -> None:
    holdings = table(Limits(records_per_key=4))
    for key in (node_id(KEYS[0].public), keys_of(name(1))[1]):
        for number in range(1, 5):
            crowd = shards(KEYS[number], [int.from_bytes(key, "big")])
            assert holdings.keep(crowd, by(KEYS[number], f"8.8.{number}.1:3000"))
    assert holdings.keep(peer(KEYS[0]), by(KEYS[0]))
    assert holdings.keep(name(1).data, by(KEYS[7], "9.9.9.9:3000"))
    assert all(name(1).data in holdings[key] for key in keys_of(name(1)))
    late = shards(KEYS[6], [int.from_bytes(node_id(KEYS[0].public), "big")])
    assert not holdings.keep(late, by(KEYS[6], "8.9.1.1:3000"))


def test_expired_records_leave_a_full_key_to_newcomers() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID, Limits(records_per_key=1))
    assert holdings.keep(claim(KEYS[0]), by(KEYS[0], "9.9.9.9:3000"))
    later = claim(KEYS[1], lives_s=2 * PROVIDER_LIFETIME_S)
    clock.now_s += PROVIDER_LIFETIME_S
    assert not holdings.keep(later, by(KEYS[1]))
    clock.now_s += CLOCK_TOLERANCE_S
    assert holdings.keep(later, by(KEYS[1])) and holdings.record_count == 1


def test_an_ip_at_its_bound_may_renew_what_it_has_and_strangers_are_not_even_verified() -> None:
    holdings = table(Limits(bytes_per_ip=6_000))
    holdings.keep(peer(KEYS[0]), by(KEYS[0]))
    kept = [holdings.keep(claim(KEYS[0], 1, contents=Digest.of(bytes([n]))), by(KEYS[0])) for n in range(50)]
    assert kept == [True] * kept.index(False) + [False] * (50 - kept.index(False)) and kept[3]
    assert holdings.keep(claim(KEYS[0], 2, contents=Digest.of(b"\0")), by(KEYS[0]))
    assert holdings.keep(claim(KEYS[0], 2, contents=Digest.of(b"\0")), by(KEYS[0]))
    forged = claim(KEYS[1])[:-1] + b"\xff"
    assert not holdings.keep(forged, by(KEYS[1], "10.0.0.1:9999"))
    assert holdings.keep(claim(KEYS[1]), by(KEYS[1], "10.0.0.2:9999"))


def test_what_others_put_here_becomes_ours_when_we_put_it_too() -> None:
    """Then nobody can push it out."""
    holdings = table(Limits(bytes_in_all=6_000))
    assert holdings.keep(name(1).data, by(KEYS[3], "9.9.9.9:3000"))
    assert holdings.keep(name(1).data) and holdings.keep(name(1).data, by(KEYS[4]))
    for number in range(60):
        key = SigningKey(number.to_bytes(32, "big"))
        holdings.keep(claim(key, contents=Digest.of(bytes([number]))), by(key, f"8.8.{number}.1:3000"))
    assert all(name(1).data in holdings[key] for key in keys_of(name(1)))
    assert holdings.memory_bytes <= 6_000


def test_our_own_records_push_out_others_until_only_ours_are_left() -> None:
    holdings = table(Limits(bytes_in_all=8_000))
    for number in range(8):
        holdings.keep(claim(KEYS[number]), by(KEYS[number], f"8.8.{number}.1:3000"))
    before = holdings.record_count
    ours = [claim(KEYS[0], contents=Digest.of(bytes([number]))) for number in range(20)]
    kept = [holdings.keep(data) for data in ours]
    assert 2 < before < 8 and kept[: before + 1] == [True] * (before + 1) and not kept[-1]
    assert holdings.record_count == sum(kept) and holdings.memory_bytes <= 8_000
    assert not holdings.keep(claim(KEYS[1]), by(KEYS[1]))


def test_replaced_records_leave_nothing_behind() -> None:
    holdings = table()
    holdings.keep(claim(KEYS[0], 1), by(KEYS[0]))
    before = holdings.memory_bytes
    for sequence in range(2, 400):
        assert holdings.keep(claim(KEYS[0], sequence), by(KEYS[0], f"10.0.0.1:{2_000 + sequence}"))
    assert holdings.record_count == holdings.key_count == 1
    assert abs(holdings.memory_bytes - before) < 10


@pytest.fixture
def cheap_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("cheap_signatures")
@pytest.mark.parametrize(("networks", "mebibytes"), [(1, 1), (40, 1), (2_000, 8)])
def test_honest_records_survive_a_flood_of_strangers(networks: int, mebibytes: int) -> None:
    """20,000 signers, each with one claim, for which there is no room; honest networks stay below an equal share."""
    source = random.Random(networks)
    in_all = mebibytes << 20
    limits = Limits(bytes_in_all=in_all, bytes_per_group=in_all * 3 // 4, bytes_per_ip=in_all // 2)
    clock = Clock()
    holdings = Holdings(clock, source.randbytes(20), limits)
    honest: list[tuple[bytes, bytes]] = []
    for number in range(100):
        key = SigningKey(source.randbytes(32))
        contents = Digest(source.randbytes(32))
        at = f"9.{number}.1.1:3000"
        assert holdings.keep(peer(key, 1, at), by(key, at))
        assert holdings.keep(claim(key, contents=contents), by(key, at))
        honest.append((contents_key(contents), claim(key, contents=contents)))
    assert holdings.memory_bytes / len(honest) < in_all / (networks + len(honest))
    for number in range(20_000):
        clock.now_s += 0.01
        key = SigningKey(source.randbytes(32))
        network = number % networks
        at = f"8.{network >> 8}.{network & 255}.{1 + number // networks % 250}:{2_000 + number % 60_000}"
        holdings.keep(claim(key, contents=Digest(source.randbytes(32))), by(key, at))
        assert holdings.memory_bytes <= in_all
    stayed = sum(data in (holdings.get(key) or ()) for key, data in honest)
    assert stayed >= 0.99 * len(honest)
    assert holdings.memory_bytes > 0.7 * in_all


@pytest.mark.usefixtures("cheap_signatures")
def test_a_network_that_floods_keeps_what_is_nearest_to_us() -> None:
    source = random.Random(5)
    own_id = source.randbytes(20)
    holdings = Holdings(Clock(), own_id, Limits(bytes_per_group=100_000))
    everything: list[tuple[int, bytes]] = []
    for _ in range(2_000):
        key, contents = SigningKey(source.randbytes(32)), Digest(source.randbytes(32))
        data = claim(key, contents=contents)
        holdings.keep(data, by(key, "8.8.8.8:3000"))
        distance = int.from_bytes(contents_key(contents), "big") ^ int.from_bytes(own_id, "big")
        everything.append((distance, data))
    count = holdings.record_count
    kept = {data for _, records in holdings for data in records}
    assert count > 50 and kept == {data for _, data in sorted(everything)[:count]}


# Persistence and the package's interface


def test_what_is_restored_is_what_was_saved() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    holdings.keep(name(1).data)
    holdings.keep(claim(KEYS[0]), by(KEYS[0], "127.0.0.1:4000"))
    holdings.keep(withdrawal(KEYS[1], 3), by(KEYS[1], "[2001:db8::1]:5000"))
    clock.now_s += 500
    holdings.keep(shards(KEYS[2], [1, 2, 3]), by(KEYS[2]))
    holdings.keep(peer(KEYS[2]), by(KEYS[2]))
    rows = holdings.changes().added
    assert [row.origin for row in rows] == ["", "127.0.0.1:4000", "[2001:db8::1]:5000", *["10.0.0.1:8470"] * 2]
    clock.now_s += 500
    other = Holdings(clock, OWN_ID)
    assert other.restore(rows) == 5
    assert dict(other) == dict(holdings) and other.memory_bytes == holdings.memory_bytes
    assert list(other.iter_older_than(1_000)) == list(holdings.iter_older_than(1_000))
    assert other.changes() == holdings.changes() == Changes([], [])
    clock.now_s = START_S + NAME_KEPT_S  # a restart prolongs nothing
    assert other.forget_expired() == 5


def test_what_is_restored_is_trusted_no_more_than_what_comes_from_outside() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    for data in (claim(KEYS[0]), claim(KEYS[1], lives_s=60), shards(KEYS[2], [1]), name(1).data):
        holdings.keep(data)
    good, short, forged, old = holdings.changes().added
    clock.now_s += 700
    bad = type(good)(forged.data[:-1] + b"\0", "", START_S, START_S + 1e9)
    past = type(good)(old.data, "", START_S, START_S + 600)
    odd = type(good)(claim(KEYS[3]), "example.org:80", START_S, START_S + 1e9)
    endless = type(good)(claim(KEYS[4]), "10.0.0.1:1", START_S + 1e9, START_S + 1e9)
    rows = [good, short, bad, past, odd, endless]
    other = Holdings(clock, OWN_ID)
    assert other.restore(rows) == 2
    assert other.changes() == Changes([], [record_id(row.data) for row in (short, bad, past, odd)])
    clock.now_s = START_S + FULL_S
    assert other.forget_expired() == 2


def test_restoring_keeps_within_bounds() -> None:
    holdings = table()
    for key in KEYS:
        holdings.keep(claim(key), by(key))
    rows = holdings.changes().added
    other = table(Limits(records_per_key=3))
    assert other.restore(rows) == 3
    assert other.changes() == Changes([], [record_id(row.data) for row in rows[3:]])


def test_changes_tell_every_difference_once() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    holdings.keep(claim(KEYS[0], 1))
    holdings.keep(claim(KEYS[0], 2))
    assert [row.data for row in holdings.changes().added] == [claim(KEYS[0], 2)]
    holdings.keep(claim(KEYS[0], 3))
    changes = holdings.changes()
    assert [row.data for row in changes.added] == [claim(KEYS[0], 3)]
    assert changes.removed == [record_id(claim(KEYS[0], 2))]
    holdings.keep(name(1).data)
    holdings.changes()
    clock.now_s += 60
    holdings.keep(name(1).data)  # kept longer: told again
    (row,) = holdings.changes().added
    assert row.data == name(1).data and row.kept_until_s == clock.now_s + NAME_KEPT_S
    holdings.keep(name(1).data)
    holdings.keep(name(2).data)
    changes = holdings.changes()
    assert ([row.data for row in changes.added], changes.removed) == ([name(2).data], [record_id(name(1).data)])
    assert holdings.changes() == Changes([], [])


def test_a_record_that_came_again_before_its_row_was_read_is_written_anew() -> None:
    holdings = table()
    holdings.keep(claim(KEYS[0]))
    (row,) = holdings.changes().added
    other = table()
    other.keep(claim(KEYS[0]))
    assert other.restore([row]) == 1 and other.changes() == Changes([row], [])


def test_the_interface_of_the_package_is_kept() -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    holdings[contents_key(CONTENTS)] = claim(KEYS[0])
    with pytest.raises(FormatError, match="cannot be kept"):
        holdings[bytes(20)] = claim(KEYS[0])
    clock.now_s += 60
    assert list(holdings.iter_older_than(60)) == [(contents_key(CONTENTS), claim(KEYS[0]))]
    assert list(holdings.iter_older_than(61)) == []
    assert isinstance(decode(claim(KEYS[0])).record, ProviderClaim)
    assert PEER_LIFETIME_S > PROVIDER_LIFETIME_S
