"""Statistics of stored columns, computed on the way to the store. What they mean: `dhtdata.formats.statistics`.

Everything exact is summed exactly (integers; floats as integers times a power of two), so that no figure depends on how
the rows were batched, on vector units or on a library's version: the manifest names the digest of the statistics, and
publishing the same rows twice must give the same version.

The *sample* of a split is drawn by row number: row r is kept if mix(r) ≤ t, where mix is the finaliser of MurmurHash3
(`dhtdata.tables.cutting`) on r + 1, and t, at first 2**64 - 1, is halved (t >> 1) whenever a row would make the sample
larger than its cap; rows that then miss t leave. The cap is 8,192 rows, fewer for tables of more than 128 columns. Of a
row only what histograms and top values need is kept: a number, a length, or a text of at most 64 bytes.
"""

from __future__ import annotations

import collections
import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dhtdata.formats import statistics as formats
from dhtdata.formats.statistics import (
    ColumnStatistics,
    Histogram,
    Lengths,
    ShardColumn,
    TopValue,
    Value,
)
from dhtdata.tables.cutting import mixed
from dhtdata.tables.sizes import null_mask, offset_width, offsets_of

_SAMPLED_VALUES = 1 << 20
_LOWEST_EXPONENT = 1_074
_MANTISSA = 53


@dataclass
class ColumnSummary:
    """Exact figures of some rows of one stored column; empty until something is added."""

    kind: pa.DataType
    rows: int = 0
    nulls: int = 0
    nans: int = 0
    infinities: tuple[int, int] = (0, 0)
    low: Any = None
    high: Any = None
    total: int = 0
    """Sum of the finite values: of floats in units of 2**-1074, of decimals in units of their last digit."""
    lengths: tuple[int, int, int] | None = None
    """Smallest, largest, sum."""

    def add(self, array: pa.Array) -> None:
        """Count more rows."""
        self.merge(_summary(array))

    def merge(self, other: ColumnSummary) -> None:
        """Count the rows of another summary of the same type."""
        self.rows += other.rows
        self.nulls += other.nulls
        self.nans += other.nans
        self.infinities = (self.infinities[0] + other.infinities[0], self.infinities[1] + other.infinities[1])
        self.total += other.total
        if other.low is not None:
            self.low = other.low if self.low is None else min(self.low, other.low)
            self.high = other.high if self.high is None else max(self.high, other.high)
        if other.lengths is not None:
            low, high, total = self.lengths or (other.lengths[0], 0, 0)
            self.lengths = (min(low, other.lengths[0]), max(high, other.lengths[1]), total + other.lengths[2])

    def mean(self) -> float | None:
        """The double nearest to the mean of the finite values."""
        count = self.rows - self.nulls - self.nans - sum(self.infinities)
        if self.low is None or isinstance(self.low, bytes) or count == 0:
            return None
        if pa.types.is_floating(self.kind):
            return self.total / (count << _LOWEST_EXPONENT)
        if pa.types.is_decimal(self.kind):
            scale = int(self.kind.scale)
            return self.total / (count * int(10**scale)) if scale >= 0 else self.total * int(10**-scale) / count
        return self.total / count

    def bounds(self, prefix_bytes: int) -> tuple[Value, Value, bool, bool]:
        """Smallest and largest value, and whether each was cut to a prefix."""
        (low, low_cut), (high, high_cut) = (_shown(value, prefix_bytes) for value in (self.low, self.high))
        return low, high, low_cut, high_cut

    def shown_lengths(self) -> Lengths | None:
        if self.lengths is None:
            return None
        low, high, total = self.lengths
        return Lengths(min=low, max=high, mean=total / (self.rows - self.nulls))


def _shown(value: Any, prefix_bytes: int) -> tuple[Value, bool]:
    if isinstance(value, decimal.Decimal):
        return format(value, "f"), False
    if isinstance(value, bytes):
        return value[:prefix_bytes].decode("utf-8", "ignore"), len(value) > prefix_bytes
    return value, False


def _summary(array: pa.Array) -> ColumnSummary:
    kind = array.type
    nulls = len(array) if pa.types.is_null(kind) else 0 if pa.types.is_union(kind) else array.null_count
    summary = ColumnSummary(kind, rows=len(array), nulls=nulls)
    if nulls == len(array):
        return summary
    width = offset_width(kind)
    if width:
        lengths = np.diff(offsets_of(array, width))
        missing = null_mask(array)
        if missing is not None:
            lengths = lengths[~missing]
        summary.lengths = (int(lengths.min()), int(lengths.max()), int(lengths.sum(dtype=np.int64)))
    if _is_text(kind):
        bounds = pc.min_max(array.cast(pa.large_binary() if width == 8 else pa.binary()))
        summary.low, summary.high = bounds["min"].as_py(), bounds["max"].as_py()
    elif pa.types.is_decimal(kind):
        wide = array.cast(pa.decimal128(38, kind.scale)) if kind.bit_width < 128 else array
        bounds = pc.min_max(wide)
        summary.low, summary.high = bounds["min"].as_py(), bounds["max"].as_py()
        summary.total = _decimal_total(wide.drop_null())
    elif (values := _numbers(array)) is not None:
        _add_numbers(summary, values)
    return summary


def _numbers(array: pa.Array) -> NDArray[Any] | None:
    """Values that are not null, as numbers; None if the type has none."""
    kind = array.type
    types = pa.types
    if not _is_number(kind):
        return None
    if types.is_boolean(kind):
        array, number = array.cast(pa.uint8()), np.dtype("u1")
    else:
        letter = "f" if types.is_floating(kind) else "u" if types.is_unsigned_integer(kind) else "i"
        number = np.dtype(f"<{letter}{kind.bit_width // 8}")
    values = np.frombuffer(array.buffers()[1], number, len(array), array.offset * number.itemsize)
    missing = null_mask(array)
    return values if missing is None else values[~missing]


def _add_numbers(summary: ColumnSummary, values: NDArray[Any]) -> None:
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            summary.nans = int(np.isnan(values).sum())
            summary.infinities = (int(np.isneginf(values).sum()), int(np.isposinf(values).sum()))
            values = values[finite]
        if len(values):
            # Adding 0.0 turns -0.0 into 0.0: which of the two is the minimum would depend on their order.
            summary.low, summary.high = float(values.min()) + 0.0, float(values.max()) + 0.0
            summary.total = _float_total(values)
        return
    summary.low, summary.high, summary.total = int(values.min()), int(values.max()), _integer_total(values)
    if pa.types.is_boolean(summary.kind):
        summary.low, summary.high = bool(summary.low), bool(summary.high)


def _integer_total(values: NDArray[Any]) -> int:
    if values.dtype.itemsize < 8:
        return int(values.sum(dtype=np.int64))
    low = int((values & values.dtype.type(0xFFFFFFFF)).sum())
    return (int((values >> 32).sum()) << 32) + low


def _float_total(values: NDArray[np.float64]) -> int:
    """Exact sum in units of 2**-1074: mantissas are added per exponent, in halves of 27 bits.

    The halves are summed as doubles, exactly for up to 2**26 values: batches are far smaller.
    """
    fractions, exponents = np.frexp(values)
    mantissas = np.ldexp(fractions, _MANTISSA).astype(np.int64)
    lowest = int(exponents.min())
    bins = exponents - lowest
    high = np.bincount(bins, weights=mantissas >> 27)
    low = np.bincount(bins, weights=mantissas & 0x7FFFFFF)
    total = 0
    for position in np.nonzero((high != 0) | (low != 0))[0].tolist():
        mantissa = (int(high[position]) << 27) + int(low[position])
        shift = lowest + position - _MANTISSA + _LOWEST_EXPONENT
        # A subnormal has trailing zeros where the shift is negative.
        total += mantissa << shift if shift >= 0 else mantissa >> -shift
    return total


def _decimal_total(array: pa.Array) -> int:
    limbs = int(array.type.bit_width) // 64
    words = np.frombuffer(array.buffers()[1], "<u8", len(array) * limbs, array.offset * limbs * 8).reshape(-1, limbs)
    total = sum((_integer_total(words[:, limb]) << 64 * limb for limb in range(limbs - 1)), 0)
    return total + (_integer_total(words[:, limbs - 1].view("<i8")) << 64 * (limbs - 1))


class GroupSummary:
    """Figures of one column group of one split: for every shard, and for its columns as a whole."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.whole = [ColumnSummary(column.type) for column in schema]
        self._shard: list[ColumnSummary] = []
        self._shards: list[list[ColumnSummary]] = []

    def begin_shard(self) -> None:
        """The rows to come belong to a new shard."""
        self.end_shard()
        self._shard = [ColumnSummary(column.type) for column in self._schema]

    def add(self, columns: Sequence[pa.Array]) -> None:
        for summary, column in zip(self._shard, columns, strict=True):
            summary.add(column)

    def end_shard(self) -> None:
        """Fold the open shard, if any, into the whole."""
        if self._shard:
            for summary, part in zip(self.whole, self._shard, strict=True):
                summary.merge(part)
            self._shards.append(self._shard[: formats.MAX_SHARD_COLUMNS])
            self._shard = []

    def take_shards(self, count: int) -> bytes:
        """Encoded statistics of the first ``count`` finished shards, which are forgotten."""
        taken, self._shards = self._shards[:count], self._shards[count:]
        names = self._schema.names[: formats.MAX_SHARD_COLUMNS]
        columns = tuple(_shard_column(name, [shard[at] for shard in taken]) for at, name in enumerate(names))
        return formats.ShardStatistics(version=formats.VERSION, shards=count, columns=columns).encode()


def _shard_column(name: str, shards: Sequence[ColumnSummary]) -> ShardColumn:
    bounds = [shard.bounds(formats.SHARD_PREFIX_BYTES) for shard in shards]
    return ShardColumn(
        name=name,
        nulls=tuple(shard.nulls for shard in shards),
        nans=_unless_all(0, [shard.nans for shard in shards]),
        infinities=_unless_all((0, 0), [shard.infinities for shard in shards]),
        min=_unless_all(None, [low for low, _, _, _ in bounds]),
        max=_unless_all(None, [high for _, high, _, _ in bounds]),
        min_cut=_unless_all(False, [cut for _, _, cut, _ in bounds]),
        max_cut=_unless_all(False, [cut for _, _, _, cut in bounds]),
        mean=_unless_all(None, [shard.mean() for shard in shards]),
        lengths=_unless_all(None, [shard.shown_lengths() for shard in shards]),
    )


def _unless_all(default: Any, entries: list[Any]) -> tuple[Any, ...]:
    return () if all(entry == default for entry in entries) else tuple(entries)


class Sample:
    """Bounded sample of the rows of one split, for histograms and top values."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._cap = max(1, min(formats.MAX_SAMPLE_ROWS, _SAMPLED_VALUES // max(1, len(schema))))
        self._limit = np.uint64((1 << 64) - 1)
        self._rows = 0
        self._keys = np.zeros(0, dtype=np.uint64)
        # Per column, parallel to the keys: lengths, NaN where there is none; and values to count.
        self._lengths: list[list[NDArray[np.float64]]] = [[] for _ in schema]
        self._values: list[list[pa.Array]] = [[] for _ in schema]

    def add(self, batch: pa.RecordBatch) -> None:
        """Sees the next rows of the split."""
        keys = mixed(np.arange(self._rows + 1, self._rows + 1 + batch.num_rows, dtype=np.uint64))
        self._rows += batch.num_rows
        chosen = np.nonzero(keys <= self._limit)[0]
        if not len(chosen):
            return
        self._keys = np.concatenate([self._keys, keys[chosen]])
        for position, column in enumerate(batch.columns):
            if width := offset_width(column.type):
                lengths = _lengths(column, width, chosen)
                self._lengths[position].append(lengths)
                if _is_text(column.type):
                    # Long texts are not even copied.
                    short = pa.array(chosen, pa.int64(), mask=~(lengths <= formats.PREFIX_BYTES))
                    self._values[position].append(column.take(short))
            elif _is_number(column.type):
                self._values[position].append(column.take(pa.array(chosen)))
        while np.count_nonzero(self._keys <= self._limit) > self._cap:
            self._limit >>= np.uint64(1)
        if len(self._keys) > 2 * self._cap:
            self._shrink()

    def _shrink(self) -> None:
        """Let go of the rows that missed the limit since they were drawn."""
        stays = self._keys <= self._limit
        if stays.all():
            return
        self._keys = self._keys[stays]
        mask = pa.array(stays)
        self._lengths = [[np.concatenate(parts)[stays]] if parts else [] for parts in self._lengths]
        self._values = [[pa.concat_arrays(parts).filter(mask)] if parts else [] for parts in self._values]

    @property
    def rows(self) -> int:
        return int(np.count_nonzero(self._keys <= self._limit))

    def histogram(self, position: int) -> Histogram | None:
        self._shrink()
        if self._lengths[position]:
            return _histogram(np.concatenate(self._lengths[position]), "lengths")
        if not self._values[position] or not len(self._keys):
            return None
        numbers = _numbers(pa.concat_arrays(self._values[position]))
        return None if numbers is None else _histogram(numbers.astype(np.float64), "values")

    def top(self, position: int) -> tuple[TopValue, ...]:
        """Values seen at least twice, most frequent first, equal counts by their text."""
        self._shrink()
        kind = self._schema.field(position).type
        if not self._values[position] or pa.types.is_floating(kind):
            return ()
        values = pa.concat_arrays(self._values[position])
        if pa.types.is_temporal(kind):
            values = values.view(f"int{kind.bit_width}")
        counts = collections.Counter(values.drop_null().to_pylist())
        repeated = [(value, count) for value, count in counts.items() if count > 1]
        repeated.sort(key=lambda entry: (-entry[1], str(entry[0])))
        return tuple(TopValue(value=value, count=count) for value, count in repeated[: formats.MAX_TOP])


def _lengths(array: pa.Array, width: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    offsets = offsets_of(array, width)
    lengths = (offsets[1:][chosen] - offsets[:-1][chosen]).astype(np.float64)
    missing = null_mask(array)
    if missing is not None:
        lengths[missing[chosen]] = np.nan
    return lengths


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    temporal = types.is_temporal(kind) and not types.is_interval(kind)
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or temporal)


def _histogram(numbers: NDArray[np.float64], of: str) -> Histogram | None:
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    low, high = float(numbers.min()) + 0.0, float(numbers.max()) + 0.0
    if low == high:
        return Histogram(of=of, low=low, high=high, counts=(len(numbers),))
    # The range of two doubles may not be a double, that of their halves is; halving the smallest ones would lose them.
    scale = 1.0 if math.isfinite(high - low) else 0.5
    places = (numbers * scale - low * scale) / (high * scale - low * scale) * formats.MAX_BINS
    bins = np.minimum(places.astype(np.int64), formats.MAX_BINS - 1)
    return Histogram(of=of, low=low, high=high, counts=tuple(np.bincount(bins, minlength=formats.MAX_BINS).tolist()))


def column_statistics(name: str, summary: ColumnSummary, sample: Sample, position: int) -> ColumnStatistics:
    """What is published of one column of a split; ``position`` is its place in the sample's schema."""
    low, high, low_cut, high_cut = summary.bounds(formats.PREFIX_BYTES)
    return ColumnStatistics(
        name=name,
        nulls=summary.nulls,
        nans=summary.nans,
        infinities=summary.infinities,
        min=low,
        max=high,
        min_cut=low_cut,
        max_cut=high_cut,
        mean=summary.mean(),
        lengths=summary.shown_lengths(),
        histogram=sample.histogram(position),
        top=sample.top(position),
    )
