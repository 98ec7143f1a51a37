"""How soon is a provider found on real sockets, all alive and 30% dead at once; and how soon by the stock package?

200 nodes (quick: 70) and as many of the stock package, in one process on loopback, joined in the same way. Keys are
announced (``set``) by random nodes and looked up by random others that do not hold them, ours and stock in turns.
*First* is the time to the first verified provider with an address, which must be right; *union* the time until every
node of the key's region was asked. Then 30% of each network lose power at once, publishers spared. Stock's look-ups,
which then wait for seconds and compute nothing, run beside each other there, and ours beside them, one at a time and
only to the first provider; some whole ones follow. A look-up that finds nobody counts as 60 s.

A figure without a bar: the union to stock's ``get`` in processor time of this process, in which all nodes of both live.
On a machine with nothing else to do it is the same as the ratio of times, on a busy one it is the better one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from kademlia.network import Server
from kademlia.utils import digest

from benchmarks.dht_real.alone import alone, distribution
from benchmarks.dht_real.swarm import StockSwarm, Swarm, address, publish, stock_swarm, swarm
from benchmarks.dht_simulated.result import Curves, Result, p50, p95
from benchmarks.harness import Check
from dhtdata.dht import DhtNode
from dhtdata.dht.identity import Identity
from dhtdata.network import PUBLIC_DIFFICULTY_BITS
from dhtdata.signing import SigningKey

DEAD = 0.3
NEVER_S = 60.0
AT_ONCE = 10


@dataclass
class Times:
    """Seconds, one for each look-up."""

    first_s: list[float] = field(default_factory=list)
    union_s: list[float] = field(default_factory=list)
    union_cpu_s: list[float] = field(default_factory=list)
    stock_s: list[float] = field(default_factory=list)
    stock_cpu_s: list[float] = field(default_factory=list)
    stock_found: int = 0

    @property
    def found(self) -> float:
        return sum(each < NEVER_S for each in self.first_s) / len(self.first_s)


@dataclass(frozen=True)
class Networks:
    """Both, and who published which key of ours; stock's keys are numbers, their values themselves."""

    ours: Swarm
    stock: StockSwarm
    published: Sequence[tuple[bytes, DhtNode]]
    randomness: random.Random


async def look_up(node: DhtNode, key: bytes, publisher: DhtNode, whole: bool) -> tuple[float, float]:
    """Seconds to the first provider, and to the end (``whole``) or again to it. RuntimeError if an address is wrong."""
    started_s = time.perf_counter()
    first_s = NEVER_S
    async with aclosing(node.find(key)) as finding:
        async for found in finding:
            if found.record.signer != publisher.key.public or set(found.addresses) - {address(publisher)}:
                raise RuntimeError(f"{found} was found, nobody announced that")
            if found.addresses and first_s == NEVER_S:
                first_s = time.perf_counter() - started_s
                if not whole:
                    break
    return first_s, time.perf_counter() - started_s


async def one_of_ours(networks: Networks, times: Times, whole: bool = True) -> None:
    key, publisher = networks.randomness.choice(networks.published)
    without = [node for node in networks.ours.living() if not networks.ours.holds(node, key)]
    before_s = time.process_time()
    first_s, union_s = await look_up(networks.randomness.choice(without), key, publisher, whole)
    times.first_s.append(first_s)
    if whole:
        times.union_s.append(union_s)
        times.union_cpu_s.append(time.process_time() - before_s)


async def one_of_stock(networks: Networks, times: Times) -> None:
    key = str(networks.randomness.randrange(len(networks.published)))
    without = [each for each in networks.stock.living() if each.storage.get(digest(key)) is None]
    server: Server = networks.randomness.choice(without)
    started_s, before_s = time.perf_counter(), time.process_time()
    value = await server.get(key)
    times.stock_s.append(time.perf_counter() - started_s)
    times.stock_cpu_s.append(time.process_time() - before_s)
    times.stock_found += value == key


async def all_alive(networks: Networks, lookups: int) -> Times:
    times = Times()
    for _ in range(lookups):
        await one_of_stock(networks, times)
        await one_of_ours(networks, times)
    return times


async def some_dead(networks: Networks, lookups: int, stock_lookups: int) -> Times:
    times = Times()
    left = iter(range(stock_lookups))

    async def look_up_on() -> None:
        for _ in left:
            await one_of_stock(networks, times)

    async with asyncio.TaskGroup() as waiting:
        for _ in range(AT_ONCE):
            waiting.create_task(look_up_on())
        for _ in range(lookups):
            await one_of_ours(networks, times, whole=False)
    await asyncio.gather(*(one_of_ours(networks, times) for _ in range(AT_ONCE)))
    return times


async def story(nodes: int, keys: int, lookups: int, seed: int) -> tuple[Times, Times]:
    """(all alive, 30% dead)."""
    async with swarm(nodes, seed) as ours, stock_swarm(nodes, seed) as stock:
        randomness = random.Random(seed)
        publishers = [randomness.choice(ours.serving()) for _ in range(keys)]
        published = []
        for position, publisher in enumerate(publishers):
            published.append((await publish(publisher, f"contents {position}"), publisher))
            await randomness.choice(stock.servers).set(str(position), str(position))
        networks = Networks(ours, stock, published, randomness)
        await ours.quiet()
        alive = await all_alive(networks, lookups)
        ours.kill(int(DEAD * nodes), spared=set(publishers))
        stock.kill(int(DEAD * nodes))
        dead = await some_dead(networks, lookups, max(AT_ONCE, lookups // 10))
        return alive, dead


def proof_s(seed: int) -> float:
    """Mean seconds that a node computes before its first start in the public network."""
    randomness = random.Random(seed)
    tries = 5
    started_s = time.perf_counter()
    for _ in range(tries):
        Identity.proven(SigningKey(randomness.randbytes(32)), PUBLIC_DIFFICULTY_BITS)
    return (time.perf_counter() - started_s) / tries


def measure(quick: bool, seed: int) -> Result:
    nodes, keys, lookups = (70, 12, 40) if quick else (200, 60, 400)
    alive, dead = asyncio.run(story(nodes, keys, lookups, seed))
    stock_s = p50(alive.stock_s)
    return Result(
        figures={
            "lookup_nodes": nodes,
            "lookup_first_p50_s": p50(alive.first_s),
            "lookup_first_p95_s": p95(alive.first_s),
            "lookup_union_p50_s": p50(alive.union_s),
            "lookup_stock_p50_s": stock_s,
            "lookup_union_to_stock_in_processor_time": p50(alive.union_cpu_s) / p50(alive.stock_cpu_s),
            "lookup_dead_first_p50_s": p50(dead.first_s),
            "lookup_dead_first_p95_s": p95(dead.first_s),
            "lookup_dead_union_p50_s": p50(dead.union_s),
            "lookup_dead_stock_p50_s": p50(dead.stock_s),
            "lookup_dead_stock_found": dead.stock_found / len(dead.stock_s),
            "lookup_identity_of_16_bits_s": proof_s(seed),
        },
        checks=[
            Check("lookup_first_to_stock", p50(alive.first_s) / stock_s, "<=", 4.0),
            Check("lookup_union_to_stock", p50(alive.union_s) / stock_s, "<=", 50.0),
            Check("lookup_found", alive.found, "==", 1.0),
            Check("lookup_dead_first_p95_to_stock", p95(dead.first_s) / p50(dead.stock_s), "<=", 1 / 50),
            Check("lookup_dead_found", dead.found, "==", 1.0),
        ],
        curves={
            "lookup_times": Curves(
                f"Look-ups among {nodes} nodes of this machine",
                "milliseconds",
                "share of look-ups that took no longer",
                {
                    "first provider": distribution(alive.first_s),
                    "first provider, 30% dead": distribution(dead.first_s),
                    "stock get": distribution(alive.stock_s),
                    "stock get, 30% dead": distribution(dead.stock_s),
                },
                log_x=True,
            )
        },
    )


if __name__ == "__main__":
    alone(measure)
