"""Where a split's bytes lie: blocks of its column groups by row, from block tables or, where none is here, estimated.

An estimate says how much a run of rows weighs and about where blocks end, before anything is fetched: blocks of one
shard have the usual size and equal rows. In the group that most bytes are in, row ranges end where blocks do
(`dhtdata.tables.cutting.row_ranges`), and the estimate knows that: else every end of a range would seem to cost a
block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhtdata.formats.blocks import BlockTable
from dhtdata.vault.shards import GroupShards

Numbers = NDArray[np.int64]

USUAL_BLOCK_BYTES = 1 << 20
_TABLE_BYTES, _ENTRY_BYTES = 48, 42
"""About what a block table takes, and each block in it: a digest of 32 bytes, its length and its rows."""


@dataclass(frozen=True)
class GroupBlocks:
    """Blocks of one group that hold rows, in row order: block i has rows ``[bounds[i], bounds[i + 1])``.

    ``sizes`` are bytes by block. Shard s has the blocks from ``starts[s]`` to that of the next; by shard:
    ``shard_sizes``, ``envelopes`` (schema and footer; 0 if estimated blocks share them), ``tables`` (bytes of the block
    table). ``known`` shards are read from their block tables, the others are estimated.
    """

    bounds: Numbers
    sizes: Numbers
    starts: Numbers
    shard_sizes: Numbers
    envelopes: Numbers
    tables: Numbers
    known: int

    def blocks_of(self, spans: Numbers) -> tuple[Numbers, Numbers]:
        """First and last plus one of the blocks that hold each span of rows, ``(first row, rows)`` of shape (n, 2)."""
        first = np.searchsorted(self.bounds, spans[:, 0], "right") - 1
        return first, np.searchsorted(self.bounds, spans.sum(axis=1), "left")

    def shards_of(self, blocks: Numbers) -> Numbers:
        return np.searchsorted(self.starts, blocks, "right") - 1


def lay_blocks(
    group: GroupShards, tables: Mapping[int, BlockTable], range_ends: Numbers | Sequence[int] = ()
) -> GroupBlocks:
    """Blocks of a group. ``tables``: those that are known, by the shard's number; ``range_ends``: rows at which blocks
    are known to end.
    """
    firsts, rows = group.firsts[:-1], np.diff(group.firsts)
    sizes = np.concatenate([np.asarray(index.sizes, np.int64) for index in group.indexes])
    inner = [block for table in tables.values() for block in table.blocks[1:-1]]
    usual = sum(block.length for block in inner) / len(inner) if inner else USUAL_BLOCK_BYTES
    guessed = np.ones(sizes.size, np.bool_)
    guessed[list(tables)] = False
    counts = np.where(guessed, np.clip(np.rint(sizes / usual).astype(np.int64), 1, rows), 0)
    ends = np.asarray(range_ends, np.int64)
    ends = ends[ends < group.firsts[-1]]
    known_firsts = np.array(
        [group.firsts[number] + block.first_row for number, table in tables.items() for block in table.blocks[1:-1]],
        np.int64,
    )
    bounds = _ascending(
        np.concatenate(
            [
                _equal_parts(firsts, rows, counts),
                ends[guessed[np.searchsorted(group.firsts, ends, "right") - 1]],
                known_firsts,
                group.firsts[-1:],
            ]
        )
    )
    starts = np.searchsorted(bounds, firsts)
    owner = np.repeat(np.arange(firsts.size), np.diff(np.append(starts, bounds.size - 1)))
    block_sizes = np.diff(_bytes_before(bounds, firsts, rows, sizes, owner))
    block_sizes[np.searchsorted(bounds, known_firsts)] = [block.length for block in inner]
    envelopes = np.zeros(sizes.size, np.int64)
    for number, table in tables.items():
        envelopes[number] = table.blocks[0].length + table.blocks[-1].length
    table_bytes = _TABLE_BYTES + _ENTRY_BYTES * (np.bincount(owner, minlength=firsts.size) + 2)
    return GroupBlocks(bounds, block_sizes, starts, sizes, envelopes, table_bytes, len(tables))


def _equal_parts(firsts: Numbers, rows: Numbers, counts: Numbers) -> Numbers:
    """First rows of ``counts`` equal parts of each shard."""
    part = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    whole, rest = rows // np.maximum(counts, 1), rows % np.maximum(counts, 1)
    return np.repeat(firsts, counts) + part * np.repeat(whole, counts) + np.minimum(part, np.repeat(rest, counts))


def _bytes_before(bounds: Numbers, firsts: Numbers, rows: Numbers, sizes: Numbers, owner: Numbers) -> Numbers:
    """Bytes of the group before each bound, if a shard's bytes lie evenly over its rows."""
    before = np.cumsum(sizes) - sizes
    inside = np.floor((bounds[:-1] - firsts[owner]) / rows[owner] * sizes[owner]).astype(np.int64)
    found: Numbers = np.append(before[owner] + inside, sizes.sum())
    return found


def _ascending(values: Numbers) -> Numbers:
    """Each value once. numpy's own `unique` puts a million of them through a table, which takes longer."""
    ascending = np.sort(values, kind="stable")
    kept: Numbers = ascending[np.append(True, ascending[1:] > ascending[:-1])]
    return kept
