"""The accounts of the record table: honest about memory, quick whatever comes."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from dhtdata.dht import quotas
from dhtdata.dht.holdings import Holdings, Limits, Origin
from dhtdata.dht.quotas import GROUP_BYTES, KEY_BYTES, RECORD_BYTES, SOURCE_BYTES, Entry, Group, Quotas
from dhtdata.digest import Digest
from dhtdata.formats import addresses
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import ProviderClaim, ShardClaims, Signed, sign
from dhtdata.signing import SigningKey, substitute
from tests.simulation.signer import FastScheme

NOW = 1_800_000_000
WIDE = Limits(bytes_in_all=1 << 40, bytes_per_group=1 << 40, bytes_per_ip=1 << 40)
DATA = bytes(200)
SIZE = RECORD_BYTES + len(DATA) + KEY_BYTES
SOURCES = random.Random(11)


@pytest.fixture(autouse=True)
def cheap_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


def claim(number: int, sequence: int = 1) -> Signed:
    record = ProviderClaim(
        contents=Digest.of(str(number).encode()), seed=True, sequence=sequence, expires=NOW + 7_000 + sequence
    )
    return sign(record, SigningKey(number.to_bytes(32, "big")))


def shard_claims(number: int, sequence: int = 1) -> Signed:
    """42 keys that nobody else claims."""
    return shared(number, sequence, source=number)


def shared(number: int, sequence: int = 1, source: int = 0) -> Signed:
    """42 keys that everybody with this source claims."""
    randomness = random.Random(source)
    keys = b"".join(sorted(randomness.randbytes(20) for _ in range(42)))
    record = ShardClaims(keys=keys, sequence=sequence, expires=NOW + 7_000)
    return sign(record, SigningKey(number.to_bytes(32, "big")))


def of_one_group(number: int) -> Address:
    return Address("8.8.8.8", 2_000 + number % 50_000)


def of_its_own_group(number: int) -> Address:
    return Address(f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.1", 3_000)


def fill(holdings: Holdings, records: list[Signed], address: Callable[[int], Address]) -> None:
    for number, signed in enumerate(records):
        # Bytes of their own, as they are cut from a datagram.
        holdings.keep(bytes(bytearray(signed.data)), Origin(address(number), bytes(bytearray(signed.signer))))


def memory_of(act: Callable[[Holdings], None]) -> tuple[int, int]:
    """(memory that a table really has after the act, memory that it estimates), in bytes."""
    caches = [addresses.packed, addresses.scope, addresses.network_group, addresses._canonical]
    gc.collect()
    tracemalloc.start()
    try:
        holdings = Holdings(lambda: float(NOW) + SOURCES.random(), bytes(20), WIDE)
        act(holdings)
        for cache in caches:
            cache.cache_clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], holdings.memory_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [2_700, 5_500], ids=["just over a doubling of dicts", "the next doubling"])
@pytest.mark.parametrize("address", [of_one_group, of_its_own_group])
def test_claims_take_no_more_memory_than_is_estimated(address: Callable[[int], Address], count: int) -> None:
    records = [claim(number) for number in range(count)]
    real, estimated = memory_of(lambda holdings: fill(holdings, records, address))
    assert 0.5 * estimated < real <= 1.1 * estimated


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [70, 140, 300])
def test_shard_claims_take_no_more_memory_than_is_estimated(count: int) -> None:
    records = [shard_claims(number) for number in range(count)]
    real, estimated = memory_of(lambda holdings: fill(holdings, records, of_one_group))
    assert 0.5 * estimated < real <= 1.1 * estimated


@pytest.mark.timeout(60)
def test_memory_is_estimated_well_where_records_share_keys_and_where_others_have_left() -> None:
    pairs = [shared(number, source=number // 2) for number in range(300)]
    real, estimated = memory_of(lambda holdings: fill(holdings, pairs, of_its_own_group))
    assert 0.3 * estimated < real <= 1.1 * estimated

    def leave(holdings: Holdings) -> None:
        fill(holdings, pairs, of_its_own_group)
        for entry in list(holdings._entries.values())[::2]:
            holdings._drop(entry)

    real, estimated = memory_of(leave)
    assert 0.3 * estimated < real <= 1.1 * estimated


@pytest.mark.timeout(60)
def test_renewals_leave_no_memory_behind_that_is_not_estimated() -> None:
    rounds = [[claim(number, sequence) for number in range(1_400)] for sequence in range(1, 6)]

    def renew(holdings: Holdings) -> None:
        for records in rounds:
            fill(holdings, records, of_one_group)

    real, estimated = memory_of(renew)
    assert real <= 1.1 * estimated


def entry(quota: Quotas, origin: Origin | None, nearest: int, left: int = 1) -> Entry:
    new = Entry(DATA, b"", 1, float(nearest), 0.0)
    new.source = quota.source(origin)
    new.belongs_under([nearest.to_bytes(20, "big")], 0)
    new.left = left
    return new


def at(ip: str, port: int = 3_000) -> Origin:
    return Origin(Address(ip, port), bytes(32))


def test_an_account_is_an_ip_and_on_loopback_a_process() -> None:
    quota = Quotas(WIDE)
    quota.enter(first := entry(quota, at("8.8.8.1", 1_111), 1))
    quota.enter(entry(quota, at("8.8.8.2"), 1))
    quota.enter(entry(quota, at("127.0.0.1", 4_000), 1))
    assert quota.source(at("8.8.8.1", 2_222)) is first.source
    assert quota.source(at("8.8.8.2")).group is first.source.group
    assert quota.source(at("9.9.9.9")).group is not first.source.group
    assert quota.source(at("127.0.0.1", 4_000)).records == 1
    assert quota.source(at("127.0.0.1", 4_001)).records == 0
    assert quota.source(None) is quota.ours
    assert quota.bytes == 3 * (SIZE + SOURCE_BYTES) + 2 * GROUP_BYTES


def test_what_leaves_takes_its_account_along() -> None:
    quota = Quotas(WIDE)
    entries = []
    for number in range(9):
        entries.append(entry(quota, at(f"8.8.8.{number % 3}"), number, left=2))
        quota.enter(entries[-1])
    for each in entries:
        quota.shrink(each)
        quota.leave(each)
    assert quota.bytes == 0 and quota.fattest() is None and quota.last() is None
    assert not quota._sources and not quota._groups and each.data == b""


def test_a_newcomer_whose_group_has_nothing_to_give_stays_outside() -> None:
    quota = Quotas(Limits(bytes_in_all=3 * (SIZE + SOURCE_BYTES + GROUP_BYTES)))
    for number in range(3):
        quota.enter(entry(quota, at(f"8.8.{number}.1"), 9))
    late = entry(quota, at("9.9.9.9"), 1)
    assert quota.room(late, SIZE, {}) is None
    wide = entry(quota, at("8.8.1.1"), 1)
    assert quota.room(wide, 9 * SIZE, {}) is None  # though its own record, which is farther, would go first
    assert [each.source.group.name for each in quota.room(wide, SIZE, {}) or ()] == ["8.8.1.0/24"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("networks", [1, 30, 5_000])
def test_heaps_stay_in_proportion_through_a_hundred_thousand_changes(networks: int) -> None:
    """And who goes is the farthest of the fattest, as if all were counted anew (now and then, since that is slow)."""
    source = random.Random(networks)
    quota = Quotas(WIDE)
    here: set[Entry] = set()
    order: list[Entry] = []
    for step in range(100_000):
        if len(here) < 4_000 or source.random() < 0.4:
            group = source.randrange(networks)
            new = entry(quota, at(f"8.{group >> 8}.{group & 255}.{step % 3}"), source.getrandbits(150))
            quota.enter(new)
            here.add(new)
            order.append(new)
            assert len(quota._by_bytes) <= 2 * len(quota._groups) + 64
        elif source.random() < 0.5:
            last = quota.last()
            assert last is not None
            if step % 400 == 0:
                check_last(quota, here, last)
            here.remove(last)
            quota.leave(last)
        else:
            position = source.randrange(len(order))
            order[position], order[-1] = order[-1], order[position]
            gone = order.pop()
            if gone in here:
                here.remove(gone)
                quota.leave(gone)
    assert sum(len(group.heap) for group in quota._groups.values()) <= len(here) * 8 / 7 + 1
    assert quota.bytes == sum(group.bytes for group in quota._groups.values())


def check_last(quota: Quotas, here: set[Entry], last: Entry) -> None:
    def weight(group: Group) -> int:
        there = [each for each in here if each.source.group is group]
        sources = len({each.source for each in there})
        return sum(each.size for each in there) + SOURCE_BYTES * sources + GROUP_BYTES

    groups = {each.source.group for each in here}
    fattest = last.source.group
    assert weight(fattest) == fattest.bytes == max(group.bytes for group in groups)
    assert last.nearest == max(each.nearest for each in here if each.source.group is fattest)


def test_the_default_bounds_have_room_for_a_large_dataset_and_never_for_one_owner_alone() -> None:
    limits = Limits()
    claims_per_tb = 30_000 // 42 + 1
    assert claims_per_tb * (RECORD_BYTES + 1_000 + 42 * KEY_BYTES) < limits.bytes_per_ip
    assert limits.bytes_per_ip < limits.bytes_per_group < limits.bytes_in_all
    assert limits.records_per_key >= 16 * limits.records_per_key_and_group
    assert quotas.RECORD_BYTES > 500
