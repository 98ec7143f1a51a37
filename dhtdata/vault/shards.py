"""Where rows are: the shards of one split's column groups, from the indexes alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.contents import Contents, Split
from dhtdata.formats.index import Index, ShardEntry
from dhtdata.tables.ipc import schema_block
from dhtdata.tables.schema import stored_schema


@dataclass(frozen=True)
class GroupShards:
    """Shards of one group in row order. ``firsts[i]`` is the first row of shard i; one more entry ends the list."""

    stored: pa.Schema
    columns: tuple[str, ...]
    indexes: tuple[Index, ...]
    firsts: NDArray[np.int64]
    index_firsts: tuple[int, ...]
    byte_count: int
    schema_digest: Digest

    def __len__(self) -> int:
        return self.firsts.size - 1

    def entry(self, number: int) -> ShardEntry:
        index = bisect_right(self.index_firsts, number) - 1
        return self.indexes[index][number - self.index_firsts[index]]

    def digests(self) -> Iterator[Digest]:
        for index in self.indexes:
            yield from index.digests()

    def needed(self, spans: NDArray[np.int64] | None) -> list[int]:
        """Numbers of the shards that hold rows of these spans (first row, rows) of shape (n, 2); None means all."""
        if spans is None:
            return list(range(len(self)))
        first = np.searchsorted(self.firsts, spans[:, 0], "right") - 1
        stop = np.searchsorted(self.firsts, spans[:, 0] + spans[:, 1], "left")
        depth = np.bincount(first, minlength=len(self) + 1) - np.bincount(stop, minlength=len(self) + 1)
        return np.flatnonzero(np.cumsum(depth)).tolist()

    def by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Ascending rows by the shard that holds them: its number, and the rows counted from its first."""
        while rows.size:
            number = int(np.searchsorted(self.firsts, rows[0], "right")) - 1
            stop = int(np.searchsorted(rows, self.firsts[number + 1], "left"))
            yield number, rows[:stop] - self.firsts[number]
            rows = rows[stop:]

    def shards_of(self, first_row: int, stop_row: int) -> range:
        """Numbers of the shards that hold rows ``[first_row, stop_row)``."""
        first = int(np.searchsorted(self.firsts, first_row, "right")) - 1
        return range(first, int(np.searchsorted(self.firsts, stop_row, "left")))


def find_split(contents: Contents, name: str) -> Split:
    for split in contents.splits:
        if split.name == name:
            return split
    raise ConfigError(f"no split {name!r}: this dataset has {', '.join(split.name for split in contents.splits)}")


def choose_columns(contents: Contents, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Columns asked for, in that order; all in the dataset's order if none are. ConfigError names an unknown one."""
    known = [field.name for field in contents.columns]
    if columns is None:
        return tuple(known)
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        named = columns if isinstance(columns, str) else known[0]
        raise ConfigError(f"columns: expected a list such as [{named!r}], not a {type(columns).__name__}")
    columns = list(columns)
    for name in columns:
        if name not in known:
            raise ConfigError(f"no column {name!r}: this dataset has {', '.join(known)}")
    if not columns or len(set(columns)) != len(columns):
        raise ConfigError("columns: name at least one, and each only once")
    return tuple(columns)


def needed_groups(contents: Contents, columns: Sequence[str]) -> list[int]:
    """Positions of the groups that hold these columns."""
    wanted = set(columns)
    return [number for number, group in enumerate(contents.groups) if wanted.intersection(group.columns)]


def lay_out(
    contents: Contents, split: Split, number: int, columns: Sequence[str], logical: pa.Schema, indexes: Sequence[Index]
) -> GroupShards:
    """One group of a split. FormatError if its indexes do not say what the contents say."""
    of_split = split.groups[number]
    names = contents.groups[number].columns
    stored = stored_schema(pa.schema([logical.field(name) for name in names]))
    rows = np.concatenate([np.asarray(index.rows, np.int64) for index in indexes])
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])
    byte_count = sum(sum(index.sizes) for index in indexes)
    if (int(firsts[-1]), rows.size, byte_count) != (split.rows, of_split.shards, of_split.bytes):
        raise FormatError(f"split {split.name!r}: its indexes have other rows, shards or bytes than its contents say")
    counts = np.cumsum([0, *map(len, indexes)]).tolist()
    wanted = set(columns)
    return GroupShards(
        stored=stored,
        columns=tuple(name for name in names if name in wanted),
        indexes=tuple(indexes),
        firsts=firsts,
        index_firsts=tuple(counts[:-1]),
        byte_count=byte_count,
        schema_digest=Digest.of(schema_block(stored)),
    )
