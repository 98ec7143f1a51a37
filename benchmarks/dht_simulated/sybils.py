"""Is a provider found when hostile nodes stand nearest to its key?

In a network of 500 honest nodes (quick: 100) 20, 40 or 100 hostile ones, whose identifiers are all nearer to the key
than every honest node's, join before anybody announces. They live in 1, 10 or 50 /24 networks, and are silent or lie
(`tests.simulation.hostile`). Then a node announces, and others look its contents up. In the worst of all 18 cases
(quick: 4) at least 99% must find it.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from itertools import product

from benchmarks.dht_simulated.lookups import Published, announce, contents, look_up_many, share_found
from benchmarks.dht_simulated.result import Curves, Result, simulate
from benchmarks.harness import Check
from dhtdata.dht.routing import Contact
from dhtdata.formats.records import contents_key
from tests.simulation.hostile import conspire, keys_nearest, silence
from tests.simulation.links import WAN
from tests.simulation.network import Endpoint, public_ip
from tests.simulation.swarm import Swarm, fill_tables

SETTLE_S = 300.0
WITHIN_S = 60.0
AT_ONCE = 10
_HOSTILE_SUBNET = 1 << 21


@dataclass(frozen=True)
class Attack:
    sybils: int
    lying: bool
    subnets: int

    def __str__(self) -> str:
        return f"{self.sybils}_{'lying' if self.lying else 'silent'}_on_{self.subnets}"


async def story(attack: Attack, honest: int, count: int, seed: int) -> tuple[float, float]:
    """(share of look-ups that found the provider, datagrams a look-up that reached a hostile node)."""
    network = Swarm(seed, WAN)
    try:
        for _ in range(honest):
            await network.start()
        fill_tables(network)
        publisher, *_ = network.nodes
        digest = contents(f"coveted {attack} {seed}")
        wanted = Published(digest, contents_key(digest), publisher)
        everybody = list(network.nodes)
        sybils = await surround(network, wanted.key, attack)
        await asyncio.sleep(SETTLE_S)
        await announce(network, wanted)
        before = sum(network.received[each] for each in sybils)
        found = share_found(await look_up_many(network, [wanted], count, WITHIN_S, among=everybody))
        return found, (sum(network.received[each] for each in sybils) - before) / count
    finally:
        await network.close()


async def surround(network: Swarm, key: bytes, attack: Attack) -> list[Endpoint]:
    """The hostile nodes join like any others and turn hostile once they are in: where they are."""
    honest = list(network.nodes)
    nearest = network.nearest(key, 1)[0]
    sybils = []
    for position, secret in enumerate(keys_nearest(key, attack.sybils, nearest.id, network.randomness)):
        host, subnet = divmod(position, attack.subnets)
        sybils.append(await network.start(key=secret, ip=public_ip(_HOSTILE_SUBNET + subnet, host + 1)))
    for start in range(0, len(sybils), AT_ONCE):
        through = [network.address(each) for each in network.randomness.sample(honest, 2)]
        await asyncio.gather(*(each.bootstrap(through) for each in sybils[start : start + AT_ONCE]))
    if attack.lying:
        conspire(sybils, [Contact(each.id, network.address(each)) for each in sybils], network.randomness)
    else:
        for each in sybils:
            silence(each)
    return [(network.ip(each), network.address(each).port) for each in sybils]


def measure(quick: bool, seed: int) -> Result:
    honest, count, repeats = (80, 30, 1) if quick else (500, 200, 2)
    sizes, subnets = ((20, 60), (50,)) if quick else ((20, 40, 100), (1, 10, 50))
    attacks = [Attack(*each) for each in product(sizes, (False, True), subnets)]
    runs = {attack: [simulate(story(attack, honest, count, seed + n)) for n in range(repeats)] for attack in attacks}
    found = {attack: statistics.mean(share for share, _ in of_attack) for attack, of_attack in runs.items()}
    met = [datagrams for of_attack in runs.values() for _, datagrams in of_attack]
    lines: dict[str, list[tuple[float, float]]] = {}
    for attack, share in found.items():
        lines.setdefault(f"{'lying' if attack.lying else 'silent'}, {attack.subnets} subnets", []).append(
            (attack.sybils, share)
        )
    worst = min(found, key=lambda attack: found[attack])
    return Result(
        figures={
            "sybils_honest_nodes": honest,
            "sybils_lookups_a_case": count * repeats,
            "sybils_worst_case": str(worst),
            "sybils_datagrams_a_lookup_to_them": statistics.mean(met),
            **{f"sybils_found_{attack}": share for attack, share in found.items()},
        },
        checks=[Check("sybils_found", found[worst], ">=", 0.99)],
        curves={"sybils": Curves("Provider found among Sybils", "Sybils nearest the key", "share of look-ups", lines)},
    )
