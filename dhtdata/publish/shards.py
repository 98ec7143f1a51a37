"""Blocks to shards: one column group of one split, written shard by shard.

Blocks of a group come in order and are handled by one thread at a time. A finished shard is made durable by another
thread, because waiting for the disk must not keep blocks waiting.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import pyarrow as pa

from dhtdata.digest import Digest, Hasher
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import GroupShards
from dhtdata.formats.index import MAX_SHARDS, Index, ShardEntry
from dhtdata.publish.destination import Destination, OpenBlob
from dhtdata.tables.cutting import GroupBlocks
from dhtdata.tables.ipc import batch_block, footer_block, schema_block
from dhtdata.tables.statistics import GroupSummary

_WAITING_SHARDS = 4


@dataclass(frozen=True)
class WrittenShard:
    """A durable shard with its durable block table."""

    entry: ShardEntry
    new: bool


@dataclass
class _OpenShard:
    """A shard that is being written: its blob and the (length, rows, digest) of its blocks so far."""

    blob: OpenBlob
    spans: list[tuple[int, int, Digest]] = field(default_factory=list)


class GroupWriter:
    """Writes the shards of one group of one split. ``committer`` runs what waits for the disk."""

    def __init__(self, schema: pa.Schema, destination: Destination, committer: Executor) -> None:
        self.summary = GroupSummary(schema)
        self._schema = schema
        self._destination = destination
        self._committer = committer
        self._room = threading.Semaphore(_WAITING_SHARDS)
        self._head = schema_block(schema)
        self._open: _OpenShard | None = None
        self._written: list[Future[WrittenShard]] = []
        self._block_rows: list[int] = []
        self._block_sizes: list[int] = []

    def add(self, slices: list[pa.RecordBatch], starts_shard: bool) -> None:
        """Write the next block, whose rows lie in these slices."""
        batch = slices[0] if len(slices) == 1 else pa.concat_batches(slices)
        if starts_shard:
            self._end_shard()
            self.summary.begin_shard()
            self._open = _OpenShard(self._destination.new_blob())
            self._write(self._open, [self._head], 0)
        if self._open is None:
            raise ValueError("the first block of a group begins a shard")
        self.summary.add(batch.columns)
        size = self._write(self._open, batch_block(batch), batch.num_rows)
        self._block_rows.append(batch.num_rows)
        self._block_sizes.append(size)

    def finish(self) -> None:
        """End the last shard."""
        self._end_shard()
        self.summary.end_shard()

    def close(self) -> None:
        """Drop the shard that is being written, if any."""
        if self._open is not None:
            self._open.blob.close()
            self._open = None

    def blocks(self) -> GroupBlocks:
        return GroupBlocks(self._block_rows, self._block_sizes)

    def shards(self) -> list[WrittenShard]:
        """All shards in row order, once they are durable. Raises what went wrong with the first that is not."""
        return [future.result() for future in self._written]

    def _write(self, shard: _OpenShard, parts: list[bytes | bytearray | memoryview], rows: int) -> int:
        hasher = Hasher()
        size = 0
        for part in parts:
            hasher.update(part)
            size += len(part)
        shard.blob.write(*parts)
        shard.spans.append((size, rows, hasher.digest()))
        return size

    def _end_shard(self) -> None:
        if self._open is None:
            return
        shard = self._open
        self._write(shard, [footer_block(self._schema, [length for length, _, _ in shard.spans])], 0)
        self._room.acquire()
        self._open = None
        self._written.append(self._committer.submit(self._commit, shard))

    def _commit(self, shard: _OpenShard) -> WrittenShard:
        try:
            table = BlockTable.build(shard.spans)
            kept = shard.blob.keep()
            entry = ShardEntry(
                kept.digest, self._destination.put_table(kept.digest, table), table.row_count, table.shard_bytes
            )
            return WrittenShard(entry, kept.new)
        finally:
            shard.blob.close()
            self._room.release()


@dataclass(frozen=True)
class IndexedGroup:
    """What the contents say of one group of a split, and the digests of its shard statistics, parallel to indexes."""

    shards: GroupShards
    statistics: tuple[Digest, ...]


def index_group(writer: GroupWriter, destination: Destination) -> IndexedGroup:
    """Store the indexes and shard statistics of a finished group."""
    entries = [shard.entry for shard in writer.shards()]
    indexes, statistics = [], []
    for first in range(0, len(entries), MAX_SHARDS):
        part = entries[first : first + MAX_SHARDS]
        indexes.append(destination.put(Index.build(part).encode()))
        statistics.append(destination.put(writer.summary.take_shards(len(part))))
    size = sum(entry.size for entry in entries)
    return IndexedGroup(GroupShards(indexes=tuple(indexes), shards=len(entries), bytes=size), tuple(statistics))
