"""What does one node cost in a network of 1,000 with 100,000 records in it, while its user does nothing?

Real, all of it: one node in a process that runs nothing else, and 999 in another (quick: 149), with true signatures on
real sockets, which ping and look up each other as nodes do. Arranged: those 999 did not join but had their tables
filled with one another; the measured node joins as any, but then all have last heard of their contacts at random
moments of the ten minutes after which one is asked again, so that upkeep is in full swing. And what 100,000 contents,
announced by the others, mean for this node is put on it and asked of it by these others, without the rest, which one
machine could not carry: each claim is kept by its region, here 31 of 1,000 nodes, so this node has 3,100 claims (quick:
400) and its neighbours' PeerRecords; each is renewed every 45 minutes, so 1.2 stores a second arrive, and three
FindNode of the walks before them (37 announcements a second in all, some 80 calls each).

Measured over 60 s (quick: 6 s): processor time, and resident memory at the end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.process import Command, core_share, worker
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.formats.records import PROVIDER_RENEWAL_S

NETWORK_NODES = 1_000
NETWORK_RECORDS = 100_000
REGION_NODES = 31
CALLS_AN_ANNOUNCEMENT = 80
STORES_A_S = NETWORK_RECORDS * REGION_NODES / NETWORK_NODES / PROVIDER_RENEWAL_S
ASKS_A_S = NETWORK_RECORDS * CALLS_AN_ANNOUNCEMENT / NETWORK_NODES / PROVIDER_RENEWAL_S
SETTLE_S = 5.0


@dataclass(frozen=True)
class Cost:
    empty: Command
    before: Command
    after: Command
    status: Command
    calls_a_s_of_others: float


async def story(nodes: int, claims: int, seconds: float, seed: int) -> Cost:
    async with (
        worker("benchmarks.dht_real.node_worker") as node,
        worker("benchmarks.dht_real.crowd_worker") as crowd,
    ):
        introducers = await crowd.ask("start", 300, nodes=nodes - 1, seed=seed)
        target = await node.ask("start", seed=seed + 1)
        empty = await node.ask("costs")
        if not (await node.ask("join", ports=introducers["ports"]))["serves"]:
            raise RuntimeError("the node does not know that it can be reached")
        kept = await crowd.ask("put", 300, claims=claims, **target)
        if kept["kept"] < claims:
            raise RuntimeError(f"the node keeps {kept} of {claims} claims: {await node.ask('status')}")
        await crowd.ask("use", stores_a_s=STORES_A_S, asks_a_s=ASKS_A_S, **target)
        await asyncio.sleep(SETTLE_S)  # what a node does once, when it has joined, is not idling
        await node.ask("age")
        before, others_before, status_before = (
            await node.ask("costs"),
            await crowd.ask("costs"),
            await node.ask("status"),
        )
        await asyncio.sleep(seconds)
        after, others, status = await node.ask("costs"), await crowd.ask("costs"), await node.ask("status")
        calls_a_s = (others["calls"] - others_before["calls"]) / (others["at_s"] - others_before["at_s"])
        for name in ("requests_answered", "calls"):
            status[name] -= status_before[name]
        return Cost(empty, before, after, status, calls_a_s)


def measure(quick: bool, seed: int) -> Result:
    nodes, claims, seconds = (150, 400, 6.0) if quick else (NETWORK_NODES, 3_100, 60.0)
    cost = asyncio.run(story(nodes, claims, seconds, seed))
    share, mib = core_share(cost.before, cost.after), cost.after["rss"] / (1 << 20)
    return Result(
        figures={
            "cost_network_nodes": nodes,
            "cost_records_held": cost.status["records_held"],
            "cost_contacts": cost.status["contacts"],
            "cost_requests_answered_a_s": cost.status["requests_answered"] / seconds,
            "cost_calls_a_s": cost.status["calls"] / seconds,
            "cost_calls_a_s_of_all_others": cost.calls_a_s_of_others,
            "cost_rss_mib_empty": cost.empty["rss"] / (1 << 20),
        },
        checks=[Check("cost_rss_mib", mib, "<=", 60), Check("cost_core_share", share, "<=", 0.01)],
    )


if __name__ == "__main__":
    alone(measure)
