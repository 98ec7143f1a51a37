"""Shards built in memory, for tests of whatever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.ipc import batch_block, footer_block, schema_block
from dhtdata.tables.schema import stored_schema


def block_bytes(batch: pa.RecordBatch) -> bytes:
    """The block of a batch of any types."""
    return b"".join(batch_block(to_stored(batch, stored_schema(batch.schema))))


def column_bytes(array: pa.Array) -> bytes:
    return block_bytes(pa.RecordBatch.from_arrays([array], ["c"]))


def shard(batches: Sequence[pa.RecordBatch]) -> tuple[bytes, BlockTable, pa.Schema]:
    """Bytes, block table and stored schema of the shard that holds these batches, one block each."""
    stored = stored_schema(batches[0].schema)
    blocks = [schema_block(stored), *map(block_bytes, batches)]
    blocks.append(footer_block(stored, [len(block) for block in blocks]))
    rows = [0, *(batch.num_rows for batch in batches), 0]
    return b"".join(blocks), table_of(blocks, rows), stored


def table_of(blocks: Sequence[bytes], rows: Sequence[int]) -> BlockTable:
    return BlockTable.build([(len(b), count, Digest.of(b)) for b, count in zip(blocks, rows, strict=True)])


def write_shard(folder: Path, batches: Sequence[pa.RecordBatch]) -> tuple[Path, BlockTable, pa.Schema]:
    data, table, stored = shard(batches)
    path = folder / "shard.arrow"
    path.write_bytes(data)
    return path, table, stored
