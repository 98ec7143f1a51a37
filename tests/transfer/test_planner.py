from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.availability import Availability
from dhtdata.transfer.masks import mask_of
from dhtdata.transfer.orders import Order
from dhtdata.transfer.picker import BACKGROUND, Wanted
from dhtdata.transfer.planner import (
    LONG_PATH_S,
    MAX_OUTSTANDING_BYTES,
    MAX_TRANSFERS,
    MORE_TRANSFERS,
    TRANSFERS_PER_PROVIDER,
    Planner,
)
from dhtdata.transfer.providers import LIAR_S, Remote, Remotes

BLOCK = 1 << 20
STEP_S = 0.1
DEADLINE_S = 10.0
PATIENCE_S = 600.0
PEERS = [Address("192.0.2.1", 8_470 + number) for number in range(64)]


class Crowd:
    """Everybody, by what they were told to hold."""

    def __init__(self) -> None:
        self.have = Availability()
        self.members: list[Address] = []

    def usable(self) -> list[Address]:
        return self.members

    def complete(self, peer: Address) -> None:
        self.members.append(peer)
        self.have.complete(peer)

    def partial(self, peer: Address, held: dict[Digest, int], coming: dict[Digest, int] | None = None) -> None:
        if peer not in self.members:
            self.members.append(peer)
        self.have.told(peer, lambda shard: (held.get(shard, 0), (coming or {}).get(shard, 0)))


@dataclass
class Now:
    s: float = 0.0

    def __call__(self) -> float:
        return self.s


@dataclass
class Desk:
    """A planner with all around it, time included."""

    seed: int = 0
    now: Now = field(default_factory=Now)
    crowd: Crowd = field(default_factory=Crowd)

    def __post_init__(self) -> None:
        self.remotes = Remotes(self.now)
        self.planner = Planner(self.remotes, random.Random(self.seed))

    def open(self, name: str, blocks: int, turns: dict[int, int] | None = None, length: int = BLOCK) -> Wanted:
        want = self.planner.open(Digest.of(name.encode()), table([length] * blocks))
        want.crowds.add(self.crowd)
        want.turns = dict.fromkeys(range(blocks), BACKGROUND) if turns is None else turns
        return want

    def proven(self, peer: Address, rate_bytes_s: float, latency_s: float = 0.01) -> Remote:
        """It served well before, this fast."""
        remote = self.remotes.at(peer)
        remote.rate_bytes_s, remote.measured = rate_bytes_s, True
        remote.latency_s = remote.path_s = latency_s
        remote.credit_bytes = 64 << 20
        remote.blocks = 10
        return remote

    def orders(self) -> list[Order]:
        return list(self.all_orders())

    def all_orders(self) -> Iterator[Order]:
        while (order := self.planner.next(self.now.s)) is not None:
            yield order

    def deliver(self, order: Order) -> None:
        for position in order.run.positions:
            self.planner.orders.delivered(order, position, self.now.s)
        self.planner.orders.ended(order, self.now.s)


def table(lengths: list[int]) -> BlockTable:
    last = len(lengths) - 1
    return BlockTable.build(
        [
            (length, 0 if place in (0, last) else 1, Digest.of(bytes([place % 251])))
            for place, length in enumerate(lengths)
        ]
    )


# Random worlds


@dataclass(frozen=True)
class Character:
    """How a provider behaves. ``kind``: honest, lies, stalls, dies (breaks off in the middle), busy (says 503)."""

    kind: str
    rate_bytes_s: float
    latency_s: float
    complete: bool
    share: float


CHARACTERS = st.builds(
    Character,
    kind=st.sampled_from(["honest", "honest", "honest", "lies", "stalls", "dies", "busy"]),
    rate_bytes_s=st.sampled_from([1e5, 1e6, 1e7, 1e8]),
    latency_s=st.sampled_from([0.0, 0.02, 0.3]),
    complete=st.booleans(),
    share=st.sampled_from([0.1, 0.5, 1.0]),
)
HONEST = Character("honest", 1e6, 0.05, True, 1.0)


@dataclass(eq=False)
class Sending:
    order: Order
    since_s: float
    last_s: float
    received: float = 0.0
    delivered: int = 0


class World:
    """Providers that send in steps of `STEP_S`, and checks after every order."""

    def __init__(self, characters: list[Character], lengths: list[int], urgent: int, seed: int) -> None:
        self.desk = Desk(seed)
        self.chance = random.Random(seed)
        self.characters = dict(zip(PEERS, characters, strict=False))
        self.wants = {}
        self.sending: list[Sending] = []
        self.wasted: Counter[Address] = Counter()
        self.lies: Counter[Address] = Counter()
        for number in range(2):
            turns = {place: BACKGROUND if place >= urgent else place for place in range(len(lengths))}
            want = self.desk.planner.open(Digest.of(bytes([number])), table(lengths))
            want.crowds.add(self.desk.crowd)
            want.turns = turns
            self.wants[want.shard] = want
        self.held: dict[Address, dict[Digest, int]] = {}
        for peer, character in self.characters.items():
            if character.complete:
                self.held[peer] = dict.fromkeys(self.wants, -1)
                self.desk.crowd.complete(peer)
            else:
                places = range(len(lengths))
                self.held[peer] = {
                    shard: mask_of([place for place in places if self.chance.random() < character.share], len(lengths))
                    for shard in self.wants
                }
                self.desk.crowd.partial(peer, self.held[peer])

    def run(self) -> None:
        now = self.desk.now
        next_look_s = 0.0
        while any(want.missing for want in self.wants.values()):
            assert now.s < PATIENCE_S, "blocks are left that an honest provider has"
            if self.changed or now.s >= next_look_s:
                self.ask()
                again_s = self.desk.planner.look_again_s(now.s)
                assert again_s is not None
                assert again_s > 0
                next_look_s = now.s + again_s
            self.step()
        for sent in list(self.sending):
            assert self.desk.planner.orders.redundant(sent.order)
            self.end(sent)
        assert self.desk.planner.next(now.s) is None
        assert self.desk.planner.look_again_s(now.s) is None

    changed = True

    def ask(self) -> None:
        self.changed = False
        for order in self.desk.all_orders():
            self.check(order)
            self.sending.append(Sending(order, self.desk.now.s, self.desk.now.s))

    def check(self, order: Order) -> None:
        peer, run = order.provider, order.run
        assert isinstance(peer, Address)
        want = self.wants[run.shard]
        remote = self.desk.remotes.at(peer)
        mine = [sent for sent in self.sending if sent.order.provider == peer]
        assert self.desk.remotes.usable(peer)
        assert self.held[peer][run.shard] & run.mask == run.mask
        assert want.missing & run.mask == run.mask
        if not remote.credit_bytes:
            assert run.count == 1
            assert not mine
        assert len(mine) < TRANSFERS_PER_PROVIDER + (MORE_TRANSFERS if remote.path_s >= LONG_PATH_S else 0)
        assert not any(sent.order.run.shard == run.shard and sent.order.run.mask & run.mask for sent in mine)
        for position in run.positions:
            others = [
                sent
                for sent in self.sending
                if sent.order.run.shard == run.shard and position in sent.order.run.positions[sent.delivered :]
            ]
            assert len(others) <= 1
        assert len(self.sending) < MAX_TRANSFERS
        reserved = sum(sent.order.run.length for sent in self.sending)
        assert not reserved or reserved + run.length <= MAX_OUTSTANDING_BYTES

    def step(self) -> None:
        now = self.desk.now
        now.s = round(now.s + STEP_S, 6)
        for sent in list(self.sending):
            if sent not in self.sending:
                continue
            peer = sent.order.provider
            assert isinstance(peer, Address)
            character = self.characters[peer]
            if self.desk.planner.orders.redundant(sent.order):
                self.end(sent)
            elif character.kind == "busy" and self.chance.random() < 0.5:
                self.desk.remotes.busy(peer, 3.0)
                self.end(sent)
            elif now.s - sent.last_s > DEADLINE_S:
                self.desk.remotes.failed(peer, "nothing came")
                self.end(sent)
            elif character.kind != "stalls" and now.s - sent.since_s >= character.latency_s:
                self.receive(sent, character)

    def receive(self, sent: Sending, character: Character) -> None:
        now_s, planner, run = self.desk.now.s, self.desk.planner, sent.order.run
        peer = sent.order.provider
        assert isinstance(peer, Address)
        begun = [other for other in self.sending if now_s - other.since_s >= character.latency_s]
        bodies = sum(other.order.provider == peer for other in begun)
        sent.received = min(sent.received + character.rate_bytes_s * STEP_S / bodies, run.length)
        sent.last_s = now_s
        planner.orders.progress(sent.order, int(sent.received), now_s)
        if character.kind == "dies" and sent.received > run.length / 2:
            self.desk.remotes.failed(peer, "connection reset")
            return self.end(sent)
        blocks = self.wants[run.shard].table.blocks
        while sent.delivered < run.count:
            position = run.first + sent.delivered
            block = blocks[position]
            if block.offset + block.length - run.offset > sent.received:
                return None
            if character.kind == "lies":
                self.lies[peer] += 1
                self.wasted[peer] += 1
                self.desk.remotes.lied(peer, block.length, "wrong bytes")
                return self.end(sent)
            if self.wants[run.shard].missing >> position & 1:
                planner.orders.delivered(sent.order, position, now_s)
            sent.delivered += 1
            self.changed = True
        return self.end(sent)

    def end(self, sent: Sending) -> None:
        self.sending.remove(sent)
        self.desk.planner.orders.ended(sent.order, self.desk.now.s)
        self.changed = True


@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    characters=st.lists(CHARACTERS, max_size=8),
    place=st.integers(0, 8),
    lengths=st.lists(st.sampled_from([1, 70_000, 1 << 18, 1 << 20, 3 << 20]), min_size=3, max_size=12),
    urgent=st.integers(0, 20),
    seed=st.integers(0, 1 << 16),
)
def test_whatever_the_world_everything_comes_if_one_honest_provider_has_it(
    characters: list[Character], place: int, lengths: list[int], urgent: int, seed: int
) -> None:
    characters.insert(place, HONEST)
    world = World(characters, lengths, urgent, seed)
    world.run()
    for remote in world.desk.remotes.everybody():
        assert remote.requests == 0
        assert remote.outstanding_bytes == 0
    for peer, lies in world.lies.items():
        assert world.wasted[peer] == lies
        assert lies <= 1 + world.desk.now.s / LIAR_S


# Turns


@settings(max_examples=200, deadline=None)
@given(
    turns=st.lists(
        st.dictionaries(st.integers(0, 11), st.one_of(st.integers(0, 20), st.just(BACKGROUND))), min_size=1, max_size=3
    ),
    held=st.lists(st.lists(st.integers(0, (1 << 12) - 1), min_size=3, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 16),
)
def test_the_first_block_of_every_order_has_the_earliest_turn_that_can_be_had(
    turns: list[dict[int, int]], held: list[list[int]], seed: int
) -> None:
    desk = Desk(seed)
    wants = [desk.open(f"shard {number}", 12, mine) for number, mine in enumerate(turns)]
    for peer, masks in zip(PEERS, held, strict=False):
        desk.crowd.partial(peer, {want.shard: mask for want, mask in zip(wants, masks, strict=False)})
        desk.proven(peer, 1e9)
    free = dict.fromkeys(PEERS[: len(held)], TRANSFERS_PER_PROVIDER)
    while True:
        possible = [
            turn
            for number, want in enumerate(wants)
            for position, turn in want.turns.items()
            if want.open >> position & 1
            and any(free[peer] and masks[number] >> position & 1 for peer, masks in zip(PEERS, held, strict=False))
        ]
        order = desk.planner.next(0.0)
        urgent = [turn for turn in possible if turn != BACKGROUND]
        if order is None:
            assert not urgent
            return
        assert isinstance(order.provider, Address)
        free[order.provider] -= 1
        want = next(want for want in wants if want.shard == order.run.shard)
        assert want.turns[order.run.first] == min(possible)
        if urgent:
            assert all(want.turns[position] != BACKGROUND for position in order.run.positions)


def test_an_urgent_block_goes_to_whoever_will_have_sent_it_first() -> None:
    desk = Desk()
    for peer in PEERS[:3]:
        desk.crowd.complete(peer)
    desk.proven(PEERS[0], 4 * BLOCK).asked(8 * BLOCK)
    desk.proven(PEERS[1], 2 * BLOCK)
    desk.proven(PEERS[2], 1 * BLOCK)
    desk.open("shard", 3, {0: 1})
    assert [order.provider for order in desk.orders()] == [PEERS[1]]


def test_an_urgent_block_waits_for_the_fast_rather_than_go_to_the_slow() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.crowd.complete(PEERS[1])
    fast = desk.proven(PEERS[0], 50 * BLOCK)
    desk.proven(PEERS[1], 2 * BLOCK)
    for _ in range(TRANSFERS_PER_PROVIDER):
        fast.asked(BLOCK)
    desk.open("shard", 3, {1: 0})
    assert desk.orders() == []
    fast.ended(BLOCK, 0.0, began=False)
    assert [order.provider for order in desk.orders()] == [PEERS[0]]
    # With a long queue at the fast one, the slow one is of use: everything has to come some time.
    desk.open("many", 300, dict(enumerate(range(300))))
    orders = desk.orders()
    assert {order.provider for order in orders} == {PEERS[1]}
    assert all(order.run.first > 0 for order in orders)


def test_a_late_urgent_block_is_asked_of_one_more() -> None:
    desk = Desk()
    for peer in PEERS[:3]:
        desk.crowd.complete(peer)
        desk.proven(peer, 10 * BLOCK)
    desk.open("shard", 3, {1: 0})
    first = desk.orders()
    assert len(first) == 1
    desk.now.s += 0.1
    assert desk.orders() == []
    desk.now.s += 1.0
    second = desk.orders()
    assert len(second) == 1
    assert second[0].provider != first[0].provider
    desk.now.s += 100.0
    assert desk.orders() == []
    desk.deliver(second[0])
    assert desk.planner.orders.redundant(first[0])


def test_one_transfer_of_a_provider_is_kept_for_what_somebody_waits_for() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], 100 * BLOCK)
    want = desk.open("shard", 300, {0: 1} | dict.fromkeys(range(10, 300), BACKGROUND))
    orders = desk.orders()
    assert len(orders) == TRANSFERS_PER_PROVIDER - 1
    want.turns = {**want.turns, 5: 2}
    assert [order.run.first for order in desk.orders()] == [5]


# Background


@settings(max_examples=200, deadline=None)
@given(
    held=st.lists(st.integers(0, (1 << 12) - 1), min_size=1, max_size=6),
    coming=st.lists(st.integers(0, (1 << 12) - 1), min_size=6, max_size=6),
    wanted=st.sets(st.integers(0, 11), min_size=1),
    seed=st.integers(0, 1 << 16),
)
def test_of_the_provider_that_is_asked_the_rarest_block_is_taken(
    held: list[int], coming: list[int], wanted: set[int], seed: int
) -> None:
    desk = Desk(seed)
    want = desk.open("shard", 12, dict.fromkeys(wanted, BACKGROUND))
    for peer, mask, more in zip(PEERS, held, coming, strict=False):
        desk.crowd.partial(peer, {want.shard: mask}, {want.shard: more})
        desk.proven(peer, 1e6)
    order = desk.planner.next(0.0)
    if order is None:
        assert not any(mask & want.missing for mask in held)
        return
    assert isinstance(order.provider, Address)
    mine = held[PEERS.index(order.provider)]
    copies = {
        position: sum((mask | more) >> position & 1 for mask, more in zip(held, coming, strict=False))
        for position in wanted
        if mine >> position & 1
    }
    assert all(copies[position] == min(copies.values()) for position in order.run.positions)


def test_alone_at_a_seed_one_shard_comes_after_the_other_in_the_order_of_its_blocks() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], 1e8)
    desk.open("one", 6)
    desk.open("two", 3)
    seen = [(order.run.shard, position) for order in desk.orders() for position in order.run.positions]
    assert len(seen) >= 4
    assert seen == sorted(seen, key=lambda one: (one[0] != seen[0][0], one[1]))


def test_equals_are_taken_at_random_where_others_fetch_too() -> None:
    firsts = set()
    for seed in range(40):
        desk = Desk(seed)
        desk.crowd.complete(PEERS[0])
        desk.crowd.partial(PEERS[1], {})
        desk.open("one", 32)
        desk.open("two", 32)
        firsts |= {(order.run.shard, order.run.first) for order in desk.orders()}
    assert len(firsts) > 20


def test_a_complete_member_is_asked_for_what_the_crowd_does_not_have() -> None:
    desk = Desk()
    want = desk.open("shard", 8, length=BLOCK)
    desk.crowd.complete(PEERS[0])
    desk.crowd.partial(PEERS[1], {want.shard: 0b00001111}, {want.shard: 0b00110000})
    desk.proven(PEERS[0], 1e7)
    desk.proven(PEERS[1], 1e7)
    asked: Counter[Address] = Counter()
    for order in desk.orders():
        assert isinstance(order.provider, Address)
        asked[order.provider] |= order.run.mask
    assert asked[PEERS[0]] == 0b11000000
    assert asked[PEERS[1]]
    assert asked[PEERS[1]] & ~0b00001111 == 0


def test_who_cannot_be_reached_leaves_what_is_new_to_those_who_can() -> None:
    desk = Desk()
    desk.planner.spreads = False
    want = desk.open("shard", 8)
    desk.crowd.complete(PEERS[0])
    desk.crowd.partial(PEERS[1], {want.shard: 0b00001111})
    desk.proven(PEERS[0], 1e7, latency_s=0.05)
    desk.proven(PEERS[1], 1e7)
    assert {order.provider for order in desk.orders()} == {PEERS[1]}


def test_who_would_idle_asks_a_complete_member_for_anything() -> None:
    desk = Desk()
    want = desk.open("shard", 8)
    desk.crowd.complete(PEERS[0])
    desk.crowd.partial(PEERS[1], {}, {want.shard: 0b11111111})
    assert [order.provider for order in desk.orders()] == [PEERS[0]]


# The end game


def test_at_the_end_who_is_idle_overtakes_who_stalls() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], 10 * BLOCK)
    want = desk.open("shard", 3)
    (first,) = desk.orders()
    assert first.run.count == 3
    desk.planner.orders.progress(first, BLOCK, 0.1)
    desk.planner.orders.delivered(first, 0, 0.1)
    desk.crowd.complete(PEERS[1])
    desk.proven(PEERS[1], 10 * BLOCK)
    desk.now.s = 0.2
    assert desk.orders() == []
    desk.now.s = 5.0
    orders = desk.orders()
    assert {order.provider for order in orders} == {PEERS[1]}
    assert {position for order in orders for position in order.run.positions} == {1, 2}
    for order in orders:
        desk.deliver(order)
    assert desk.planner.orders.redundant(first)
    desk.planner.orders.ended(first, 5.0)
    assert not want.missing


def test_what_waits_in_a_queue_goes_to_whoever_begins_first() -> None:
    desk = Desk()
    want = desk.open("shard", 3, {1: BACKGROUND})
    desk.crowd.partial(PEERS[0], {want.shard: 0b111})
    desk.proven(PEERS[0], 10 * BLOCK)
    (first,) = desk.orders()
    desk.crowd.partial(PEERS[1], {want.shard: 0b111})
    desk.proven(PEERS[1], 10 * BLOCK)
    assert desk.orders() == []
    desk.now.s = 1.0
    (second,) = desk.orders()
    assert second.provider == PEERS[1]
    assert not desk.planner.orders.redundant(first)
    desk.planner.orders.began(second, 1.1)
    assert desk.planner.orders.redundant(first)
    assert not desk.planner.orders.redundant(second)


def test_an_order_at_a_seed_that_has_not_begun_is_of_no_use_once_the_crowd_has_the_block() -> None:
    desk = Desk()
    want = desk.open("shard", 3, {1: BACKGROUND})
    desk.crowd.complete(PEERS[0])
    desk.crowd.partial(PEERS[1], {})
    (order,) = desk.orders()
    assert order.provider == PEERS[0]
    desk.crowd.partial(PEERS[1], {}, {want.shard: 0b010})
    assert desk.planner.orders.redundant(order)
    desk.planner.orders.began(order, 0.1)
    assert not desk.planner.orders.redundant(order)


def test_blocks_of_an_order_that_ended_early_are_asked_for_again() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], 10 * BLOCK)
    desk.open("shard", 3)
    (first,) = desk.orders()
    desk.planner.orders.delivered(first, 0, 1.0)
    desk.planner.orders.ended(first, 1.0)
    assert {position for order in desk.orders() for position in order.run.positions} == {1, 2}


def test_a_closed_shard_makes_its_orders_redundant() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    want = desk.open("shard", 3)
    (order,) = desk.orders()
    assert not desk.planner.orders.redundant(order)
    desk.planner.close(want.shard)
    assert desk.planner.orders.redundant(order)
    desk.planner.orders.ended(order, 1.0)
    assert desk.orders() == []


def test_an_order_that_is_all_here_ends_by_itself_and_keeps_its_connection() -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], 1e8)
    desk.open("shard", 4)
    [order] = desk.orders()
    for position in order.run.positions:
        desk.planner.orders.delivered(order, position, 1.0)
    assert not desk.planner.orders.redundant(order)


# How much at once


@pytest.mark.parametrize(
    ("rate_mib_s", "latency_s", "least", "most"),
    [(0.2, 0.05, 1, 1), (1.2, 0.02, 1, 2), (12.0, 0.02, 5, 20), (120.0, 0.2, 56, 64)],
)
def test_a_slow_link_has_a_block_or_two_on_the_way_and_a_long_fast_one_is_filled(
    rate_mib_s: float, latency_s: float, least: int, most: int
) -> None:
    desk = Desk()
    desk.crowd.complete(PEERS[0])
    desk.proven(PEERS[0], rate_mib_s * BLOCK, latency_s)
    desk.remotes.at(PEERS[0])
    for number in range(8):
        desk.open(f"shard {number}", 32)
    orders = desk.orders()
    assert len(orders) <= TRANSFERS_PER_PROVIDER
    assert least <= sum(order.run.count for order in orders) <= most


def test_a_block_larger_than_all_that_may_be_outstanding_is_asked_for_alone() -> None:
    desk = Desk()
    for peer in PEERS[:4]:
        desk.crowd.complete(peer)
        desk.proven(peer, 1e9)
    want = desk.planner.open(Digest.of(b"large"), table([10, MAX_OUTSTANDING_BYTES + 1, 10]))
    want.crowds.add(desk.crowd)
    want.turns = {1: BACKGROUND, 0: BACKGROUND}
    seen = set()
    for _ in range(2):
        orders = desk.orders()
        assert sum(order.run.length for order in orders) <= MAX_OUTSTANDING_BYTES or len(orders) == 1
        for order in orders:
            seen |= set(order.run.positions)
            desk.deliver(order)
    assert seen == {0, 1}
