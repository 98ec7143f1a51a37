"""Nodes that crowd round keys, stay silent, lie, flood: what they can not do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from dhtdata.dht import DhtNode, envelope, messages
from dhtdata.dht.envelope import REQUEST, Letter
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import FindNode, Introduce, Meet, Ping, Store
from dhtdata.dht.overlay import MAX_STRANGERS
from dhtdata.dht.protocol import MAX_OUTSTANDING
from dhtdata.dht.region import region_bits
from dhtdata.dht.routing import ID_BITS, Contact, number
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address, network_group
from dhtdata.formats.names import Name
from dhtdata.formats.records import PROVIDER_LIFETIME_S, ProviderClaim, sign
from dhtdata.network import Network
from dhtdata.signing import SigningKey, substitute
from tests.dht.claims import CONTENTS, KEY, claim, found_by, holding, knows, name_record, now_s, signers_found_by
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.hostile import conspire, keys_nearest, silence
from tests.simulation.network import public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import PORT, Swarm, fill_tables, swarm

SYBILS = 20
SUBNET = 1 << 21


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


async def surround(network: Swarm, key: bytes, count: int, networks: int, first: int = 0) -> list[DhtNode]:
    """Hostile nodes whose identifiers are all nearer to the key than any honest one's, on so many networks."""
    honest = list(network.nodes)
    nearest = next(node for node in network.nearest(key, 2) if node.id != key)
    sybils: list[DhtNode] = []
    for position, secret in enumerate(keys_nearest(key, count, nearest.id, network.randomness)):
        ip = public_ip(SUBNET + first + position % networks, 1 + position // networks)
        sybils.append(await network.start(key=secret, ip=ip))
        await sybils[-1].bootstrap([network.address(each) for each in network.randomness.sample(honest, 2)])
    return sybils


def turn(network: Swarm, sybils: Sequence[DhtNode], lying: bool) -> None:
    if lying:
        conspire(sybils, [Contact(each.id, network.address(each)) for each in sybils], network.randomness)
        return
    for each in sybils:
        silence(each)


@pytest.mark.parametrize("lying", [False, True], ids=["silent", "lying"])
@pytest.mark.parametrize("early", [True, False], ids=["before the claim", "after the claim"])
def test_nodes_that_crowd_round_a_key_hide_no_provider(lying: bool, early: bool) -> None:
    async def story() -> None:
        async with swarm(40, seed=1) as network:
            honest = list(network.nodes)
            publisher = honest[0]
            if not early:
                assert await publisher.announce(KEY, claim(publisher)) >= 20
            turn(network, await surround(network, KEY, SYBILS, SYBILS), lying)
            if early:
                await publisher.announce(KEY, claim(publisher))
                assert len(holding(honest)) >= 12
            for node in honest[1::6]:
                (found,) = await found_by(node)
                assert found.record.signer == publisher.key.public
                assert found.addresses == (network.address(publisher),)

    run(story())


def test_nodes_that_crowd_round_a_publisher_do_not_make_it_think_the_network_large() -> None:
    async def story() -> None:
        async with swarm(40, seed=9) as network:
            honest = list(network.nodes)
            publisher = honest[5]
            await surround(network, publisher.id, SYBILS, SYBILS)
            await asyncio.sleep(600)
            assert publisher.nodes_estimated < 3 * len(network.nodes)
            await publisher.announce(KEY, claim(publisher))
            assert len(holding(honest)) >= 12

    run(story())


def test_many_identifiers_on_two_networks_are_four_contacts_of_a_bucket() -> None:
    async def story() -> None:
        async with swarm(20, seed=2) as network:
            sybils = await surround(network, network.nodes[0].id, 16, 2)
            await asyncio.sleep(60)
            subnets = {network_group(network.address(each)) for each in sybils}
            for node in network.nodes[:20]:
                for bucket in node.overlays[0].table.buckets:
                    there = [each for each in bucket.nodes.values() if network_group(each.address) in subnets]
                    assert len(there) <= 4

    run(story())


def in_region(network: Swarm, key: bytes) -> list[DhtNode]:
    """Those whose leading bits are the key's, as many as its region has at most."""
    free = ID_BITS - min(region_bits(node.nodes_estimated) for node in network.living())
    return [node for node in network.living() if (number(node.id) ^ number(key)) >> free == 0]


def test_a_name_survives_the_loss_of_two_of_its_three_regions() -> None:
    async def story() -> None:
        network = Swarm(seed=3)
        for _ in range(160):
            await network.start()
        fill_tables(network)
        signed = name_record(1, root=root_with_regions_apart())
        name = Name(signed.record.delegation.root, "set")  # type: ignore[union-attr]
        publisher = network.nodes[0]
        assert await publisher.announce_name(signed) >= 3 * 15
        first, second, third = name.dht_keys
        keep = {*in_region(network, third)}
        for key in (first, second):
            for node in in_region(network, key):
                if node not in keep:
                    network.kill(node)
        if network.alive(publisher):
            network.kill(publisher)
        assert not holding([node for node in network.living() if node not in keep], first)
        for searcher in network.living()[::10]:
            assert await searcher.find_name(name) == signed
        with pytest.raises(NotFoundError):
            await network.living()[0].find_name(Name(name.publisher, "other"))
        await network.close()

    run(story())


def root_with_regions_apart() -> int:
    """A publisher whose name has its three keys in three different quarters of the identifier space."""
    for root in range(1, 200):
        publisher = SigningKey(bytes([root]) * 32).public
        if len({key[0] >> 6 for key in Name(publisher, "set").dht_keys}) == 3:
            return root
    raise AssertionError("there are none")


def test_liars_on_two_regions_of_a_name_do_not_hide_it() -> None:
    async def story() -> None:
        async with swarm(40, seed=4) as network:
            signed = name_record(1)
            name = Name(signed.record.delegation.root, "set")  # type: ignore[union-attr]
            honest = list(network.nodes)
            assert await honest[0].announce_name(signed) >= 3 * 15
            for place, key in enumerate(name.dht_keys[:2]):
                sybils = await surround(network, key, 12, 12, first=100 * place)
                turn(network, sybils, lying=True)
            for searcher in honest[5::10]:
                assert await searcher.find_name(name) == signed

    run(story())


# Floods


def letters(
    victim: DhtNode, count: int, message: messages.Request, client: bool = False
) -> Iterator[tuple[bytes, str]]:
    """Requests of so many different nodes with good cookies, each from a network of its own."""
    protocol = victim.overlays[0].protocol
    now_s = asyncio.get_running_loop().time()
    for position in range(count):
        ip = public_ip(SUBNET + position)
        identity = Identity.proven(SigningKey(position.to_bytes(32, "big")), 0)
        cookie = protocol._cookies.give(ip, PORT, now_s)
        letter = Letter(REQUEST, position.to_bytes(8, "big"), cookie, client, messages.encode(message), victim.id)
        yield envelope.seal(Network(), identity, letter), ip


def test_floods_of_proven_strangers_and_introductions_keep_tasks_and_tables_bounded() -> None:
    async def story() -> None:
        async with swarm(12, seed=5) as network:
            victim = network.nodes[0]
            overlay = victim.overlays[0]
            tasks = len(asyncio.all_tasks())
            calls = victim.status().calls
            meet = Meet(ip=bytes([12, 0, 0, 9]), port=PORT)
            for message in (Ping(), FindNode(target=victim.id), Introduce(), meet):
                for datagram, ip in letters(victim, 1_000, message):
                    overlay.protocol.datagram_received(datagram, (ip, PORT))
                assert overlay._strangers.qsize() <= MAX_STRANGERS
                assert len(overlay.table) <= 20 * len(overlay.table.buckets) and len(overlay.table.buckets) < 24
                assert len(asyncio.all_tasks()) <= tasks
                await asyncio.sleep(1)
                assert len(overlay.protocol._outstanding) <= 16 < MAX_OUTSTANDING
            assert victim.status().requests_answered >= 4_000
            await asyncio.sleep(600)
            assert {node.id for node in network.nodes[1:]} <= {known.id for known in victim.nodes()}
            assert victim.status().calls - calls < 1_500
            assert await victim.announce(KEY, claim(victim)) >= 10
            await asyncio.sleep(7_200)
            # None of them answers, so none of them stays; who is known does.
            assert {known.id for known in victim.nodes()} == {node.id for node in network.nodes[1:]}

    run(story())


@pytest.mark.parametrize("port", [53, 443, 1_023])
def test_who_may_not_be_named_to_others_is_in_no_table(port: int) -> None:
    """Else every reply that names it would be refused, and a stranger could silence whom it likes."""

    async def story() -> None:
        async with swarm(20, seed=4) as network:
            stranger = await Speaker.open(public_ip(900), port, client=False)
            for node in network.nodes:
                at = network.address(node)
                stranger.send(stranger.request(Ping(), await stranger.cookie(at), node.id), at)
            await asyncio.sleep(1)
            met = Contact(stranger.identity.id, stranger.address)
            assert not any(met in node.overlays[0].table for node in network.nodes)
            seed = await network.start(ip=public_ip(901), port=port)
            for node in network.nodes[:3]:
                await network.join(seed)
                await node.bootstrap([network.address(seed)])
            assert not any(knows(node, seed) for node in network.nodes)
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) == 19
            assert all(step.outcome == "answered" for step in (await network.nodes[3].trace(KEY)).steps)

    run(story())


def test_newcomers_that_answer_fill_no_more_than_a_tables_buckets() -> None:
    async def story() -> None:
        async with swarm(8, seed=6) as network:
            victim = network.nodes[0]
            # So many contacts answer at once.
            table = victim.overlays[0].table
            for position in range(20_000):
                secret = SigningKey(position.to_bytes(32, "big"))
                contact = Contact(Identity.proven(secret, 0).id, Address(public_ip(SUBNET + position), PORT))
                table.answered(contact, network.loop.time())
            assert len(table) <= 20 * len(table.buckets) and len(table.buckets) < 24
            assert all(any(known.id == node.id for known in victim.nodes()) for node in network.nodes[1:])

    run(story())


def test_a_flood_of_claims_to_one_key_leaves_room_for_an_honest_one() -> None:
    async def story() -> None:
        async with swarm(12, seed=7) as network:
            victim, publisher = network.nodes[0], network.nodes[1]
            protocol = victim.overlays[0].protocol
            now = now_s()
            # Eight hundred signers on ten networks.
            for position in range(800):
                secret = SigningKey(position.to_bytes(32, "big"))
                ip = public_ip(SUBNET + position % 10, 1 + position // 10)
                record = ProviderClaim(contents=CONTENTS, seed=True, sequence=1, expires=now + PROVIDER_LIFETIME_S)
                body = messages.encode(Store(records=(sign(record, secret).data,)))
                cookie = protocol._cookies.give(ip, PORT, network.loop.time())
                letter = Letter(REQUEST, bytes(8), cookie, True, body)
                datagram = envelope.seal(Network(), Identity.proven(secret, 0), letter)
                protocol.datagram_received(datagram, (ip, PORT))
            assert victim.status().records_held <= 10 * 8
            assert await publisher.announce(KEY, claim(publisher)) == 11
            assert publisher.key.public in await signers_found_by(network.nodes[5])

    run(story())


def test_stores_of_nonsense_and_of_others_claims_are_refused_one_by_one() -> None:
    async def story() -> None:
        async with swarm(3, seed=8) as network:
            victim, signer = network.nodes[:2]
            good = claim(signer).data
            answered = victim.status().requests_answered
            for records in ((b"", b"x", good[:-1], good), (bytes(1_000),), (good[:50],) * 16, (good, good), ()):
                for datagram, ip in letters(victim, 100, Store(records=records)):
                    victim.overlays[0].protocol.datagram_received(datagram, (ip, PORT))
            assert victim.status().records_held == 0
            assert victim.status().requests_answered - answered == 500

    run(story())
