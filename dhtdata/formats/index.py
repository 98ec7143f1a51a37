"""Index: up to 4,096 shards of one column group of one split, in row order; and the list of row ranges.

Index, canonical msgpack: ``{"rows": [n], "shards": 32·n bytes, "sizes": [n], "tables": 32·n bytes, "version": 1}``
(+ ``ext``); ``tables`` are the digests of the shards' block tables. Row ranges, canonical msgpack:
``{"rows": [n], "version": 1}``: range i spans rows ``[sum(rows[:i]), sum(rows[:i + 1]))`` of the split.

1 TB in 32 MiB shards is about 30,000 entries: 2.2 MB in 8 indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhtdata.digest import DIGEST_BYTES, Digest, join, split
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_SHARD_BYTES
from dhtdata.formats.codec import Format, check_ext, check_version, decode_msgpack, encode_msgpack

VERSION = 1
MAX_SHARDS = 4_096
MAX_INDEX_BYTES = 1 << 20
MAX_RANGES = 1 << 20
MAX_RANGES_BYTES = 8 << 20
MAX_ROWS = 1 << 48


class _IndexWire(Format, frozen=True):
    version: int
    shards: bytes
    tables: bytes
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    ext: dict[str, str] = {}


class _RangesWire(Format, frozen=True):
    version: int
    rows: tuple[int, ...]
    ext: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What an index says of one shard."""

    digest: Digest
    table: Digest
    rows: int
    size: int


@dataclass(frozen=True)
class Index:
    """Shards in row order, packed: entries are built on demand, so that 30,000 of them cost nothing until asked for."""

    shards: bytes
    tables: bytes
    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def build(cls, entries: Sequence[ShardEntry]) -> Index:
        return _checked(
            join(entry.digest for entry in entries),
            join(entry.table for entry in entries),
            tuple(entry.rows for entry in entries),
            tuple(entry.size for entry in entries),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> ShardEntry:
        if not 0 <= position < len(self.rows):
            raise IndexError(position)
        span = slice(DIGEST_BYTES * position, DIGEST_BYTES * (position + 1))
        return ShardEntry(
            Digest(self.shards[span]), Digest(self.tables[span]), self.rows[position], self.sizes[position]
        )

    def digests(self) -> list[Digest]:
        return split(self.shards)

    def encode(self) -> bytes:
        return encode_msgpack(
            _IndexWire(version=VERSION, shards=self.shards, tables=self.tables, rows=self.rows, sizes=self.sizes)
        )

    @classmethod
    def decode(cls, data: bytes) -> Index:
        what = "index"
        wire = decode_msgpack(data, _IndexWire, limit_bytes=MAX_INDEX_BYTES, what=what)
        check_version(wire, VERSION, what)
        check_ext(wire.ext, what)
        return _checked(wire.shards, wire.tables, wire.rows, wire.sizes)


def _checked(shards: bytes, tables: bytes, rows: tuple[int, ...], sizes: tuple[int, ...]) -> Index:
    count = len(rows)
    if not 1 <= count <= MAX_SHARDS:
        raise FormatError(f"index: {count} shards, an index has 1 to {MAX_SHARDS}")
    if len(sizes) != count or len(shards) != DIGEST_BYTES * count or len(tables) != DIGEST_BYTES * count:
        raise FormatError("index: columns of unequal length")
    if min(rows) < 1 or sum(rows) > MAX_ROWS:
        raise FormatError("index: a shard without rows, or more rows than a dataset can have")
    if min(sizes) < 1 or max(sizes) > MAX_SHARD_BYTES:
        raise FormatError(f"index: a shard's size is not in 1 to {MAX_SHARD_BYTES}")
    return Index(shards, tables, rows, sizes)


def encode_ranges(rows: Sequence[int]) -> bytes:
    """Row ranges, given as row counts in row order."""
    _check_ranges(tuple(rows))
    return encode_msgpack(_RangesWire(version=VERSION, rows=tuple(rows)))


def decode_ranges(data: bytes) -> tuple[int, ...]:
    """Row counts of the ranges, in row order."""
    what = "row ranges"
    wire = decode_msgpack(data, _RangesWire, limit_bytes=MAX_RANGES_BYTES, what=what)
    check_version(wire, VERSION, what)
    check_ext(wire.ext, what)
    _check_ranges(wire.rows)
    return wire.rows


def _check_ranges(rows: tuple[int, ...]) -> None:
    if not 1 <= len(rows) <= MAX_RANGES or min(rows) < 1 or sum(rows) > MAX_ROWS:
        raise FormatError(f"row ranges: need 1 to {MAX_RANGES} ranges of at least one row")
