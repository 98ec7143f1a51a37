"""Sweeps against the true nearest, on any layout of nodes. Walks are exact here; whole swarms are tested elsewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.lookup import Neighbourhood
from dhtdata.dht.routing import Contact, identifier, number
from dhtdata.dht.sweep import KEYS_AT_ONCE, Sweep
from dhtdata.formats.addresses import Address

WIDTH = 4
HERE = Address("10.0.0.1", 1)
# Spread identifiers, and crowds that share long prefixes.
identifiers = st.one_of(
    st.binary(min_size=20, max_size=20),
    st.integers(0, 300).map(identifier),
    st.integers(0, 300).map(lambda value: identifier((0b1011 << 156) + value)),
)


def sweep(
    node_ids: Sequence[bytes], own_id: bytes, keys: Sequence[bytes], dead: Collection[bytes] = ()
) -> tuple[dict[bytes, list[bytes]], Sweep]:
    """Holders of each key. Dead nodes are met but do not answer."""
    others = [Contact(node_id, HERE) for node_id in node_ids if node_id != own_id]

    async def nearest(target: bytes) -> Neighbourhood:
        met = sorted(others, key=lambda each: each.long_id ^ number(target))[:WIDTH]
        radius = met[-1].long_id ^ number(target) if len(met) == WIDTH else None
        return Neighbourhood([each for each in met if each.id not in dead], radius)

    async def story() -> tuple[dict[bytes, list[bytes]], Sweep]:
        holders: dict[bytes, list[bytes]] = {}
        one = Sweep(nearest, Contact(own_id, HERE), random.Random(1), WIDTH)
        async for assignment in one.assignments(keys):
            assert len({key for mine in assignment.values() for key in mine}) <= KEYS_AT_ONCE
            for contact, mine in assignment.items():
                assert mine == sorted(set(mine))
                for key in mine:
                    holders.setdefault(key, []).append(contact.id)
        return holders, one

    return asyncio.run(story())


@settings(max_examples=150, deadline=None)
@given(
    node_ids=st.lists(identifiers, unique=True, min_size=1, max_size=60),
    keys=st.lists(identifiers, max_size=60),
)
def test_every_key_is_assigned_to_exactly_its_nearest_nodes(node_ids: list[bytes], keys: list[bytes]) -> None:
    holders, _ = sweep(node_ids, node_ids[0], keys)
    assert set(holders) == set(keys)
    for key, assigned in holders.items():
        nearest = sorted(node_ids, key=lambda each: number(each) ^ number(key))[:WIDTH]
        assert sorted(assigned) == sorted(nearest)


def test_dead_nodes_do_not_make_a_network_pass_for_a_tiny_one() -> None:
    randomness = random.Random(3)
    node_ids = [randomness.randbytes(20) for _ in range(200)]
    keys = [randomness.randbytes(20) for _ in range(2_000)]
    dead = set(randomness.sample(node_ids[1:], 60))
    holders, _ = sweep(node_ids, node_ids[0], keys, dead)
    for key in keys:
        living = set(sorted(node_ids, key=lambda each: number(each) ^ number(key))[:WIDTH]) - dead
        assert living <= set(holders[key]) and not dead & set(holders[key])


def test_many_keys_cost_walks_by_region_and_few_keys_one_walk_each() -> None:
    randomness = random.Random(2)
    node_ids = [randomness.randbytes(20) for _ in range(500)]
    keys = [randomness.randbytes(20) for _ in range(5_000)]
    holders, many = sweep(node_ids, node_ids[0], keys)
    assert len(holders) == 5_000 and many.walks < 500
    _, few = sweep(node_ids, node_ids[0], keys[:5])
    assert few.walks <= 8


def test_an_own_node_alone_is_assigned_everything() -> None:
    keys = [identifier(value) for value in range(2_000)]
    holders, one = sweep([bytes(20)], bytes(20), keys)
    assert holders == {key: [bytes(20)] for key in keys} and one.walks == 1
