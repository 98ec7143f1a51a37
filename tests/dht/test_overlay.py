"""A node's upkeep, on one address family and on both; what it remembers; bounds of what it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dhtdata.dht import DhtNode, endpoint
from dhtdata.dht.announcing import MAX_OWN_IPS, PEER_RENEWAL_S, Introductions
from dhtdata.dht.identity import Identity
from dhtdata.dht.node import CONTACTS_FILE, Surroundings
from dhtdata.dht.overlay import MAX_BOOTSTRAP
from dhtdata.dht.remembered import load, save
from dhtdata.dht.routing import Contact
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address, packed
from dhtdata.formats.records import PeerRecord, decode
from dhtdata.signing import SigningKey, substitute
from tests.dht.claims import KEY, claim, found_by, holding, knows, shard_keys, signers_found_by
from tests.simulation.clock import run
from tests.simulation.network import public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import PORT, Swarm, swarm


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


# Both families


def six(number: int) -> str:
    """An IPv6 address that looks public, each in a /48 of its own."""
    return f"2a01:{number:x}::1"


async def start_on_both(network: Swarm, number: int) -> DhtNode:
    """A node with an IPv4 and an IPv6 address."""
    four = public_ip(1_000 + number)

    async def open_transport(
        protocol: Callable[[], asyncio.DatagramProtocol], listen: str, port: int
    ) -> asyncio.DatagramTransport:
        return await network.open_transport(protocol, six(1_000 + number) if ":" in listen else four, port)

    outside = Surroundings(network.clock(four), random.Random(number), open_transport)
    return await network.start(ip=four, listen="::", surroundings=outside)


def test_nodes_on_both_families_bridge_the_records_of_those_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "has_ipv6", lambda: True)

    async def story() -> None:
        network = Swarm(seed=1)
        both = [await start_on_both(network, number) for number in range(3)]
        entries = [Address(public_ip(1_000), PORT), Address(six(1_000), PORT)]
        for node in both[1:]:
            assert await node.bootstrap(entries) == 2
        fours = [await network.start() for _ in range(8)]
        sixes = [await network.start(ip=six(number)) for number in range(1, 9)]
        for node in fours:
            assert await node.bootstrap(entries) == 1
        for node in sixes:
            assert await node.bootstrap(entries) == 1
        await asyncio.sleep(900)
        assert all(node.status().families == (4, 6) == node.status().families_reached for node in both)
        for group, other in ((fours, sixes), (sixes, fours)):
            assert all(knows(one, two) for one in [*group, *both] for two in group if one is not two)
            assert not any(knows(one, two) for one in group for two in other)
        for publisher in (fours[0], sixes[0], both[0]):
            await publisher.announce(KEY, claim(publisher))
        told = {found.record.signer: set(found.addresses) for found in await found_by(fours[3])}
        assert told == {found.record.signer: set(found.addresses) for found in await found_by(sixes[3])}
        assert told[fours[0].key.public] == {network.address(fours[0])}
        assert told[sixes[0].key.public] == {network.address(sixes[0])}
        assert told[both[0].key.public] == set(entries)
        keys = shard_keys("both", 50)
        assert await both[1].announce_shards(keys) == set(keys)
        for node in (fours[5], sixes[5]):
            assert await signers_found_by(node, keys[0]) == {both[1].key.public}
        await network.close()

    run(story())


def test_an_address_of_the_other_family_fails_at_once_and_says_why() -> None:
    async def story() -> None:
        async with swarm(3) as network:
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            with pytest.raises(PeerError, match="no IPv6 socket"):
                await network.nodes[0].ping(Address(six(1), PORT))
            assert await network.nodes[0].bootstrap([Address(six(1), PORT)]) == 0
            alone = await network.start(ip=six(2))
            with pytest.raises(PeerError, match="no IPv4 socket"):
                await alone.ping(network.address(network.nodes[0]))
            assert await alone.bootstrap([network.address(network.nodes[0])]) == 0
            assert loop.time() == started_s

    run(story())


# Joining


def test_of_six_remembered_contacts_two_that_live_are_enough(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(6) as network:
            publisher = network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            dead = [Contact(bytes([n]) * 20, Address(public_ip(700 + n), PORT)) for n in range(4)]
            living = [Contact(node.id, network.address(node)) for node in network.nodes[1:3]]
            await asyncio.to_thread(save, tmp_path / CONTACTS_FILE, [*dead, *living])
            again = await network.start(folder=tmp_path)
            # Who asks before that is done waits for it.
            assert await signers_found_by(again) == {publisher.key.public}
            await asyncio.sleep(60)
            assert len(again.nodes()) == 6 and again.serves

    run(story())


def test_a_restarted_swarm_holds_what_it_held_and_finds_itself_again(tmp_path: Path) -> None:
    async def story() -> None:
        network = Swarm(seed=2)
        for number in range(12):
            node = await network.start(folder=tmp_path / str(number))
            await network.join(node)
        await asyncio.sleep(120)
        publisher = network.nodes[0]
        assert await publisher.announce(KEY, claim(publisher)) == 11
        await asyncio.sleep(600)
        for node in network.nodes[:12]:
            network.kill(node)
        again = [
            await network.restart(node, folder=tmp_path / str(number)) for number, node in enumerate(network.nodes[:12])
        ]
        await asyncio.sleep(300)
        assert len(holding(again)) == 12
        assert all(len(node.nodes()) == 11 for node in again)
        client = await network.start(client=True)
        assert await client.bootstrap([network.address(again[4])]) == 1
        assert await signers_found_by(client) == {publisher.key.public}
        await network.close()

    run(story())


def test_every_bootstrap_address_has_a_reason_until_it_answers() -> None:
    async def story() -> None:
        async with swarm(3) as network:
            node = await network.start()
            own = network.address(node)
            later = Address(public_ip(700), PORT)
            good = network.address(network.nodes[0])
            assert await node.bootstrap([own, later, good]) == 1
            failures = node.status().bootstrap_failures
            assert len(failures) == 2 and f"{own} is our own address" in failures
            assert any(reason.startswith(f"{later} did not answer") for reason in failures)
            assert await network.join(await network.start(ip=later.ip)) == 2
            await asyncio.sleep(3600)
            assert not any(str(later) in reason for reason in node.status().bootstrap_failures)

    run(story())


def test_joining_heals_when_the_only_address_comes_alive_hours_later() -> None:
    async def story() -> None:
        network = Swarm(seed=3)
        node = await network.start()
        at = Address(public_ip(700), PORT)
        assert await node.bootstrap([at]) == 0
        await asyncio.sleep(3 * 3600)
        late = await network.start(ip=at.ip)
        await asyncio.sleep(300)
        assert knows(node, late) and node.serves and late.serves
        await network.close()

    run(story())


def test_who_is_told_too_many_addresses_keeps_a_bounded_number_and_asks_them_in_time() -> None:
    async def story() -> None:
        async with swarm(2) as network:
            node = await network.start()
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            nowhere = [Address(public_ip(700 + n), PORT) for n in range(200)]
            for first in range(0, 200, 50):
                assert await node.bootstrap(nowhere[first : first + 50]) == 0
            assert loop.time() - started_s < 60
            assert len(node.status().bootstrap_failures) == MAX_BOOTSTRAP
            assert await node.bootstrap([network.address(network.nodes[0])]) == 1

    run(story())


def test_contacts_are_remembered_while_a_node_runs_and_at_its_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(5) as network:
            node = await network.start(folder=tmp_path)
            await network.join(node)
            await asyncio.sleep(400)
            saved = await asyncio.to_thread(load, tmp_path / CONTACTS_FILE)
            assert {contact.id for contact in saved} == {each.id for each in network.nodes[:5]}

    run(story())


# Our own addresses


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_liars_about_our_address_are_outvoted_and_cannot_fill_the_memory() -> None:
    clock = Clock()
    ours = Introductions(Identity.client(SigningKey(bytes(32))), 8470, clock)
    assert ours.ours() == []
    for number in range(100):
        ours.seen_at(packed(public_ip(number)))  # a liar each time
        ours.seen_at(packed("11.0.77.1"))
        ours.seen_at(packed(six(1)))
        assert len(ours) <= MAX_OWN_IPS
    told = [decode(data).record for data in ours.ours()]
    assert all(isinstance(record, PeerRecord) for record in told)
    addresses = {record.addresses[0].address() for record in told if isinstance(record, PeerRecord)}
    assert addresses == {Address("11.0.77.1", 8470), Address(six(1), 8470)}
    clock.now_s += PEER_RENEWAL_S
    assert ours.ours() == []  # what nobody confirmed for an hour we do not tell
    fresh = decode(ours.seen_at(packed("11.0.77.1"))).record
    assert isinstance(fresh, PeerRecord) and fresh.sequence == int(clock.now_s)
