"""Private networks: who has the secret works together, and everybody else gets nothing, not even a byte."""

from __future__ import annotations

import asyncio
import time

import pytest

from dhtdata.dht import DhtNode, envelope
from dhtdata.dht.envelope import CALL_END, COOKIE_END, HEADER_BYTES, MAX_DATAGRAM_BYTES, REPLY, REQUEST, Letter
from dhtdata.dht.messages import FindNode, FindRecords, Introduce, Meet, Ping, Pong, Request, Store, encode
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address
from dhtdata.network import PUBLIC, Network
from dhtdata.signing import SigningKey
from tests.dht.claims import KEY, claim, signers_found_by
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.network import public_ip
from tests.simulation.swarm import PORT, Swarm

OURS, THEIRS = Network(bytes([7]) * 32), Network(bytes([8]) * 32)
EASY = Network()
STRANGERS = {"another secret": THEIRS, "the public network": EASY}


def everything(speaker: Speaker, cookie: bytes) -> list[bytes]:
    """Every kind of datagram, in every length that means something."""
    requests: list[Request] = [
        Ping(),
        FindNode(target=bytes(20)),
        FindRecords(key=KEY, target=KEY, after=0, contacts=True),
        Store(records=(bytes(200),)),
        Introduce(),
        Meet(ip=bytes([12, 0, 0, 1]), port=8470),
    ]
    bodies = [encode(request) for request in requests] + [encode(Pong(you=bytes(4), time=0))]
    letters = [Letter(kind, bytes(8), cookie, False, body) for body in bodies for kind in (REQUEST, REPLY)]
    whole = [envelope.seal(speaker.network, speaker.identity, letter) for letter in letters]
    whole += [
        envelope.knock(speaker.network, bytes(8)),
        envelope.challenge(speaker.network, bytes(8), cookie),
        envelope.notice(speaker.network, bytes(8)),
        bytes(MAX_DATAGRAM_BYTES),
    ]
    cut = [datagram[:length] for datagram in whole for length in (1, 2, 18, CALL_END, COOKIE_END, HEADER_BYTES)]
    other_versions = []
    for version in (0, 1, 3, 255):
        for datagram in whole:
            start = bytes((version, datagram[1]))
            other_versions.append(start + speaker.network.code(start, datagram[18:]) + datagram[18:])
    return [*whole, *cut, *other_versions]


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_gets_no_byte_whatever_it_sends_and_teaches_nothing(name: str) -> None:
    async def story() -> None:
        network = Swarm(network=OURS)
        await network.grow(5)
        await asyncio.sleep(120)
        member = await Speaker.open(public_ip(700), PORT, network=OURS)
        stranger = await Speaker.open(public_ip(701), PORT, network=STRANGERS[name], number=98, client=False)
        victim = network.nodes[0]
        at = network.address(victim)
        cookie = await member.cookie(at)
        before = victim.status()
        datagrams = everything(stranger, cookie)
        for datagram in datagrams:
            stranger.send(datagram, at)
        # The members' own datagrams, from elsewhere and with a byte changed.
        for datagram in everything(member, cookie):
            for position in (0, 1, 2, 17, 18, len(datagram) - 1):
                if position < len(datagram) and len(datagram) > CALL_END:
                    changed = bytearray(datagram)
                    changed[position] ^= 4
                    stranger.send(bytes(changed), at)
        await asyncio.sleep(120)
        assert stranger.heard == []
        after = victim.status()
        assert after.strangers - before.strangers > len(datagrams) // 2
        assert (after.contacts, after.records_held, after.challenges) == (4, 0, before.challenges)
        assert not any(known.address == stranger.address for node in network.nodes for known in node.nodes())
        await network.close()

    run(story())


def test_members_work_together_and_networks_side_by_side_never_meet() -> None:
    async def story() -> None:
        network = Swarm(seed=2, network=OURS)
        ours = [*await network.grow(12)]
        others = [await network.start(network=THEIRS) for _ in range(6)]
        for node in others[1:]:
            assert await node.bootstrap([network.address(others[0])]) == 1
        # Somebody takes the wrong file: nobody answers, on either side.
        assert await others[3].bootstrap([network.address(ours[0])]) == 0
        (reason,) = others[3].status().bootstrap_failures
        assert reason.startswith(f"{network.address(ours[0])} did not answer")
        assert await ours[0].announce(KEY, claim(ours[0])) >= 10
        assert await others[0].announce(KEY, claim(others[0])) == 5
        await asyncio.sleep(3600)
        for group in (ours, others):
            ids = {node.id for node in group}
            assert all({known.id for known in node.nodes()} == ids - {node.id} for node in group)
            assert await signers_found_by(group[4]) == {group[0].key.public}
        assert {node.status().network for node in ours} == {OURS.fingerprint} != {THEIRS.fingerprint}
        await network.close()

    run(story())


def test_on_real_sockets_members_work_and_strangers_get_silence() -> None:
    def running(number: int, network: Network) -> object:
        key = SigningKey(bytes([number]) * 32)
        return DhtNode.running(key, listen="127.0.0.1", port=0, client=False, folder=None, network=network)

    async def story() -> None:
        async with running(1, OURS) as one, running(2, OURS) as two, running(3, THEIRS) as wrong:  # type: ignore[attr-defined]
            at = Address("127.0.0.1", one.port)
            assert await two.bootstrap([at]) == 1
            assert await one.bootstrap([Address("127.0.0.1", two.port)]) == 1
            assert await one.announce(KEY, claim(one, at_s=int(time.time()))) == 1
            assert await signers_found_by(two) == {one.key.public}
            stranger = await Speaker.open("127.0.0.1", network=PUBLIC)
            datagrams = everything(stranger, bytes(8))
            for datagram in datagrams:
                stranger.send(datagram, at)
            # Two time-outs of a call later nobody has answered anything.
            with pytest.raises(PeerError, match="did not answer"):
                await wrong.ping(at)
            assert stranger.heard == [] and wrong.nodes() == []
            assert one.status().strangers > len(datagrams) // 2
            assert {known.id for known in one.nodes()} == {two.id}
            stranger.close()

    asyncio.run(story())
