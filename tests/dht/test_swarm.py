"""Whole swarms on a simulated network: announcing, finding, sweeping, churn, loss, partitions, expiry."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from dhtdata.dht import DhtNode, Found
from dhtdata.dht.envelope import MAX_DATAGRAM_BYTES
from dhtdata.dht.messages import FindNode
from dhtdata.dht.region import REGION_NODES
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    PROVIDER_LIFETIME_S,
    PROVIDER_RENEWAL_S,
    SHARD_LIFETIME_S,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    ShardClaims,
    decode,
    node_id,
    sign,
)
from dhtdata.signing import SigningKey, substitute
from tests.dht.claims import (
    CONTENTS,
    KEY,
    claim,
    found_by,
    holding,
    knows,
    name_record,
    now_s,
    shard_keys,
    signers_found_by,
    withdrawal,
)
from tests.dht.speaker import Speaker
from tests.simulation.clock import run
from tests.simulation.hostile import identifier_of
from tests.simulation.links import LAN, Links, Uniform
from tests.simulation.network import public_ip
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import PORT, Swarm, fill_tables, swarm


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


@asynccontextmanager
async def well_joined(size: int, seed: int = 1) -> AsyncIterator[Swarm]:
    """A network whose tables are good from the start: joining takes longer than most stories."""
    network = Swarm(seed)
    for _ in range(size):
        await network.start()
    fill_tables(network)
    yield network
    await network.close()


def test_what_one_node_announces_every_node_finds_with_its_address() -> None:
    async def story() -> None:
        async with swarm(60) as network:
            publisher = network.nodes[7]
            signed = claim(publisher)
            assert await publisher.announce(KEY, signed) >= 20
            for node in network.nodes:
                assert await found_by(node) == [Found(signed, (network.address(publisher),))]
            assert network.largest <= MAX_DATAGRAM_BYTES

    run(story())


def test_a_claim_is_kept_all_over_its_region_and_nowhere_else() -> None:
    async def story() -> None:
        async with well_joined(100, seed=2) as network:
            publisher = network.nodes[7]
            held_by = await publisher.announce(KEY, claim(publisher))
            holders = holding(network.nodes)
            assert 20 <= len(holders) <= REGION_NODES + 1 and held_by == len(
                [each for each in holders if each is not publisher]
            )
            near = network.nearest(KEY)
            assert len(holding(near)) >= 18
            # Not the nearest alone: half of the holders are none of those.
            assert len([each for each in holders if each not in near]) >= len(holders) // 3
            farthest = [node for node in network.nearest(KEY, 100)[-25:] if node is not publisher]
            assert not holding(farthest)
            for node in farthest[::5]:
                assert await signers_found_by(node) == {publisher.key.public}

    run(story())


def test_the_first_record_comes_before_the_search_ends() -> None:
    async def story() -> None:
        async with well_joined(100) as network:
            publisher = network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            searcher = network.nearest(KEY, 100)[-1]
            assert not holding([searcher])
            loop = asyncio.get_running_loop()
            started_s, first_s = loop.time(), None
            async for _ in searcher.find(KEY):
                first_s = first_s or loop.time() - started_s
            assert first_s is not None and first_s < (loop.time() - started_s) / 2

    run(story())


def test_a_trace_tells_every_step_and_what_was_found() -> None:
    async def story() -> None:
        async with swarm(60) as network:
            publisher, searcher = network.nodes[0], await network.start(client=True)
            assert await network.join(searcher) == 2
            await publisher.announce(KEY, claim(publisher))
            trace = await searcher.trace(KEY)
            assert trace.key == KEY and trace.first_s is not None and 0 < trace.first_s < trace.took_s
            assert {found.record.signer for found in trace.found} == {publisher.key.public}
            assert {step.outcome for step in trace.steps} == {"answered"}
            assert sum(step.records for step in trace.steps) >= 2 * 20  # a claim and a PeerRecord from each holder
            # Paths are disjoint: nobody is asked twice.
            assert len({step.node for step in trace.steps}) == len(trace.steps) > 20
            assert {step.path for step in trace.steps} == {0, 1, 2, 3}

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
            expected = {node.key.public: (network.address(node),) for node in network.nodes}
            client = await network.start(client=True)
            await network.join(client)
            assert {found.record.signer: found.addresses for found in await found_by(client)} == expected
            assert network.largest <= MAX_DATAGRAM_BYTES

    run(story())


def test_with_30_percent_dead_everything_is_found_within_two_seconds() -> None:
    async def story() -> None:
        async with well_joined(100, seed=3) as network:
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 20
            for node in network.randomness.sample(network.nodes[1:], 27):
                network.kill(node)
            loop = asyncio.get_running_loop()
            first_s, whole_s = [], []
            for node in [each for each in network.living() if each is not publisher][:30]:
                started_s, mine_s = loop.time(), []
                async for found in node.find(KEY):
                    mine_s.append(loop.time() - started_s)
                    assert found.addresses == (network.address(publisher),)
                first_s += mine_s[:1]
                whole_s.append(loop.time() - started_s)
            assert len(first_s) == 30
            assert statistics.quantiles(first_s, n=20)[-1] < 2
            assert statistics.quantiles(whole_s, n=20)[-1] < 6
            keys = shard_keys("among the dead", 200)
            assert await publisher.announce_shards(keys) == set(keys)
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
            assert not any(knows(node, other) for node in network.living() for other in dead)
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 25
            assert len(holding(network.living())) >= 26

    run(story())


def test_claims_expire_everywhere_unless_they_are_renewed() -> None:
    async def story() -> None:
        async with swarm(12) as network:
            fading, lasting = network.nodes[:2]
            await fading.announce(KEY, claim(fading))
            await lasting.announce(KEY, claim(lasting))
            for renewal in range(2, 7):
                await asyncio.sleep(PROVIDER_RENEWAL_S)
                await lasting.announce(KEY, claim(lasting, renewal))
            assert await signers_found_by(network.nodes[9]) == {lasting.key.public}
            await asyncio.sleep(PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S + 120)
            assert await found_by(network.nodes[9]) == []
            assert not any(isinstance(kept, ProviderClaim) for kept in kept_records(network))

    run(story())


def kept_records(network: Swarm) -> list[object]:
    return [decode(data).record for node in network.nodes for _, datas in node._holdings for data in datas]


def test_what_is_withdrawn_is_found_by_nobody_even_where_a_holder_missed_the_withdrawal() -> None:
    async def story() -> None:
        async with swarm(40, seed=20) as network:
            leaving, staying = network.nodes[:2]
            for node in (leaving, staying):
                assert await node.announce(KEY, claim(node))
            deaf = network.nodes[10:20]
            network.partition([network.ip(node) for node in deaf])
            assert await leaving.announce(KEY, withdrawal(leaving, 2)) >= 25
            network.heal()
            assert len(holding(deaf)) == len(deaf)
            searchers = [node for node in network.nodes if node not in deaf]
            for searcher in searchers[::4]:
                found = [each.record.signer async for each in searcher.find(KEY)]
                assert set(found) == {staying.key.public}
            # The older claim cannot come back: whoever has the withdrawal refuses it.
            assert await leaving.announce(KEY, claim(leaving, 1)) <= len(deaf)
            assert await signers_found_by(network.nodes[30]) == {staying.key.public}
            # A newer one can.
            assert await leaving.announce(KEY, claim(leaving, 3)) >= 35
            assert await signers_found_by(network.nodes[30]) == {staying.key.public, leaving.key.public}

    run(story())


def test_a_third_of_lost_datagrams_does_not_hide_a_provider() -> None:
    async def story() -> None:
        async with swarm(40, seed=5, loss=0.05) as network:
            network.loss = 0.3
            publisher = network.nodes[0]
            assert await publisher.announce(KEY, claim(publisher)) >= 8
            for node in network.nodes[1:]:
                assert await signers_found_by(node) == {publisher.key.public}

    run(story())


ROUGH = Links(jitter=Uniform(0.005, 0.04), lost=0.2, reordered=0.2, duplicated=0.1)


def test_loss_reordering_and_duplicates_together_hide_nothing_and_break_nothing() -> None:
    async def story() -> None:
        async with swarm(30, seed=21) as network:
            network.links = ROUGH
            publishers = network.nodes[:5]
            for node in publishers:
                assert await node.announce(KEY, claim(node)) >= 12
            keys = shard_keys("rough", 200)
            assert len(await publishers[0].announce_shards(keys)) >= 198
            for node in network.nodes[10::2]:
                assert await signers_found_by(node) == {each.key.public for each in publishers}
            await asyncio.sleep(2400)
            assert all(len(node.nodes()) >= 15 for node in network.nodes)
            assert sum(node.status().reached for node in network.nodes) >= 28

    run(story())


def test_a_partition_works_on_each_side_and_heals() -> None:
    async def story() -> None:
        async with swarm(30, seed=22) as network:
            left, right = network.nodes[:15], network.nodes[15:]
            network.partition([network.ip(node) for node in left])
            await asyncio.sleep(3600)
            # Long enough that each side has forgotten the other.
            assert not any(knows(here, there) for here in left for there in right)
            for publisher in (left[0], right[0]):
                assert await publisher.announce(KEY, claim(publisher)) == 14
            assert await signers_found_by(left[7]) == {left[0].key.public}
            assert await signers_found_by(right[7]) == {right[0].key.public}
            network.heal()
            await asyncio.sleep(3600)
            both = {left[0].key.public, right[0].key.public}
            assert all([await signers_found_by(node) == both for node in network.nodes[::6]])

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
                assert await publisher.announce_shards(keys) == (set(keys) if count > 1 else set())
                if count == 1:
                    continue
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
            assert await network.nodes[-1].announce_shards(keys) == set(keys)
            for key in keys:
                assert holding(network.nearest(key), key) == network.nearest(key)
        finally:
            await network.close()

    run(story())


def prefixed_key(network: Swarm, shared_bits: int) -> SigningKey:
    while True:
        key = SigningKey(network.randomness.randbytes(32))
        if identifier_of(key)[0] >> (8 - shared_bits) == 0b10110110 >> (8 - shared_bits):
            return key


def test_a_sweep_reaches_the_true_nearest_with_less_than_one_call_a_key() -> None:
    async def story() -> None:
        async with swarm(80, seed=8) as network:
            keys = shard_keys("sweep", 2_000)
            calls_before = network.calls()
            assert await network.nodes[5].announce_shards(keys) == set(keys)
            assert network.calls() - calls_before < len(keys)
            nearest = [(node, key) for key in keys[::10] for node in network.nearest(key)]
            held = sum(node._holdings.get(key) is not None for node, key in nearest)
            assert held >= 0.99 * len(nearest)
            (found,) = await found_by(network.nodes[66], keys[0])
            assert found.addresses == (network.address(network.nodes[5]),)
            assert isinstance(found.record.record, ShardClaims) and keys[0] in found.record.record.unpacked()
            network.clock_jump_s = SHARD_LIFETIME_S + CLOCK_TOLERANCE_S
            await asyncio.sleep(120)
            assert await found_by(network.nodes[66], keys[0]) == []
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
            assert not any(knows(node, client) for node in network.nodes)
            assert client.nodes() and client.status().records_held == 0 and not client.serves
            with pytest.raises(ConfigError, match="dhtdata seed"):
                await client.announce(KEY, claim(client))
            with pytest.raises(ConfigError, match="dhtdata seed"):
                await client.announce_shards([KEY])

    run(story())


def test_a_name_resolves_to_the_highest_rank_and_absence_is_told_with_numbers() -> None:
    async def story() -> None:
        async with swarm(30, seed=10) as network:
            old, new = name_record(1), name_record(2)
            assert isinstance(new.record, NameRecord)
            one_side = network.nodes[:15]
            network.partition([network.ip(node) for node in one_side])
            assert await network.nodes[0].announce_name(old) >= 3 * 10
            assert await network.nodes[20].announce_name(new) >= 3 * 10
            network.heal()
            name = Name(new.record.delegation.root, "set")
            for node in (network.nodes[1], network.nodes[21]):
                assert await node.find_name(name) == new
            with pytest.raises(NotFoundError, match=r"[1-9]\d* of [1-9]\d* nodes asked answered"):
                await network.nodes[20].find_name(Name(name.publisher, "other"))
            lonely = await network.start()
            with pytest.raises(NotFoundError, match="0 of 0 nodes"):
                await lonely.find_name(name)
            with pytest.raises(FormatError, match="no record of a name"):
                await network.nodes[0].announce_name(claim(network.nodes[0]))

    run(story())


def test_a_name_survives_its_publisher_and_anybody_may_announce_it_again() -> None:
    async def story() -> None:
        async with swarm(30, seed=23) as network:
            signed = name_record(1)
            assert isinstance(signed.record, NameRecord)
            await network.nodes[0].announce_name(signed)
            network.kill(network.nodes[0])
            for hours, known in ((30, True), (36, True), (49, False)):
                network.clock_jump_s += hours * 3600
                await asyncio.sleep(180)
                if not known:
                    with pytest.raises(NotFoundError):
                        await network.nodes[20].find_name(signed.record.target)
                    continue
                assert signed.record.stale(now_s() + network.clock_jump_s)
                assert await network.nodes[20].find_name(signed.record.target) == signed
                assert await network.nodes[9].announce_name(signed) >= 3 * 15

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


def test_nobody_can_announce_what_another_signed_but_names() -> None:
    async def story() -> None:
        async with swarm(20, seed=24) as network:
            signer, replayer = network.nodes[:2]
            assert await replayer.announce(KEY, claim(signer)) == 0
            assert holding(network.nodes) == [replayer]
            assert not any(node._holdings.get(node_id(replayer.key.public)) for node in network.nodes)

    run(story())


def test_a_peer_record_is_found_under_the_key_of_the_node_and_follows_a_change_of_address() -> None:
    async def story() -> None:
        async with swarm(10) as network:
            node = network.nodes[0]
            assert node.addresses() == []
            await node.announce(KEY, claim(node))
            first = network.address(node)
            assert node.addresses() == [first]
            records = [found.record.record for found in await found_by(network.nodes[5], node_id(node.key.public))]
            assert [type(record) for record in records] == [PeerRecord]
            network.kill(node)
            again = await network.start(key=node.key)
            assert await again.bootstrap([network.address(network.nodes[1])]) == 1
            await asyncio.sleep(60)
            assert await again.announce(KEY, claim(again, 2)) >= 8
            (found,) = await found_by(network.nodes[5])
            assert found.addresses == (network.address(again), first)

    run(story())


def test_who_only_sends_requests_leaves_the_table_once_it_was_called() -> None:
    async def story() -> None:
        async with swarm(5) as network:
            silent = await Speaker.open(public_ip(700), PORT, client=False)
            victim = network.nodes[0]
            at = network.address(victim)
            cookie = await silent.cookie(at)
            calls_before = victim.status().calls
            for _ in range(500):
                silent.send(silent.request(FindNode(target=bytes(20)), cookie, victim.id), at)
            await asyncio.sleep(30)
            assert victim.status().requests_answered >= 500
            assert victim.status().calls - calls_before < 20
            assert any(known.address == silent.address for known in victim.nodes())
            await asyncio.sleep(3_600)
            assert not any(known.address == silent.address for known in victim.nodes())

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


def test_a_node_that_found_nobody_says_why_and_tries_its_bootstrap_addresses_again() -> None:
    async def story() -> None:
        network = Swarm(seed=12)
        try:
            early = await network.start()
            later_address = Address(public_ip(1), PORT)
            assert await early.bootstrap([later_address]) == 0
            assert early.nodes() == []
            (reason,) = early.status().bootstrap_failures
            assert reason.startswith(f"{later_address} did not answer")
            later = await network.start()
            assert network.address(later) == later_address
            await asyncio.sleep(180)
            assert [known.id for known in early.nodes()] == [later.id]
            assert early.status().bootstrap_failures == ()
            await early.announce(KEY, claim(early))
            assert await signers_found_by(later) == {early.key.public}
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
        async with swarm(25, seed=14, links=LAN.losing(0.1)) as network:
            await network.nodes[0].announce(KEY, claim(network.nodes[0]))
            return network.datagrams, [known.id for node in network.nodes for known in node.nodes()]

    assert run(story()) == run(story())


def test_nodes_of_a_large_network_find_each_others_claims_and_know_how_large_it_is() -> None:
    async def story() -> None:
        async with swarm(100, seed=15) as network:
            publishers: list[DhtNode] = network.nodes[::30]
            for node in publishers:
                assert await node.announce(KEY, claim(node)) >= 20
            for node in network.nodes[::10]:
                assert await signers_found_by(node) == {each.key.public for each in publishers}
            # Those that came first asked when the network was small, but know many by now.
            assert all(30 < node.status().nodes_estimated < 250 for node in network.nodes)
            assert 60 < statistics.median(node.status().nodes_estimated for node in network.nodes[60:]) < 160

    run(story())
