"""Swarms of our nodes: placed, killed, restarted, behind NATs, coming and going, with tables filled by oracle."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterator

import pytest

from dhtdata.dht.routing import BUCKET_SIZE, number
from dhtdata.signing import SigningKey, substitute
from tests.simulation.clock import run
from tests.simulation.links import Exponential
from tests.simulation.network import public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import PORT, Swarm, churning, fill_tables, swarm


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


def test_nodes_have_public_addresses_each_in_a_subnet_of_its_own() -> None:
    async def story() -> None:
        network = Swarm()
        nodes = [await network.start() for _ in range(3)]
        assert [str(network.address(node)) for node in nodes] == [f"11.0.{n}.1:{PORT}" for n in range(3)]
        placed = await network.start(ip="192.0.2.9")
        assert network.ip(placed) == "192.0.2.9"
        await network.close()

    run(story())


def test_several_nodes_may_share_a_subnet() -> None:
    async def story() -> None:
        network = Swarm(per_subnet=5)
        for _ in range(12):
            await network.start()
        subnets = Counter(network.ip(node).rpartition(".")[0] for node in network.nodes)
        assert list(subnets.values()) == [5, 5, 2]
        await network.close()

    run(story())


def test_subnets_never_repeat_and_look_public() -> None:
    ips = [public_ip(subnet) for subnet in (0, 255, 256, 65_535, 65_536, 1 << 23)]
    assert ips == ["11.0.0.1", "11.0.255.1", "11.1.0.1", "11.255.255.1", "12.0.0.1", "139.0.0.1"]


def test_a_dead_node_is_silent_and_comes_back_with_its_key() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            node = network.nodes[4]
            network.kill(node)
            assert not network.alive(node) and node not in network.living() and node not in network.nearest(node.id)
            sent = network.received[network.ip(node), PORT]
            await asyncio.sleep(600)
            assert network.received[network.ip(node), PORT] == sent
            again = await network.restart(node)
            assert (again.key, again.id, network.address(again)) == (node.key, node.id, network.address(node))
            assert again is not node and await network.join(again) == 2
            assert network.alive(again) and not network.alive(node)
            assert len(again.nodes()) == 9

    run(story())


def test_the_oracle_knows_the_nearest() -> None:
    async def story() -> None:
        async with swarm(30) as network:
            key = bytes(20)
            network.kill(network.nodes[0])
            await network.start(client=True)
            nearest = network.nearest(key, 7)
            everybody = sorted(network.nodes[1:30], key=lambda node: number(node.id) ^ number(key))
            assert nearest == everybody[:7]

    run(story())


def test_a_node_behind_a_nat_joins_and_is_seen_at_the_nats_address() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            hidden = await network.start_behind_nat()
            sources: set[str] = set()
            network.tap = lambda source, to, data: sources.add(source[0])
            assert await network.join(hidden) == 2
            assert hidden.nodes()
            assert network.ip(hidden) not in sources and "139.0.1.1" in sources

    run(story())


def test_calls_are_counted_for_good() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            calls = network.calls()
            assert calls >= sum(node.status().calls for node in network.nodes) > 50
            dead = network.nodes[3]
            network.kill(dead)
            network.forget(dead)
            assert dead not in network.nodes and network.calls() >= calls

    run(story())


def test_churn_keeps_the_number_of_nodes_and_spares_who_stays() -> None:
    median_s, hours = 1200.0, 1

    async def story() -> None:
        async with swarm(20) as network:
            stays = network.nodes[:2]
            async with churning(network, Exponential(median_s), stays):
                for _ in range(hours):
                    await asyncio.sleep(3600)
                    assert len(network.nodes) == 20 and all(network.alive(node) for node in stays)
                assert statistics.median(len(node.nodes()) for node in network.nodes) > 10
            left = network.started - 20
            expected = 18 * hours * 3600 / (median_s / 0.6931)
            assert left == pytest.approx(expected, abs=5 * expected**0.5)
            assert len([node for node in network.living() if node not in stays]) == 18

    run(story())


def test_tables_filled_by_oracle_are_as_good_as_joined_ones() -> None:
    async def story() -> None:
        network = Swarm(seed=3)
        for _ in range(150):
            await network.start()
        fill_tables(network)
        assert network.datagrams == 0
        for node in network.nodes:
            known = {each.id for each in node.nodes()}
            others = sorted(
                (other for other in network.nodes if other is not node), key=lambda o: number(o.id) ^ number(node.id)
            )
            assert {other.id for other in others[:BUCKET_SIZE]} <= known
            far = sum((number(other.id) ^ number(node.id)) >> 159 for other in others)
            assert sum((number(each) ^ number(node.id)) >> 159 for each in known) == min(far, BUCKET_SIZE)
        assert statistics.mean(len(node.nodes()) for node in network.nodes) < 100
        await network.close()

    run(story())


def test_a_key_may_be_given() -> None:
    async def story() -> None:
        network = Swarm()
        key = SigningKey(bytes(32))
        node = await network.start(key=key)
        assert node.key is key
        await network.close()

    run(story())


def test_a_node_that_cannot_start_says_why_to_who_started_it() -> None:
    async def story() -> None:
        network = Swarm()
        await network.start(ip="11.0.0.9")
        with pytest.raises(OSError, match="in use"):
            await network.start(ip="11.0.0.9")
        await network.close()

    run(story())


def test_what_ends_a_node_before_its_time_is_raised_at_the_end() -> None:
    async def story() -> None:
        network = Swarm()
        node = await network.start()

        async def fail() -> None:
            raise ZeroDivisionError

        node._spawn(fail())
        await asyncio.sleep(1)
        assert not network.alive(node)
        with pytest.raises(ExceptionGroup) as caught:
            await network.close()
        assert caught.group_contains(ZeroDivisionError)

    run(story())


def story_of(seed: int) -> tuple[int, int, list[bytes], list[tuple[float, int]]]:
    async def story() -> tuple[int, int, list[bytes], list[tuple[float, int]]]:
        async with swarm(12, seed=seed, loss=0.1) as network:
            log: list[tuple[float, int]] = []
            network.tap = lambda source, to, data: log.append((network.loop.time(), len(data)))
            async with churning(network, Exponential(600), network.nodes[:1]):
                await asyncio.sleep(600)
            known = [each.id for node in network.nodes for each in node.nodes()]
            return network.datagrams, network.carried_bytes, known, log

    return run(story())


def test_a_swarm_repeats_exactly_from_its_seed() -> None:
    first = story_of(14)
    assert story_of(14) == first
    assert story_of(15) != first
