"""Whole swarms on a simulated network: announcing, finding, sweeping, churn, loss, expiry."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from dhtdata.dht import DhtNode, Found
from dhtdata.dht.messages import MAX_DATAGRAM_BYTES, FindNode, encode
from dhtdata.dht.routing import Contact
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    ShardClaims,
    Signed,
    contents_key,
    node_id,
    shard_key,
    sign,
)
from dhtdata.signing import SigningKey
from tests.simulation.clock import run
from tests.simulation.network import EPOCH_S
from tests.simulation.swarm import PORT, Swarm, public_ip, swarm

CONTENTS = Digest.of(b"contents")
KEY = contents_key(CONTENTS)


def now_s() -> int:
    return int(EPOCH_S + asyncio.get_running_loop().time())


def claim(node: DhtNode, sequence: int = 1) -> Signed:
    record = ProviderClaim(contents=CONTENTS, seed=True, sequence=sequence, expires=now_s() + PROVIDER_LIFETIME_S)
    return sign(record, node.key)


async def found_by(node: DhtNode, key: bytes = KEY) -> list[Found]:
    return [found async for found in node.find(key)]


def holding(nodes: Sequence[DhtNode], key: bytes) -> list[DhtNode]:
    return [node for node in nodes if node._holdings.get(key) is not None]


def shard_keys(label: str, count: int) -> list[bytes]:
    return [shard_key(Digest.of(f"{label} {number}".encode())) for number in range(count)]


def test_what_one_node_announces_every_node_finds_with_its_address() -> None:
    async def story() -> None:
        async with swarm(60) as network:
            publisher = network.nodes[7]
            signed = claim(publisher)
            assert await publisher.announce(KEY, signed) >= 19
            assert holding(network.nearest(KEY), KEY) == network.nearest(KEY)
            for node in network.nodes:
                assert await found_by(node) == [Found(signed, (network.address(publisher),))]
            assert network.largest <= MAX_DATAGRAM_BYTES

    run(story())


def test_the_first_record_comes_before_the_search_ends() -> None:
    async def story() -> None:
        async with swarm(60) as network:
            publisher = network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            searcher = network.nearest(KEY, 60)[-1]
            assert not holding([searcher], KEY)
            loop = asyncio.get_running_loop()
            started_s, first_s = loop.time(), None
            async for _ in searcher.find(KEY):
                first_s = loop.time() - started_s
            assert first_s is not None and first_s < (loop.time() - started_s) / 2

    run(story())


def test_a_search_can_be_left_early_and_leaves_nothing_running() -> None:
    async def story() -> None:
        async with swarm(30) as network:
            await network.nodes[0].announce(KEY, claim(network.nodes[0]))
            before = len(asyncio.all_tasks())
            async with aclosing(network.nodes[3].find(KEY)) as finding:
                async for _ in finding:
                    break
            assert len(asyncio.all_tasks()) == before

    run(story())


def test_all_providers_of_a_key_are_found_over_many_pages() -> None:
    async def story() -> None:
        async with swarm(45) as network:
            for node in network.nodes:
                await node.announce(KEY, claim(node))
            found = await found_by(network.nodes[44])
            told = {each.record.signer: each.addresses for each in found}
            assert told == {node.key.public: (network.address(node),) for node in network.nodes}
            assert len(found) == len(network.nodes)
            assert network.largest <= MAX_DATAGRAM_BYTES

    run(story())


def test_with_30_percent_dead_everything_is_found_within_two_seconds() -> None:
    async def story() -> None:
        async with swarm(120, seed=3) as network:
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 19
            for node in network.randomness.sample(network.nodes[1:], 36):
                network.kill(node)
            loop = asyncio.get_running_loop()
            first_s, whole_s = [], []
            for node in [each for each in network.nodes if network.alive(each)][:40]:
                started_s = loop.time()
                async for found in node.find(KEY):
                    first_s.append(loop.time() - started_s)
                    assert found.addresses == (network.address(publisher),)
                whole_s.append(loop.time() - started_s)
            assert len(first_s) == 40
            assert statistics.quantiles(first_s, n=20)[-1] < 2
            assert statistics.quantiles(whole_s, n=20)[-1] < 4
            keys = shard_keys("among the dead", 300)
            assert await publisher.announce_shards(keys) == len(keys)
            living = [holding(network.nearest(key, 12), key) == network.nearest(key, 12) for key in keys]
            assert sum(living) >= 0.99 * len(keys)

    run(story())


def test_dead_nodes_leave_the_tables_and_announcing_reaches_the_living() -> None:
    async def story() -> None:
        async with swarm(40, seed=4) as network:
            dead = network.randomness.sample(network.nodes[1:], 12)
            for node in dead:
                network.kill(node)
            await asyncio.sleep(3600)
            gone = {node.id for node in dead}
            assert not any(known.id in gone for node in network.nodes if network.alive(node) for known in node.nodes())
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 19
            assert holding(network.nearest(KEY), KEY) == network.nearest(KEY)

    run(story())


def test_claims_expire_everywhere_unless_they_are_renewed() -> None:
    async def story() -> None:
        async with swarm(25) as network:
            fading, lasting = network.nodes[:2]
            await fading.announce(KEY, claim(fading))
            await lasting.announce(KEY, claim(lasting))
            for renewal in range(2, 5):
                await asyncio.sleep(PROVIDER_LIFETIME_S / 2)
                await lasting.announce(KEY, claim(lasting, renewal))
            signers = [found.record.signer for found in await found_by(network.nodes[9])]
            assert signers == [lasting.key.public]
            await asyncio.sleep(PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S + 120)
            assert await found_by(network.nodes[9]) == []
            assert not any(isinstance(kept, ProviderClaim) for kept in kept_records(network))

    run(story())


def kept_records(network: Swarm) -> list[object]:
    from dhtdata.formats.records import decode

    return [decode(data).record for node in network.nodes for _, datas in node._holdings for data in datas]


def test_a_third_of_lost_datagrams_does_not_hide_a_provider() -> None:
    async def story() -> None:
        async with swarm(40, seed=5, loss=0.05) as network:
            network.loss = 0.3
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 8
            for node in network.nodes[1:]:
                assert {found.record.signer for found in await found_by(node)} == {publisher.key.public}

    run(story())


def test_a_growing_swarm_of_1_to_50_nodes_drops_no_shard_key() -> None:
    async def story() -> None:
        network = Swarm(seed=6)
        try:
            for count in range(1, 51):
                await network.grow(1)
                await asyncio.sleep(90)
                publisher = network.nodes[count // 2]
                keys = shard_keys(f"growing {count}", 60)
                reached = await publisher.announce_shards(keys)
                assert reached == (60 if count > 1 else 0)
                for key in keys:
                    assert holding(network.nearest(key), key) == network.nearest(key), f"{count} nodes"
        finally:
            await network.close()

    run(story())


@pytest.mark.parametrize(("count", "shared_bits"), [(2, 7), (4, 7), (21, 5), (30, 5)])
def test_no_shard_key_is_dropped_where_all_nodes_share_a_prefix(count: int, shared_bits: int) -> None:
    async def story() -> None:
        network = Swarm(seed=7)
        try:
            for position in range(count):
                node = await network.start(key=prefixed_key(network, shared_bits))
                if position:
                    assert await node.bootstrap([network.address(network.nodes[0])]) == 1
            await asyncio.sleep(120)
            keys = [*shard_keys("prefixed", 200), bytes(20), bytes([255]) * 20]
            assert await network.nodes[-1].announce_shards(keys) == len(keys)
            for key in keys:
                assert holding(network.nearest(key), key) == network.nearest(key)
        finally:
            await network.close()

    run(story())


def prefixed_key(network: Swarm, shared_bits: int) -> SigningKey:
    while True:
        key = SigningKey(network.randomness.randbytes(32))
        if node_id(key.public)[0] >> (8 - shared_bits) == 0b10110110 >> (8 - shared_bits):
            return key


def test_a_sweep_reaches_the_true_nearest_with_less_than_one_call_a_key() -> None:
    async def story() -> None:
        async with swarm(100, seed=8) as network:
            keys = shard_keys("sweep", 3_000)
            calls_before = sum(node.status().calls for node in network.nodes)
            assert await network.nodes[5].announce_shards(keys) == len(keys)
            calls = sum(node.status().calls for node in network.nodes) - calls_before
            assert calls < len(keys)
            nearest = [(node, key) for key in keys[::10] for node in network.nearest(key)]
            held = sum(node._holdings.get(key) is not None for node, key in nearest)
            assert held >= 0.99 * len(nearest)
            (found,) = await found_by(network.nodes[77], keys[0])
            assert found.addresses == (network.address(network.nodes[5]),)
            assert isinstance(found.record.record, ShardClaims) and keys[0] in found.record.record.unpacked()
            network.clock_jump_s = SHARD_LIFETIME_S + CLOCK_TOLERANCE_S
            await asyncio.sleep(120)
            assert await found_by(network.nodes[77], keys[0]) == []
            assert not any(node.status().keys_held for node in network.nodes)

    run(story())


def test_a_client_finds_but_enters_no_table_keeps_nothing_and_announces_nothing() -> None:
    async def story() -> None:
        async with swarm(30, seed=9) as network:
            client = await network.start(client=True)
            assert await client.bootstrap([network.address(network.nodes[0])]) == 1
            await network.nodes[0].announce(KEY, claim(network.nodes[0]))
            assert len(await found_by(client)) == 1
            await asyncio.sleep(3600)
            assert not any(known.id == client.id for node in network.nodes for known in node.nodes())
            assert client.nodes() and client.status().records_held == 0
            with pytest.raises(ConfigError, match="dhtdata seed"):
                await client.announce(KEY, claim(client))
            with pytest.raises(ConfigError, match="dhtdata seed"):
                await client.announce_shards([KEY])

    run(story())


def name_record(sequence: int) -> Signed:
    root, release = SigningKey(bytes([1]) * 32), SigningKey(bytes([2]) * 32)
    delegation = Delegation(root=root.public, number=1, release=release.public).signed(root)
    manifest = Digest.of(bytes([sequence]))
    record = NameRecord(
        delegation=delegation, name="set", sequence=sequence, manifest=manifest, fresh_until=now_s() + 1
    )
    return sign(record, release)


def test_a_name_resolves_to_the_highest_rank_and_absence_is_told_with_numbers() -> None:
    async def story() -> None:
        async with swarm(30, seed=10) as network:
            old, new = name_record(1), name_record(2)
            assert isinstance(new.record, NameRecord)
            key = new.record.target.dht_key
            await network.nodes[0].announce(key, new)
            for node in network.nodes[:15]:  # as after a partition: some holders know only the older one
                node._holdings = node._server.protocol.storage = type(node._holdings)(node._outside.now_s)
                node._holdings.keep(old.data)
            name = Name(new.record.delegation.root, "set")
            assert await network.nodes[20].find_name(name) == new
            with pytest.raises(NotFoundError, match=r"[1-9]\d* of [1-9]\d* nodes asked answered"):
                await network.nodes[20].find_name(Name(name.publisher, "other"))
            lonely = await network.start()
            with pytest.raises(NotFoundError, match="0 of 0 nodes"):
                await lonely.find_name(name)

    run(story())


def test_a_record_under_another_key_is_neither_announced_nor_found() -> None:
    async def story() -> None:
        async with swarm(5) as network:
            node = network.nodes[0]
            with pytest.raises(FormatError, match="does not belong"):
                await node.announce(bytes(20), claim(node))
            expired = ProviderClaim(contents=CONTENTS, seed=True, sequence=1, expires=now_s() - 3600)
            with pytest.raises(FormatError, match="too long ago"):
                await node.announce(KEY, sign(expired, node.key))
            await node.announce(KEY, claim(node))
            liar = network.nodes[1]
            liar._holdings._by_key[bytes(20)] = liar._holdings._by_key[KEY]
            assert await found_by(network.nodes[2], bytes(20)) == []

    run(story())


def test_a_peer_record_is_found_under_the_node_and_follows_a_change_of_address() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            node = network.nodes[0]
            await node.announce(KEY, claim(node))
            moved = Address("192.0.2.7", 9)
            node.set_addresses([moved])
            await node.announce(KEY, claim(node, 2))
            assert {found.addresses for found in await found_by(network.nodes[5])} == {(moved,)}
            records = [found.record.record for found in await found_by(network.nodes[5], node.id)]
            assert [type(record) for record in records] == [PeerRecord]
            for wrong in (Address("0.0.0.0", 1), Address("224.0.0.1", 1)):
                with pytest.raises(ConfigError, match="cannot reach us"):
                    node.set_addresses([wrong])
            with pytest.raises(ConfigError, match="at most 8"):
                node.set_addresses([moved] * 9)

    run(story())


def test_who_only_sends_requests_never_enters_a_table() -> None:
    async def story() -> None:
        async with swarm(5) as network:
            silent = Contact(bytes([7]) * 20, Address("10.9.9.9", PORT))
            request = FindNode(sender=silent.id, client=False, target=bytes(20))
            victim = network.nodes[0]
            calls_before = victim.status().calls
            for number in range(500):
                datagram = encode(number.to_bytes(20, "big"), request)
                victim._server.protocol.datagram_received(datagram, (silent.address.ip, PORT))
            await asyncio.sleep(30)
            assert silent not in victim._table
            assert victim.status().calls - calls_before < 20

    run(story())


def test_a_node_that_comes_back_elsewhere_replaces_its_old_address() -> None:
    async def story() -> None:
        async with swarm(12, seed=11) as network:
            moving = network.nodes[3]
            network.kill(moving)
            again = await network.start(key=moving.key)
            assert await again.bootstrap([network.address(network.nodes[0])]) == 1
            await asyncio.sleep(2 * 3600)
            others = [node for node in network.nodes if node not in (moving, again)]
            for node in others:
                (known,) = [each for each in node.nodes() if each.id == again.id]
                assert known.address == network.address(again)

    run(story())


def test_a_node_that_found_nobody_tries_its_bootstrap_addresses_again() -> None:
    async def story() -> None:
        network = Swarm(seed=12)
        try:
            early = await network.start()
            later_address = Address(public_ip(1), PORT)
            assert await early.bootstrap([later_address]) == 0
            assert early.nodes() == []
            later = await network.start()
            assert network.address(later) == later_address
            await asyncio.sleep(180)
            assert [known.id for known in early.nodes()] == [later.id]
        finally:
            await network.close()

    run(story())


def test_an_idle_swarm_stays_quiet() -> None:
    async def story() -> None:
        async with swarm(30, seed=13) as network:
            await asyncio.sleep(1200)
            before = network.datagrams
            await asyncio.sleep(3600)
            per_node_per_minute = (network.datagrams - before) / 30 / 60
            assert per_node_per_minute < 30
            assert all(len(node.nodes()) >= 20 for node in network.nodes)

    run(story())


def test_a_simulation_repeats_exactly() -> None:
    async def story() -> tuple[int, list[bytes]]:
        async with swarm(25, seed=14, loss=0.1) as network:
            await network.nodes[0].announce(KEY, claim(network.nodes[0]))
            return network.datagrams, [known.id for node in network.nodes for known in node.nodes()]

    assert run(story()) == run(story())


def test_two_hundred_nodes_find_each_others_claims() -> None:
    async def story() -> None:
        async with swarm(200, seed=15) as network:
            for node in network.nodes[::50]:
                assert await node.announce(KEY, claim(node)) >= 19
            for node in network.nodes[::20]:
                assert len({found.record.signer for found in await found_by(node)}) == 4
            assert all(100 < node.status().nodes_estimated < 400 for node in network.nodes)

    run(story())
