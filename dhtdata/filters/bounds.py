"""What shard statistics say about the row ranges of a split: bounds of a column within each range.

Bounds hold as Python values that compare as the column's values do: numbers, texts (code points order as UTF-8 bytes
do), `decimal.Decimal`, and for dates and times the raw integers of the column's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.formats.statistics import ShardColumn, Value

_LAST_LETTER = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class Bounds:
    """One column over some row ranges; all arrays have one entry a range.

    Where ``known``, every value that is neither null nor NaN is in ``[low, high]``. ``nulls``, ``values`` and ``nans``:
    whether the range may have a null, one that is not, and a NaN.
    """

    kind: pa.DataType
    low: NDArray[np.object_]
    high: NDArray[np.object_]
    known: NDArray[np.bool_]
    nulls: NDArray[np.bool_]
    values: NDArray[np.bool_]
    nans: NDArray[np.bool_]


@dataclass(frozen=True)
class ShardBounds:
    """One column over the shards of its group. ``bounds[i]`` is None where nothing is known of shard i."""

    kind: pa.DataType
    bounds: list[tuple[Any, Any] | None]
    nulls: NDArray[np.bool_]
    values: NDArray[np.bool_]
    nans: NDArray[np.bool_]


def unknown_shards(count: int, kind: pa.DataType) -> ShardBounds:
    """Shards without statistics: anything may be in them."""
    anything = np.ones(count, np.bool_)
    return ShardBounds(kind, [None] * count, anything, anything, anything)


def shard_bounds(column: ShardColumn, kind: pa.DataType, rows: Sequence[int]) -> ShardBounds:
    """Bounds of shards of so many rows. Figures that make no sense for ``kind``, a stored type, count as unknown."""
    count = len(rows)
    null_counts = np.asarray(column.nulls, np.int64)
    nans = np.asarray(column.nans or (0,) * count, np.int64)
    infinities = column.infinities or ((0, 0),) * count
    read = _reader_of(kind)
    bounds: list[tuple[Any, Any] | None] = [None] * count
    if read is not None:
        for number, (low, high) in enumerate(
            zip(column.min or (None,) * count, column.max or (None,) * count, strict=True)
        ):
            cut = bool(column.max_cut) and column.max_cut[number]
            bounds[number] = _pair(read, (low, high), cut, infinities[number])
    return ShardBounds(kind, bounds, null_counts > 0, null_counts < np.asarray(rows, np.int64), nans > 0)


def join_bounds(parts: Sequence[ShardBounds]) -> ShardBounds:
    """Shards of several indexes, end to end."""
    return ShardBounds(
        parts[0].kind,
        [pair for part in parts for pair in part.bounds],
        np.concatenate([part.nulls for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.nans for part in parts]),
    )


def range_bounds(shards: ShardBounds, shard_firsts: NDArray[np.int64], ranges: NDArray[np.int64]) -> Bounds:
    """Bounds of row ranges of so many rows, from those of the shards that each touches.

    ``shard_firsts[i]`` is the first row of shard i; one more entry ends the list.
    """
    ends = np.cumsum(ranges)
    first = np.searchsorted(shard_firsts, ends - ranges, "right") - 1
    stop = np.searchsorted(shard_firsts, ends, "left")
    low = np.empty(ranges.size, object)
    high = np.empty(ranges.size, object)
    known = np.zeros(ranges.size, np.bool_)
    for number, (begin, end) in enumerate(zip(first.tolist(), stop.tolist(), strict=True)):
        pairs = [shards.bounds[shard] for shard in range(begin, end) if shards.values[shard]]
        if pairs and None not in pairs:
            low[number] = min(pair[0] for pair in pairs if pair is not None)
            high[number] = max(pair[1] for pair in pairs if pair is not None)
            known[number] = True

    nulls, values, nans = (_any_of(flags, first, stop) for flags in (shards.nulls, shards.values, shards.nans))
    return Bounds(shards.kind, low, high, known, nulls, values, nans)


def _any_of(flags: NDArray[np.bool_], first: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any of ``flags[first[i]:stop[i]]`` is set, for every i."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(flags)])
    found: NDArray[np.bool_] = before[stop] > before[first]
    return found


def successor(text: str) -> str | None:
    """A text above every text that begins with this one; None if there is none so short."""
    while text:
        following = ord(text[-1]) + 1
        if following <= _LAST_LETTER:
            return text[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
        text = text[:-1]
    return None


_Read = Callable[[Value], Any]


def _reader_of(kind: pa.DataType) -> _Read | None:
    """How a bound of a stored type is read (None: it is none); None for types without bounds."""
    types = pa.types
    if types.is_boolean(kind):
        return lambda value: value if isinstance(value, bool) else None
    if types.is_floating(kind):
        return lambda value: float(value) if isinstance(value, int | float) else None
    if types.is_integer(kind) or (types.is_temporal(kind) and not types.is_interval(kind)):
        return lambda value: value if isinstance(value, int) and not isinstance(value, bool) else None
    if types.is_string(kind) or types.is_large_string(kind):
        return lambda value: value if isinstance(value, str) else None
    if types.is_decimal(kind):
        return _decimal
    return None


def _decimal(value: Value) -> Decimal | None:
    try:
        found = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return None
    return found if found is not None and found.is_finite() else None


def _pair(read: _Read, ends: tuple[Value, Value], cut: bool, infinities: tuple[int, int]) -> tuple[Any, Any] | None:
    low, high = read(ends[0]), read(ends[1])
    if cut and isinstance(high, str):
        high = successor(high)
    if infinities[0]:
        low, high = -math.inf, -math.inf if ends[1] is None else high
    if infinities[1]:
        low, high = math.inf if low is None else low, math.inf
    return None if low is None or high is None or low > high else (low, high)
