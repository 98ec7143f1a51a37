"""Content-defined cutting, version 1: where the blocks and shards of one column group of one split end.

Input: for each row i of the split, in order, its fingerprint f_i over the group's columns
(`dhtdata.tables.fingerprint`) and its stored size b_i in bytes (`dhtdata.tables.sizes.row_bytes`; 0 counts as 1).
Arithmetic is on unsigned 64-bit integers, modulo 2**64.

*Window.* w_i = sum of P**k * f_(i-k) for k = 0 … 15, where P = 0x9E3779B97F4A7C15 and f is 0 before the split's first
row: 16 rows choose a boundary, so that columns of few values are cut too. h_i = mix(w_i), where mix is the finaliser of
MurmurHash3::

    mix(x): x ^= x >> 33; x *= 0xFF51AFD7ED558CCD; x ^= x >> 33; x *= 0xC4CEB9FE1A85EC53; x ^= x >> 33

*Blocks.* Take the rows in order; s is the sum of b over the open block.

1. If the block is not empty and s + b_i > 4 MiB, the block ends before row i.
2. Row i joins the block. If then s ≥ 256 KiB and h_i ≤ min(b_i * 23456248059221, 2**64 - 1), the block ends after row
   i. (The factor is 2**64 / 768 KiB: probability goes with bytes, whatever the rows' width; a row of 768 KiB or more
   always ends its block.)

*Shards.* A block begins a shard if it is the split's first, or the shard's sum of b and the block's would exceed
64 MiB, or the block before it allows it: the shard then had at least 8 MiB, and mix(h_j ^ 0xD6E8FEB86659FD93) <
2**64 // 24, where j is the last row of the block before.

The split's last row ends block and shard. Blocks come out near 1 MiB and shards near 32 MiB. Nothing depends on how the
rows were batched. After an insert or a delete boundaries agree again from the first common one on, 16 rows later at
the earliest; in practice within a few blocks.

*Row ranges* (`row_ranges`) are computed from the blocks of all groups of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

VERSION = 1
MIN_BLOCK_BYTES = 256 << 10
MAX_BLOCK_BYTES = 4 << 20
MIN_SHARD_BYTES = 8 << 20
MAX_SHARD_ROW_BYTES = 64 << 20
RANGE_BYTES = 32 << 20

WINDOW_ROWS = 16
_BYTES_PER_CUT = 768 << 10
_CUT_FACTOR = (1 << 64) // _BYTES_PER_CUT
_SHARD_SEED = 0xD6E8FEB86659FD93
_SHARD_LIMIT = (1 << 64) // 24
_MASK = (1 << 64) - 1
_P = 0x9E3779B97F4A7C15
_POWERS = tuple((shift, np.uint64(pow(_P, shift, 1 << 64))) for shift in (1, 2, 4, 8))
_33 = np.uint64(33)
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)


@dataclass(frozen=True, slots=True)
class Cut:
    """One block: the next ``rows`` rows of the split, of ``row_bytes`` stored bytes."""

    rows: int
    row_bytes: int
    starts_shard: bool


class Cutter:
    """Cuts the rows of one group of one split, given in batches of any size."""

    def __init__(self) -> None:
        self._window = np.zeros(WINDOW_ROWS - 1, dtype=np.uint64)
        self._last_draw = 0
        self._open_rows = 0
        self._open_bytes = 0
        self._shard_bytes = 0
        self._shard_may_end = True

    def push(self, fingerprints: U64, sizes: I64) -> list[Cut]:
        """Blocks that these rows complete, in order. Sizes are the rows' stored bytes."""
        if len(fingerprints) == 0:
            return []
        draws = self._draws(fingerprints)
        sizes = np.maximum(sizes, 1)
        ends = np.cumsum(sizes)  # bytes of this batch up to and including each row
        candidates = np.nonzero(draws <= _limits(sizes))[0]
        candidate_ends = ends[candidates]
        cuts = []
        first, start = 0, -self._open_bytes  # where the open block begins: row in this batch, place in ``ends``
        while (end := _block_end(first, start, self._open_rows, ends, candidates, candidate_ends)) is not None:
            done = int(ends[end - 1]) if end else 0
            last = int(draws[end - 1]) if end else self._last_draw
            cuts.append(self._cut(self._open_rows + end - first, done - start, last))
            first, start, self._open_rows = end, done, 0
        self._open_rows += len(ends) - first
        self._open_bytes = int(ends[-1]) - start
        self._last_draw = int(draws[-1])
        return cuts

    def finish(self) -> list[Cut]:
        """The last block of the split, if rows are left."""
        if not self._open_rows:
            return []
        cut = self._cut(self._open_rows, self._open_bytes, self._last_draw)
        self._open_rows = self._open_bytes = 0
        return [cut]

    def _draws(self, fingerprints: U64) -> U64:
        window = np.concatenate([self._window, fingerprints])
        self._window = window[len(window) - (WINDOW_ROWS - 1) :].copy()
        for shift, power in _POWERS:
            window[shift:] += window[:-shift] * power
        return mixed(window[WINDOW_ROWS - 1 :])

    def _cut(self, rows: int, row_bytes: int, last_draw: int) -> Cut:
        starts_shard = self._shard_may_end or self._shard_bytes + row_bytes > MAX_SHARD_ROW_BYTES
        self._shard_bytes = row_bytes if starts_shard else self._shard_bytes + row_bytes
        self._shard_may_end = self._shard_bytes >= MIN_SHARD_BYTES and _mix(last_draw ^ _SHARD_SEED) < _SHARD_LIMIT
        return Cut(rows, row_bytes, starts_shard)


def _block_end(first: int, start: int, open_rows: int, ends: I64, candidates: I64, candidate_ends: I64) -> int | None:
    """Row of this batch before which the open block ends; None if its end is not known yet."""
    too_many = int(np.searchsorted(ends, start + MAX_BLOCK_BYTES, side="right"))
    if too_many == first and open_rows == 0:
        # The first row alone is over the maximum: it is its own block.
        return first + 1 if first < len(ends) else None
    chosen = int(np.searchsorted(candidate_ends, start + MIN_BLOCK_BYTES))
    if chosen < len(candidates) and candidates[chosen] < too_many:
        return int(candidates[chosen]) + 1
    return too_many if too_many < len(ends) else None


def _limits(sizes: I64) -> U64:
    return np.where(
        sizes < _BYTES_PER_CUT,
        np.minimum(sizes, _BYTES_PER_CUT).astype(np.uint64) * np.uint64(_CUT_FACTOR),
        np.uint64(_MASK),
    )


def mixed(values: U64) -> U64:
    """The finaliser of MurmurHash3 on every value, in place."""
    values ^= values >> _33
    values *= _M1
    values ^= values >> _33
    values *= _M2
    values ^= values >> _33
    return values


def _mix(value: int) -> int:
    value ^= value >> 33
    value = value * int(_M1) & _MASK
    value ^= value >> 33
    value = value * int(_M2) & _MASK
    return value ^ value >> 33


@dataclass(frozen=True)
class GroupBlocks:
    """Blocks of one group of a split, in row order: rows and bytes (of the encoded block) of each."""

    rows: Sequence[int]
    sizes: Sequence[int]


def row_ranges(groups: Sequence[GroupBlocks]) -> list[int]:
    """Row counts of a split's row ranges, in row order.

    The widest group is the one with most bytes (the first such). A range ends at the first block end of the widest
    group at which at least 32 MiB over all groups have come together since the range began; the split's last row ends
    the last range. A group's bytes before row r are those of its blocks that end at or before r, and of the block
    that r lies in, floor(bytes * rows before r / rows of the block).
    """
    widest = max(groups, key=lambda group: sum(group.sizes))
    ends = np.cumsum(np.asarray(widest.rows, dtype=np.int64))
    totals = np.zeros(len(ends), dtype=np.int64)
    for group in groups:
        totals += _bytes_before(group, ends)
    ranges: list[int] = []
    first = done = 0
    while True:
        position = int(np.searchsorted(totals, done + RANGE_BYTES))
        if position >= len(ends) - 1:
            return [*ranges, int(ends[-1]) - first]
        ranges.append(int(ends[position]) - first)
        first, done = int(ends[position]), int(totals[position])


def _bytes_before(group: GroupBlocks, rows: I64) -> I64:
    block_rows = np.asarray(group.rows, dtype=np.int64)
    sizes = np.asarray(group.sizes, dtype=np.int64)
    row_ends, byte_ends = np.cumsum(block_rows), np.cumsum(sizes)
    whole = np.searchsorted(row_ends, rows, side="right")  # blocks that end at or before each row
    inside = np.minimum(whole, len(block_rows) - 1)
    rows_inside = rows - np.where(whole > 0, row_ends[whole - 1], 0)
    partial: I64 = np.where(whole < len(block_rows), sizes[inside] * rows_inside // block_rows[inside], 0)
    return np.where(whole > 0, byte_ends[whole - 1], 0) + partial
