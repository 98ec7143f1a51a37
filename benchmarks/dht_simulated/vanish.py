"""Is everything found when half of all nodes vanish at once?

500 nodes (quick: 100) publish; then half of them lose power in the same instant, publishers spared. Look-ups begin at
once, over the next minute, before any table could be cleaned. At least 99.9% must find their provider.
"""

from __future__ import annotations

import asyncio

from benchmarks.dht_simulated.lookups import Lookup, look_up_many, publish, share_found
from benchmarks.dht_simulated.result import Result, p50, p95, simulate
from benchmarks.harness import Check
from tests.simulation.links import WAN
from tests.simulation.swarm import Swarm

SETTLE_S = 300.0
WITHIN_S = 60.0


async def story(nodes: int, keys: int, count: int, seed: int) -> list[Lookup]:
    network = Swarm(seed, WAN)
    try:
        await network.grow(nodes, at_once=nodes // 20)
        await asyncio.sleep(SETTLE_S)
        published = await publish(network, keys)
        spared = {each.publisher for each in published}
        mortal = [node for node in network.nodes if node not in spared]
        for node in network.randomness.sample(mortal, nodes // 2):
            network.kill(node)
        return await look_up_many(network, published, count, WITHIN_S)
    finally:
        await network.close()


def measure(quick: bool, seed: int) -> Result:
    nodes, keys, count = (100, 20, 200) if quick else (500, 100, 2_000)
    lookups = simulate(story(nodes, keys, count, seed))
    first_s = [each.first_s for each in lookups]
    return Result(
        figures={
            "vanish_nodes": nodes,
            "vanish_lookups": count,
            "vanish_p50_s": p50(first_s),
            "vanish_p95_s": p95(first_s),
        },
        checks=[Check("vanish_found", share_found(lookups), ">=", 0.999)],
    )
