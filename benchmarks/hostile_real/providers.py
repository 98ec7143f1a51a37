"""Eight providers, two of them honest: how soon is all there, what is wasted, who is banned?

Two lie, one stalls, one dies half-way, one has a hundredth of the speed, one never ends, two are honest. Each sends at
most the same bounded rate over all its connections, so that the comparison is about whom the peer asks for what, not
about processor time. Compared with the two honest ones alone, in the same run, each time with a peer of an own new
store that already runs. All eight say that they have everything, and their small blobs and have-maps are right; the
liars' shards are not: one flips a byte of every answer, the other sends bytes of another place of the shard. The one
that dies is cut off in the middle of a body when half of the dataset has been sent by those who send right bytes. Who
lies counts its own lies.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.process import Command, Worker, worker
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check, temporary_folder
from benchmarks.hostile_real.peers import Fetching, fetching
from benchmarks.hostile_real.providers_worker import DIES, ENDLESS, FLIPS, HONEST, LIARS, SLOW, STALLS, SWAPS
from benchmarks.hostile_real.worlds import Shape, World, make_world
from dhtdata.control.protocol import PeerStatus, Progress
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Ticket

HONEST_ONLY = (HONEST, HONEST)
ALL = (FLIPS, HONEST, STALLS, SWAPS, DIES, SLOW, HONEST, ENDLESS)
FULL, QUICK = Shape(8, 32, 1 << 20), Shape(2, 32, 1 << 20)
FULL_RATE, QUICK_RATE = 8 << 20, 4 << 20
SEARCH_S = 60.0
LIMIT_TIMES = 20
BAR = 1.5


@dataclass
class Story:
    """One fetch. ``avoided``: by address, why it was avoided at any time; ``counts``: what the providers say."""

    took_s: float
    status: PeerStatus
    verified: bool
    addresses: dict[str, str]
    avoided_at_end: dict[str, str]
    avoided: dict[str, set[str]] = field(default_factory=dict)
    counts: list[Command] = field(default_factory=list)

    def wasted(self, *roles: str) -> int:
        return sum(each.wasted for each in self.status.traffic if self.addresses.get(each.address) in roles)

    def delivered(self, *roles: str) -> int:
        return sum(each.bytes for each in self.status.traffic if self.addresses.get(each.address) in roles)

    def banned(self, *roles: str) -> list[str]:
        return [address for address, role in self.addresses.items() if role in roles and self.avoided_at_end[address]]

    def sent(self, *roles: str) -> int:
        return sum(each["bytes_sent"] for each in self.counts if each["role"] in roles)


def fetch(folder: Path, world: World, addresses: dict[str, str], seed: int) -> Story:
    shuffled = [Address.parse(text) for text in addresses]
    random.Random(seed).shuffle(shuffled)
    avoided: dict[str, set[str]] = {}
    with fetching(folder) as peer:

        def look(_: Progress) -> None:
            _avoided(peer, avoided)

        # The search waits for a DHT that is not there, which has nothing to do with who answers.
        found = peer.client.resolve(Ticket(world.manifest, tuple(shuffled)), SEARCH_S)
        started_s = time.perf_counter()
        peer.client.fetch_dataset(found.manifest, on_progress=look)
        took_s = time.perf_counter() - started_s
        at_end = dict.fromkeys(addresses, "") | _avoided(peer, avoided)
        return Story(took_s, peer.client.status(), world.held_by(peer.store), addresses, at_end, avoided)


def _avoided(peer: Fetching, noted: dict[str, set[str]]) -> dict[str, str]:
    """Why, by address, of those who delivered or wasted anything."""
    now = {one.address: one.avoided for one in peer.client.status().traffic}
    for address, reason in now.items():
        if reason:
            noted.setdefault(address, set()).add(reason)
    return now


async def story(folder: Path, world: World, roles: tuple[str, ...], providers: Worker, opening: Command) -> Story:
    opened = await providers.ask("open", 120, roles=roles, **opening)
    addresses = dict(zip(opened["addresses"], roles, strict=True))
    limit_s = LIMIT_TIMES * world.bytes / (2 * opening["rate"])
    async with asyncio.timeout(limit_s):
        told = await asyncio.to_thread(fetch, folder, world, addresses, opening["seed"])
    told.counts = (await providers.ask("counts"))["providers"]
    if not told.verified:
        raise RuntimeError("the store does not hold every byte")
    return told


async def stories(quick: bool, seed: int) -> tuple[World, Story, Story]:
    shape, rate = (QUICK, QUICK_RATE) if quick else (FULL, FULL_RATE)
    world = make_world(seed, shape)
    opening = {"seed": seed, "shape": (shape.shards, shape.blocks, shape.block_bytes), "rate": rate}
    async with worker("benchmarks.hostile_real.providers_worker") as providers:
        with temporary_folder() as folder:
            alone_ = await story(folder / "honest", world, HONEST_ONLY, providers, opening)
            mixed = await story(folder / "mixed", world, ALL, providers, opening)
    return world, alone_, mixed


def measure(quick: bool, seed: int) -> Result:
    world, honest, mixed = asyncio.run(stories(quick, seed))
    block_bytes = max(block.length for shard in world.shards for block in shard.table.blocks)
    lies = sum(each["lies"] for each in mixed.counts)
    rate = QUICK_RATE if quick else FULL_RATE
    figures: dict[str, float | str] = {
        "providers_dataset_mib": world.bytes / (1 << 20),
        "providers_rate_mib_s": rate / (1 << 20),
        "providers_honest_only_s": honest.took_s,
        "providers_honest_only_times_the_bound": honest.took_s / (world.bytes / (2 * rate)),
        "providers_mixed_s": mixed.took_s,
        "providers_lies": lies,
        "providers_wasted_by_liars_blocks": mixed.wasted(*LIARS) / block_bytes,
        "providers_sent_by_liars_blocks": mixed.sent(*LIARS) / block_bytes,
        "providers_honest_only_wasted_blocks": honest.wasted(HONEST) / block_bytes,
    }
    for role in (HONEST, DIES, SLOW, STALLS, ENDLESS):
        figures[f"providers_{role}_delivered_mib"] = mixed.delivered(role) / (1 << 20)
        figures[f"providers_{role}_wasted_blocks"] = mixed.wasted(role) / block_bytes
        figures[f"providers_{role}_sent_mib"] = mixed.sent(role) / (1 << 20)
    ever = {address for address, role in mixed.addresses.items() if role == HONEST and mixed.avoided.get(address)}
    ever |= {address for address in honest.addresses if honest.avoided.get(address)}
    reasons = {reason for address in ever for reason in mixed.avoided.get(address, honest.avoided.get(address, ()))}
    if reasons:
        figures["providers_honest_avoided_because"] = "; ".join(sorted(reasons))[:300]
    return Result(
        figures=figures,
        checks=[
            Check("providers_times_honest_only", mixed.took_s / honest.took_s, "<=", BAR),
            Check("providers_blocks_wasted_a_lie", mixed.wasted(*LIARS) / block_bytes / max(lies, 1), "<=", 1),
            Check("providers_liars_banned", len(mixed.banned(*LIARS)), "==", len(LIARS)),
            Check("providers_honest_ever_avoided", len(ever), "==", 0),
        ],
    )


if __name__ == "__main__":
    alone(measure)
