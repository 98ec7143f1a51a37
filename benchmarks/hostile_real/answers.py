"""100,000 malicious answers in some fifty ways: does a byte get in, does one break or bloat the peer that reads it?

A private peer in a process of its own fetches datasets from providers that are all hostile, each at an address of its
own (127.0.0.0/8 has enough): who lies is banned and not asked again, so new datasets bring new addresses, by ticket and
by exchange of peers, as an attacker would bring them. Every dataset is asked for with a deadline; none can come. Beside
that, blobs are looked for that nobody has, so that whole blobs are lied about as well. After each `WORLDS_A_PHASE`
datasets the peer is replaced: it remembers 256 addresses that its user named, and then knows no new ones. Ways that
never end are rare, for each holds a connection until its deadline.

Counted by who lies: answers begun, and answers that were taken whole. At the end of each phase an honest seed is added,
and its dataset must come.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.process import Command, Worker, worker
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check, temporary_folder
from benchmarks.hostile_real.answers_worker import address_of
from benchmarks.hostile_real.peers import Fetching, Seed, alive, cpu_s, fetching, seeding, settings_at
from benchmarks.hostile_real.worlds import Shape, World, make_world
from benchmarks.hostile_real.wrong_answers import ENDLESS, KINDS, SWIFT
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store

SHAPE = Shape(12, 4, 1_000)
HONEST_SHAPE = Shape(2, 8, 100_000)
FULL_ANSWERS, QUICK_ANSWERS = 100_000, 3_000
WORLDS_A_PHASE, QUICK_WORLDS = 24, 12
AT_ONCE = 6
ADDRESSES_A_WORLD = 200
NAMED_A_WORLD = 3
BLOBS_A_PHASE = 8
NAMED_A_BLOB = 4
WORLD_S = 4.0
SEARCH_S = 30.0
HONEST_S = 60.0
PHASE_LIMIT_S = 300.0
PEERS_AT_ONCE, MAX_PEERS = 3, 150
_COMPLAINTS = ("Traceback", "exception was never retrieved", "Unhandled", "Error in")


@dataclass
class Outcome:
    """What one peer went through. ``hung``: requests that did not end at their deadline."""

    accepted_bytes: int = 0
    blobs_wrong: int = 0
    complaints: list[str] = field(default_factory=list)
    broken: bool = False
    hung: int = 0
    peak_rss_bytes: int = 0
    grew_bytes: int = 0
    cpu_s: float = 0.0
    lived_s: float = 0.0
    honest_s: float = 0.0


class Attack:
    """Hands out addresses and datasets, each once."""

    def __init__(self, seed: int, port: int, worlds_a_phase: int) -> None:
        self._worlds = worlds_a_phase
        self._port = port
        self._numbers: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._swift = self._shuffled()
        self._endless = itertools.cycle(ENDLESS)
        self.telling = asyncio.Lock()
        self.seeds = itertools.count(seed * 1_000_000)

    def _shuffled(self) -> Iterator[str]:
        """All ways, then all again in another order, for ever."""
        while True:
            yield from self._chance.sample(list(SWIFT), len(SWIFT))

    def address(self, *, endless: bool = False) -> Address:
        kind = next(self._endless if endless else self._swift)
        self._numbers[kind] += 1
        return address_of(kind, self._numbers[kind], self._port)

    def blob(self) -> tuple[Digest, list[Address]]:
        """One that nobody has, and who is asked for it."""
        return Digest.of(b"%d" % next(self.seeds)), [self.address() for _ in range(NAMED_A_BLOB)]

    def worlds(self) -> Iterator[tuple[int, World, list[Address]]]:
        """Datasets with their seeds and providers; the first of these are named by the user.

        All who never end provide the last one: each holds some of the few transfers that a peer has.
        """
        for place in range(self._worlds):
            number = next(self.seeds)
            addresses = [self.address() for _ in range(ADDRESSES_A_WORLD)]
            if place == self._worlds - 1:
                addresses[NAMED_A_WORLD:NAMED_A_WORLD] = [self.address(endless=True) for _ in ENDLESS]
            yield number, make_world(number, SHAPE), addresses


@dataclass(frozen=True)
class Honest:
    """Who delivers, and what."""

    seed: Seed
    world: World


async def phase(folder: Path, attack: Attack, hostile: Worker, honest: Honest) -> Outcome:
    """One peer from its start to its end."""
    worlds: list[tuple[World, list[Address]]] = []
    async with attack.telling:
        for number, world, addresses in attack.worlds():
            shape = (SHAPE.shards, SHAPE.blocks, SHAPE.block_bytes)
            await hostile.ask("world", seed=number, shape=shape, addresses=list(map(str, addresses)))
            worlds.append((world, addresses))
    blobs = [attack.blob() for _ in range(BLOBS_A_PHASE)]
    async with asyncio.timeout(PHASE_LIMIT_S):
        return await asyncio.to_thread(_live_through, folder, worlds, blobs, honest)


def _live_through(
    folder: Path,
    worlds: list[tuple[World, list[Address]]],
    blobs: list[tuple[Digest, list[Address]]],
    honest: Honest,
) -> Outcome:
    outcome = Outcome()
    # Through the honest seed it is in a DHT: else every search would wait for hostile addresses to let it enter one.
    with fetching(folder, honest.seed.address) as peer:
        pid, lived_from_s = peer.client.status().pid, time.perf_counter()
        quarter = len(worlds) // 4
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for each in [pool.submit(_fetch, peer, world, addresses, outcome) for world, addresses in worlds[:quarter]]:
                each.result()
            early_bytes = _resident(pid, "VmRSS")
            later = [pool.submit(_fetch, peer, world, addresses, outcome) for world, addresses in worlds[quarter:-1]]
            later += [pool.submit(_look_for, peer, digest, addresses, outcome) for digest, addresses in blobs]
            for each in later:
                each.result()
        _fetch(peer, *worlds[-1], outcome)
        outcome.grew_bytes = _resident(pid, "VmRSS") - early_bytes
        started_s = time.perf_counter()
        _accept_honest(peer, honest)
        outcome.honest_s = time.perf_counter() - started_s
        outcome.peak_rss_bytes = _resident(pid, "VmHWM")
        outcome.cpu_s = cpu_s(pid)
        outcome.lived_s = time.perf_counter() - lived_from_s
        outcome.broken = not alive(pid) or peer.client.status().pid != pid
        verified = peer.client.status().blocks_verified
        outcome.accepted_bytes += SHAPE.block_bytes * max(0, verified - honest.world.blocks)
    with Store.open(peer.settings.store) as store:
        for world, _ in worlds:
            outcome.accepted_bytes += sum(_held_bytes(store, world))
        outcome.blobs_wrong += sum(result.state != "ok" for result in store.scrub())
    log = (peer.settings.store / "peer.log").read_text(errors="replace")
    outcome.complaints = [line for line in log.splitlines() if any(word in line for word in _COMPLAINTS)]
    return outcome


def _fetch(peer: Fetching, world: World, addresses: list[Address], outcome: Outcome) -> None:
    """All shards at once, as a mount would ask; it ends with the deadline."""
    ticket = Ticket(world.manifest, tuple(addresses[:NAMED_A_WORLD]))
    try:
        contents = peer.client.resolve(ticket, SEARCH_S).contents
    except NotFoundError as failure:
        raise RuntimeError(f"a dataset whose description is right was not found: {failure}") from failure

    def ensure(place: int) -> None:
        shard = world.shards[place]
        started_s = time.perf_counter()
        try:
            peer.client.ensure_blocks(contents, shard.digest, Digest.of(shard.table.encode()), (), WORLD_S)
        except NotFoundError:
            outcome.hung += time.perf_counter() - started_s > 2 * WORLD_S

    with ThreadPoolExecutor(len(world.shards)) as pool:
        list(pool.map(ensure, range(len(world.shards))))


def _look_for(peer: Fetching, digest: Digest, addresses: list[Address], outcome: Outcome) -> None:
    started_s = time.perf_counter()
    try:
        peer.client.resolve(Ticket(digest, tuple(addresses)), SEARCH_S)
    except NotFoundError:
        outcome.hung += time.perf_counter() - started_s > 2 * SEARCH_S


def _accept_honest(peer: Fetching, honest: Honest) -> None:
    found = peer.client.resolve(Ticket(honest.world.manifest, (honest.seed.address,)), HONEST_S)
    for shard in honest.world.shards:
        table = Digest.of(shard.table.encode())
        peer.client.ensure_blocks(found.contents, shard.digest, table, (), HONEST_S)
    if not all(peer.store.has(shard.digest) for shard in honest.world.shards):
        raise RuntimeError("an honest seed's dataset did not come whole")


def _held_bytes(store: Store, world: World) -> Iterator[int]:
    """Bytes that the store believes to have of each shard; its blocks are digested anew."""
    for shard in world.shards:
        if store.has(shard.digest):
            yield shard.table.shard_bytes
        elif shard.digest in store.partials():
            yield store.partial(shard.digest, shard.table).held_bytes


def _resident(pid: int, line: str) -> int:
    """Bytes, as a line of /proc/PID/status says."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(each.split()[1]) << 10 for each in status.splitlines() if each.startswith(line))


@dataclass(frozen=True)
class Story:
    outcomes: list[Outcome]
    counts: Command

    @property
    def begun(self) -> int:
        return sum(count for _, _, count in self.counts["begun"])


async def story(answers: int, worlds_a_phase: int, seed: int) -> Story:
    outcomes: list[Outcome] = []
    honest = make_world(seed, HONEST_SHAPE, "honest")
    with temporary_folder() as folder:
        at = settings_at(folder / "honest")
        with Store.open(at.store) as store:
            honest.publish(store)
        with seeding(at, [str(honest.manifest)]) as kept:
            async with worker("benchmarks.hostile_real.answers_worker") as hostile:
                attack = Attack(seed, (await hostile.ask("open"))["port"], worlds_a_phase)
                told = Story(outcomes, await hostile.ask("counts"))
                while told.begun < answers and len(outcomes) < MAX_PEERS:
                    folders = [folder / f"peer-{len(outcomes) + place}" for place in range(PEERS_AT_ONCE)]
                    async with asyncio.TaskGroup() as group:
                        lives = [
                            group.create_task(phase(each, attack, hostile, Honest(kept, honest))) for each in folders
                        ]
                    outcomes += [life.result() for life in lives]
                    told = Story(outcomes, await hostile.ask("counts"))
                    for each in folders:
                        shutil.rmtree(each)
    return told


def measure(quick: bool, seed: int) -> Result:
    asked, worlds_a_phase = (QUICK_ANSWERS, QUICK_WORLDS) if quick else (FULL_ANSWERS, WORLDS_A_PHASE)
    started_s = time.perf_counter()
    told = asyncio.run(story(asked, worlds_a_phase, seed))
    took_s = time.perf_counter() - started_s
    begun, ended, about = Counter[str](), Counter[str](), Counter[str]()
    for kind, what, count in told.counts["begun"]:
        begun[kind] += count
        about[what] += count
    for kind, _, count in told.counts["ended"]:
        ended[kind] += count
    outcomes = told.outcomes
    complaints = [line for outcome in outcomes for line in outcome.complaints]
    for line in dict.fromkeys(complaints):
        print(f"  the peer said: {line}")
    kinds_read = sum(begun[kind] > 0 for kind in KINDS)
    return Result(
        figures={
            "answers": told.begun,
            "answers_taken_whole": sum(ended.values()),
            "answers_about_shards": about["shard"],
            "answers_by_kind": " ".join(f"{kind}={ended[kind]}/{begun[kind]}" for kind in KINDS),
            "answers_a_s": told.begun / took_s,
            "answers_peers": len(outcomes),
            "answers_peer_core_share": sum(each.cpu_s for each in outcomes) / sum(each.lived_s for each in outcomes),
            "answers_process_grew_mib": max(each.grew_bytes for each in outcomes) / (1 << 20),
            "answers_honest_afterwards_s": max(each.honest_s for each in outcomes),
        },
        checks=[
            Check("answers_read", told.begun, ">=", asked),
            Check("answers_kinds_read", kinds_read, ">=", 12),
            Check("answers_bytes_accepted", sum(each.accepted_bytes for each in outcomes), "==", 0),
            Check("answers_blobs_wrong", sum(each.blobs_wrong for each in outcomes), "==", 0),
            Check("answers_unsettled_exceptions", len(complaints) + sum(each.broken for each in outcomes), "==", 0),
            Check("answers_hung", sum(each.hung for each in outcomes), "==", 0),
            Check("answers_redirects_followed", told.counts["trapped"], "==", 0),
            Check("answers_peak_rss_mib", max(each.peak_rss_bytes for each in outcomes) / (1 << 20), "<=", 250),
        ],
    )


if __name__ == "__main__":
    alone(measure)
