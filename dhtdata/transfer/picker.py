"""Which blocks of a shard are wanted, how urgently, and the runs that are asked for. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.availability import Crowd
from dhtdata.transfer.masks import mask_of

BACKGROUND = 1 << 62


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent blocks ``[first, first + count)`` of one shard: bytes ``[offset, offset + length)``."""

    shard: Digest
    first: int
    count: int
    offset: int
    length: int

    @property
    def positions(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def mask(self) -> int:
        return ((1 << self.count) - 1) << self.first


class Wanted:
    """Missing blocks of one shard, and how many providers are being asked for each.

    ``crowds``: where they can be had, kept by the caller. ``missing``: all of them; ``asked`` and ``twice``: those that
    one provider or two are being asked for. ``urgent``: (turn, position) of those that somebody waits for, the soonest
    first; ``urgent_mask``: the same.
    """

    def __init__(self, shard: Digest, table: BlockTable) -> None:
        self.shard = shard
        self.table = table
        self.crowds: set[Crowd] = set()
        self.missing = 0
        self.urgent: list[tuple[int, int]] = []
        self.urgent_mask = 0
        self.asked = 0
        self.twice = 0
        self.mean_bytes = max(table.shard_bytes // len(table.blocks), 1)
        self._length = len(table.blocks)
        self._turns: dict[int, int] = {}

    @property
    def turns(self) -> Mapping[int, int]:
        """Missing block → place in the queue (smaller: sooner), or `BACKGROUND`. To change it, set all of it."""
        return self._turns

    @turns.setter
    def turns(self, turns: Mapping[int, int]) -> None:
        self._turns = dict(turns)
        self.missing = mask_of(self._turns, self._length)
        self.urgent_mask = mask_of((place for place, turn in turns.items() if turn != BACKGROUND), self._length)
        self.urgent = sorted((turn, position) for position, turn in self._turns.items() if turn != BACKGROUND)

    @property
    def open(self) -> int:
        """Missing, and nobody is being asked for it."""
        return self.missing & ~self.asked

    def arrived(self, position: int) -> None:
        """It is not missing any more."""
        turn = self._turns.pop(position, None)
        if turn is not None:
            self.missing &= ~(1 << position)
            if turn != BACKGROUND:
                self.urgent_mask &= ~(1 << position)
                self.urgent.remove((turn, position))

    def first_large(self, among: int) -> int:
        """The first of these blocks that is not tiny, as heads and footers are: those come along with a neighbour."""
        blocks = self.table.blocks
        large = (
            place for place in range(len(blocks)) if among >> place & 1 and 4 * blocks[place].length > self.mean_bytes
        )
        return next(large, (among & -among).bit_length() - 1)

    def run(self, around: int, among: int, limit_bytes: int) -> Run:
        """A block and as many adjacent ones ``among`` these as fit into the limit, those behind it first."""
        blocks = self.table.blocks
        first, end, length = around, around + 1, blocks[around].length
        while among >> end & 1 and length + blocks[end].length <= limit_bytes:
            length += blocks[end].length
            end += 1
        while first and among >> first - 1 & 1 and length + blocks[first - 1].length <= limit_bytes:
            first -= 1
            length += blocks[first].length
        return Run(self.shard, first, end - first, blocks[first].offset, length)
