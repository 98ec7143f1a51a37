"""Which blocks to ask whom for next. Pure: no I/O, no clock, randomness passed in.

Blocks that somebody waits for come before background ones, in the order in which they were asked for. A background
run starts at a random missing block, so that peers that fetch the same shard hold different parts of it soon and can
serve each other. Adjacent blocks of one shard coalesce into one range. A block that is late may be asked of a second
provider.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable

RUN_BYTES = 4 << 20
URGENT_RUN_BYTES = 1 << 20
MAX_ASKED_AT_ONCE = 2
BACKGROUND = 1 << 62


@dataclass
class Wanted:
    """Missing blocks of one shard. ``turns``: position → place in the queue, or `BACKGROUND`.

    ``asked``: position → how many providers are being asked for it; ``late``: positions that should have come by now.
    """

    shard: Digest
    table: BlockTable
    turns: dict[int, int] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)

    def open(self, position: int) -> bool:
        """May be asked for now."""
        count = self.asked.get(position, 0)
        return count == 0 or (position in self.late and count < MAX_ASKED_AT_ONCE)


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


def pick(wanted: Sequence[Wanted], has: Callable[[Digest, int], bool], chance: random.Random) -> Run | None:
    """The next run for a provider that ``has`` (shard, position); None if it can help with nothing."""
    urgent: tuple[int, Wanted, int] | None = None
    for want in wanted:
        for position, turn in want.turns.items():
            if (
                turn != BACKGROUND
                and (urgent is None or (turn, position) < (urgent[0], urgent[2]))
                and want.open(position)
                and has(want.shard, position)
            ):
                urgent = (turn, want, position)
    if urgent is not None:
        return _run(urgent[1], urgent[2], has, URGENT_RUN_BYTES)
    for want in wanted:
        positions = [position for position in want.turns if want.open(position) and has(want.shard, position)]
        if positions:
            return _run(want, chance.choice(positions), has, RUN_BYTES)
    return None


def _run(want: Wanted, first: int, has: Callable[[Digest, int], bool], limit_bytes: int) -> Run:
    """From ``first`` on, as many adjacent open blocks as fit into the limit; at least one."""
    blocks = want.table.blocks
    length = blocks[first].length
    end = first + 1
    while (
        end < len(blocks)
        and end in want.turns
        and length + blocks[end].length <= limit_bytes
        and want.asked.get(end, 0) == 0
        and has(want.shard, end)
    ):
        length += blocks[end].length
        end += 1
    return Run(want.shard, first, end - first, blocks[first].offset, length)
