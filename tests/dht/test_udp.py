"""Real nodes on real sockets of this machine."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dhtdata.dht import DhtNode
from dhtdata.dht.messages import HEADER_BYTES, Ping, decode, encode
from dhtdata.dht.protocol import MAX_OUTSTANDING
from dhtdata.dht.remembered import load
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import ProviderClaim, Signed, contents_key, sign
from dhtdata.signing import SigningKey
from tests.dht.test_messages import MALFORMED, raw

CONTENTS = Digest.of(b"contents")
KEY = contents_key(CONTENTS)
LOOPBACK = "127.0.0.1"


def key_of(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


def claim(node: DhtNode) -> Signed:
    now = int(time.time())
    return sign(ProviderClaim(contents=CONTENTS, seed=True, sequence=now, expires=now + 3600), node.key)


def running(number: int = 1, listen: str = LOOPBACK, port: int = 0, state_path: Path | None = None) -> Any:
    return DhtNode.running(key_of(number), listen=listen, port=port, client=False, state_path=state_path)


def address(node: DhtNode) -> Address:
    return Address(LOOPBACK, node.port)


async def providers(node: DhtNode) -> set[tuple[Address, ...]]:
    return {found.addresses async for found in node.find(KEY)}


def test_twenty_nodes_find_each_other_and_survive_the_death_of_six() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            nodes: list[DhtNode] = []
            mortal: list[AsyncExitStack] = []
            for number in range(1, 21):
                own = AsyncExitStack()
                mortal.append(await stack.enter_async_context(own))
                node = await own.enter_async_context(running(number, "0.0.0.0" if number % 2 else LOOPBACK))
                node.set_addresses([address(node)])
                if nodes:
                    assert await node.bootstrap([address(nodes[0]), address(nodes[-1])]) >= 1
                nodes.append(node)
            publisher = nodes[4]
            assert await publisher.announce(KEY, claim(publisher)) >= 18
            for node in nodes:
                assert await providers(node) == {(address(publisher),)}
            for own in reversed(mortal[14:]):
                await own.aclose()
            found = await asyncio.gather(*map(providers, nodes[:14]))
            assert found == [{(address(publisher),)}] * 14
            assert await publisher.announce_shards([bytes([n]) * 20 for n in range(200)]) == 200

    asyncio.run(story())


def test_a_restarted_node_returns_through_the_contacts_it_remembered(tmp_path: Path) -> None:
    async def story() -> None:
        state = tmp_path / "dht.json"
        async with running(1) as one, running(2) as two:
            assert await two.bootstrap([address(one)]) == 1
            await one.announce(KEY, claim(one))
            async with running(3, state_path=state) as three:
                assert await three.bootstrap([address(two)]) == 1
                port = three.port
            remembered_ports = {contact.address.port for contact in await asyncio.to_thread(load, state)}
            assert remembered_ports == {one.port, two.port}
            async with running(3, port=port, state_path=state) as again:
                assert again.port == port
                assert len([found async for found in again.find(KEY)]) == 1
                assert {known.id for known in again.nodes()} == {one.id, two.id}

    asyncio.run(story())


def test_a_place_where_contacts_cannot_be_saved_does_not_stop_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")

    async def story() -> None:
        async with running(1) as one, running(2, state_path=tmp_path / "new" / "state" / "dht.json") as two:
            assert await two.bootstrap([address(one)]) == 1
            await asyncio.to_thread((tmp_path / "new").write_text, "in the way")

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert "cannot be saved" in caplog.text


def test_a_port_in_use_is_named() -> None:
    async def story() -> None:
        async with running(1) as one:
            with pytest.raises(ConfigError, match=f"UDP port {one.port} on 127.0.0.1 is in use"):
                async with running(2, port=one.port):
                    pass

    asyncio.run(story())


def test_a_foreign_address_cannot_be_listened_on() -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="cannot listen on UDP 192.0.2.1"):
            async with running(1, listen="192.0.2.1"):
                pass

    asyncio.run(story())


def test_an_error_of_the_caller_leaves_the_node_as_it_is() -> None:
    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            async with running(1):
                raise ZeroDivisionError

    asyncio.run(story())


def test_a_stopped_node_says_so() -> None:
    async def story() -> None:
        async with running(1) as one:
            pass
        with pytest.raises(PeerError, match="stopped"):
            await providers(one)

    asyncio.run(story())


def test_nobody_answers_from_a_silent_port() -> None:
    async def story() -> None:
        async with running(1) as one, running(2) as two:
            gone = address(two)
        async with running(1) as one:
            assert await one.bootstrap([gone, Address("::1", 9)]) == 0

    asyncio.run(story())


def test_ipv6_and_both_families_on_one_socket() -> None:
    async def story() -> None:
        async with running(1, "::") as both, running(2, LOOPBACK) as four, running(3, "::1") as six:
            assert await four.bootstrap([address(both)]) == 1
            assert await six.bootstrap([Address("::1", both.port)]) == 1
            assert await both.bootstrap([address(four), Address("::1", six.port)]) == 2
            assert {known.address for known in both.nodes()} == {address(four), Address("::1", six.port)}

    asyncio.run(story())


@asynccontextmanager
async def asked_quietly() -> AsyncIterator[list[dict[str, Any]]]:
    """Collects what the loop would only log: exceptions that nobody handled."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    yield unhandled


def hostile_datagrams(count: int) -> list[bytes]:
    randomness = random.Random(3)
    seeds = [
        *MALFORMED.values(),
        raw(0, ["ping", bytes(20), False]),
        raw(0, ["store", bytes(20), False, [bytes(200)] * 4]),
    ]
    datagrams = []
    for _ in range(count):
        data = bytearray(randomness.choice(seeds)[:1_400])
        for _ in range(randomness.randint(0, 3) if data else 0):
            data[randomness.randrange(len(data))] = randomness.randrange(256)
        if randomness.random() < 0.2:
            data = bytearray(randomness.randbytes(randomness.randint(0, 1_400)))
        datagrams.append(bytes(data))
    return datagrams


def test_thousands_of_hostile_datagrams_change_nothing() -> None:
    async def story() -> None:
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            assert await friend.bootstrap([address(victim)]) == 1
            tasks = len(asyncio.all_tasks())
            attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            attacker.setblocking(False)
            attacker.bind((LOOPBACK, 0))
            for number, datagram in enumerate(hostile_datagrams(6_000)):
                attacker.sendto(datagram, (LOOPBACK, victim.port))
                if number % 50 == 0:  # the friend's call is answered after what was sent before it
                    assert await friend.bootstrap([address(victim)]) == 1
            attacker.close()
            assert await friend.bootstrap([address(victim)]) == 1
            status = victim.status()
            assert status.datagrams_refused > 3_000
            assert status.records_held == 0 and status.contacts == 1
            protocol = victim._server.protocol
            assert len(protocol._outstanding) <= 4 and len(asyncio.all_tasks()) <= tasks + 8
            assert unhandled == []

    asyncio.run(story())


class Liar(asyncio.DatagramProtocol):
    """Answers every call with the next of its replies."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies = replies
        self.answered = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self.replies[self.answered % len(self.replies)]
        self.answered += 1
        self.transport.sendto(reply[:1] + data[1:21] + reply[21:], addr)


def test_every_malformed_reply_is_no_reply_and_the_socket_stays_open() -> None:
    replies = [data for data in MALFORMED.values() if len(data) > HEADER_BYTES]

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            liar = Liar(replies)
            transport, _ = await loop.create_datagram_endpoint(lambda: liar, local_addr=(LOOPBACK, 0))
            at = Address(*transport.get_extra_info("sockname"))
            protocol = victim._server.protocol

            async def call() -> None:
                with pytest.raises(PeerError):
                    await protocol.call(at, Ping(sender=victim.id, client=False))

            async with asyncio.timeout(10), asyncio.TaskGroup() as calls:
                for _ in replies:
                    calls.create_task(call())
            assert liar.answered == len(replies)
            assert protocol._outstanding == {} and not victim.nodes()
            assert await victim.bootstrap([address(friend)]) == 1
            assert unhandled == []
            transport.close()

    asyncio.run(story())


def test_contacts_that_lead_nowhere_end_a_search_but_not_the_node() -> None:
    """Well-formed replies that name ports and addresses where nobody is, one of them a broadcast address."""
    nowhere = [[bytes([n]) * 20, bytes([127, 0, 0, 1]), n + 1] for n in range(1, 15)]
    nowhere += [[b"\xaa" * 20, bytes([127, 255, 255, 255]), 9], [b"\xab" * 20, bytes(15) + b"\x01", 9]]
    liar_id = bytes([200]) * 20
    replies = {
        "ping": raw(1, ["pong", liar_id, False]),
        "find_node": raw(1, ["nodes", liar_id, False, nowhere]),
        "store": raw(1, ["stored", liar_id, False, 16]),
        "find_records": raw(1, ["records", liar_id, False, nowhere, [b"x" * 300], True]),
    }

    class Leading(Liar):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            tag = msgspec.msgpack.decode(data[HEADER_BYTES:])[0]
            self.transport.sendto(replies[tag][:1] + data[1:21] + replies[tag][21:], addr)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            transport, _ = await loop.create_datagram_endpoint(lambda: Leading([]), local_addr=(LOOPBACK, 0))
            at = Address(*transport.get_extra_info("sockname"))
            assert await victim.bootstrap([at, address(friend)]) == 2
            await friend.announce(KEY, claim(friend))
            assert len([found async for found in victim.find(KEY)]) == 1
            assert unhandled == []
            transport.close()

    asyncio.run(story())


def test_only_the_address_that_was_asked_may_answer() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with running(1) as victim:
            asked: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue(8)

            class Silent(asyncio.DatagramProtocol):
                def datagram_received(self, data: bytes, addr: Any) -> None:
                    asked.put_nowait((data, addr))

            silent, _ = await loop.create_datagram_endpoint(Silent, local_addr=(LOOPBACK, 0))
            other, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOOPBACK, 0))
            joining = asyncio.ensure_future(victim.bootstrap([Address(*silent.get_extra_info("sockname"))]))
            data, addr = await asked.get()
            call, message = decode(data)
            assert isinstance(message, Ping)
            forged = raw(1, ["pong", bytes([9]) * 20, False])
            other.sendto(forged[:1] + call + forged[21:], addr)
            assert await joining == 0 and not victim.nodes()
            silent.close()
            other.close()

    asyncio.run(story())


def test_calls_beyond_the_bound_and_from_a_full_socket_fail_at_once() -> None:
    async def story() -> None:
        async with running(1) as one, running(2) as two:
            protocol = one._server.protocol
            ping = Ping(sender=one.id, client=False)
            protocol.pause_writing()
            with pytest.raises(PeerError, match="cannot be reached"):
                await protocol.call(address(two), ping)
            protocol.resume_writing()
            assert (await protocol.call(address(two), ping)).sender == two.id

            async def call() -> None:
                with pytest.raises(PeerError, match="did not answer|calls are under way"):
                    await protocol.call(Address(LOOPBACK, 1), ping)

            async with asyncio.TaskGroup() as calls:
                for _ in range(MAX_OUTSTANDING + 50):
                    calls.create_task(call())
            assert protocol._outstanding == {}
            assert one.status().calls_unanswered == MAX_OUTSTANDING

    asyncio.run(story())


def test_calls_under_way_end_when_the_socket_closes() -> None:
    async def story() -> None:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind((LOOPBACK, 0))
        async with asyncio.TaskGroup() as calls:
            async with running(1) as one:

                async def call() -> None:
                    with pytest.raises(PeerError, match="socket closed"):
                        await protocol.call(Address(*silent.getsockname()), Ping(sender=one.id, client=False))

                protocol = one._server.protocol
                calls.create_task(call())
                await asyncio.sleep(0)
        silent.close()

    asyncio.run(story())


def test_a_node_that_is_told_its_own_address_notices_at_once() -> None:
    async def story() -> None:
        async with running(1) as one:
            async with asyncio.timeout(0.9):  # less than one time-out of a call
                assert await one.bootstrap([address(one)]) == 0
            assert one.nodes() == []

    asyncio.run(story())


def test_a_message_of_ones_own_is_ignored_and_a_misspelt_attribute_is_an_error() -> None:
    async def story() -> None:
        async with running(1) as one:
            protocol = one._server.protocol
            protocol.datagram_received(encode(bytes(20), Ping(sender=one.id, client=False)), (LOOPBACK, 9))
            assert one.status().requests_answered == 0
            with pytest.raises(AttributeError, match="find_nodes"):
                protocol.find_nodes((LOOPBACK, 9), one.id)

    asyncio.run(story())
