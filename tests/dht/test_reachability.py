"""Who can be reached stands in tables and serves; who cannot is a client until it can."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dhtdata.dht import DhtNode
from dhtdata.dht.messages import Ping
from dhtdata.dht.reachability import PROBE_EVERY_S, PROBE_SOON_S, PROOF_S, Reachability
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address
from dhtdata.signing import substitute
from tests.dht.claims import KEY, claim, holding, knows, signers_found_by
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.network import public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import PORT, Swarm, swarm

HOUR_S = 3_600


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


def test_introductions_are_asked_for_when_there_was_no_proof_for_long_and_not_all_the_time() -> None:
    known = Reachability()
    assert not known.reached and known.due(0.0)
    known.probing(0.0)
    assert not known.due(PROBE_SOON_S - 1) and known.due(PROBE_SOON_S)
    # Nobody came, again and again: asked less and less often.
    now_s, wait_s = 0.0, PROBE_SOON_S
    for _ in range(6):
        known.unproven()
        wait_s = min(2 * wait_s, PROBE_EVERY_S)
        assert not known.due(now_s + wait_s - 1) and known.due(now_s + wait_s)
        now_s += wait_s
        known.probing(now_s)
    assert wait_s == PROBE_EVERY_S
    known.proven(400.0)
    assert known.reached and known.told.is_set() and not known.due(400.0 + PROOF_S - 1) and known.due(400.0 + PROOF_S)
    known.probing(400.0 + PROOF_S)
    assert known.reached and not known.told.is_set()
    known.unproven()
    assert known.reached and not known.due(400.0 + PROOF_S + 1)
    known.unproven()
    assert not known.reached


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_the_first_nodes_of_a_network_serve_one_another_at_once(count: int) -> None:
    async def story() -> None:
        for seed in range(8):
            network = Swarm(seed)
            await network.grow(count)
            await asyncio.sleep(60)
            assert [node.serves for node in network.nodes] == [count > 1] * count
            assert all(knows(one, two) for one in network.nodes for two in network.nodes if one is not two)
            publisher = network.nodes[-1]
            assert await publisher.announce(KEY, claim(publisher)) == count - 1
            for node in network.nodes[:-1]:
                assert await signers_found_by(node) == {publisher.key.public}
            await network.close()

    run(story())


def test_alone_a_node_serves_nobody_and_says_so() -> None:
    async def story() -> None:
        async with swarm(1) as network:
            (node,) = network.nodes
            assert await node.announce(KEY, claim(node)) == 0 and not node.status().reached
            assert await signers_found_by(node) == set()
            await network.grow(1)
            await asyncio.sleep(60)
            assert node.serves and await node.announce(KEY, claim(node)) == 1

    run(story())


def test_who_joins_is_reached_when_bootstrap_returns() -> None:
    async def story() -> None:
        network = Swarm(seed=5)
        for count in range(30):
            node = await network.start()
            await network.join(node, through=1 + count % 3)
            assert node.serves == (count > 0), f"node {count}"
        await network.close()

    run(story())


def test_behind_a_nat_a_node_stays_a_client_enters_no_table_and_still_finds() -> None:
    async def story() -> None:
        async with swarm(16, seed=2) as network:
            publisher = network.nodes[0]
            hidden = [await network.start_behind_nat() for _ in range(4)]
            for node in hidden:
                assert await node.bootstrap([network.address(each) for each in network.nodes[2:4]]) == 2
                assert not node.serves
            for _ in range(4):
                await publisher.announce(KEY, claim(publisher))
                for node in hidden:
                    assert await signers_found_by(node) == {publisher.key.public}
                    assert await node.announce(KEY, claim(node)) == 0
                    assert await node.announce_shards([KEY]) == set()
                assert not any(knows(each, node) for each in network.nodes for node in hidden)
                await asyncio.sleep(HOUR_S / 2)
            assert not any(node.status().reached for node in hidden)
            assert not any(node.status().records_held for node in hidden)
            # Nor are they dead ends of anybody's search.
            for node in network.nodes[:16]:
                assert {step.outcome for step in (await node.trace(KEY)).steps} == {"answered"}

    run(story())


def test_a_node_whose_nat_goes_is_reached_within_minutes_and_enters_tables() -> None:
    async def story() -> None:
        async with swarm(20, seed=3) as network:
            node = await hidden_at(network, public_ip(800))
            await network.join(node)
            await asyncio.sleep(HOUR_S / 2)
            assert not node.serves
            network._nat_of.clear()
            await asyncio.sleep(2 * PROBE_EVERY_S)
            assert node.serves
            await asyncio.sleep(HOUR_S / 2)
            assert sum(knows(each, node) for each in network.nodes if each is not node) >= 10
            assert await node.announce(KEY, claim(node)) >= 10
            assert await signers_found_by(network.nodes[7]) == {node.key.public}

    run(story())


async def hidden_at(network: Swarm, ip: str) -> DhtNode:
    """A node with a public address of its own that is behind a NAT all the same, until that goes."""
    network.put_behind_nat(ip, public_ip(801))
    return await network.start(ip=ip)


def test_a_node_that_comes_behind_a_nat_becomes_a_client_within_the_hour_and_leaves_the_tables() -> None:
    async def story() -> None:
        async with swarm(20, seed=4) as network:
            node = network.nodes[5]
            assert node.serves
            network.put_behind_nat(network.ip(node), public_ip(801))
            await asyncio.sleep(HOUR_S)
            assert not node.serves
            await asyncio.sleep(HOUR_S / 2)
            assert not any(knows(each, node) for each in network.nodes if each is not node)
            publisher = network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            assert await signers_found_by(node) == {publisher.key.public}

    run(story())


@pytest.mark.parametrize("kind", ["requests", "knocks"])
def test_whom_a_hidden_node_has_called_cannot_make_it_seem_reached(kind: str) -> None:
    """Answers keep a translator open as calls do: who asks again and again gets in, and proves nothing."""

    async def story() -> None:
        async with swarm(16, seed=2) as network:
            hidden = await network.start_behind_nat()
            await hidden.bootstrap([network.address(each) for each in network.nodes[2:4]])
            friend = await Speaker.open(public_ip(900), PORT)
            calling = asyncio.ensure_future(hidden.ping(friend.address))
            _, source = await friend.next()
            calling.cancel()
            at = Address(*source[:2])
            for _ in range(100):
                if kind == "requests":
                    friend.send(friend.request(Ping(), await friend.cookie(at), hidden.id), at)
                else:
                    await friend.cookie(at)
                await asyncio.sleep(50)
                assert not hidden.serves
            assert not any(knows(node, hidden) for node in network.nodes)

    run(story())


def test_requests_from_behind_the_same_nat_prove_nothing() -> None:
    async def story() -> None:
        async with swarm(12, seed=6) as network:
            home = [f"10.200.0.{number}" for number in (1, 2, 3)]
            for ip in home:
                network.put_behind_nat(ip, public_ip(801))
            nodes = [await network.start(ip=ip) for ip in home]
            neighbours = [Address(ip, PORT) for ip in home]
            for node, own in zip(nodes, neighbours, strict=True):
                assert await node.bootstrap([network.address(network.nodes[0])]) == 1
                assert not node.serves
                # A neighbour is found by other means, and called.
                assert await node.bootstrap([each for each in neighbours if each != own]) == 2
            for _ in range(20):
                await asyncio.sleep(400)
                for node in nodes:
                    for neighbour in neighbours:
                        if neighbour != network.address(node):
                            await node.ping(neighbour)
            assert not any(node.serves for node in nodes)
            assert not any(knows(each, node) for each in network.nodes[:12] for node in nodes)

    run(story())


def test_a_network_of_one_building_needs_no_public_address() -> None:
    async def story() -> None:
        network = Swarm(seed=7)
        nodes = [await network.start(ip=f"10.0.0.{number}") for number in range(1, 11)]
        for node in nodes[1:]:
            assert await node.bootstrap([network.address(nodes[0])]) == 1
        await asyncio.sleep(HOUR_S)
        assert all(node.serves and len(node.nodes()) == 9 for node in nodes)
        assert await nodes[3].announce(KEY, claim(nodes[3])) == 9
        assert len(holding(nodes)) == 10
        await network.close()

    run(story())


def test_a_crowd_behind_nats_does_not_harm_the_few_that_serve() -> None:
    async def story() -> None:
        async with swarm(10, seed=8) as network:
            servers = list(network.nodes)
            hidden = [await network.start_behind_nat() for _ in range(30)]
            for node in hidden:
                assert await node.bootstrap([network.address(each) for each in servers[:2]]) == 2
            await servers[0].announce(KEY, claim(servers[0]))
            await asyncio.sleep(600)
            found = [await signers_found_by(node) for node in hidden]
            assert found == [{servers[0].key.public}] * 30
            assert all({known.id for known in each.nodes()} <= {one.id for one in servers} for each in servers)

    run(story())


def test_a_client_by_choice_is_never_asked_and_asks_for_no_introductions() -> None:
    async def story() -> None:
        async with swarm(8, seed=9) as network:
            client = await network.start(client=True)
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            assert await network.join(client) == 2
            assert loop.time() - started_s < 2
            await asyncio.sleep(HOUR_S / 2)
            assert not client.serves and not any(knows(node, client) for node in network.nodes[:8])

    run(story())


def test_after_a_restart_a_node_serves_at_once_though_it_remembers_everybody() -> None:
    async def story() -> None:
        async with swarm(12, seed=10) as network:
            node = network.nodes[3]
            everybody = [network.address(each) for each in network.nodes if each is not node]
            again = await network.restart(node)
            assert await again.bootstrap(everybody) == 11
            assert again.serves

    run(story())


def test_whoever_stops_answering_is_pinged_no_more() -> None:
    async def story() -> None:
        async with swarm(6, seed=11) as network:
            gone = network.nodes[2]
            at = network.address(gone)
            network.kill(gone)
            with pytest.raises(PeerError):
                await network.nodes[0].ping(at)
            await asyncio.sleep(HOUR_S)
            sent: list[float] = []
            loop = asyncio.get_running_loop()
            network.tap = lambda source, to, data: sent.append(loop.time()) if to[0] == at.ip else None
            await asyncio.sleep(HOUR_S)
            # Only through the addresses it was told at the start, every quarter of an hour.
            assert len(sent) <= 5 * 2 * 5

    run(story())
