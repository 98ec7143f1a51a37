"""A peer is killed again and again while it fetches: is what was verified kept, and is anything of it fetched twice?

The peer of a store is started, asked for a dataset, and killed with SIGKILL a random moment later, until the dataset is
whole; then another dataset, until there were 100 kills (quick: 10). Between kill and start the files are read: which
blocks are there and right. The provider, of bounded speed, notes every span that it is asked for afterwards: none may
touch a block that was there. What it sent in all, over the size of the dataset, shows what the kills cost: bytes that
were on their way.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.process import Worker, worker
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check, temporary_folder
from benchmarks.hostile_real.peers import END_S, alive, kill, settings_at, stop_peer, until
from benchmarks.hostile_real.providers_worker import HONEST
from benchmarks.hostile_real.worlds import Shape, World, make_world
from dhtdata.config import Settings
from dhtdata.control import PeerClient
from dhtdata.errors import DhtDataError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store

SHAPE = Shape(8, 32, 128 << 10)
RATE = 8 << 20
LONGEST_S = 1.0
SEARCH_S = 30.0
FULL_KILLS, QUICK_KILLS = 100, 10


@dataclass
class Outcome:
    kills: int = 0
    kills_with_blocks: int = 0
    datasets: int = 0
    asked_again_bytes: int = 0
    sent_bytes: int = 0
    size_bytes: int = 0
    unsound: int = 0


def held_blocks(store: Store, world: World) -> dict[str, list[tuple[int, int]]]:
    """Half-open spans of blocks that are there and right, by shard; files are digested anew."""
    held: dict[str, list[tuple[int, int]]] = {}
    begun = set(store.partials())
    for shard in world.shards:
        if store.has(shard.digest):
            held[shard.digest.hex()] = [(0, shard.table.shard_bytes)]
        elif shard.digest in begun:
            partial = store.partial(shard.digest, shard.table)
            blocks = enumerate(shard.table.blocks)
            held[shard.digest.hex()] = [
                (block.offset, block.offset + block.length) for place, block in blocks if partial.has(place)
            ]
    return held


def overlap(held: dict[str, list[tuple[int, int]]], spans: list[tuple[str, int, int]]) -> int:
    """Bytes of these spans that were held."""
    return sum(
        max(0, min(end, last) - max(start, first)) for shard, start, end in spans for first, last in held.get(shard, ())
    )


def live_and_die(store: Store, settings: Settings, ticket: Ticket, after_s: float) -> bool:
    """Start the store's peer, let it fetch, kill it so much later; whether it was done before that."""
    with PeerClient.connect(store, settings, start=True) as starting:
        pid = starting.status().pid
        found = starting.resolve(ticket, SEARCH_S)
    done: list[bool] = []

    def fetch() -> None:
        try:
            # One that starts no peer: else it would raise the one that was killed.
            with PeerClient.connect(store, settings, start=False) as client:
                client.fetch_dataset(found.manifest)
                done.append(True)
        except DhtDataError:
            return

    fetching = threading.Thread(target=fetch)
    fetching.start()
    fetching.join(after_s)
    kill(pid)
    until(lambda: not alive(pid), END_S)
    fetching.join(SEARCH_S)
    return bool(done)


async def story(folder: Path, kills: int, seed: int) -> Outcome:
    chance, outcome = random.Random(seed), Outcome()
    async with worker("benchmarks.hostile_real.providers_worker") as providers:
        while outcome.kills < kills:
            await one_dataset(folder / f"{outcome.datasets}", providers, kills, chance, outcome)
    return outcome


async def one_dataset(folder: Path, providers: Worker, kills: int, chance: random.Random, outcome: Outcome) -> None:
    outcome.datasets += 1
    shape = (SHAPE.shards, SHAPE.blocks, SHAPE.block_bytes)
    opened = await providers.ask("open", roles=[HONEST], seed=outcome.datasets, shape=shape, rate=RATE)
    world = make_world(outcome.datasets, SHAPE)
    ticket = Ticket(world.manifest, (Address.parse(opened["addresses"][0]),))
    settings = settings_at(folder)
    with Store.open(settings.store) as store:
        held: dict[str, list[tuple[int, int]]] = {}
        while not await asyncio.to_thread(world.held_by, store):
            last = outcome.kills >= kills
            after_s = 60.0 if last else chance.uniform(0, LONGEST_S)
            done = await asyncio.to_thread(live_and_die, store, settings, ticket, after_s)
            spans = (await providers.ask("asked"))["spans"]
            outcome.asked_again_bytes += overlap(held, spans)
            held = await asyncio.to_thread(held_blocks, store, world)
            if not done:
                outcome.kills += 1
                outcome.kills_with_blocks += any(held.values())
        await asyncio.to_thread(stop_peer, store, settings)
        outcome.unsound += sum(result.state != "ok" for result in store.scrub())
    outcome.sent_bytes += (await providers.ask("counts"))["providers"][0]["bytes_sent"]
    outcome.size_bytes += world.bytes


def measure(quick: bool, seed: int) -> Result:
    started_s = time.perf_counter()
    with temporary_folder() as folder:
        outcome = asyncio.run(story(folder, QUICK_KILLS if quick else FULL_KILLS, seed))
    return Result(
        figures={
            "crashes": outcome.kills,
            "crashes_with_blocks_on_disk": outcome.kills_with_blocks,
            "crashes_datasets": outcome.datasets,
            "crashes_sent_over_size": outcome.sent_bytes / outcome.size_bytes,
            "crashes_lost_on_the_way_mib_a_kill": (outcome.sent_bytes - outcome.size_bytes) / (outcome.kills << 20),
            "crashes_s": time.perf_counter() - started_s,
        },
        checks=[
            Check("crashes_bytes_asked_again", outcome.asked_again_bytes, "==", 0),
            Check("crashes_blobs_unsound", outcome.unsound, "==", 0),
        ],
    )


if __name__ == "__main__":
    alone(measure)
