"""Nodes of different versions tell each other which they speak, and never argue about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dhtdata.dht import DhtNode, envelope
from dhtdata.dht.envelope import CALL_BYTES, CALL_END, CODED, HEADER_BYTES, KNOCK, NOTICE, VERSION
from dhtdata.dht.messages import Ping
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address
from dhtdata.network import Network
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.network import public_ip
from tests.simulation.swarm import PORT, Swarm, swarm

SECRET = Network(bytes([7]) * 32)


def of_version(version: int, datagram: bytes, network: Network) -> bytes:
    start = bytes((version, datagram[1]))
    return start + network.code(start, datagram[CODED:]) + datagram[CODED:]


@asynccontextmanager
async def one_node(network: Network) -> AsyncIterator[tuple[DhtNode, Address]]:
    swarm = Swarm(network=network)
    node = await swarm.start()
    try:
        yield node, swarm.address(node)
    finally:
        await swarm.close()


class Other(Speaker):
    """A node of another version: answers what it does not read with a notice, as this one does."""

    version = 1

    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        if data[0] != self.version and data[1] in (envelope.REQUEST, KNOCK):
            notice = envelope.notice(self.network, data[CODED:CALL_END])
            self._transport.sendto(of_version(self.version, notice, self.network), addr)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("network", [Network(), SECRET], ids=["public", "private"])
def test_whoever_asks_in_another_version_hears_which_one_is_spoken_here(version: int, network: Network) -> None:
    async def story() -> None:
        async with one_node(network) as (node, at):
            other = await Speaker.open(public_ip(700), PORT, network=network)
            asked = [other.request(Ping(), bytes(8)), envelope.knock(network, bytes(CALL_BYTES))]
            for count, datagram in enumerate(asked):
                other.send(of_version(version, datagram, network), at)
                answer, _ = await other.next(count)
                assert answer[:2] == bytes([VERSION, NOTICE]) and envelope.of_network(network, answer)
                assert answer[CODED:] == datagram[CODED:CALL_END] and len(answer) == CALL_END < len(datagram)
            # A later version may look different after the number of the call.
            shortest = of_version(version, asked[0], network)[:2]
            code = network.code(shortest, bytes(CALL_BYTES))
            other.send(shortest + code + bytes(CALL_BYTES), at)
            answer, _ = await other.next(2)
            assert len(answer) == CALL_END
            assert node.status().other_versions == 3

    run(story())


@pytest.mark.parametrize("version", [1, 3])
def test_a_call_to_another_version_fails_at_once_and_names_both(version: int) -> None:
    async def story() -> None:
        network = Swarm()
        node = await network.start()
        other = await Other.open(public_ip(700), PORT)
        other.version = version
        both = f"speaks version {version} of the protocol, this dhtdata {VERSION}: upgrade"
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        with pytest.raises(PeerError, match=both):
            await node.ping(other.address)
        assert loop.time() - started_s < 0.5
        assert await node.bootstrap([other.address]) == 0
        (reason,) = node.status().bootstrap_failures
        assert both in reason and str(other.address) in reason
        await network.close()

    run(story())


def test_notices_are_answered_by_nobody_and_believed_only_from_who_was_asked() -> None:
    async def story() -> None:
        async with swarm(2) as network:
            node = network.nodes[0]
            at = network.address(node)
            other = await Speaker.open(public_ip(700), PORT)
            thief = await Speaker.open(public_ip(701), PORT)
            for version in (1, 2, 3):
                for call in (bytes(8), b"12345678"):
                    other.send(of_version(version, envelope.notice(Network(), call), Network()), at)
            await asyncio.sleep(5)
            assert other.heard == []
            calling = asyncio.ensure_future(node.ping(other.address))
            data, _ = await other.next()
            notice = of_version(3, envelope.notice(Network(), data[CODED:CALL_END]), Network())
            thief.send(notice, at)
            other.send(of_version(3, envelope.notice(Network(), bytes(8)), Network()), at)
            with pytest.raises(PeerError, match="did not answer"):
                await calling
            assert thief.heard == []

    run(story())


def test_replies_and_challenges_of_other_versions_are_dropped_without_an_answer() -> None:
    async def story() -> None:
        async with swarm(2) as network:
            at = network.address(network.nodes[0])
            other = await Speaker.open(public_ip(700), PORT)
            for kind in (1, 2, 5, 200):
                start = bytes((3, kind))
                rest = bytes(HEADER_BYTES)
                other.send(start + Network().code(start, rest) + rest, at)
            await asyncio.sleep(5)
            assert other.heard == [] and network.nodes[0].status().other_versions == 4

    run(story())


def test_two_nodes_that_take_each_other_for_old_do_not_keep_talking() -> None:
    async def story() -> None:
        async with swarm(1) as network:
            other = await Other.open(public_ip(700), PORT)
            other.version = 3
            other.send(of_version(3, other.request(Ping()), Network()), network.address(network.nodes[0]))
            await asyncio.sleep(600)
            assert len(other.heard) == 1 and other.heard[0][0][1] == NOTICE

    run(story())
