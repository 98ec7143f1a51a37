"""A shard that this process has open: its block table, its file in memory, and which blocks of it are here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import StoreError
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.index import ShardEntry
from dhtdata.tables.reader import ShardReader
from dhtdata.vault.shards import GroupShards

_MARK_BYTES = 4
"""Blocks begin with a magic or a continuation marker (`dhtdata.tables.ipc`), never with zeros."""


@dataclass(frozen=True)
class MappedFile:
    """A shard's file as it was when it was mapped; pages of one that was unlinked stay readable."""

    path: Path
    reader: ShardReader
    status: os.stat_result

    @classmethod
    def open(cls, path: Path, table: BlockTable, stored: pa.Schema, *, checked: bool = False) -> MappedFile:
        """StoreError if the file is not there, or another one by the time it is mapped."""
        before = _status(path)
        reader = ShardReader(path, table, stored, checked=checked)
        if before is None or (after := _status(path)) is None or before.st_ino != after.st_ino:
            raise StoreError(f"{path} was replaced while it was opened: try again")
        return cls(path, reader, before)

    def is_at(self, path: Path) -> bool:
        """Whether the file of this name is this one still."""
        status = _status(path)
        return status is not None and status.st_ino == self.status.st_ino

    def is_replaced(self) -> bool:
        """Whether another file has its name now: it was dropped, or set aside as damaged, and fetched again."""
        status = _status(self.path)
        return status is not None and status.st_ino != self.status.st_ino

    def is_changed(self) -> bool:
        """Whether somebody wrote into it, or cut it off."""
        status = _status(self.path)
        return status is not None and status.st_ino == self.status.st_ino and _times(status) != _times(self.status)

    def holds(self, blocks: Iterable[int]) -> bool:
        """Whether blocks were ever written: a partial shard may have been dropped and begun anew meanwhile."""
        return all(any(memoryview(self.reader.bytes_of(block))[:_MARK_BYTES]) for block in blocks)


@dataclass(eq=False)
class OpenShard:
    """One shard: ``file`` once it can be mapped, ``here`` where blocks may be read (all in ``file`` if ``complete``).

    ``asked`` are blocks on their way, ``foreseen`` those that a reader ahead has seen to. ``closed``: its file is not
    to be read any more; who keeps blocks of it opens the shard anew.
    """

    entry: ShardEntry
    group: GroupShards
    table: BlockTable
    firsts: NDArray[np.int64]
    file: MappedFile | None = None
    complete: bool = False
    closed: bool = False
    here: dict[int, MappedFile] = field(default_factory=dict)
    asked: dict[int, Future[None]] = field(default_factory=dict)
    foreseen: set[int] = field(default_factory=set)
    batches: dict[int, tuple[pa.RecordBatch, pa.Buffer]] = field(default_factory=dict)

    def missing(self, blocks: Iterable[int]) -> list[int]:
        return [] if self.complete else [block for block in blocks if block not in self.here]

    def envelope(self, fresh: list[int]) -> list[int]:
        """Schema and footer, if with ``fresh`` every other block is here or coming: then the shard becomes whole."""
        left = set(range(len(self.table.blocks))).difference(self.here, self.asked, fresh)
        return sorted(left) if left <= {0, len(self.table.blocks) - 1} else []

    def batch(self, block: int) -> tuple[pa.RecordBatch, pa.Buffer]:
        """Columns that were asked for of a block that is here, and the whole file that they lie in.

        Of that file, blocks that are not here must not be read.
        """
        opened = self.batches.get(block)
        if opened is None:
            file = self.file if self.complete else self.here.get(block)
            if file is None:
                raise StoreError(f"shard {self.entry.digest} was read before it was fetched")
            batch = file.reader.batch(block - 1).select(list(self.group.columns))
            opened = self.batches[block] = (batch, file.reader.mapped)
        return opened

    def blocks_with(self, rows: NDArray[np.int64]) -> list[int]:
        """Blocks that hold these ascending rows of the shard."""
        blocks = np.searchsorted(self.firsts, rows, "right")
        found: list[int] = blocks[np.append(True, blocks[1:] != blocks[:-1])].tolist()
        return found

    def blocks_of(self, first_row: int, stop_row: int) -> range:
        """Blocks that hold the shard's rows ``[first_row, stop_row)``."""
        first = int(np.searchsorted(self.firsts, first_row, "right")) - 1
        return range(first + 1, int(np.searchsorted(self.firsts, stop_row, "left")) + 1)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror}") from failure


def _times(status: os.stat_result) -> tuple[int, int]:
    return (status.st_size, status.st_mtime_ns)
