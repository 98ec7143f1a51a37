"""Addresses, partitions, dead machines, NATs, clocks, counters, and that a run repeats exactly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.simulation.clock import run
from tests.simulation.links import Constant, Links, Uniform
from tests.simulation.network import EPOCH_S, Endpoint, SimulatedNetwork, public_ip

AT_ONCE = Links(jitter=Constant(0.01))
A, B, C = public_ip(0), public_ip(1), public_ip(2)


class Listener(asyncio.DatagramProtocol):
    """Remembers what it receives, (bytes, source), and when."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Any]] = []
        self.got_s: list[float] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append((data, addr))
        self.got_s.append(asyncio.get_running_loop().time())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def send(self, data: bytes, to: Endpoint) -> None:
        self.transport.sendto(data, to)

    async def says(self, data: bytes, to: Endpoint, receiver: Listener) -> Endpoint | None:
        """The source that the receiver sees, or None if the datagram does not arrive within a second."""
        before = len(receiver.got)
        self.send(data, to)
        await asyncio.sleep(1)
        new = receiver.got[before:]
        assert len(new) <= 1 and all(each[0] == data for each in new)
        return new[0][1] if new else None


async def listen(network: SimulatedNetwork, ip: str, port: int = 1000) -> Listener:
    listener = Listener()
    await network.open_transport(lambda: listener, ip, port)
    return listener


def test_a_datagram_arrives_with_its_source_and_is_counted() -> None:
    async def story() -> None:
        network = SimulatedNetwork(1, AT_ONCE)
        told: list[tuple[Endpoint, Endpoint, bytes]] = []
        network.tap = lambda source, to, data: told.append((source, to, data))
        a, b = await listen(network, A), await listen(network, B)
        assert await a.says(b"hello", (B, 1000), b) == (A, 1000)
        assert await a.says(b"nobody there", (B, 1001), b) is None
        assert (network.datagrams, network.carried_bytes, network.largest) == (2, 17, 12)
        assert network.received == {(B, 1000): 1}
        assert told == [((A, 1000), (B, 1000), b"hello"), ((A, 1000), (B, 1001), b"nobody there")]
        assert a.transport.get_extra_info("sockname") == (A, 1000)
        assert a.transport.get_extra_info("socket") is None

    run(story())


def test_ports_are_free_in_use_or_chosen() -> None:
    async def story() -> None:
        network = SimulatedNetwork()
        first, second = await listen(network, A, 0), await listen(network, A, 0)
        ports = {each.transport.get_extra_info("sockname")[1] for each in (first, second)}
        assert len(ports) == 2 and min(ports) >= 1024
        with pytest.raises(OSError, match="in use"):
            await listen(network, A, min(ports))
        first.transport.close()
        second.transport.close()
        await listen(network, A, min(ports))

    run(story())


def test_who_closes_is_told_and_who_loses_power_is_not() -> None:
    async def story() -> None:
        network = SimulatedNetwork(1, AT_ONCE)
        a, b, c = [await listen(network, ip) for ip in (A, B, C)]
        a.transport.close()
        network.lose_power(B)
        await asyncio.sleep(1)
        assert (a.lost, a.transport.is_closing(), network.is_open((A, 1000))) == (True, True, False)
        assert (b.lost, b.transport.is_closing(), network.is_open((B, 1000))) == (False, False, False)
        assert await b.says(b"from the dead", (C, 1000), c) is None
        assert await c.says(b"to the dead", (B, 1000), b) is None
        again = await listen(network, B)
        b.transport.close()  # the old socket must not take the new one with it
        assert await c.says(b"welcome back", (B, 1000), again) == (C, 1000)

    run(story())


def test_partitions_separate_and_heal() -> None:
    async def story() -> None:
        network = SimulatedNetwork(1, AT_ONCE)
        a, b, c = [await listen(network, ip) for ip in (A, B, C)]
        network.partition([A, B])
        assert await a.says(b"1", (B, 1000), b) and await b.says(b"2", (A, 1000), a)
        assert await a.says(b"3", (C, 1000), c) is None
        assert await c.says(b"4", (A, 1000), a) is None
        network.partition([A], [B, C])
        assert await a.says(b"5", (B, 1000), b) is None
        assert await b.says(b"6", (C, 1000), c)
        network.heal()
        assert await a.says(b"7", (B, 1000), b) and await a.says(b"8", (C, 1000), c)

    run(story())


HOME, NEIGHBOUR, PUBLIC = "10.0.0.1", "10.0.0.2", public_ip(99)


async def behind_nat() -> tuple[SimulatedNetwork, Listener, Listener, Listener]:
    """(network, a host behind a NAT, two public hosts)."""
    network = SimulatedNetwork(1, AT_ONCE)
    network.put_behind_nat(HOME, PUBLIC)
    return network, await listen(network, HOME), await listen(network, A), await listen(network, B)


def test_behind_a_nat_one_has_the_same_public_port_for_everybody() -> None:
    async def story() -> None:
        _, home, a, b = await behind_nat()
        seen = await home.says(b"1", (A, 1000), a)
        assert seen is not None and seen[0] == PUBLIC
        assert await home.says(b"2", (B, 1000), b) == seen

    run(story())


def test_only_who_was_written_to_within_60_s_gets_through_a_nat() -> None:
    async def story() -> None:
        network, home, a, b = await behind_nat()
        other_port = await listen(network, A, 2000)
        seen = await home.says(b"1", (A, 1000), a)
        assert seen is not None
        assert await a.says(b"answer", seen, home) == (A, 1000)
        assert await other_port.says(b"another port", seen, home) is None
        assert await b.says(b"a stranger", seen, home) is None
        assert await a.says(b"the private address", (HOME, 1000), home) is None
        assert await a.says(b"a port nobody has", (PUBLIC, 9), home) is None
        await asyncio.sleep(53)
        assert await a.says(b"just in time", seen, home)
        await asyncio.sleep(5)
        assert await a.says(b"too late", seen, home) is None
        assert await home.says(b"again", (A, 1000), a) == seen
        assert await a.says(b"open again", seen, home)

    run(story())


def test_a_mapping_that_was_idle_for_120_s_is_lost() -> None:
    async def story() -> None:
        _, home, a, b = await behind_nat()
        seen = await home.says(b"1", (A, 1000), a)
        await asyncio.sleep(118)
        assert await home.says(b"2", (A, 1000), a) == seen  # what is sent keeps it alive
        await asyncio.sleep(120)
        new = await home.says(b"3", (B, 1000), b)
        assert seen is not None and new is not None and new != seen
        assert await a.says(b"to the old port", seen, home) is None

    run(story())


def test_hosts_behind_one_nat_reach_each_other_and_others_reach_neither() -> None:
    async def story() -> None:
        network, home, a, _ = await behind_nat()
        network.put_behind_nat(NEIGHBOUR, PUBLIC)
        network.put_behind_nat("10.1.0.1", public_ip(98))
        neighbour, far = await listen(network, NEIGHBOUR), await listen(network, "10.1.0.1")
        assert await home.says(b"1", (NEIGHBOUR, 1000), neighbour) == (HOME, 1000)
        assert await far.says(b"2", (HOME, 1000), home) is None
        first, second = await home.says(b"3", (A, 1000), a), await neighbour.says(b"4", (A, 1000), a)
        assert first is not None and second is not None and first[0] == second[0] and first[1] != second[1]

    run(story())


def test_two_hosts_behind_nats_meet_once_both_have_written() -> None:
    async def story() -> None:
        network, home, a, _ = await behind_nat()
        network.put_behind_nat("10.1.0.1", public_ip(98))
        far = await listen(network, "10.1.0.1")
        home_seen, far_seen = await home.says(b"1", (A, 1000), a), await far.says(b"2", (A, 1000), a)
        assert home_seen is not None and far_seen is not None
        assert await home.says(b"knock", far_seen, far) is None
        assert await far.says(b"knock back", home_seen, home) == far_seen
        assert await home.says(b"through", far_seen, far) == home_seen

    run(story())


def test_clocks_jump_for_one_and_for_all() -> None:
    async def story() -> None:
        network = SimulatedNetwork()
        a, b = network.clock(A), network.clock(B)
        await asyncio.sleep(10)
        assert a() == b() == EPOCH_S + 10
        network.jump_clock(A, 3600)
        network.clock_jump_s = -60
        assert (a(), b()) == (EPOCH_S + 10 + 3600 - 60, EPOCH_S + 10 - 60)
        assert network.loop.time() == 10

    run(story())


def test_the_base_delay_of_a_pair_is_stable_and_symmetric() -> None:
    async def story() -> None:
        network = SimulatedNetwork(5, Links(base=Uniform(0.01, 0.9)))
        a, b, c = [await listen(network, ip) for ip in (A, B, C)]
        delays = []
        for sender, to, receiver in [(a, B, b), (a, B, b), (b, A, a), (a, C, c)]:
            started_s = network.loop.time()
            assert await sender.says(b"x", (to, 1000), receiver)
            delays.append(round(receiver.got_s[-1] - started_s, 6))
        assert delays[0] == delays[1] == delays[2] != delays[3]

    run(story())


HARD = Links(jitter=Uniform(0.001, 0.2), lost=0.1, reordered=0.1, duplicated=0.05)


def gossip(seed: int) -> list[tuple[float, Endpoint, Endpoint, bytes]]:
    """A noisy protocol of 20 hosts: every datagram that was sent, and when."""

    async def story() -> list[tuple[float, Endpoint, Endpoint, bytes]]:
        network = SimulatedNetwork(seed, HARD)
        log: list[tuple[float, Endpoint, Endpoint, bytes]] = []
        network.tap = lambda source, to, data: log.append((network.loop.time(), source, to, data))

        class Gossip(Listener):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                for _ in range(network.randomness.randrange(3) if data else 0):
                    self.send(data[1:], (public_ip(network.randomness.randrange(20)), 1000))

        for position in range(20):
            await network.open_transport(Gossip, public_ip(position), 1000)
        for position in range(20):
            network.carry((A, 1), bytes(30), (public_ip(position), 1000))
        await asyncio.sleep(1_000)
        return log

    return run(story())


def test_a_run_repeats_exactly_from_its_seed() -> None:
    first = gossip(7)
    assert len(first) > 100
    assert gossip(7) == first
    assert gossip(8) != first


def test_programs_that_know_nothing_of_this_open_endpoints_through_the_loop() -> None:
    async def story() -> None:
        network = SimulatedNetwork(1, AT_ONCE)
        loop = asyncio.get_running_loop()
        transport, a = await loop.create_datagram_endpoint(Listener, local_addr=(A, 1000))
        b = await listen(network, B)
        assert isinstance(a, Listener) and a.transport is transport
        assert await a.says(b"hello", (B, 1000), b) == (A, 1000)

    run(story())


def test_a_network_needs_virtual_time() -> None:
    async def story() -> None:
        with pytest.raises(TypeError, match="virtual time"):
            SimulatedNetwork()

    asyncio.run(story())
