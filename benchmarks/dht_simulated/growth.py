"""How do calls a look-up and the size of tables grow from 100 to 10,000 nodes?

*Joined*: networks of 100, 300 and 1,000 nodes (quick: 50 and 100) join honestly and are measured an hour later (quick:
five minutes). *Filled*: of 100, 300, 1,000, 3,000 and 10,000 nodes (quick: 100 and 300) the tables are filled by an
oracle (`tests.simulation.swarm.fill_tables`), because joining 10,000 takes hours. The two are not mixed: an oracle's
tables are full, joined ones fill up over the hours, so look-ups in joined networks take somewhat more calls. At the
sizes that both have, ``growth_filled_to_joined`` tells how much. A look-up here goes on to its end, asking every node
of the key's region: that is its whole cost.

Both must grow no faster than log N. Calls: from the smallest to the largest network of a kind by the ratio of the
logarithms, and a fifth for chance and for the sizes of regions, which vary by a factor of two. Tables: 20 contacts, a
bucket, for every doubling, so at most 20 log2 N at any size.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.dht_simulated.lookups import look_up_many, publish, share_found
from benchmarks.dht_simulated.result import Curves, Result, simulate
from benchmarks.harness import Check
from dhtdata.dht.routing import BUCKET_SIZE
from tests.simulation.links import WAN
from tests.simulation.swarm import Swarm, fill_tables

WITHIN_S = 20.0
MARGIN = 1.2


@dataclass(frozen=True)
class Size:
    """A network's mean calls a look-up and mean contacts a table."""

    nodes: int
    calls: float
    contacts: float
    found: float


async def story(nodes: int, settle_s: float | None, keys: int, count: int, seed: int) -> Size:
    """Joined, and measured after a while; None: filled."""
    network = Swarm(seed, WAN)
    try:
        if settle_s is None:
            for _ in range(nodes):
                await network.start()
            fill_tables(network)
        else:
            await network.grow(nodes, at_once=max(1, nodes // 20))
            await asyncio.sleep(settle_s)
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


def fitted(points: Sequence[tuple[float, float]]) -> tuple[str, list[tuple[float, float]]]:
    a, b = fit(points)
    return f"{a:.0f} + {b:.1f} log2 N", [(x, a + b * math.log2(x)) for x, _ in points]


def excess(sizes: Sequence[Size]) -> float:
    """Growth of the calls from the smallest to the largest network, as a share of the growth of log N."""
    small, large = sizes[0], sizes[-1]
    return large.calls / small.calls / (math.log2(large.nodes) / math.log2(small.nodes))


def pictured(title: str, what: str, kinds: Mapping[str, Sequence[Size]]) -> Curves:
    lines: dict[str, Sequence[tuple[float, float]]] = {}
    for kind, sizes in kinds.items():
        points = [(float(each.nodes), float(getattr(each, what))) for each in sizes]
        label, line = fitted(points)
        lines |= {kind: points, f"{kind}: {label}": line}
    return Curves(title, "nodes", what, lines, log_x=True)


def measure(quick: bool, seed: int) -> Result:
    joined, filled = ((50, 100), (100, 300)) if quick else ((100, 300, 1_000), (100, 300, 1_000, 3_000, 10_000))
    keys, count = (6, 30) if quick else (40, 400)
    settle_s = 300.0 if quick else 3_600.0
    kinds = {
        "joined": [simulate(story(nodes, settle_s, keys, count, seed)) for nodes in joined],
        "filled": [simulate(story(nodes, None, keys, count, seed)) for nodes in filled],
    }
    figures: dict[str, float | str] = {}
    checks: list[Check] = []
    for kind, sizes in kinds.items():
        figures |= {f"growth_{kind}_calls_a_lookup_{each.nodes}": each.calls for each in sizes}
        figures |= {f"growth_{kind}_contacts_{each.nodes}": each.contacts for each in sizes}
        figures[f"growth_{kind}_calls_per_doubling"] = fit([(each.nodes, each.calls) for each in sizes])[1]
        checks.append(Check(f"growth_{kind}_calls_to_log_n", excess(sizes), "<=", MARGIN))
        checks.append(Check(f"growth_{kind}_contacts_of_20_log2_n", max(map(fullness, sizes)), "<=", 1.0))
    full = {each.nodes: each for each in kinds["filled"]}
    for each in kinds["joined"]:
        if (oracle := full.get(each.nodes)) is not None:
            figures[f"growth_filled_to_joined_calls_{each.nodes}"] = oracle.calls / each.calls
            figures[f"growth_filled_to_joined_contacts_{each.nodes}"] = oracle.contacts / each.contacts
    found = min(each.found for sizes in kinds.values() for each in sizes)
    checks.append(Check("growth_found", found, ">=", 0.999))
    return Result(
        figures,
        checks,
        curves={
            "growth_calls": pictured("Calls a look-up", "calls", kinds),
            "growth_contacts": pictured("Contacts in a table", "contacts", kinds),
        },
    )
