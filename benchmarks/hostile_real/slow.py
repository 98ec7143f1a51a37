"""What do 500 slow or half-open connections cost an honest client of a seed?

A seed in a process of its own serves shards of 32 MiB. A client with an address of its own fetches blocks of 1 MiB, one
after the other, each verified, with new connections every 20 blocks: before the attack, during it and after it. The
attack, a second process, keeps 500 connections open from 32 other addresses, six kinds in equal parts: those that say
nothing, that drip headers, that drip the body of a request, that ask for a shard and read nothing, or 20 kB/s, and
those that ask for something small and then idle. Each that is cut is opened again at once.

The seed's descriptors are counted, too: none may be left over.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dht_real.alone import alone, distribution
from benchmarks.dht_real.process import Command, rss_bytes, worker
from benchmarks.dht_simulated.result import Curves, Result, p50
from benchmarks.harness import Check, temporary_folder
from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.network import PUBLIC
from dhtdata.store import Store
from dhtdata.transfer.wire import Connection, blob_path
from tests.peer.processes import seeding, settings_at
from tests.peer.worlds import Shard, make_world

HONEST = "127.0.0.2"
ADDRESSES = 32
BLOCK_BYTES = 1 << 20
BLOCKS_PER_CLIENT = 20
SETTLE_S = 0.5


@dataclass(frozen=True)
class Size:
    """Connections of the attack, blocks that are fetched before, during and after, seconds between two of them."""

    connections: int
    quiet: int
    attacked: int
    pause_s: float


FULL, QUICK = Size(500, 1_000, 2_000, 0.01), Size(500, 250, 500, 0.005)


@dataclass(frozen=True)
class Seed:
    """The seed that is attacked, and what it serves."""

    pid: int
    address: Address
    shards: tuple[Shard, ...]
    small: Digest

    def descriptors(self) -> int:
        """Sockets and files, but for those that each of its threads has of the store's index."""
        count = 0
        for descriptor in os.listdir(f"/proc/{self.pid}/fd"):
            with suppress(FileNotFoundError):
                count += ".sqlite" not in os.readlink(f"/proc/{self.pid}/fd/{descriptor}")
        return count


@contextmanager
def seed_process(folder: Path, seed: int) -> Iterator[Seed]:
    world = make_world(seed, shards=2, blocks=32, block_bytes=BLOCK_BYTES)
    settings = settings_at(folder)
    with Store.open(settings.store) as store:
        world.publish(store)
    with seeding(settings, str(world.manifest)) as running:
        if not running.line().startswith("seeded"):
            raise RuntimeError("the seed did not take up its dataset")
        yield Seed(running.running.pid, running.address, world.shards, world.manifest)


async def fetch(seed: Seed, count: int, pause_s: float, chance: random.Random) -> list[float]:
    """Seconds that each block took. Whatever goes wrong is an error."""
    taken: list[float] = []
    while len(taken) < count:
        connection = Connection(seed.address, PUBLIC, HONEST)
        for _ in range(min(BLOCKS_PER_CLIENT, count - len(taken))):
            shard = chance.choice(seed.shards)
            block = chance.choice([block for block in shard.table.blocks if block.length == BLOCK_BYTES])
            body = bytearray(block.length)
            started = time.perf_counter()
            await asyncio.to_thread(connection.open, blob_path(shard.digest), block.offset, block.length)
            await asyncio.to_thread(connection.read_into, memoryview(body))
            taken.append(time.perf_counter() - started)
            if Digest.of(body) != block.digest:
                raise RuntimeError("wrong bytes")
            await asyncio.sleep(pause_s)
        connection.close()
    return taken


@dataclass(frozen=True)
class Story:
    """Seconds by block, connections and descriptors at the end of the attack and after it."""

    quiet_s: list[float]
    attacked_s: list[float]
    attack: Command
    descriptors: tuple[int, int, int]
    rss: int


async def story(seed: Seed, size: Size, number: int) -> Story:
    chance = random.Random(number)
    await fetch(seed, BLOCKS_PER_CLIENT, 0, chance)
    await asyncio.sleep(SETTLE_S)
    before = seed.descriptors()
    quiet_s = await fetch(seed, size.quiet, size.pause_s, chance)
    async with worker("benchmarks.hostile_real.slow_worker") as attacker:
        aim = {"port": seed.address.port, "path": f"/v1/blobs/{seed.shards[0].digest}", "seed": number}
        small = f"/v1/blobs/{seed.small}"
        await attacker.ask("attack", 60, **aim, small=small, connections=size.connections, addresses=ADDRESSES)
        attacked_s = await fetch(seed, size.attacked, size.pause_s, chance)
        during = seed.descriptors()
        attack = await attacker.ask("state")
        rss = rss_bytes(seed.pid)
    quiet_s += await fetch(seed, size.quiet, size.pause_s, chance)
    await asyncio.sleep(SETTLE_S)
    return Story(quiet_s, attacked_s, attack, (before, during, seed.descriptors()), rss)


def p99(values: list[float]) -> float:
    return sorted(values)[-(-99 * len(values) // 100) - 1]


def measure(quick: bool, seed: int) -> Result:
    """What do 500 slow or half-open connections cost an honest client of a seed?"""
    size = QUICK if quick else FULL
    with temporary_folder() as folder, seed_process(folder, seed) as served:
        told = asyncio.run(story(served, size, seed))
    before, during, after = told.descriptors
    open_now = sum(told.attack["open"].values())
    return Result(
        figures={
            "slow_connections_open_at_the_end": open_now,
            "slow_connections_cut": sum(told.attack["cut"].values()),
            "slow_block_p50_s": p50(told.attacked_s),
            "slow_block_p50_s_without": p50(told.quiet_s),
            "slow_block_p99_s": p99(told.attacked_s),
            "slow_block_p99_s_without": p99(told.quiet_s),
            "slow_seed_descriptors_during": during,
            "slow_seed_rss_bytes": told.rss,
        },
        checks=[
            Check("slow_connections_open", open_now, ">=", 0.9 * size.connections),
            Check("slow_block_p99_ratio", p99(told.attacked_s) / p99(told.quiet_s), "<=", 2.0),
            Check("slow_descriptors_left_over", after - before, "<=", 0),
        ],
        curves={
            "slow_blocks": Curves(
                f"Fetching a block beside {size.connections} slow connections",
                "milliseconds",
                "share of blocks that took no longer",
                {"without": distribution(told.quiet_s), "with": distribution(told.attacked_s)},
                log_x=True,
            )
        },
    )


if __name__ == "__main__":
    alone(measure)
