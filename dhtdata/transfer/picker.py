"""Which blocks of which shards are wanted, and which of them is the rarest. Pure: no I/O, no clock, randomness passed in.

Sets of blocks are bit masks: bit ``p`` is block ``p`` of a shard. A question about a whole shard is then a handful of
operations on integers, whether it has 32 blocks or 4,096, and -1 is "every block".
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable

BACKGROUND = 1 << 62
_DIGITS = 4


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
    one provider or two are being asked for. ``urgent``: (turn, position) of those that somebody waits for, soonest first.
    """

    def __init__(self, shard: Digest, table: BlockTable) -> None:
        self.shard = shard
        self.table = table
        self.crowds: set[Any] = set()
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

    def run(self, first: int, among: int, limit_bytes: int) -> Run:
        """From ``first`` on, as many adjacent blocks ``among`` these as fit into the limit; at least one."""
        blocks = self.table.blocks
        length = blocks[first].length
        end = first + 1
        while end < len(blocks) and among >> end & 1 and length + blocks[end].length <= limit_bytes:
            length += blocks[end].length
            end += 1
        return Run(self.shard, first, end - first, blocks[first].offset, length)


class Copies:
    """How many hold each block, up to 15: the binary digits of the counts, a mask for each digit."""

    def __init__(self) -> None:
        self._digits = [0] * _DIGITS

    def add(self, mask: int) -> None:
        """One more holds these."""
        digits = self._digits
        for place in range(_DIGITS):
            if not mask:
                return
            digits[place], mask = digits[place] ^ mask, digits[place] & mask
        for place in range(_DIGITS):
            digits[place] |= mask

    @property
    def any(self) -> int:
        """Blocks that at least one holds."""
        together = 0
        for digit in self._digits:
            together |= digit
        return together

    def of(self, position: int) -> int:
        return sum((digit >> position & 1) << place for place, digit in enumerate(self._digits))

    def rarest(self, among: int) -> tuple[int, int]:
        """(count, those ``among`` these that this few hold); ``among`` must not be empty."""
        count = 0
        for place in reversed(range(_DIGITS)):
            fewer = among & ~self._digits[place]
            if fewer:
                among = fewer
            else:
                count += 1 << place
        return count, among


def mask_of(positions: Iterable[int], length: int) -> int:
    """The mask of these positions, all below ``length``."""
    bitmap = bytearray((length + 7) // 8)
    for position in positions:
        bitmap[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(bitmap, "little")


def positions_of(mask: int) -> Iterator[int]:
    """Positions of a mask, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def any_of(mask: int, chance: random.Random) -> int:
    """One position of a mask that is not empty, each as likely."""
    wanted = chance.randrange(mask.bit_count())
    first, length = 0, mask.bit_length()
    while length > 1:
        half = length // 2
        low = mask & ((1 << half) - 1)
        if (below := low.bit_count()) > wanted:
            mask, length = low, half
        else:
            mask, first, length, wanted = mask >> half, first + half, length - half, wanted - below
    return first
