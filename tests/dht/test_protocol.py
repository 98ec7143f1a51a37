"""The wire against strangers and forgers: cookies, what settles a call, replays, rates, amplification."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from dhtdata.dht import DhtNode, envelope, messages
from dhtdata.dht.cookies import ROTATION_S
from dhtdata.dht.envelope import (
    CALL_BYTES,
    CALL_END,
    CHALLENGE,
    CODED,
    COOKIE_END,
    HEADER_BYTES,
    KNOCK,
    MAX_DATAGRAM_BYTES,
    NO_COOKIE,
    REPLY,
    REQUEST,
)
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import (
    FindNode,
    FindRecords,
    Introduce,
    Introduced,
    Meet,
    Met,
    Nodes,
    Ping,
    Pong,
    Request,
    Store,
)
from dhtdata.dht.protocol import (
    CHALLENGES_A_S,
    MAX_OUTSTANDING,
    MAX_SOURCES,
    NOTICES_A_S,
    REQUESTS_A_S,
    REQUESTS_AT_ONCE,
    VERIFIED_A_S,
)
from dhtdata.dht.routing import Contact
from dhtdata.errors import FormatError, PeerError
from dhtdata.formats.addresses import Address, packed
from dhtdata.network import Network
from dhtdata.signing import SigningKey
from tests.dht.claims import KEY, claim
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.network import public_ip
from tests.simulation.swarm import PORT, Swarm, swarm

REQUESTS: dict[str, Request] = {
    "ping": Ping(),
    "find_node": FindNode(target=bytes(20)),
    "find_records": FindRecords(key=KEY, target=KEY, after=0, contacts=True),
    "store": Store(records=(bytes(200),) * 4),
    "introduce": Introduce(),
    "meet": Meet(ip=bytes([12, 0, 0, 1]), port=8470),
}
ELSEWHERE = 900  # subnets that no node of the swarm is in


@asynccontextmanager
async def speaking(number: int = 99, subnet: int = ELSEWHERE, **more: Any) -> AsyncIterator[Speaker]:
    speaker = await Speaker.open(public_ip(subnet), PORT, number=number, **more)
    try:
        yield speaker
    finally:
        speaker.close()


# Cookies


async def bad_cookies(speaker: Speaker, of: Address, network: Swarm) -> dict[str, bytes]:
    async with speaking(98, ELSEWHERE + 1) as other:
        theirs = await other.cookie(of)
    stale = await speaker.cookie(of)
    await asyncio.sleep(2 * ROTATION_S)
    return {"none": NO_COOKIE, "invented": b"\x55" * 8, "another's": theirs, "stale": stale}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_without_a_good_cookie_gets_one_short_challenge_and_nothing_else(name: str) -> None:
    async def story() -> None:
        async with swarm(3) as network, speaking() as stranger:
            victim = network.nodes[0]
            at = network.address(victim)
            for cookie in (await bad_cookies(stranger, at, network)).values():
                before, sent = len(stranger.heard), victim.status().calls
                request = stranger.request(REQUESTS[name], cookie)
                stranger.send(request, at)
                await asyncio.sleep(5)
                ((answer, source),) = stranger.heard[before:]
                assert answer[1] == CHALLENGE and len(answer) == 34 < len(request)
                assert answer[CODED:CALL_END] == request[CODED:CALL_END] and source == (at.ip, at.port)
                assert victim.status().calls - sent <= 4  # its own upkeep at most
            assert victim.status().requests_answered == network.nodes[0].status().requests_answered
            assert victim.status().records_held == 0

    run(story())


def test_a_knock_costs_as_much_as_the_challenge_that_answers_it() -> None:
    async def story() -> None:
        async with swarm(2) as network, speaking() as stranger:
            knock = envelope.knock(Network(), b"12345678")
            stranger.send(knock, network.address(network.nodes[0]))
            answer, _ = await stranger.next()
            assert answer[1] == CHALLENGE and len(answer) == len(knock) and answer[CODED:CALL_END] == b"12345678"
            for odd in (knock[:-1], knock + b"?", knock + bytes(200)):
                stranger.send(odd, network.address(network.nodes[0]))
            await asyncio.sleep(5)
            assert len(stranger.heard) == 1

    run(story())


def test_nothing_that_a_stranger_sends_makes_more_bytes_come_back() -> None:
    """Whatever kind, size and cookie: to an unproven address never more bytes go than came from it."""

    async def story() -> None:
        async with swarm(8) as network:
            victim = network.nodes[0]
            at = network.address(victim)
            await victim.announce(KEY, claim(victim))
            signer = Identity.proven(SigningKey(bytes([9]) * 32), 0)
            whole = []
            for message in REQUESTS.values():
                for cookie in (NO_COOKIE, b"\x55" * 8):
                    letter = envelope.Letter(REQUEST, bytes(8), cookie, False, messages.encode(message))
                    whole.append(envelope.seal(Network(), signer, letter))
                    whole.append(envelope.seal(Network(), signer, replace(letter, kind=REPLY)))
            whole += [envelope.knock(Network(), bytes(8)), envelope.challenge(Network(), bytes(8), bytes(8))]
            whole += [envelope.notice(Network(), bytes(8)), bytes(26), bytes(34), bytes(MAX_DATAGRAM_BYTES)]
            for kind in range(8):
                for version in (0, 1, 2, 3, 255):
                    for datagram in whole:
                        coded = bytes((version, kind))
                        rest = datagram[CODED:]
                        whole_again = coded + Network().code(coded, rest) + rest
                        async with speaking() as stranger:
                            for cut in {len(whole_again), CALL_END, COOKIE_END, HEADER_BYTES}:
                                stranger.heard.clear()
                                sent = whole_again[:cut]
                                stranger.send(sent, at)
                                await asyncio.sleep(0.2)
                                assert sum(len(data) for data, _ in stranger.heard) <= len(sent)
                                assert len(stranger.heard) <= 1

    run(story())


def test_a_cookie_lives_for_at_least_one_rotation_and_at_most_two() -> None:
    async def story() -> None:
        async with swarm(2) as network, speaking() as stranger:
            at = network.address(network.nodes[0])
            loop = asyncio.get_running_loop()
            await asyncio.sleep(ROTATION_S - loop.time() % ROTATION_S + 1)
            cookie = await stranger.cookie(at)
            await asyncio.sleep(2 * ROTATION_S - 20)
            assert isinstance(await stranger.ask(at, Ping(), cookie), Pong)
            await asyncio.sleep(20)
            count = len(stranger.heard)
            stranger.send(stranger.request(Ping(), cookie), at)
            data, _ = await stranger.next(count)
            assert data[1] == CHALLENGE
            # Every reply brings a fresh one.
            assert isinstance(await stranger.ask(at, Ping()), Pong)
            fresh = stranger.heard[-1][0][CALL_END:COOKIE_END]
            assert isinstance(await stranger.ask(at, Ping(), fresh), Pong)

    run(story())


def test_a_request_cannot_be_replayed_to_another_node_nor_from_another_address() -> None:
    async def story() -> None:
        async with swarm(3) as network, speaking() as speaker, speaking(98, ELSEWHERE + 1) as thief:
            one, two = map(network.address, network.nodes[:2])
            request = speaker.request(FindNode(target=bytes(20)), await speaker.cookie(one))
            thief.send(request, one)
            data, _ = await thief.next()
            assert data[1] == CHALLENGE
            # With the thief's own cookie in it the signature is wrong.
            stolen = request[:CALL_END] + data[CALL_END:COOKIE_END] + request[COOKIE_END:]
            thief.send(stolen, one)
            count = len(speaker.heard)
            speaker.send(request, two)
            data, _ = await speaker.next(count)
            assert data[1] == CHALLENGE
            await asyncio.sleep(5)
            assert len(thief.heard) == 1
            assert network.nodes[0].status().datagrams_refused == 1

    run(story())


# What settles a call


@asynccontextmanager
async def called(message: Any = None) -> AsyncIterator[tuple[Swarm, DhtNode, Speaker, asyncio.Task[Any], bytes]]:
    """A node that called a speaker: its request, after knock and challenge, and the call under way."""
    network = Swarm(seed=3)
    caller = await network.start()
    try:
        async with speaking() as speaker:
            calling = asyncio.ensure_future(caller.overlays[0].protocol.call(speaker.address, message or Ping()))
            knock, source = await speaker.next()
            assert knock[1] == KNOCK and len(knock) == COOKIE_END
            challenge = envelope.challenge(Network(), knock[CODED:CALL_END], b"cookie42")
            speaker.send(challenge, Address(*source))
            request, _ = await speaker.next(1)
            assert request[1] == REQUEST and request[CALL_END:COOKIE_END] == b"cookie42"
            yield network, caller, speaker, calling, request
            calling.cancel()
            await asyncio.wait([calling])
    finally:
        await network.close()


PONG = Pong(you=packed("11.0.0.1"), time=1_800_000_000)


def test_the_right_reply_settles_a_call() -> None:
    async def story() -> None:
        async with called() as (network, caller, speaker, calling, request):
            speaker.send(speaker.reply(request, PONG), network.address(caller))
            assert (await calling).sender == speaker.identity.id

    run(story())


def test_neither_another_address_nor_another_number_settles_a_call() -> None:
    async def story() -> None:
        async with called() as (network, caller, speaker, calling, request), speaking(98, ELSEWHERE + 1) as other:
            at = network.address(caller)
            right = speaker.reply(request, PONG)
            other.send(right, at)
            other.send(other.reply(request, PONG), at)
            wrong_call = request[:CODED] + bytes(CALL_BYTES) + request[CALL_END:]
            speaker.send(speaker.reply(wrong_call, PONG, asker=caller.id), at)
            speaker.send(envelope.challenge(Network(), bytes(CALL_BYTES), b"cookie43"), at)
            with pytest.raises(PeerError, match="did not answer"):
                await calling
            assert (caller.status().datagrams_refused, caller.status().answers_late) == (2, 2)
            speaker.send(right, at)  # too late
            await asyncio.sleep(1)
            assert caller.status().answers_late == 3 and caller.nodes() == []

    run(story())


def forged(speaker: Speaker, request: bytes) -> dict[str, bytes]:
    """Replies from the right place with the right number, all of them wrong."""
    right = speaker.reply(request, PONG)
    other = Identity.proven(SigningKey(bytes([50]) * 32), 0)
    flipped = bytearray(right)
    flipped[-1] ^= 1
    return {
        "unsigned": right[: HEADER_BYTES - 64] + bytes(64) + right[HEADER_BYTES:],
        "changed body": bytes(flipped),
        "another's key": right[: COOKIE_END + 1] + other.key.public + right[COOKIE_END + 33 :],
        "another's nonce": right[: COOKIE_END + 33] + b"\x01" * 8 + right[COOKIE_END + 41 :],
        "another's signature": right[:75] + speaker.reply(request, PONG, other)[75:HEADER_BYTES] + right[HEADER_BYTES:],
        "a reply of another kind": speaker.reply(request, Nodes(you=PONG.you, time=PONG.time, contacts=())),
        "no reply but a request": speaker.request(Ping(), request[CALL_END:COOKIE_END]),
        "cut short": right[:HEADER_BYTES],
    }


@pytest.mark.parametrize("name", ["unsigned", "changed body", "another's key", "another's nonce", "another's signature",
                                  "a reply of another kind", "no reply but a request", "cut short"])  # fmt: skip
def test_no_forged_reply_settles_a_call(name: str) -> None:
    async def story() -> None:
        async with called() as (network, caller, speaker, calling, request):
            speaker.send(forged(speaker, request)[name], network.address(caller))
            with pytest.raises(PeerError, match="answered nonsense|answered another question|did not answer"):
                await calling
            assert caller.nodes() == []

    run(story())


def test_whoever_lives_at_a_contacts_address_now_is_not_taken_for_it() -> None:
    async def story() -> None:
        async with swarm(3, seed=4) as network:
            gone = network.nodes[2]
            network.kill(gone)
            usurper = await network.start(ip=network.ip(gone))
            assert usurper.id != gone.id
            one = network.nodes[0]
            (contact,) = [each for each in one.overlays[0].table if each.id == gone.id]
            with pytest.raises(PeerError, match="did not answer"):  # the call names another node
                await one.overlays[0].asker.introduce(contact)
            await network.join(usurper)
            await asyncio.sleep(3600)
            assert {known.id for known in one.nodes()} == {network.nodes[1].id, usurper.id}

    run(story())


def test_a_challenge_is_answered_once_and_only_from_where_it_was_asked_for() -> None:
    async def story() -> None:
        async with called() as (network, caller, speaker, calling, request), speaking(98, ELSEWHERE + 1) as other:
            at = network.address(caller)
            for number in range(20):
                cookie = number.to_bytes(8, "big")
                speaker.send(envelope.challenge(Network(), request[CODED:CALL_END], cookie), at)
                other.send(envelope.challenge(Network(), request[CODED:CALL_END], cookie), at)
            await asyncio.sleep(0.5)
            assert len(speaker.heard) == 2 and other.heard == []  # the knock and the one request
            speaker.send(speaker.reply(request, PONG), at)
            assert (await calling).sender == speaker.identity.id

    run(story())


def test_a_node_whose_secrets_changed_is_asked_again_with_its_new_cookie() -> None:
    async def story() -> None:
        async with swarm(2) as network:
            one, two = network.nodes
            before = (await one.ping(network.address(two)))[2]
            again = await network.restart(two)
            calls = one.status().calls
            contact, _, took_s = await one.ping(network.address(again))
            assert contact.id == again.id and one.status().calls == calls + 1
            assert again.status().challenges == 1 and took_s > 0 and before > 0

    run(story())


# Rates


def test_one_network_gets_no_more_than_its_rate_and_others_are_served_meanwhile() -> None:
    async def story() -> None:
        async with swarm(2) as network, speaking() as greedy, speaking(98, ELSEWHERE + 1) as modest:
            victim = network.nodes[0]
            at = network.address(victim)
            cookie, fair = await greedy.cookie(at), await modest.cookie(at)
            answered = victim.status().requests_answered
            for second in range(10):
                for _ in range(600):
                    greedy.send(greedy.request(Ping(), cookie), at)
                if second == 9:
                    assert isinstance(await modest.ask(at, Ping(), fair), Pong)
                await asyncio.sleep(1)
            status = victim.status()
            assert status.requests_answered - answered <= REQUESTS_AT_ONCE + 11 * REQUESTS_A_S
            assert status.over_rate >= 6_000 - REQUESTS_AT_ONCE - 11 * REQUESTS_A_S
            # Neighbours in the same /24 share the rate.
            neighbour = await Speaker.open(public_ip(ELSEWHERE, 77), PORT, number=97)
            theirs, answered = await neighbour.cookie(at), victim.status().requests_answered
            for _ in range(600):
                greedy.send(greedy.request(Ping(), cookie), at)
                neighbour.send(neighbour.request(Ping(), theirs), at)
            await asyncio.sleep(1)
            assert victim.status().requests_answered - answered <= 2 * REQUESTS_A_S

    run(story())


def test_challenges_and_checked_signatures_are_bounded_whatever_the_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers from ever new addresses: no more challenges than the rate, and nothing is verified for them."""
    verified = 0
    unseal = envelope.unseal

    def counted(datagram: bytes, own_id: bytes) -> Any:
        nonlocal verified
        verified += 1
        return unseal(datagram, own_id)

    async def story() -> None:
        network = Swarm()
        victim = await network.start()
        inside = victim.overlays[0].protocol
        speaker = await Speaker.open(public_ip(ELSEWHERE), PORT)
        request = speaker.request(Ping(), b"\x55" * 8)
        monkeypatch.setattr(envelope, "unseal", counted)
        for number in range(20_000):
            inside.datagram_received(request, (public_ip(number), PORT))
        status = victim.status()
        assert status.challenges <= CHALLENGES_A_S and status.challenges + status.over_rate == 20_000 and not verified
        # Proven addresses of thousands of networks: signatures are bounded too, and so is the table of sources.
        await asyncio.sleep(10)
        now_s = asyncio.get_running_loop().time()
        for number in range(MAX_SOURCES + 500):
            ip = public_ip(number)
            letter = envelope.Letter(REQUEST, bytes(8), inside._cookies.give(ip, PORT, now_s), True, b"nonsense")
            inside.datagram_received(envelope.seal(Network(), speaker.identity, letter), (ip, PORT))
        assert verified <= VERIFIED_A_S and len(inside._sources._buckets) <= MAX_SOURCES
        await network.close()

    run(story())


def test_a_search_goes_on_when_calls_run_out() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            one = network.nodes[0]
            await network.nodes[1].announce(KEY, claim(network.nodes[1]))
            nowhere = Address(public_ip(ELSEWHERE), PORT)

            async def call() -> None:
                with pytest.raises(PeerError):
                    await one.overlays[0].protocol.call(nowhere, Ping())

            async with asyncio.TaskGroup() as calls:
                for _ in range(MAX_OUTSTANDING + 100):
                    calls.create_task(call())
                await asyncio.sleep(0)
                assert len(one.overlays[0].protocol._outstanding) == MAX_OUTSTANDING
            found = [each async for each in one.find(KEY)]
            assert found and one.overlays[0].protocol._outstanding == {}

    run(story())


# Introductions


def hears(network: Swarm) -> list[tuple[tuple[str, int], tuple[str, int], int]]:
    sent: list[tuple[tuple[str, int], tuple[str, int], int]] = []
    network.tap = lambda source, to, data: sent.append((source, to, len(data)))
    return sent


def test_a_meet_costs_whoever_is_named_less_than_it_cost_who_sent_it() -> None:
    async def story() -> None:
        async with swarm(6) as network, speaking() as attacker, speaking(98, ELSEWHERE + 7) as target:
            at = network.address(network.nodes[0])
            cookie = await attacker.cookie(at)
            named = Meet(ip=packed(target.address.ip), port=target.address.port)
            sent = hears(network)
            attacker.send(attacker.request(named, cookie), at)
            await asyncio.sleep(5)
            assert not [each for each in sent if each[1] == (target.address.ip, PORT)]  # who is no contact is not heard
            table = network.nodes[0].overlays[0].table
            table.answered(Contact(attacker.identity.id, attacker.address), asyncio.get_running_loop().time())
            spent = 0
            for _ in range(300):
                request = attacker.request(named, cookie)
                spent += len(request)
                attacker.send(request, at)
            await asyncio.sleep(60)
            to_target = [size for _, to, size in sent if to == (target.address.ip, PORT)]
            assert 0 < len(to_target) <= 60 and sum(to_target) < spent / 4
            # One that answers is called with a signed ping, once.
            assert max(to_target) <= COOKIE_END

    run(story())


@pytest.mark.parametrize(
    "named",
    ["127.0.0.1:8470", "10.0.0.1:8470", "192.168.1.1:8470", "169.254.169.254:8470", "[::1]:8470", "[fd00::1]:8470",
     "224.0.0.1:8470", "0.0.0.0:8470", "255.255.255.255:8470", "12.0.0.1:53", "12.0.0.1:1023"],
)  # fmt: skip
def test_no_meet_makes_a_node_call_where_nobody_public_lives(named: str) -> None:
    async def story() -> None:
        async with swarm(4) as network, speaking() as attacker:
            at = network.address(network.nodes[0])
            to = Address.parse(named)
            sent = hears(network)
            message = Meet(ip=packed(to.ip), port=to.port)
            attacker.send(attacker.request(message, await attacker.cookie(at)), at)
            await asyncio.sleep(30)
            assert not [each for each in sent if each[1][0] == to.ip]
            own = Meet(ip=packed(at.ip), port=at.port)  # nor itself
            assert isinstance(await attacker.ask(at, own), Met)
            await asyncio.sleep(30)
            assert not [each for each in sent if each[:2] == ((at.ip, at.port), (at.ip, at.port))]

    run(story())


def test_introductions_are_limited_and_their_queue_is_bounded() -> None:
    async def story() -> None:
        async with swarm(6) as network:
            one = network.nodes[0]
            at = network.address(one)
            speakers = [await Speaker.open(public_ip(ELSEWHERE + n), PORT, number=50 + n) for n in range(20)]
            sent = hears(network)
            for speaker in speakers:
                cookie = await speaker.cookie(at)
                for _ in range(100):
                    speaker.send(speaker.request(Introduce(), cookie), at)
            assert one.overlays[0]._strangers.qsize() <= 32
            await asyncio.sleep(60)
            assert isinstance(await speakers[0].ask(at, Introduce()), Introduced)
            # Each that was introduced is called by two others, and never by who was asked.
            calls = [each for each in sent if each[1][0] == speakers[0].address.ip and each[0] != (at.ip, at.port)]
            assert len(sent) < 20_000 and len(calls) <= 2 * 100

    run(story())


def test_who_knows_nobody_else_says_so() -> None:
    async def story() -> None:
        network = Swarm()
        lonely = await network.start()
        async with speaking() as speaker:
            reply = await speaker.ask(network.address(lonely), Introduce())
            assert isinstance(reply, Introduced) and not reply.others
        await network.close()

    run(story())


# Odds and ends


def test_a_node_says_in_every_reply_where_it_sees_who_asks_and_what_time_it_is() -> None:
    async def story() -> None:
        async with swarm(2) as network, speaking() as speaker:
            at = network.address(network.nodes[0])
            for message in REQUESTS.values():
                reply = await speaker.ask(at, message)
                assert reply.you == packed(speaker.address.ip)
                assert abs(reply.time - network.clock(at.ip)()) <= 1

    run(story())


def test_the_longest_reply_fits_a_datagram() -> None:
    async def story() -> None:
        async with swarm(25) as network, speaking() as speaker:
            for node in network.nodes[:20]:
                await node.announce(KEY, claim(node))
            at = network.address(network.nodes[0])
            after = 0
            while True:
                ask = FindRecords(key=KEY, target=KEY, after=after, contacts=True)
                reply: Any = await speaker.ask(at, ask)
                assert len(speaker.heard[-1][0]) <= MAX_DATAGRAM_BYTES
                after += len(reply.records)
                if not reply.more:
                    break
            assert after == 2 * 20 and len(reply.contacts) >= 8
            with pytest.raises(FormatError):
                envelope.seal(
                    Network(), speaker.identity, envelope.Letter(REQUEST, bytes(8), bytes(8), True, bytes(1_062))
                )

    run(story())


def test_notices_are_limited() -> None:
    async def story() -> None:
        async with swarm(2) as network, speaking() as stranger:
            other = bytearray(envelope.knock(Network(), bytes(8)))
            other[0] = 9
            for _ in range(500):
                stranger.send(bytes(other), network.address(network.nodes[0]))
            await asyncio.sleep(5)
            assert 0 < len(stranger.heard) <= NOTICES_A_S + 1

    run(story())
