"""Hostile nodes are nearest where they want to be, and answer as they should not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from dhtdata.dht.routing import Contact
from dhtdata.digest import Digest
from dhtdata.errors import PeerError
from dhtdata.formats.records import PROVIDER_LIFETIME_S, ProviderClaim, contents_key, sign
from dhtdata.signing import substitute
from tests.simulation.clock import run
from tests.simulation.hostile import conspire, identifier_of, keys_nearest, quieten, silence
from tests.simulation.network import EPOCH_S, public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import Swarm, swarm

CONTENTS = Digest.of(b"contents")
KEY = contents_key(CONTENTS)


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


async def announced(network: Swarm) -> int:
    """How many nodes say that they hold a claim of the first node."""
    now = int(EPOCH_S + network.loop.time())
    claim = ProviderClaim(contents=CONTENTS, seed=True, sequence=now, expires=now + PROVIDER_LIFETIME_S)
    return await network.nodes[0].announce(KEY, sign(claim, network.nodes[0].key))


def test_keys_lead_to_identifiers_nearer_than_everybody() -> None:
    async def story() -> None:
        async with swarm(30) as network:
            nearest = network.nearest(KEY, 1)[0]
            keys = keys_nearest(KEY, 5, nearest.id, network.randomness)
            sybils = [await network.start(key=key) for key in keys]
            assert {node.id for node in sybils} == set(map(identifier_of, keys))
            assert set(network.nearest(KEY, 5)) == set(sybils)

    run(story())


def test_keys_repeat_from_the_same_randomness() -> None:
    def made() -> list[bytes]:
        return [key.public for key in keys_nearest(KEY, 3, bytes(20), random.Random(5))]

    assert made() == made() and len(set(made())) == 3


def test_a_silent_node_answers_pings_and_nothing_else() -> None:
    async def story() -> None:
        async with swarm(12) as network:
            silent = network.nodes[5]
            silence(silent)
            contact, client, _ = await network.nodes[1].ping(network.address(silent))
            assert contact.id == silent.id and not client
            assert await announced(network) < 11
            assert not network.holds(silent, KEY)
            network.kill(silent)
            with pytest.raises(PeerError):
                await network.nodes[1].ping(network.address(silent))

    run(story())


def test_liars_claim_to_keep_and_name_each_other_and_nobody() -> None:
    async def story() -> None:
        async with swarm(20) as network:
            liars = network.nodes[10:13]
            conspire(liars, [Contact(each.id, network.address(each)) for each in liars], network.randomness)
            held = await announced(network)
            holders = [node for node in network.nodes if network.holds(node, KEY)]
            assert held > len([node for node in holders if node is not network.nodes[0]])
            assert not set(liars) & set(holders)
            nowhere: set[str] = set()
            known = {network.ip(node) for node in network.nodes}
            network.tap = lambda source, to, data: nowhere.add(to[0]) if to[0] not in known else None
            trace = await network.nodes[3].trace(bytes(20))
            invented = {step.address.rpartition(":")[0] for step in trace.steps} - known
            assert invented and invented == nowhere

    run(story())


def test_a_quiet_node_calls_nobody_by_itself() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            quiet = network.nodes[4]
            quieten(quiet)
            await asyncio.sleep(1)
            calls = quiet.status().calls
            await asyncio.sleep(3_600)
            assert quiet.status().calls == calls and network.alive(quiet)
            contact, _, _ = await quiet.ping(network.address(network.nodes[1]))
            assert contact.id == network.nodes[1].id

    run(story())


def test_many_nodes_may_share_one_machine() -> None:
    async def story() -> None:
        network = Swarm()
        ip = public_ip(77)
        nodes = [await network.start(ip=ip, port=9_000 + number) for number in range(3)]
        network.kill(nodes[1])
        assert [network.alive(node) for node in nodes] == [True, False, True]
        again = await network.restart(nodes[1])
        assert network.address(again) == network.address(nodes[1])
        await network.close()

    run(story())
