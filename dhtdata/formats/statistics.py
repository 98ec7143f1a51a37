"""Statistics: what a dataset's columns hold, for people who look and readers who prune. Never needed to read rows.

Two blobs. *Whole columns*, canonical JSON, at most 2 MiB: per split and column what `ColumnStatistics` lists, and the
digests of the split's shard statistics, parallel to the contents' groups and each group's indexes. *Shard statistics*,
canonical msgpack, at most 32 MiB: for one index the same figures per shard, as lists parallel to its entries.

Counts, nulls, min, max, mean and lengths are exact; ``mean`` is the double nearest to the exact mean, so it does not
depend on summation order. ``histogram`` and ``top`` come from a *sample* of at most 8,192 rows of the split, drawn by
row number alone (row r is in it if mix(r + 1) is small enough, see `dhtdata.tables.statistics`): they are estimates,
and their counts are counts of sampled rows.

Meaning by stored type. Numbers, booleans and temporal types (raw integers in the column's own unit, since its epoch)
have min, max and mean; decimals have min and max as text, and a mean. Strings have min and max in byte order, cut to a
prefix (64 bytes; 16 per shard) with ``min_cut`` or ``max_cut`` set: an upper bound is then every text with that prefix.
Strings and binaries (in bytes), lists and maps (in elements) have lengths. Floats count apart what JSON lacks
(``nans``; ``infinities``: negative, positive); min, max and mean are over finite values. Other types have counts only.

Left out rather than refused, when a blob would grow over its cap: histograms and top values, then columns from the last
on; shard statistics keep the first 64 columns of a group.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.codec import (
    Format,
    check_ext,
    check_version,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)
from dhtdata.formats.contents import MAX_SPLITS
from dhtdata.formats.index import MAX_SHARDS

VERSION = 1
MAX_STATISTICS_BYTES = 2 << 20
MAX_SHARD_STATISTICS_BYTES = 32 << 20
MAX_SHARD_COLUMNS = 64
MAX_SAMPLE_ROWS = 8_192
MAX_BINS = 20
MAX_TOP = 10
PREFIX_BYTES = 64
SHARD_PREFIX_BYTES = 16

Value = bool | int | float | str | None


class Lengths(Format, frozen=True):
    """Lengths of the values that are not null."""

    min: int
    max: int
    mean: float


class Histogram(Format, frozen=True):
    """Sampled values (or lengths, ``of``) in bins of equal width from ``low`` to ``high``, the last one closed."""

    of: str
    low: float
    high: float
    counts: tuple[int, ...]


class TopValue(Format, frozen=True):
    value: Value
    count: int


class ColumnStatistics(Format, frozen=True):
    """One column of one split. Fields that make no sense for its type are left out."""

    name: str
    nulls: int = 0
    nans: int = 0
    infinities: tuple[int, int] = (0, 0)
    min: Value = None
    max: Value = None
    min_cut: bool = False
    max_cut: bool = False
    mean: float | None = None
    lengths: Lengths | None = None
    histogram: Histogram | None = None
    top: tuple[TopValue, ...] = ()


class SplitStatistics(Format, frozen=True):
    """``sampled`` counts the rows behind histograms and top values; ``shards`` is parallel to groups and indexes."""

    name: str
    rows: int
    sampled: int
    columns: tuple[ColumnStatistics, ...]
    shards: tuple[tuple[Digest, ...], ...]


class Statistics(Format, frozen=True):
    version: int
    splits: tuple[SplitStatistics, ...]
    ext: dict[str, str] = {}

    def encode(self) -> bytes:
        """Canonical bytes. FormatError if they would be refused by `decode`."""
        _check(self)
        data = encode_json(self)
        if len(data) > MAX_STATISTICS_BYTES:
            raise FormatError(f"statistics of {len(data)} bytes, at most {MAX_STATISTICS_BYTES} are allowed")
        return data

    def encode_thinned(self) -> bytes:
        """Canonical bytes of as much as fits under the cap: without sketches, then without the last columns."""
        thinned, columns = self, max(len(split.columns) for split in self.splits)
        while len(encode_json(thinned)) > MAX_STATISTICS_BYTES and columns:
            thinned = Statistics(version=self.version, splits=tuple(_thinned(split, columns) for split in self.splits))
            columns //= 2
        return thinned.encode()

    @classmethod
    def decode(cls, data: bytes) -> Statistics:
        statistics = decode_json(data, cls, limit_bytes=MAX_STATISTICS_BYTES, what="statistics")
        _check(statistics)
        return statistics


class ShardColumn(Format, frozen=True):
    """One column over the shards of an index; every list is empty or has an entry for each shard."""

    name: str
    nulls: tuple[int, ...]
    nans: tuple[int, ...] = ()
    infinities: tuple[tuple[int, int], ...] = ()
    min: tuple[Value, ...] = ()
    max: tuple[Value, ...] = ()
    min_cut: tuple[bool, ...] = ()
    max_cut: tuple[bool, ...] = ()
    mean: tuple[float | None, ...] = ()
    lengths: tuple[Lengths | None, ...] = ()


class ShardStatistics(Format, frozen=True):
    """One index's shards: ``shards`` of them, some columns."""

    version: int
    shards: int
    columns: tuple[ShardColumn, ...]
    ext: dict[str, str] = {}

    def encode(self) -> bytes:
        """Canonical bytes. FormatError if they would be refused by `decode`."""
        _check_shards(self)
        data = encode_msgpack(self)
        if len(data) > MAX_SHARD_STATISTICS_BYTES:
            raise FormatError(
                f"shard statistics of {len(data)} bytes, at most {MAX_SHARD_STATISTICS_BYTES} are allowed"
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> ShardStatistics:
        statistics = decode_msgpack(data, cls, limit_bytes=MAX_SHARD_STATISTICS_BYTES, what="shard statistics")
        _check_shards(statistics)
        return statistics


def _thinned(split: SplitStatistics, columns: int) -> SplitStatistics:
    kept = (replace(column, histogram=None, top=()) for column in split.columns[:columns])
    return replace(split, columns=tuple(kept))


def _check(statistics: Statistics) -> None:
    what = "statistics"
    check_version(statistics, VERSION, what)
    check_ext(statistics.ext, what)
    names = [split.name for split in statistics.splits]
    if not 1 <= len(names) <= MAX_SPLITS or len(set(names)) != len(names):
        raise FormatError(f"{what}: need 1 to {MAX_SPLITS} splits with names of their own")
    for split in statistics.splits:
        _check_counts(what, split.rows, split.sampled)
        for column in split.columns:
            _check_column(column, split.rows)


def _check_column(column: ColumnStatistics, rows: int) -> None:
    what = f"statistics of column {column.name[:80]!r}"
    _check_counts(what, column.nulls, column.nans, *column.infinities, *(top.count for top in column.top))
    if column.nulls + column.nans + sum(column.infinities) > rows:
        raise FormatError(f"{what}: more nulls than rows")
    if column.lengths is not None:
        _check_lengths(what, column.lengths)
    if column.histogram is not None:
        _check_counts(what, *column.histogram.counts)
        if column.histogram.of not in ("values", "lengths") or not 1 <= len(column.histogram.counts) <= MAX_BINS:
            raise FormatError(f"{what}: malformed histogram")
    if len(column.top) > MAX_TOP:
        raise FormatError(f"{what}: more than {MAX_TOP} top values")


def _check_shards(statistics: ShardStatistics) -> None:
    what = "shard statistics"
    check_version(statistics, VERSION, what)
    check_ext(statistics.ext, what)
    if not 1 <= statistics.shards <= MAX_SHARDS or len(statistics.columns) > MAX_SHARD_COLUMNS:
        raise FormatError(f"{what}: need 1 to {MAX_SHARDS} shards and at most {MAX_SHARD_COLUMNS} columns")
    for column in statistics.columns:
        if len(column.nulls) != statistics.shards:
            raise FormatError(f"{what}: {len(column.nulls)} entries for {statistics.shards} shards")
        for entries in _lists(column):
            if len(entries) not in (0, statistics.shards):
                raise FormatError(f"{what}: {len(entries)} entries for {statistics.shards} shards")
        _check_counts(what, *column.nulls, *column.nans, *(count for pair in column.infinities for count in pair))
        # msgpack, unlike JSON, can carry them.
        if any(
            isinstance(value, float) and not math.isfinite(value) for value in (*column.min, *column.max, *column.mean)
        ):
            raise FormatError(f"{what}: a bound or mean that is not finite")
        for lengths in column.lengths:
            if lengths is not None:
                _check_lengths(what, lengths)


def _lists(column: ShardColumn) -> tuple[tuple[object, ...], ...]:
    return (
        column.nans,
        column.infinities,
        column.min,
        column.max,
        column.min_cut,
        column.max_cut,
        column.mean,
        column.lengths,
    )


def _check_lengths(what: str, lengths: Lengths) -> None:
    if not 0 <= lengths.min <= lengths.max:
        raise FormatError(f"{what}: lengths make no sense")


def _check_counts(what: str, *counts: int) -> None:
    if any(count < 0 for count in counts):
        raise FormatError(f"{what}: a negative count")
