"""Walks against an oracle, with dead, slow and lying nodes. The network is a function."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.lookup import Neighbourhood, Pace, Told, Walk
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable, identifier, number
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address
from tests.simulation.clock import run


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

    async def ask(self, contact: Contact, target: bytes, attempt: int) -> Told:
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
        return Told(self.tables[contact.id].closest(target, BUCKET_SIZE))

    def walk(self, target: bytes, seeds: list[Contact], pace: Pace | None = None) -> tuple[list[Contact], Walk, float]:
        async def story() -> tuple[list[Contact], Walk, float]:
            walk = Walk([target], bytes(20), self.ask, pace)
            (near,) = await walk.run([seeds])
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
    assert took_s < 3.0 + dead_asked / 2  # rounds that wait would take two seconds for almost every dead node


def test_inventing_ever_nearer_nodes_ends_at_the_bound_of_calls() -> None:
    calls = 0

    async def lie(contact: Contact, target: bytes, attempt: int) -> Told:
        nonlocal calls
        calls += 1
        distance = contact.long_id
        invented = [Contact(identifier(max(1, distance // 2 - step)), Address("10.6.6.6", 6)) for step in range(20)]
        return Told(invented)

    async def story() -> list[Contact]:
        walk = Walk([bytes(20)], bytes([1]) * 20, lie, Pace(calls=60, hops=200))
        return (await walk.run([[Contact(bytes([255]) * 20, Address("10.6.6.6", 6))]]))[0].contacts

    assert len(run(story())) == BUCKET_SIZE
    assert calls == 60


def test_chains_longer_than_the_bound_of_hops_are_not_followed() -> None:
    asked: list[int] = []

    async def chain(contact: Contact, target: bytes, attempt: int) -> Told:
        asked.append(contact.long_id)
        return Told([Contact(identifier(contact.long_id - 1), Address("10.6.6.6", 6))])

    async def story() -> None:
        await Walk([bytes(20)], bytes([1]) * 20, chain, Pace(hops=7)).run(
            [[Contact(identifier(1_000), Address("10.6.6.6", 6))]]
        )

    run(story())
    assert asked == list(range(1_000, 992, -1))


def test_clients_are_asked_but_are_not_among_the_nearest() -> None:
    world = World(30, 1)
    clients = {node.id for node in world.nodes[10:20]}

    async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
        answer = await world.ask(contact, target, attempt)
        return Told(answer.contacts, keeps=contact.id not in clients)

    async def story() -> list[Contact]:
        return (await Walk([bytes(20)], bytes([1]) * 20, ask).run([world.nodes[:3]]))[0].contacts

    near = run(story())
    keeping = [node for node in world.nearest(bytes(20)) if node.id not in clients]
    assert near[: len(keeping)] == keeping and not clients & {node.id for node in near}


def test_without_seeds_a_walk_ends_at_once() -> None:
    world = World(3, 1)
    near, walk, took_s = world.walk(bytes(20), [])
    assert (near, walk.asked, took_s) == ([], 0, 0.0)


def test_a_bug_in_the_network_function_is_not_swallowed() -> None:
    async def broken(contact: Contact, target: bytes, attempt: int) -> Told:
        raise ZeroDivisionError

    async def story() -> None:
        await Walk([bytes(20)], bytes([1]) * 20, broken).run([[Contact(bytes([5]) * 20, Address("10.6.6.6", 6))]])

    with pytest.raises(ExceptionGroup):
        run(story())


@pytest.mark.parametrize("seed", range(4))
def test_paths_are_disjoint_and_each_ends_at_its_own_nearest(seed: int) -> None:
    world = World(120, seed)
    targets = [world.randomness.randbytes(20) for _ in range(4)]

    async def story(seeds: list[list[Contact]]) -> list[Neighbourhood]:
        return await Walk(targets, bytes(20), world.ask).run(seeds)

    for seeds in ([world.nodes[first : first + 5] for first in (0, 5, 10, 15)], [world.nodes[:1]] * 4):
        world.asked.clear()
        found = run(story(seeds))
        right = [
            len(set(near.contacts) & set(world.nearest(target))) for target, near in zip(targets, found, strict=True)
        ]
        assert sum(right) >= 0.95 * 4 * BUCKET_SIZE
        if len({node.id for each in seeds for node in each}) > 4:
            assert len(world.asked) == len(set(world.asked))


def test_a_liar_leads_one_path_astray_and_no_other() -> None:
    """Whatever path meets the liar first believes in its inventions; the others do not hear of them."""
    world = World(80, 3)
    liar = world.nodes[0]

    async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
        if contact.id == liar.id or contact.address.port == 666:
            goal = number(target)
            return Told([Contact(identifier(goal ^ step), Address("10.6.6.6", 666)) for step in range(1, 21)])
        return await world.ask(contact, target, attempt)

    async def story() -> list[Neighbourhood]:
        targets = [bytes([position << 6]) + bytes(19) for position in range(4)]
        seeds = [[liar], *([world.nodes[position]] for position in (1, 2, 3))]
        return await Walk(targets, bytes([9]) * 20, ask, Pace(calls=40)).run(seeds)

    astray, *straight = run(story())
    assert {each.address.port for each in astray.contacts} == {666}
    for near in straight:
        assert not any(each.address.port == 666 for each in near.contacts) and len(near.contacts) == BUCKET_SIZE


def test_other_paths_wait_for_the_first_answer_of_the_first() -> None:
    world = World(60, 4)
    began: list[tuple[float, int]] = []

    async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
        began.append((asyncio.get_running_loop().time(), target[0]))
        return await world.ask(contact, target, attempt)

    async def story() -> None:
        seeds = [world.nodes[first : first + 9] for first in (0, 10, 20)]
        await Walk([bytes([place]) * 20 for place in range(3)], bytes(20), ask, Pace(parallel=3, at_first=3)).run(seeds)

    run(story())
    assert [place for when_s, place in began if when_s == 0.0] == [0, 0, 0]
    assert {place for _, place in began} == {0, 1, 2}


def test_a_late_answer_frees_its_lane_and_still_counts() -> None:
    world = World(60, 6)
    slow = world.nodes[:2]

    async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
        told = await world.ask(contact, target, attempt)
        if contact in slow:
            await asyncio.sleep(5.0)
        return told

    async def story() -> tuple[Walk, list[Contact]]:
        target = slow[0].id
        walk = Walk([target], bytes(20), ask, Pace(parallel=2, at_first=2), patience_s=0.1)
        (near,) = await walk.run([[*slow, world.nodes[5]]])
        return walk, near.contacts

    walk, near = run(story())
    fast = [step for step in walk.steps if step.took_s < 1.0]
    assert walk.steps[-1].took_s > 5.0 and len(fast) == walk.asked - 2 >= BUCKET_SIZE - 1
    assert near[0] == slow[0]


def test_candidates_of_one_public_network_are_few() -> None:
    crowd = [Contact(bytes([number]) * 20, Address(f"11.0.0.{number}", 8470)) for number in range(1, 40)]
    asked: list[Contact] = []

    async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
        asked.append(contact)
        return Told(crowd)

    async def story() -> None:
        seeds = [[Contact(bytes([200]) * 20, Address("12.0.0.1", 8470))]]
        await Walk([bytes(20)], bytes([255]) * 20, ask, Pace(per_group=2)).run(seeds)

    run(story())
    assert len(asked) == 3


def test_every_call_leaves_a_step_to_look_at() -> None:
    world = World(30, 5)
    world.dead = {world.nodes[3].id}

    async def story() -> Walk:
        walk = Walk([bytes(20)], bytes([1]) * 20, world.ask)
        await walk.run([world.nodes[:5]])
        return walk

    walk = run(story())
    assert len(walk.steps) == walk.asked and sum(step.outcome == "answered" for step in walk.steps) == walk.answered
    assert {step.outcome for step in walk.steps if step.node in world.dead} == {"dead"}
    assert {step.hop for step in walk.steps} >= {0, 1}
    near = {step.node: step.near_bits for step in walk.steps}
    assert all(bits == 160 - number(node).bit_length() for node, bits in near.items())
