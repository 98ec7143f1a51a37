"""How much of an honest table do 1,000 hostile identifiers on 5 addresses get in a day?

In a network of 500 honest nodes (quick: 60) somebody runs 1,000 identifiers (quick: 100) on 5 machines (quick: 2, as
tables are smaller). Each makes itself known to honest nodes over and over, for 24 hours (quick: 1), answers whoever
calls, and names only its fellows. Every honest node looks after its table as ever. The largest hostile share of any
honest table, seen at any full hour (quick: ten minutes), must be at most 5%; some share there must be, or the attack
was none.
"""

from __future__ import annotations

import asyncio

from benchmarks.dht_simulated.result import Curves, Result, simulate
from benchmarks.harness import Check
from dhtdata.dht import DhtNode
from dhtdata.dht.messages import Ping
from dhtdata.dht.routing import Contact
from dhtdata.errors import PeerError
from tests.simulation.hostile import conspire, quieten
from tests.simulation.links import WAN
from tests.simulation.network import public_ip
from tests.simulation.swarm import PORT, Swarm, fill_tables

FLOOD = 20
PINGS_A_MINUTE = 30
_HOSTILE_SUBNET = 1 << 21


async def story(honest: int, hostile: int, machines: int, samples: int, every_s: float, seed: int) -> list[float]:
    """The largest hostile share of an honest table, over time."""
    network = Swarm(seed, WAN)
    try:
        for _ in range(honest):
            await network.start()
        fill_tables(network)
        good = list(network.nodes)
        bad = [
            await network.start(ip=public_ip(_HOSTILE_SUBNET + number % machines), port=PORT + number // machines)
            for number in range(hostile)
        ]
        conspire(bad, [Contact(each.id, network.address(each)) for each in bad], network.randomness, invented=0)
        for each in bad:
            quieten(each)
        ids = {each.id for each in bad}
        shares = []
        async with asyncio.TaskGroup() as attack:
            pushing = attack.create_task(push(network, good, bad))
            for _ in range(samples):
                await asyncio.sleep(every_s)
                shares.append(max(hostile_share(node, ids) for node in good))
            pushing.cancel()
        return shares
    finally:
        await network.close()


def hostile_share(node: DhtNode, ids: set[bytes]) -> float:
    known = node.nodes()
    return sum(each.id in ids for each in known) / max(1, len(known))


async def push(network: Swarm, good: list[DhtNode], bad: list[DhtNode]) -> None:
    """First all at once, then day and night: hostile nodes ask honest ones something, to get into their tables."""

    async def ping(sender: DhtNode) -> None:
        victim = network.randomness.choice(good)
        try:
            # Addressed to the victim: a ping to whoever is there would prove nothing, and enter no table.
            await sender.overlays[0].protocol.call(network.address(victim), Ping(), 0, victim.id)
        except PeerError:
            pass

    for _ in range(FLOOD):
        await asyncio.gather(*map(ping, bad))
    while True:
        await asyncio.sleep(60)
        await asyncio.gather(*map(ping, network.randomness.sample(bad, PINGS_A_MINUTE)))


def measure(quick: bool, seed: int) -> Result:
    honest, hostile, machines = (60, 100, 2) if quick else (500, 1_000, 5)
    samples, every_s = (6, 600.0) if quick else (24, 3_600.0)
    shares = simulate(story(honest, hostile, machines, samples, every_s, seed))
    points = [(every_s * number / 3_600, share) for number, share in enumerate(shares, start=1)]
    return Result(
        figures={
            "eclipse_honest_nodes": honest,
            "eclipse_hostile_ids": hostile,
            "eclipse_hostile_addresses": machines,
            "eclipse_hours": samples * every_s / 3_600,
            "eclipse_share_at_the_end": shares[-1],
        },
        checks=[
            Check("eclipse_largest_hostile_share", max(shares), "<=", 0.05),
            Check("eclipse_hostile_share_at_all", max(shares), ">=", 0.001),
        ],
        curves={"eclipse": Curves("Worst honest table", "hour", "hostile share", {"measured": points})},
    )
