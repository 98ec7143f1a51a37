"""What does a flood from invented addresses cost a node, and what is left for honest look-ups?

20,000 datagrams a second for 20 s (quick: 3 s) at one node, which has a process of its own: a fifth each without a
cookie (requests and knocks), with a wrong one, replies to nothing, garbage, and too short ones, from 1,000 addresses of
127.0.0.0/8. They come from a second process at an even pace; the other 30 nodes of the network live in a third. Before
the flood, during it and after it, ten times a second (quick: 17), the node looks a key up, and a client that knows
nobody else looks one up through it, each to the first verified provider; the node itself keeps none of the keys. Beyond
the reads: the processor time that the node takes in all, look-ups included, less that of a process which reads the same
flood in the same way and does nothing with it.

A figure without a bar: how long strangers, who have no cookie yet, wait for a first answer during the flood. They share
the rate of challenges with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from benchmarks.dht_real.alone import alone, distribution
from benchmarks.dht_real.process import Command, Worker, core_share, worker
from benchmarks.dht_simulated.result import Curves, Result, p50, p95
from benchmarks.harness import Check

RATE = 20_000
NODES = 30
KEYS = 40
STRANGERS_A_S = 2.5


@dataclass(frozen=True)
class Size:
    """How long, how often something is looked up, how many strangers say hello."""

    seconds: float
    interval_s: float
    strangers: int


FULL, QUICK = Size(20.0, 0.1, 20), Size(3.0, 0.06, 8)


@dataclass
class Phase:
    """Seconds of look-ups by the node and through it, share of a core that it took, and what became of datagrams."""

    own_s: list[float]
    through_s: list[float]
    core_share: float
    status: Command
    sent_a_s: float = 0.0
    strangers_s: list[float] | None = None


@dataclass(frozen=True)
class Setting:
    node: Worker
    others: Worker
    attacker: Worker
    keys: list[tuple[str, int]]
    port: int
    id: str
    size: Size
    seed: int


async def phase(setting: Setting, flooded: bool) -> Phase:
    """Look-ups for the time of a flood, or for half of it without one."""
    size = setting.size
    seconds = size.seconds if flooded else size.seconds / 2
    asked = {"keys": setting.keys, "count": int(seconds / size.interval_s), "interval_s": size.interval_s}
    patience_s = size.seconds * 3 + 120
    before, status = await setting.node.ask("costs"), await setting.node.ask("status")
    async with asyncio.TaskGroup() as work:
        own = work.create_task(setting.node.ask("look up", patience_s, **asked, seed=setting.seed))
        aim = {"port": setting.port, "id": setting.id}
        through = work.create_task(
            setting.others.ask("look up through", patience_s, **asked, **aim, seed=setting.seed + 1)
        )
        if flooded:
            flood = work.create_task(send(setting, setting.port, size.seconds))
    after, status_after = await setting.node.ask("costs"), await setting.node.ask("status")
    return Phase(
        own_s=own.result()["seconds"],
        through_s=through.result()["seconds"],
        core_share=core_share(before, after),
        status={name: status_after[name] - status[name] for name in status},
        sent_a_s=flood.result() if flooded else 0.0,
    )


async def send(setting: Setting, port: int, seconds: float) -> float:
    """Flood a port: datagrams a second that were really sent."""
    aim = {"port": port, "rate": RATE, "seconds": seconds, "seed": setting.seed}
    sent = await setting.attacker.ask("flood", seconds + 60, **aim)
    return float(sent["sent"] / sent["seconds"])


async def reading_alone(setting: Setting) -> tuple[float, float]:
    """(share of a core that reading costs, share of the flood that was read)."""
    async with worker("benchmarks.dht_real.flood_worker") as reader:
        port = (await reader.ask("listen"))["port"]
        before = await reader.ask("costs")
        rate = await send(setting, port, setting.size.seconds)
        after = await reader.ask("costs")
        return core_share(before, after), (after["heard"] - before["heard"]) / (rate * setting.size.seconds)


async def strangers(setting: Setting) -> list[float]:
    async with asyncio.TaskGroup() as work:
        count = setting.size.strangers
        work.create_task(send(setting, setting.port, count / STRANGERS_A_S))
        await asyncio.sleep(0.2)
        meeting = setting.others.ask("meet", 120, port=setting.port, count=count, seed=setting.seed)
        return list((await meeting)["seconds"])


async def story(size: Size, seed: int) -> tuple[Phase, Phase, tuple[float, float], list[float]]:
    """(before and after, during the flood, cost of reading alone and share read, waits of strangers)."""
    async with (
        worker("benchmarks.dht_real.node_worker") as node,
        worker("benchmarks.dht_real.neighbours_worker") as others,
        worker("benchmarks.dht_real.flood_worker") as attacker,
    ):
        network = await others.ask("start", 120, nodes=NODES, keys=KEYS, seed=seed)
        started = await node.ask("start", seed=seed + 100)
        if not (await node.ask("join", ports=network["ports"]))["serves"]:
            raise RuntimeError("the node does not know that it can be reached")
        setting = Setting(node, others, attacker, network["keys"], started["port"], started["id"], size, seed)
        aim = {"port": setting.port, "id": setting.id, "keys": network["keys"]}
        # So that everybody has everybody's cookies.
        await others.ask("look up through", 60, **aim, count=20, interval_s=0.05, seed=seed)
        before = await phase(setting, flooded=False)
        during = await phase(setting, flooded=True)
        after = await phase(setting, flooded=False)
        before.own_s += after.own_s
        before.through_s += after.through_s
        return before, during, await reading_alone(setting), await strangers(setting)


def measure(quick: bool, seed: int) -> Result:
    size = QUICK if quick else FULL
    before, during, (reading, read_share), waits_s = asyncio.run(story(size, seed))
    handled = sum(
        during.status[name] for name in ("challenges", "over_rate", "refused", "strangers", "requests_answered")
    )
    return Result(
        figures={
            "flood_sent_a_s": during.sent_a_s,
            "flood_handled_share": handled / (during.sent_a_s * size.seconds),
            "flood_core_share_without_flood": before.core_share,
            "flood_core_share_during": during.core_share,
            "flood_core_share_of_reading_alone": reading,
            "flood_read_alone_share": read_share,
            "flood_core_share_less_look_ups": during.core_share - before.core_share - reading,
            "flood_own_lookup_p50_s": p50(during.own_s),
            "flood_own_lookup_p95_s": p95(during.own_s),
            "flood_own_lookup_p95_s_without_flood": p95(before.own_s),
            "flood_lookup_through_p50_s": p50(during.through_s),
            "flood_lookup_through_p95_s": p95(during.through_s),
            "flood_lookup_through_p95_s_without_flood": p95(before.through_s),
            "flood_strangers_wait_p50_s": p50(waits_s),
            "flood_strangers_wait_p95_s": p95(waits_s),
        },
        checks=[
            Check("flood_sent_a_s", during.sent_a_s, ">=", 0.98 * RATE),
            Check("flood_core_share_beyond_reads", during.core_share - reading, "<=", 0.25),
            Check("flood_own_lookup_p95_ratio", p95(during.own_s) / p95(before.own_s), "<=", 2.0),
            Check("flood_lookup_through_p95_ratio", p95(during.through_s) / p95(before.through_s), "<=", 2.0),
        ],
        curves={
            "flood_lookups": Curves(
                f"Look-ups under {RATE:,} spoofed datagrams a second",
                "milliseconds",
                "share of look-ups that took no longer",
                {
                    "by the node, without a flood": distribution(before.own_s),
                    "by the node, during": distribution(during.own_s),
                    "through it, without a flood": distribution(before.through_s),
                    "through it, during": distribution(during.through_s),
                },
                log_x=True,
            )
        },
    )


if __name__ == "__main__":
    alone(measure)
