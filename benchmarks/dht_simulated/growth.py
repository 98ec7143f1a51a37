"""How do calls a look-up and the size of tables grow from 100 to 10,000 nodes?

Networks of 100, 300 and 1,000 nodes join honestly; 1,000 once more, 3,000 and 10,000 have their tables filled by an
oracle (`tests.simulation.swarm.fill_tables`), because joining 10,000 takes hours: the two networks of 1,000 tell how
good the oracle is. (Quick: 50 and 100, then 100 and 400.) A look-up here goes on to its end, asking every node
of the key's region: that is its whole cost. Both must grow no faster than log N. Calls: from 100 to 10,000 (quick: to
400) by the ratio of the logarithms, and a fifth for chance and for the sizes of regions, which lie between 30 and 60
nodes. Tables: 20 contacts, a bucket, for every doubling, so at most 20 log2 N at any size.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.dht_simulated.lookups import look_up_many, publish, share_found
from benchmarks.dht_simulated.result import Curves, Result, simulate
from benchmarks.harness import Check
from dhtdata.dht.routing import BUCKET_SIZE
from tests.simulation.links import WAN
from tests.simulation.swarm import Swarm, fill_tables

SETTLE_S = 300.0
WITHIN_S = 20.0
MARGIN = 1.2


@dataclass(frozen=True)
class Size:
    """A network's mean calls a look-up and mean contacts a table."""

    nodes: int
    calls: float
    contacts: float
    found: float


async def story(nodes: int, oracle: bool, keys: int, count: int, seed: int) -> Size:
    network = Swarm(seed, WAN)
    try:
        if oracle:
            for _ in range(nodes):
                await network.start()
            fill_tables(network)
        else:
            await network.grow(nodes, at_once=max(1, nodes // 20))
            await asyncio.sleep(SETTLE_S)
        published = await publish(network, keys)
        contacts = statistics.mean(len(node.nodes()) for node in network.nodes)
        lookups = await look_up_many(network, published, count, WITHIN_S, whole=True)
        return Size(nodes, statistics.mean(each.calls for each in lookups), contacts, share_found(lookups))
    finally:
        await network.close()


def fullness(size: Size) -> float:
    """Contacts as a share of what log N allows."""
    return size.contacts / (BUCKET_SIZE * math.log2(size.nodes))


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of the line a + b log2 x through points (x, y), by least squares."""
    logarithms = [math.log2(x) for x, _ in points]
    b, a = statistics.linear_regression(logarithms, [y for _, y in points])
    return a, b


def fitted(points: Sequence[tuple[float, float]]) -> dict[str, list[tuple[float, float]]]:
    a, b = fit(points)
    return {f"{a:.0f} + {b:.1f} log2 N": [(x, a + b * math.log2(x)) for x, _ in points]}


def measure(quick: bool, seed: int) -> Result:
    joined, filled = ((50, 100), (100, 400)) if quick else ((100, 300, 1_000), (1_000, 3_000, 10_000))
    keys, count = (10, 50) if quick else (40, 400)
    honest = [simulate(story(nodes, False, keys, count, seed)) for nodes in joined]
    oracle = [simulate(story(nodes, True, keys, count, seed)) for nodes in filled]
    sizes = [*honest, *oracle[1:]]
    small = next(each for each in honest if each.nodes == 100)
    large, validated = oracle[-1], oracle[0]
    same = next(each for each in honest if each.nodes == validated.nodes)
    bar = MARGIN * math.log2(large.nodes) / math.log2(small.nodes)
    calls = [(float(each.nodes), each.calls) for each in sizes]
    contacts = [(float(each.nodes), each.contacts) for each in sizes]
    return Result(
        figures={
            **{f"growth_calls_a_lookup_{each.nodes}": each.calls for each in sizes},
            **{f"growth_contacts_{each.nodes}": each.contacts for each in sizes},
            "growth_calls_per_doubling": fit(calls)[1],
            "growth_contacts_per_doubling": fit(contacts)[1],
            "growth_oracle_to_joined_calls": validated.calls / same.calls,
            "growth_oracle_to_joined_contacts": validated.contacts / same.contacts,
        },
        checks=[
            Check("growth_calls_ratio", large.calls / small.calls, "<=", bar),
            Check("growth_contacts_of_20_log2_n", max(map(fullness, sizes)), "<=", 1.0),
            Check("growth_found", min(each.found for each in sizes), ">=", 0.999),
        ],
        curves={
            "growth_calls": Curves("Calls a look-up", "nodes", "calls", {"measured": calls, **fitted(calls)}, True),
            "growth_contacts": Curves(
                "Contacts in a table", "nodes", "contacts", {"measured": contacts, **fitted(contacts)}, True
            ),
        },
    )
