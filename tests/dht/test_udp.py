"""Real nodes on real sockets of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dhtdata.dht import DhtNode, endpoint, envelope, messages
from dhtdata.dht.envelope import CALL_END, CODED, HEADER_BYTES, KNOCK, NO_COOKIE, REPLY, REQUEST, Letter
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import (
    REPLY_TO,
    ContactWire,
    FindNode,
    FindRecords,
    Introduce,
    Introduced,
    Meet,
    Met,
    Nodes,
    Ping,
    Pong,
    Records,
    Reply,
    Store,
    Stored,
    decode_request,
)
from dhtdata.dht.node import CONTACTS_FILE, RECORDS_FILE
from dhtdata.dht.protocol import MAX_OUTSTANDING
from dhtdata.dht.remembered import load
from dhtdata.dht.routing import Contact
from dhtdata.errors import ConfigError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import Signed
from dhtdata.network import Network
from dhtdata.signing import SigningKey
from tests.dht.claims import KEY, holding
from tests.dht.claims import claim as claim_at
from tests.dht.speaker import Speaker
from tests.dht.test_messages import MALFORMED_REPLIES, MALFORMED_REQUESTS

LOOPBACK = "127.0.0.1"
EASY = Network()
YOU = bytes([127, 0, 0, 1])


def key_of(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


def claim(node: DhtNode) -> Signed:
    return claim_at(node, sequence=int(time.time()), at_s=int(time.time()))


def running(number: int = 1, listen: str = LOOPBACK, port: int = 0, folder: Path | None = None, **more: Any) -> Any:
    settings = {"client": False, "network": EASY, **more}
    return DhtNode.running(key_of(number), listen=listen, port=port, folder=folder, **settings)


def address(node: DhtNode) -> Address:
    return Address(LOOPBACK, node.port)


async def providers(node: DhtNode) -> set[tuple[Address, ...]]:
    found = {found.record.signer: found.addresses async for found in node.find(KEY)}
    return set(found.values())


async def acquaint(one: DhtNode, two: DhtNode) -> None:
    """Each knows the other, on return."""
    assert await two.bootstrap([address(one)]) == 1
    assert await one.bootstrap([address(two)]) == 1


async def several_turns() -> None:
    """Let tasks that need nobody's answer come to their ends."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def silent_port() -> AsyncIterator[Address]:
    """A port where somebody listens and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOOPBACK, 0))
        yield Address(*silent.getsockname())


@asynccontextmanager
async def asked_quietly() -> AsyncIterator[list[dict[str, Any]]]:
    """Collects what the loop would only log: exceptions that nobody handled."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    yield unhandled


def test_twenty_nodes_find_each_other_and_survive_the_death_of_six() -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            nodes: list[DhtNode] = []
            mortal: list[AsyncExitStack] = []
            for number in range(1, 21):
                own = AsyncExitStack()
                mortal.append(await stack.enter_async_context(own))
                node = await own.enter_async_context(running(number, "0.0.0.0" if number % 2 else LOOPBACK))
                if nodes:
                    assert await node.bootstrap([address(nodes[0]), address(nodes[-1])]) >= 1
                nodes.append(node)
            assert sum(node.serves for node in nodes) >= 18
            publisher = nodes[4]
            assert await publisher.announce(KEY, claim(publisher)) >= 15
            for node in nodes:
                assert await providers(node) == {(address(publisher),)}
            for own in reversed(mortal[14:]):
                await own.aclose()
            found = await asyncio.gather(*map(providers, nodes[:14]))
            assert found == [{(address(publisher),)}] * 14
            keys = {bytes([number]) * 20 for number in range(200)}
            assert await publisher.announce_shards(list(keys)) == keys

    asyncio.run(story())


def test_in_the_public_network_identifiers_cost_work_and_who_did_none_stays_outside() -> None:
    easy = Network(difficulty_bits=8)

    async def story() -> None:
        async with running(1, network=easy) as one, running(2, network=easy) as two, running(3) as lazy:
            assert await two.bootstrap([address(one)]) == 1
            assert one.id[0] != lazy.id[0] or one.id != lazy.id
            # The datagrams of both look alike: only the identifier does not show the work.
            assert await lazy.bootstrap([address(one)]) == 1
            assert await lazy.announce(KEY, claim(lazy)) == 2
            assert await providers(two) == {(address(lazy),)}
            assert {known.id for known in one.nodes()} == {two.id} and {known.id for known in two.nodes()} == {one.id}

    asyncio.run(story())


def test_a_restarted_node_returns_through_the_contacts_it_remembered(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(1) as one, running(2) as two:
            assert await two.bootstrap([address(one)]) == 1
            async with running(3, folder=tmp_path) as three:
                assert await three.bootstrap([address(two)]) == 1
                port = three.port
                await one.announce(KEY, claim(one))
                assert holding([three])
            remembered = await asyncio.to_thread(load, tmp_path / CONTACTS_FILE)
            assert {contact.address.port for contact in remembered} == {one.port, two.port}
            async with running(3, port=port, folder=tmp_path) as again:
                assert again.port == port
                await several_turns()
                # What it held it holds, before anybody can have answered.
                assert holding([again])
                assert await providers(again) == {(address(one),)}
                assert {known.id for known in again.nodes()} == {one.id, two.id}

    asyncio.run(story())


def test_a_client_keeps_no_records_on_disk(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(1) as one, running(2, folder=tmp_path, client=True) as two:
            assert await two.bootstrap([address(one)]) == 1

    asyncio.run(story())
    assert [each.name for each in tmp_path.iterdir()] == [CONTACTS_FILE]


def test_a_damaged_folder_costs_what_was_in_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / CONTACTS_FILE).write_bytes(b"{")
    (tmp_path / RECORDS_FILE).write_bytes(b"no database" * 100)

    async def story() -> None:
        async with running(1) as one, running(2, folder=tmp_path) as two:
            await acquaint(one, two)
            assert await one.announce(KEY, claim(one)) == 1
            assert holding([two])
        async with running(2, folder=tmp_path) as again:
            await several_turns()
            assert holding([again])

    asyncio.run(story())


def test_a_place_where_contacts_cannot_be_saved_does_not_stop_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with running(1) as one, running(2, folder=tmp_path) as two:
            assert await two.bootstrap([address(one)]) == 1
            (tmp_path / CONTACTS_FILE).mkdir()  # in the way

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert "cannot be saved" in caplog.text


def test_two_nodes_on_one_folder_both_run_and_one_keeps_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with running(1, folder=tmp_path) as one, running(2, folder=tmp_path) as two:
            assert await two.bootstrap([address(one)]) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert "another process uses it" in caplog.text


def test_a_port_in_use_is_named_and_the_folder_stays_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with running(1) as one:
            with pytest.raises(ConfigError, match=f"UDP port {one.port} on 127.0.0.1 is in use"):
                async with running(2, port=one.port, folder=tmp_path):
                    pass
            async with running(2, folder=tmp_path):
                pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert caplog.text == ""


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


def test_a_search_under_way_ends_when_the_node_stops() -> None:
    async def story() -> None:
        async with silent_port() as silent, AsyncExitStack() as stack:
            one = await stack.enter_async_context(running(1))
            one.overlays[0].table.answered(Contact(bytes(20), silent), asyncio.get_running_loop().time())
            searching = asyncio.ensure_future(providers(one))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # now it waits
            await stack.aclose()
            assert await searching == set()

    asyncio.run(story())


def test_nobody_answers_from_a_silent_port_nor_from_a_family_that_we_do_not_speak() -> None:
    async def story() -> None:
        async with running(1) as one, silent_port() as gone:
            assert await one.bootstrap([gone, Address("::1", 9_000)]) == 0
            reasons = one.status().bootstrap_failures
            assert any(reason.startswith(f"{gone} did not answer") for reason in reasons)
            with pytest.raises(PeerError, match="no IPv6 socket"):
                await one.ping(Address("::1", 9_000))

    asyncio.run(story())


def test_ipv6_and_both_families_on_one_port() -> None:
    async def story() -> None:
        async with running(1, "::") as both, running(2, LOOPBACK) as four, running(3, "::1") as six:
            assert both.status().families == (4, 6)
            assert await four.bootstrap([address(both)]) == 1
            assert await six.bootstrap([Address("::1", both.port)]) == 1
            assert await both.bootstrap([address(four), Address("::1", six.port)]) == 2
            assert {known.address for known in both.nodes()} == {address(four), Address("::1", six.port)}
            assert await both.announce(KEY, claim(both)) == 2
            ((first, *_),) = await providers(four)
            assert first in both.addresses()
            (addresses,) = await providers(six)
            assert set(addresses) <= set(both.addresses()) == {address(both), Address("::1", both.port)}

    asyncio.run(story())


def test_without_ipv6_all_of_both_families_is_all_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "has_ipv6", lambda: False)

    async def story() -> None:
        async with running(1, "::") as four, running(2) as other:
            assert four.status().families == (4,)
            assert await other.bootstrap([address(four)]) == 1
            with pytest.raises(PeerError, match="no IPv6 socket"):
                await four.ping(Address("::1", other.port))

    asyncio.run(story())


def test_if_the_port_is_taken_in_one_family_nothing_stays_open_in_the_other() -> None:
    async def story() -> None:
        async with running(1, "::1") as six:
            with pytest.raises(ConfigError, match=f"UDP port {six.port} on :: is in use"):
                async with running(2, "::", port=six.port):
                    pass
            async with running(3, "0.0.0.0", port=six.port):
                pass

    asyncio.run(story())


# Hostile datagrams


def sealed(body: bytes, cookie: bytes = NO_COOKIE, kind: int = REQUEST, number: int = 99) -> bytes:
    letter = Letter(kind, bytes(8), cookie, False, body or b"?")
    return envelope.seal(EASY, Identity.proven(key_of(number), 0), letter)


def hostile_datagrams(count: int, cookie: bytes) -> list[bytes]:
    """Broken, forged, malformed, of unknown kinds and versions, some of them with a good cookie."""
    randomness = random.Random(3)
    bodies = [*MALFORMED_REQUESTS.values(), messages.encode(Ping()), messages.encode(Store(records=(bytes(200),) * 4))]
    whole = [sealed(body, proof) for body in bodies if len(body) < 1_000 for proof in (NO_COOKIE, cookie)]
    whole += [
        envelope.knock(EASY, bytes(8)),
        envelope.challenge(EASY, bytes(8), cookie),
        envelope.notice(EASY, bytes(8)),
    ]
    datagrams = []
    for _ in range(count):
        data = bytearray(randomness.choice(whole))
        for _ in range(randomness.randint(0, 3)):
            data[randomness.choice((0, 1, randomness.randrange(len(data))))] = randomness.randrange(256)
        if randomness.random() < 0.1:
            del data[randomness.randrange(len(data)) :]
        if randomness.random() < 0.1:
            data = bytearray(randomness.randbytes(randomness.randint(0, 1_400)))
        datagrams.append(bytes(data))
    return datagrams


def test_thousands_of_hostile_datagrams_change_nothing() -> None:
    async def story() -> None:
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            assert await friend.bootstrap([address(victim)]) == 1
            tasks = len(asyncio.all_tasks())
            attacker = await Speaker.open(LOOPBACK)
            cookie = await attacker.cookie(address(victim))
            for number, datagram in enumerate(hostile_datagrams(6_000, cookie)):
                attacker.send(datagram, address(victim))
                if number % 50 == 0:  # the friend's call is answered after what was sent before it
                    assert (await friend.ping(address(victim)))[0].id == victim.id
            assert (await friend.ping(address(victim)))[0].id == victim.id
            attacker.close()
            status = victim.status()
            assert min(status.datagrams_refused, status.challenges, status.strangers, status.other_versions) > 100
            dropped = status.datagrams_refused + status.answers_late + status.strangers + status.over_rate
            assert dropped + status.challenges + status.other_versions + status.requests_answered > 6_000
            assert status.records_held == 0 and status.contacts <= 2
            protocol = victim.overlays[0].protocol
            assert len(protocol._outstanding) <= 8 and len(asyncio.all_tasks()) <= tasks + 8
            assert unhandled == []

    asyncio.run(story())


class Liar(Speaker):
    """Answers every knock with a challenge and every request with the next of its bodies."""

    bodies: list[bytes] = []
    answered = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data[1] == KNOCK:
            self._transport.sendto(envelope.challenge(self.network, data[CODED:CALL_END], b"cookie42"), addr)
        elif data[1] == REQUEST:
            body = self.body(data)
            _, _, asker = envelope.unseal(data, self.identity.id)
            letter = Letter(REPLY, data[CODED:CALL_END], b"cookie43", False, body, asker)
            self._transport.sendto(envelope.seal(self.network, self.identity, letter), addr)
            self.answered += 1

    def body(self, request: bytes) -> bytes:
        return self.bodies[self.answered % len(self.bodies)]


def test_every_malformed_reply_is_no_reply_and_the_socket_stays_open() -> None:
    bodies = [body for body in MALFORMED_REPLIES.values() if 0 < len(body) <= envelope.MAX_BODY_BYTES]

    async def story() -> None:
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            liar = await Liar.open(LOOPBACK)
            liar.bodies = bodies
            protocol = victim.overlays[0].protocol

            async def call() -> None:
                with pytest.raises(PeerError, match="nonsense|another question"):
                    await protocol.call(liar.address, Introduce())

            async with asyncio.timeout(10), asyncio.TaskGroup() as calls:
                for _ in bodies:
                    calls.create_task(call())
            assert liar.answered == len(bodies)
            assert protocol._outstanding == {} and not victim.nodes()
            assert await victim.bootstrap([address(friend)]) == 1
            assert unhandled == []
            liar.close()

    asyncio.run(story())


NOWHERE = (
    *(ContactWire(id=bytes([n]) * 20, ip=bytes([127, 0, 0, 1]), port=2_000 + n) for n in range(1, 6)),
    ContactWire(id=b"\xaa" * 20, ip=bytes([127, 255, 255, 255]), port=9_000),
    ContactWire(id=b"\xab" * 20, ip=bytes(15) + b"\x01", port=9_000),
)


class Leading(Liar):
    """Names ports and addresses where nobody is, one of them a broadcast address."""

    def body(self, request: bytes) -> bytes:
        asked = decode_request(request[HEADER_BYTES:])
        now = int(time.time())
        replies: dict[type, Reply] = {
            Ping: Pong(you=YOU, time=now),
            FindNode: Nodes(you=YOU, time=now, contacts=NOWHERE),
            FindRecords: Records(you=YOU, time=now, contacts=NOWHERE, records=(b"x" * 300,), more=True),
            Store: Stored(you=YOU, time=now, kept=16),
            Introduce: Introduced(you=YOU, time=now, others=True),
            Meet: Met(you=YOU, time=now),
        }
        assert {type(reply) for reply in replies.values()} == set(REPLY_TO.values())
        return messages.encode(replies[type(asked)])


def test_contacts_that_lead_nowhere_end_a_search_but_not_the_node() -> None:
    async def story() -> None:
        async with running(1) as victim, running(2) as friend, asked_quietly() as unhandled:
            leading = await Leading.open(LOOPBACK)
            assert await victim.bootstrap([leading.address, address(friend)]) == 2
            await acquaint(victim, friend)
            await friend.announce(KEY, claim(friend))
            assert await providers(victim) == {(address(friend),)}
            assert unhandled == []
            leading.close()

    asyncio.run(story())


def test_odd_errors_of_the_network_leave_the_socket_open() -> None:
    async def story() -> None:
        async with running(1, "0.0.0.0") as one, running(2) as two, asked_quietly() as unhandled:
            odd = [Address("255.255.255.255", 9_000), Address("0.0.0.0", 9_000), Address("240.0.0.1", 9_000)]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
                gone.bind((LOOPBACK, 0))
                odd.append(Address(*gone.getsockname()))  # refused by ICMP from now on

            async def call(at: Address) -> None:
                with pytest.raises(PeerError, match="did not answer"):
                    await one.overlays[0].protocol.call(at, Ping())

            async with asyncio.TaskGroup() as calls:
                for at in odd:
                    calls.create_task(call(at))
            transport = one.overlays[0].protocol.transport
            assert transport is not None
            transport.sendto(bytes(70_000), (LOOPBACK, two.port))  # too long for UDP
            transport.sendto(b"?", ("::1", two.port))  # another family
            assert (await one.ping(address(two)))[0].id == two.id
            assert unhandled == []

    asyncio.run(story())


def test_only_the_address_that_was_asked_may_answer() -> None:
    async def story() -> None:
        async with running(1) as victim:
            silent, other = await Speaker.open(LOOPBACK, number=98), await Speaker.open(LOOPBACK, number=97)
            joining = asyncio.ensure_future(victim.bootstrap([silent.address]))
            data, _ = await silent.next()
            pong = Pong(you=YOU, time=int(time.time()))
            other.send(other.reply(data, pong, asker=victim.id), address(victim))
            other.send(silent.reply(data, pong, asker=victim.id), address(victim))  # a good answer from the wrong place
            assert await joining == 0 and not victim.nodes()
            silent.close()
            other.close()

    asyncio.run(story())


def test_calls_beyond_the_bound_fail_at_once() -> None:
    async def story() -> None:
        async with running(1) as one, silent_port() as silent:
            protocol = one.overlays[0].protocol

            async def call() -> None:
                with pytest.raises(PeerError, match="did not answer|calls are under way"):
                    await protocol.call(silent, Ping())

            async with asyncio.TaskGroup() as calls:
                for _ in range(MAX_OUTSTANDING + 50):
                    calls.create_task(call())
            assert protocol._outstanding == {}
            assert one.status().calls_unanswered == MAX_OUTSTANDING

    asyncio.run(story())


def test_calls_under_way_end_when_the_socket_closes_and_later_ones_at_once() -> None:
    async def story() -> None:
        async with silent_port() as silent:
            async with asyncio.TaskGroup() as calls:
                async with running(1) as one:

                    async def call() -> None:
                        with pytest.raises(PeerError, match="socket closed"):
                            await protocol.call(silent, Ping())

                    protocol = one.overlays[0].protocol
                    calls.create_task(call())
                    await asyncio.sleep(0)
            with pytest.raises(PeerError, match="cannot be reached from our socket"):
                await protocol.call(silent, Ping())

    asyncio.run(story())


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def story() -> None:
        async with running(1) as one, silent_port() as silent:
            protocol = one.overlays[0].protocol
            calling = asyncio.ensure_future(protocol.call(silent, Ping()))
            await asyncio.sleep(0)
            assert len(protocol._outstanding) == 1
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calling
            assert protocol._outstanding == {}

    asyncio.run(story())


def test_a_node_that_is_told_its_own_address_notices_at_once_and_says_so() -> None:
    async def story() -> None:
        async with running(1) as one:
            async with asyncio.timeout(0.9):  # less than one time-out of a call
                assert await one.bootstrap([address(one)]) == 0
            assert one.nodes() == []
            assert one.status().bootstrap_failures == (f"{address(one)} is our own address",)

    asyncio.run(story())


def test_a_message_of_ones_own_is_ignored_and_a_misspelt_attribute_is_an_error() -> None:
    async def story() -> None:
        async with running(1) as one:
            protocol = one.overlays[0].protocol
            stranger = await Speaker.open(LOOPBACK, number=1)  # with our own key
            stranger.send(stranger.request(Ping(), await stranger.cookie(address(one))), address(one))
            other = await Speaker.open(LOOPBACK)
            assert isinstance(await other.ask(address(one), Ping()), Pong)
            assert one.status().requests_answered == 1 and one.nodes() == []
            with pytest.raises(AttributeError, match="find_nodes"):
                protocol.find_nodes((LOOPBACK, 9), one.id)
            stranger.close()
            other.close()

    asyncio.run(story())
