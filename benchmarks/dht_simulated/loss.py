"""What do 20% of lost datagrams and 5% of reordered ones cost?

500 nodes (quick: 80) over the Internet join and publish. Look-ups are measured on the clean network first, then with
loss and reordering (a reordered datagram is 50 to 500 ms late), of contents that were announced under the same. At
least 99.9% must find their provider, and 95% within four times what the clean network takes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from benchmarks.dht_simulated.lookups import Lookup, look_up_many, publish, share_found
from benchmarks.dht_simulated.result import Result, p50, p95, simulate
from benchmarks.harness import Check
from tests.simulation.links import WAN
from tests.simulation.swarm import Swarm

LOST, REORDERED = 0.2, 0.05
SETTLE_S = 300.0
WITHIN_S = 60.0


async def both(nodes: int, keys: int, count: int, seed: int) -> tuple[list[Lookup], list[Lookup]]:
    """Look-ups on the clean network and on the bad one."""
    network = Swarm(seed, WAN)
    try:
        await network.grow(nodes, at_once=nodes // 20)
        await asyncio.sleep(SETTLE_S)
        clean = await look_up_many(network, await publish(network, keys, "clean"), count, WITHIN_S)
        network.links = replace(WAN, lost=LOST, reordered=REORDERED)
        bad = await look_up_many(network, await publish(network, keys, "bad"), count, WITHIN_S)
        return clean, bad
    finally:
        await network.close()


def measure(quick: bool, seed: int) -> Result:
    nodes, keys, count = (80, 10, 150) if quick else (500, 100, 2_000)
    clean, bad = simulate(both(nodes, keys, count, seed))
    clean_s, bad_s = [each.first_s for each in clean], [each.first_s for each in bad]
    return Result(
        figures={
            "loss_nodes": nodes,
            "loss_lookups": count,
            "loss_clean_p50_s": p50(clean_s),
            "loss_clean_p95_s": p95(clean_s),
            "loss_p50_s": p50(bad_s),
            "loss_p95_s": p95(bad_s),
            "loss_clean_found": share_found(clean),
        },
        checks=[
            Check("loss_found", share_found(bad), ">=", 0.999),
            Check("loss_p95_ratio", p95(bad_s) / p95(clean_s), "<=", 4.0),
        ],
    )
