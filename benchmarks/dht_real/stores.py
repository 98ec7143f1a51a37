"""Do 200,000 hostile stores break a node's memory bound, or push out what honest nodes put there?

The record table (`dhtdata.dht.holdings.Holdings`, as a node makes it) first gets what 400 honest nodes, each in a
network of its own, put on one node: claims to some contents each, and the claims of five large seeds to 2,016 shards
each. Then come 200,000 (quick: 8,000, and a table of 6 MiB) records, each validly signed by a key of its own, from
12,500 addresses in 50 networks: claims to contents of their own, to contents that honest nodes provide, to 42 shards
each, and PeerRecords. They are signed in another process and handed to the table as the protocol does, with the address
that a cookie would have proven. Meanwhile one honest record in a hundred is put again, as renewals are.

Memory: the table's own estimate, and the true size of every object that can be reached from the table; both must end
below the bound. A figure without a bar: how far the process grew at most, with the allocator's gaps and all that is
only passing through.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.process import rss_bytes
from benchmarks.dht_simulated.result import Curves, Result
from benchmarks.harness import Check
from dhtdata.dht.holdings import Holdings, Limits, Origin
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import Address, AddressWire, network_group, packed
from dhtdata.formats.records import (
    MAX_SHARD_KEYS,
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    PeerRecord,
    ProviderClaim,
    ShardClaims,
    sign,
)
from dhtdata.signing import SigningKey

NETWORKS = 50
ADDRESSES = 250
HONEST_NODES = 400
HONEST_CONTENTS = 300
CLAIMS_EACH = 5
SEEDS = 5
SEED_MESSAGES = 60  # to 2,520 shards: more than one of 1,000 nodes holds of 100,000 shards, 3 TB
SAMPLES = 40
_PORT = 8_470
_FIRST_NETWORK = 130
_BATCH = 500


@dataclass(frozen=True)
class Put:
    """A record and the address that put it here."""

    data: bytes
    ip: str

    def origin(self) -> Origin:
        return Origin(Address(self.ip, _PORT), self.data[2:34])


def honest_contents(number: int) -> Digest:
    return Digest.of(f"honest contents {number}".encode())


def honest_puts(seed: int, share: float) -> list[Put]:
    """What ordinary nodes put on one node, in any order; ``share`` of it for a smaller table."""
    randomness, now = random.Random(seed), int(time.time())
    puts = []
    for number in range(int(HONEST_NODES * share)):
        key = SigningKey(randomness.randbytes(32))
        ip = f"{20 + number // 200}.{number % 200}.7.9"
        peer = PeerRecord((AddressWire(bytes(map(int, ip.split("."))), _PORT),), now, now + SHARD_LIFETIME_S)
        puts.append(Put(sign(peer, key).data, ip))
        for contents in randomness.sample(range(HONEST_CONTENTS), CLAIMS_EACH):
            claim = ProviderClaim(honest_contents(contents), True, now, now + PROVIDER_LIFETIME_S)
            puts.append(Put(sign(claim, key).data, ip))
        if number < SEEDS:
            puts += [Put(sign(shards(randomness, now), key).data, ip) for _ in range(int(SEED_MESSAGES * share))]
    return puts


def shards(randomness: random.Random, now: int) -> ShardClaims:
    keys = sorted(randomness.randbytes(20) for _ in range(MAX_SHARD_KEYS))
    return ShardClaims(b"".join(keys), now, now + SHARD_LIFETIME_S)


def hostile_put(position: int, randomness: random.Random) -> Put:
    """Signed by a key that signs nothing else."""
    key, now = SigningKey(randomness.randbytes(32)), int(time.time())
    ip = f"{_FIRST_NETWORK + position % NETWORKS}.1.1.{randomness.randrange(ADDRESSES) + 1}"
    kind = position // NETWORKS % 4
    if kind == 0:
        return Put(sign(shards(randomness, now), key).data, ip)
    if kind == 1:
        peer = PeerRecord((AddressWire(bytes(map(int, ip.split("."))), _PORT),), now, now + SHARD_LIFETIME_S)
        return Put(sign(peer, key).data, ip)
    coveted = honest_contents(randomness.randrange(HONEST_CONTENTS))
    contents = coveted if kind == 2 else Digest.of(randomness.randbytes(8))
    return Put(sign(ProviderClaim(contents, True, now, now + PROVIDER_LIFETIME_S), key).data, ip)


def sign_hostile(count: int, seed: int, out: Connection) -> None:
    """Body of the other process."""
    randomness = random.Random(seed)
    for first in range(0, count, _BATCH):
        out.send([hostile_put(position, randomness) for position in range(first, min(count, first + _BATCH))])
    out.close()


def hostile_puts(count: int, seed: int) -> Iterator[Put]:
    source, out = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=sign_hostile, args=(count, seed, out), daemon=True)
    process.start()
    out.close()
    left = count
    while left:
        batch = source.recv()
        left -= len(batch)
        yield from batch
    process.join()


@dataclass
class Outcome:
    kept_share: float
    hostile_kept: int
    refused: int
    seconds: float
    estimated_bytes: int
    real_bytes: int
    grown_bytes: int
    curve: list[tuple[float, float, float]]


def fill_caches(honest: list[Put]) -> None:
    """What is remembered of addresses, bounded and not in the table, shall not look like the table's growth."""
    addresses = [
        f"{_FIRST_NETWORK + network}.1.1.{host + 1}" for network in range(NETWORKS) for host in range(ADDRESSES)
    ]
    for ip in [*addresses, *(put.ip for put in honest)]:
        network_group(Address(ip, _PORT))
        packed(ip)


def real_bytes(table: Holdings) -> int:
    """Of every object that is reached from the table's, but for what belongs to the program: classes and functions."""
    outside = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
    seen: set[int] = set()
    waiting: list[Any] = [table.__dict__]
    size = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, outside):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return size


def keep(table: Holdings, put: Put) -> bool:
    try:
        return table.keep(put.data, put.origin())
    except (FormatError, IntegrityError):
        return False


def found(table: Holdings, put: Put) -> bool:
    """Whether the record is still found under all keys that it was put under."""
    entry = table._entries.get(put.data)
    return entry is not None and entry.left == entry.count


def story(count: int, limits: Limits, share: float, seed: int) -> Outcome:
    honest = honest_puts(seed, share)
    hostile = hostile_puts(count, seed)
    first = next(hostile)  # the other process runs now
    fill_caches(honest)
    gc.collect()
    empty_bytes = rss_bytes(os.getpid())
    table = Holdings(time.time, random.Random(seed).randbytes(20), limits)
    for put in honest:
        if not keep(table, put):
            raise RuntimeError("the table does not even hold the honest records")
    curve: list[tuple[float, float, float]] = []
    refused = 0
    spent_s = 0.0
    for position, put in enumerate(itertools.chain([first], hostile)):
        started_s = time.perf_counter()
        refused += not keep(table, put)
        spent_s += time.perf_counter() - started_s
        if position % 100 == 0:
            keep(table, honest[position // 100 % len(honest)])
        if position % (count // SAMPLES) == 0:
            gc.collect()
            grown = rss_bytes(os.getpid()) - empty_bytes
            curve.append((float(position), table.memory_bytes / (1 << 20), grown / (1 << 20)))
    gc.collect()
    kept = sum(found(table, put) for put in honest)
    return Outcome(
        kept_share=kept / len(honest),
        hostile_kept=table.record_count - kept,
        refused=refused,
        seconds=spent_s,
        estimated_bytes=table.memory_bytes,
        real_bytes=real_bytes(table),
        grown_bytes=max(int(grown * (1 << 20)) for _, _, grown in curve),
        curve=curve,
    )


def measure(quick: bool, seed: int) -> Result:
    count, limits, share = (8_000, _small(), 0.2) if quick else (200_000, Limits(), 1.0)
    outcome = story(count, limits, share, seed)
    return Result(
        figures={
            "stores": count,
            "stores_refused": outcome.refused,
            "stores_ms_each": 1e3 * outcome.seconds / count,
            "stores_hostile_kept": outcome.hostile_kept,
            "stores_bound_mib": limits.bytes_in_all / (1 << 20),
            "stores_estimated_mib": outcome.estimated_bytes / (1 << 20),
            "stores_real_mib": outcome.real_bytes / (1 << 20),
            "stores_process_grew_mib": outcome.grown_bytes / (1 << 20),
        },
        checks=[
            Check("stores_estimated_to_bound", outcome.estimated_bytes / limits.bytes_in_all, "<=", 1.0),
            Check("stores_real_to_bound", outcome.real_bytes / limits.bytes_in_all, "<=", 1.0),
            Check("stores_honest_kept", outcome.kept_share, ">=", 0.99),
        ],
        curves={
            "stores_memory": Curves(
                "Memory of the record table under hostile stores",
                "hostile stores",
                "MiB",
                {
                    "estimated": [(position, estimated) for position, estimated, _ in outcome.curve],
                    "process grew": [(position, grown) for position, _, grown in outcome.curve],
                    "bound": [(position, limits.bytes_in_all / (1 << 20)) for position, _, _ in outcome.curve],
                },
            )
        },
    )


def _small() -> Limits:
    """A table that so few records fill."""
    return Limits(bytes_in_all=6 << 20, bytes_per_group=4 << 20, bytes_per_ip=3 << 20)


if __name__ == "__main__":
    alone(measure)
