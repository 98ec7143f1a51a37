"""Is a provider found all day while nodes come and go?

500 nodes (quick: 40) for 24 hours (quick: 1): sessions are exponential with a median of one hour and end with a power
cut; for each that ends a new node joins. One announcer stays and renews its claim as `dhtdata seed` does, every 45
minutes. All day long random nodes that have joined look its contents up. At least 99.9% must find it.
"""

from __future__ import annotations

import asyncio

from benchmarks.dht_simulated.lookups import Lookup, Published, announce, contents, look_up, nearby, share_found
from benchmarks.dht_simulated.result import Curves, Result, p50, p95, simulate
from benchmarks.harness import Check
from dhtdata.formats.records import PROVIDER_RENEWAL_S, contents_key
from tests.simulation.links import WAN, Exponential
from tests.simulation.swarm import Swarm, churning

MEDIAN_SESSION_S = 3_600.0
SETTLE_S = 300.0


async def story(nodes: int, hours: int, per_hour: int, seed: int) -> tuple[list[list[Lookup]], int]:
    """(look-ups of every hour, nodes that left)."""
    network = Swarm(seed, WAN)
    try:
        await network.grow(nodes, at_once=nodes // 20)
        await asyncio.sleep(SETTLE_S)
        digest = contents("churn")
        wanted = Published(digest, contents_key(digest), network.nodes[0])

        async def renew() -> None:
            while True:
                await announce(network, wanted)
                await asyncio.sleep(PROVIDER_RENEWAL_S)

        async def look() -> Lookup:
            """By a node that has joined; one that loses power while it looks does not count, another tries."""
            while True:
                near = nearby(network, wanted.key)
                searcher = network.randomness.choice([node for node in network.living() if node not in near])
                if searcher is wanted.publisher or not searcher.status().reached:
                    continue
                lookup = await look_up(network, searcher, wanted)
                if lookup.found or network.alive(searcher):
                    return lookup

        await announce(network, wanted)
        by_hour: list[list[Lookup]] = []
        async with churning(network, Exponential(MEDIAN_SESSION_S), [wanted.publisher]), asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(renew())
            for _ in range(hours):
                by_hour.append([])
                for _ in range(per_hour):
                    await asyncio.sleep(3_600 / per_hour)
                    by_hour[-1].append(await look())
            renewing.cancel()
        return by_hour, network.started - nodes
    finally:
        await network.close()


def measure(quick: bool, seed: int) -> Result:
    nodes, hours, per_hour = (40, 1, 60) if quick else (500, 24, 120)
    by_hour, left = simulate(story(nodes, hours, per_hour, seed))
    lookups = [each for hour in by_hour for each in hour]
    first_s = [each.first_s for each in lookups]
    found = [(float(hour), share_found(part)) for hour, part in enumerate(by_hour, start=1)]
    return Result(
        figures={
            "churn_nodes": nodes,
            "churn_hours": hours,
            "churn_nodes_that_left": left,
            "churn_lookups": len(lookups),
            "churn_p50_s": p50(first_s),
            "churn_p95_s": p95(first_s),
        },
        checks=[Check("churn_found", share_found(lookups), ">=", 0.999)],
        curves={"churn": Curves("Found under churn", "hour", "share of look-ups", {"found": found})},
    )
