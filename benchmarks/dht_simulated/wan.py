"""How soon is the first provider found over the Internet, with 30% of all nodes dead at once?

1,000 nodes (quick: 120) with a median round trip of 80 ms and a long tail (`tests.simulation.links.WAN`) join, know
each other for a while, and some announce. Then 30% lose power, publishers spared, and the others look up at once. The
first provider must come within 2 s for 95%, and be found by 99.9%; who finds nobody counts as 60 s. The stock
``kademlia`` package does the same at the same size, on the same links, with one value per key.
"""

from __future__ import annotations

import asyncio
import logging

from benchmarks.dht_simulated.lookups import NEVER_S, look_up_many, publish, share_found
from benchmarks.dht_simulated.result import Result, p50, p95, simulate
from benchmarks.harness import Check
from tests.simulation.links import WAN
from tests.simulation.network import SimulatedNetwork
from tests.simulation.stock import stock_swarm
from tests.simulation.swarm import Swarm

DEAD = 0.3
SETTLE_S = 300.0
WITHIN_S = 60.0


async def ours(nodes: int, keys: int, count: int, seed: int) -> tuple[list[float], float]:
    """(seconds to the first provider, share found)."""
    network = Swarm(seed, WAN)
    try:
        await network.grow(nodes, at_once=nodes // 20)
        await asyncio.sleep(SETTLE_S)
        published = await publish(network, keys)
        spared = {each.publisher for each in published}
        mortal = [node for node in network.nodes if node not in spared]
        for node in network.randomness.sample(mortal, int(DEAD * nodes)):
            network.kill(node)
        lookups = await look_up_many(network, published, count, WITHIN_S)
        return [each.first_s for each in lookups], share_found(lookups)
    finally:
        await network.close()


async def stock(nodes: int, keys: int, count: int, seed: int) -> tuple[list[float], float]:
    """The same of the stock package: ``get``, one at a time, as it waits for all of a round anyway."""
    network = SimulatedNetwork(seed, WAN)
    async with stock_swarm(nodes, network) as swarm:
        for number in range(keys):
            await swarm.set(f"key {number}", f"value {number}")
        swarm.kill(int(DEAD * nodes))
        took_s, found = [], 0
        for position in range(count):
            number = position % keys
            value, seconds = await swarm.get(f"key {number}")
            right = value == f"value {number}"
            found += right
            took_s.append(seconds if right else max(seconds, NEVER_S))
        return took_s, found / count


def measure(quick: bool, seed: int) -> Result:
    nodes, keys, count = (120, 20, 200) if quick else (1_000, 100, 2_000)
    logging.disable(logging.CRITICAL)  # the stock package logs every time-out as an error
    first_s, found = simulate(ours(nodes, keys, count, seed))
    stock_s, stock_found = simulate(stock(nodes, keys, count // 5, seed))
    return Result(
        figures={
            "wan_nodes": nodes,
            "wan_lookups": count,
            "wan_first_provider_p50_s": p50(first_s),
            "wan_first_provider_p95_s": p95(first_s),
            "wan_found": found,
            "wan_stock_get_p50_s": p50(stock_s),
            "wan_stock_get_p95_s": p95(stock_s),
            "wan_stock_found": stock_found,
        },
        checks=[
            Check("wan_first_provider_p95_s", p95(first_s), "<=", 2.0),
            Check("wan_found", found, ">=", 0.999),
        ],
    )
