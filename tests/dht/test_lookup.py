"""Walks against an oracle, with dead, slow and lying nodes. The network is a function."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.lookup import Answer, Pace, Walk
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable, identifier, number
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address
from tests.dht.simulated import run


class World:
    """Nodes with tables that met a share of the others; ``dead`` ones time out after a second."""

    def __init__(self, count: int, seed: int) -> None:
        self.randomness = random.Random(seed)
        self.nodes = [Contact(self.randomness.randbytes(20), Address("10.0.0.1", n + 1)) for n in range(count)]
        self.tables = {node.id: RoutingTable(node.id) for node in self.nodes}
        for node in self.nodes:
            for other in self.nodes:
                self.tables[node.id].answered(other, 0.0)
        self.dead: set[bytes] = set()
        self.asked: list[Contact] = []
        self.at_once = 0
        self.most_at_once = 0

    async def ask(self, contact: Contact, attempt: int) -> Answer:
        self.asked.append(contact)
        self.at_once += attempt == 0
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if contact.id in self.dead:
                await asyncio.sleep(1.0)
                raise PeerError("dead")
            await asyncio.sleep(0.02)
        finally:
            self.at_once -= attempt == 0
        return Answer(self.tables[contact.id].closest(self.target, BUCKET_SIZE))

    def walk(self, target: bytes, seeds: list[Contact], pace: Pace | None = None) -> tuple[list[Contact], Walk, float]:
        self.target = target

        async def story() -> tuple[list[Contact], Walk, float]:
            walk = Walk(target, bytes(20), self.ask, pace)
            near = await walk.run(seeds)
            everybody = sorted(node.long_id ^ number(target) for node in self.nodes)
            if seeds:
                assert near.radius == (everybody[BUCKET_SIZE - 1] if len(everybody) >= BUCKET_SIZE else None)
            return near.contacts, walk, asyncio.get_running_loop().time()

        return run(story())

    def nearest(self, target: bytes, count: int = BUCKET_SIZE) -> list[Contact]:
        """The nearest of all, but for those of them that are dead."""
        everybody = sorted(self.nodes, key=lambda node: node.long_id ^ number(target))
        return [node for node in everybody[:count] if node.id not in self.dead]


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 120), seed=st.integers(0, 1 << 16), target=st.binary(min_size=20, max_size=20))
def test_a_walk_ends_at_the_true_nearest(count: int, seed: int, target: bytes) -> None:
    world = World(count, seed)
    near, walk, _ = world.walk(target, [world.nodes[0]])
    assert near == world.nearest(target)
    assert len(world.asked) == len(set(world.asked)) == walk.asked == walk.answered
    assert world.most_at_once <= 5


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 16))
def test_dead_nodes_are_asked_twice_and_replaced_by_the_next_nearest(seed: int) -> None:
    world = World(100, seed)
    world.dead = {node.id for node in world.randomness.sample(world.nodes[1:], 30)}
    target = world.randomness.randbytes(20)
    near, walk, took_s = world.walk(target, [world.nodes[0]])
    nearest = world.nearest(target)
    assert near[: len(nearest)] == nearest
    assert {world.asked.count(node) for node in world.asked if node.id in world.dead} <= {2}
    assert walk.asked - walk.answered == len({node.id for node in world.asked} & world.dead)
    dead_asked = walk.asked - walk.answered
    assert took_s < 2.0 + dead_asked * 1.0 / 5 + 1.0  # rounds that wait would take two seconds for almost every one


def test_inventing_ever_nearer_nodes_ends_at_the_bound_of_calls() -> None:
    calls = 0

    async def lie(contact: Contact, attempt: int) -> Answer:
        nonlocal calls
        calls += 1
        distance = contact.long_id
        invented = [Contact(identifier(max(1, distance // 2 - step)), Address("10.6.6.6", 6)) for step in range(20)]
        return Answer(invented)

    async def story() -> list[Contact]:
        walk = Walk(bytes(20), bytes([1]) * 20, lie, Pace(calls=60, hops=200))
        return (await walk.run([Contact(bytes([255]) * 20, Address("10.6.6.6", 6))])).contacts

    assert len(run(story())) == BUCKET_SIZE
    assert calls == 60


def test_chains_longer_than_the_bound_of_hops_are_not_followed() -> None:
    asked: list[int] = []

    async def chain(contact: Contact, attempt: int) -> Answer:
        asked.append(contact.long_id)
        return Answer([Contact(identifier(contact.long_id - 1), Address("10.6.6.6", 6))])

    async def story() -> None:
        await Walk(bytes(20), bytes([1]) * 20, chain, Pace(hops=7)).run(
            [Contact(identifier(1_000), Address("10.6.6.6", 6))]
        )

    run(story())
    assert asked == list(range(1_000, 992, -1))


def test_clients_are_asked_but_are_not_among_the_nearest() -> None:
    world = World(30, 1)
    clients = {node.id for node in world.nodes[10:20]}

    async def ask(contact: Contact, attempt: int) -> Answer:
        answer = await world.ask(contact, attempt)
        return Answer(answer.contacts, keeps=contact.id not in clients)

    async def story() -> list[Contact]:
        world.target = bytes(20)
        return (await Walk(bytes(20), bytes([1]) * 20, ask).run(world.nodes[:3])).contacts

    near = run(story())
    keeping = [node for node in world.nearest(bytes(20)) if node.id not in clients]
    assert near[: len(keeping)] == keeping and not clients & {node.id for node in near}


def test_without_seeds_a_walk_ends_at_once() -> None:
    world = World(3, 1)
    near, walk, took_s = world.walk(bytes(20), [])
    assert (near, walk.asked, took_s) == ([], 0, 0.0)


def test_a_bug_in_the_network_function_is_not_swallowed() -> None:
    async def broken(contact: Contact, attempt: int) -> Answer:
        raise ZeroDivisionError

    async def story() -> None:
        await Walk(bytes(20), bytes([1]) * 20, broken).run([Contact(bytes([5]) * 20, Address("10.6.6.6", 6))])

    with pytest.raises(ExceptionGroup):
        run(story())
