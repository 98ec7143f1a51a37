"""One peer: the real planner over simulated transfers, have-maps polled from a bounded number of neighbours."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.swarm_simulated.engine import Engine, Link, Transfer, Uploads
from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.availability import Availability
from dhtdata.transfer.orders import Order
from dhtdata.transfer.picker import BACKGROUND, Wanted
from dhtdata.transfer.planner import Planner
from dhtdata.transfer.providers import Remotes

TICK_S = 0.25
GATHER_S = 0.03
POLLS_A_SECOND = 16
SHORTEST_POLL_S = 0.5
SILENCE_S = 10.0
MISSES = 3
MIN_TRIP_S = 0.01
MAX_TRIP_S = 0.12


@dataclass(frozen=True)
class Dataset:
    """Shards that everybody wants, all alike."""

    shards: tuple[Digest, ...]
    table: BlockTable

    @classmethod
    def of(cls, shards: int, blocks: int, block_bytes: int) -> Dataset:
        spans = [
            (block_bytes, 0 if place in (0, blocks - 1) else 1, Digest.of(bytes([place]))) for place in range(blocks)
        ]
        return cls(tuple(Digest.of(f"shard {number}".encode()) for number in range(shards)), BlockTable.build(spans))

    @property
    def bytes(self) -> int:
        return len(self.shards) * self.table.shard_bytes

    @property
    def whole(self) -> int:
        """Mask of all blocks of a shard."""
        return (1 << len(self.table.blocks)) - 1


class Peer:
    """A provider to others (by its identity), a fetcher for itself."""

    def __init__(self, engine: Engine, number: int, link: Link, dataset: Dataset, chance: random.Random) -> None:
        self.url = f"http://peer{number}"
        self.number = number
        self.link = link
        self.uploads = Uploads(engine, link)
        self.have = Availability()
        self.held = dict.fromkeys(dataset.shards, 0)
        self.complete = False
        self.revision = 0
        self.done_s = 0.0
        self.joined_s = 0.0
        self.received_bytes = 0
        self.wasted_bytes = 0
        self.alive = False
        self._engine = engine
        self._dataset = dataset
        self._chance = chance
        self._remotes = Remotes(engine.clock)
        self._planner = Planner(self._remotes, chance)
        self._planner.spreads = self.reachable
        self._wants: dict[Digest, Wanted] = {}
        self._transfers: dict[Order, Transfer] = {}
        self._neighbours: list[Peer] = []
        self._everybody: Sequence[Peer] = ()
        self._seen: dict[Peer, int] = {}
        self._missed: dict[Peer, int] = {}
        self._turn = 0
        self._life = 0
        self._looking = False
        self._planning = False
        self._usable: list[Peer] = []

    @property
    def reachable(self) -> bool:
        return self.link.up_bytes_s > 0

    def become_seed(self) -> None:
        self.held = dict.fromkeys(self._dataset.shards, self._dataset.whole)
        self.complete = self.alive = True

    def join(self, neighbours: list[Peer], everybody: Sequence[Peer]) -> None:
        """Begin, or begin again with what is on disk. ``everybody``: where lost neighbours are replaced from."""
        self.alive = self.uploads.alive = True
        self._life += 1
        self._neighbours, self._everybody = neighbours, everybody
        if self.complete:
            return
        for shard in self._dataset.shards:
            want = self._wants[shard] = self._planner.open(shard, self._dataset.table)
            want.crowds.add(self)
            missing = self._dataset.whole & ~self.held[shard]
            want.turns = {place: BACKGROUND for place in range(len(self._dataset.table.blocks)) if missing >> place & 1}
        self._engine.after(0.0, self._poll, list(neighbours), self._life)
        self._engine.after(self._chance.uniform(0, TICK_S), self._tick, self._life)

    def leave(self) -> None:
        """The power goes. What was verified is on disk."""
        self.alive = False
        self._life += 1
        self.uploads.die()
        for order, transfer in list(self._transfers.items()):
            self._drop(order, transfer)
        for shard in self._wants:
            self._planner.close(shard)
        for peer in self._seen:
            self.have.forget(peer)
        self._seen.clear()

    def usable(self) -> list[Peer]:
        return self._usable

    def coming(self, shard: Digest) -> int:
        want = self._wants.get(shard)
        return 0 if want is None else want.asked & want.missing

    # Have-maps

    def _tick(self, life: int) -> None:
        if life != self._life or self.complete:
            return
        self._drop_silent()
        # Often in small crowds, where it matters most, and never at the cost of many questions a second in large ones.
        share = math.ceil(TICK_S * min(len(self._neighbours) / SHORTEST_POLL_S, POLLS_A_SECOND))
        due = [self._neighbours[(self._turn + step) % len(self._neighbours)] for step in range(share)]
        self._turn += share
        self._poll(due, life)
        self._engine.after(TICK_S, self._tick, life)

    def _poll(self, peers: Sequence[Peer], life: int) -> None:
        """Answers are as old as half a round trip when they arrive."""
        answers = []
        for peer in peers:
            if not peer.alive:
                self._miss(peer)
            elif self._seen.get(peer) != peer.revision:
                masks = {shard: (held, peer.coming(shard)) for shard, held in peer.held.items()}
                answers.append((peer, peer.revision, peer.complete, masks))
        if answers:
            self._engine.after(MAX_TRIP_S / 2, self._answered, answers, life)

    def _answered(self, answers: list[tuple[Peer, int, bool, dict[Digest, tuple[int, int]]]], life: int) -> None:
        if life != self._life or self.complete:
            return
        for peer, revision, complete, masks in answers:
            self._seen[peer] = revision
            self._missed.pop(peer, None)
            if complete:
                self.have.complete(peer)
            else:
                self.have.told(peer, masks.__getitem__)
        self._wake()

    def _miss(self, peer: Peer) -> None:
        self._remotes.failed(peer, "no answer")
        self._missed[peer] = self._missed.get(peer, 0) + 1
        if self._missed[peer] >= MISSES and peer in self._neighbours:
            self._missed.pop(peer)
            self._seen.pop(peer, None)
            self.have.forget(peer)
            others = [
                other for other in self._chance.sample(self._everybody, min(8, len(self._everybody))) if other.alive
            ]
            fresh = next((other for other in others if other is not self and other not in self._neighbours), None)
            if fresh is not None:
                self._neighbours[self._neighbours.index(peer)] = fresh

    # Transfers

    def _wake(self) -> None:
        """Plan soon: what happens at about the same time is looked at once."""
        if not self._planning:
            self._planning = True
            self._engine.after(GATHER_S, self._plan, self._life)

    def _plan(self, life: int) -> None:
        self._planning = False
        if life != self._life or self.complete:
            return
        now_s = self._engine.now_s
        self._drop_redundant()
        self._usable = [peer for peer in self._neighbours if peer in self._seen and self._remotes.usable(peer)]
        while (order := self._planner.next(now_s)) is not None:
            self._ask(order)
        if not self._looking and (again_s := self._planner.look_again_s(now_s)) is not None:
            self._looking = True
            self._engine.after(again_s, self._look_again, self._life)

    def _look_again(self, life: int) -> None:
        self._looking = False
        if life == self._life and not self.complete:
            self._wake()

    def _ask(self, order: Order) -> None:
        provider = order.provider
        if not isinstance(provider, Peer):
            raise TypeError(f"{provider.url} is no simulated peer")
        blocks = self._dataset.table.blocks
        ends = [blocks[place].offset + blocks[place].length - order.run.offset for place in order.run.positions]
        transfer = Transfer(self, provider.uploads, self.link, ends, order, heard_s=self._engine.now_s)
        self._transfers[order] = transfer
        self.revision += 1
        self._engine.after(self._trip_s(provider), provider.uploads.request, transfer)

    def _trip_s(self, other: Peer) -> float:
        """Always the same between two."""
        mixed = (self.number ^ other.number) * 2_654_435_761 % (1 << 32)
        return MIN_TRIP_S + (MAX_TRIP_S - MIN_TRIP_S) * mixed / (1 << 32)

    def begins(self, transfer: Transfer) -> None:
        if not transfer.over:
            self._planner.orders.began(transfer.what, self._engine.now_s)
            self._drop_redundant()

    def arrives(self, transfer: Transfer) -> None:
        order: Order = transfer.what
        position = order.run.first + transfer.reached - 1
        want = self._wants[order.run.shard]
        length = self._dataset.table.blocks[position].length
        self.received_bytes += length
        doubled = want.twice >> position & 1
        if want.missing >> position & 1:
            self._planner.orders.delivered(order, position, self._engine.now_s)
            self.held[order.run.shard] |= 1 << position
            self.revision += 1
        else:
            self._planner.orders.progress(order, transfer.ends[transfer.reached - 1], self._engine.now_s)
            self.wasted_bytes += length
        if transfer.over:
            self._finish(order)
        if doubled:
            self._drop_redundant()
        if all(held == self._dataset.whole for held in self.held.values()):
            self._complete()
        else:
            self._wake()

    def refused(self, transfer: Transfer, retry_s: float) -> None:
        self._remotes.busy(transfer.what.provider, retry_s)
        transfer.over = True
        self._finish(transfer.what)
        self._wake()

    def _finish(self, order: Order) -> None:
        self._planner.orders.ended(order, self._engine.now_s)
        del self._transfers[order]

    def _drop(self, order: Order, transfer: Transfer) -> None:
        provider = order.provider
        if isinstance(provider, Peer):
            provider.uploads.end(transfer)
        self.wasted_bytes += int(transfer.bytes) - (transfer.ends[transfer.reached - 1] if transfer.reached else 0)
        self._finish(order)

    def _drop_redundant(self) -> None:
        for order, transfer in list(self._transfers.items()):
            if order in self._transfers and self._planner.orders.redundant(order):
                self._drop(order, transfer)

    def _drop_silent(self) -> None:
        now_s = self._engine.now_s
        silent = [
            (order, transfer)
            for order, transfer in self._transfers.items()
            if now_s - transfer.heard_s > SILENCE_S and not transfer.running
        ]
        for order, transfer in silent:
            self._remotes.failed(order.provider, "silent")
            self._drop(order, transfer)
        if silent:
            self._wake()

    def _complete(self) -> None:
        self.complete = True
        self.done_s = self._engine.now_s
        for order, transfer in list(self._transfers.items()):
            self._drop(order, transfer)
