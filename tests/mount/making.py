"""Datasets cut where a test wants them cut, out of real shards in a real store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, encode_ranges
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.statistics import SplitStatistics, Statistics
from dhtdata.store import Store
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.ipc import batch_block, footer_block, schema_block
from dhtdata.tables.schema import stored_schema, to_fields
from dhtdata.tables.statistics import GroupSummary

Tamper = Callable[[list[bytes]], None]


def shard_of(
    batches: Sequence[pa.RecordBatch], stored: pa.Schema, tamper: Tamper | None = None
) -> tuple[bytes, BlockTable]:
    """A shard's bytes and block table, one block a batch. ``tamper`` changes blocks before they are digested."""
    blocks = [schema_block(stored), *(b"".join(bytes(part) for part in batch_block(batch)) for batch in batches)]
    blocks.append(footer_block(stored, [len(block) for block in blocks]))
    if tamper is not None:
        tamper(blocks)
    rows = [0, *(batch.num_rows for batch in batches), 0]
    spans = [(len(block), count, Digest.of(block)) for block, count in zip(blocks, rows, strict=True)]
    return b"".join(blocks), BlockTable.build(spans)


def put_dataset(
    store: Store,
    splits: Mapping[str, pa.Table] | pa.Table,
    *,
    name: str = "made",
    groups: Sequence[Sequence[str]] | None = None,
    block_rows: int = 10,
    shard_blocks: int = 3,
    range_rows: int = 25,
    tamper: Tamper | None = None,
    statistics: bool = False,
) -> Digest:
    """Store a dataset cut by row counts (groups are cut differently); its manifest's digest.

    ``statistics``: those of shards, too, as publishing makes them.
    """
    tables = {"train": splits} if isinstance(splits, pa.Table) else dict(splits)
    schema = next(iter(tables.values())).schema
    columns, metadata = to_fields(schema)
    groups = groups or [schema.names]
    made = []
    figures = []
    for split, table in tables.items():
        of_groups = [
            _put_group(store, table.select(list(names)), block_rows + number, shard_blocks, tamper)
            for number, names in enumerate(groups)
        ]
        of_shards = [
            _put_statistics(store, table.select(list(names)), (block_rows + number) * shard_blocks)
            for number, names in enumerate(groups)
        ]
        figures.append(tuple(of_shards) if statistics else ())
        left = table.num_rows
        ranges = [min(range_rows, left - first) for first in range(0, left, range_rows)]
        made.append(Split(name=split, rows=left, ranges=store.put(encode_ranges(ranges)), groups=tuple(of_groups)))
    contents = Contents(
        version=1,
        cutting=1,
        columns=columns,
        groups=tuple(Group(columns=tuple(names)) for names in groups),
        splits=tuple(made),
        metadata=metadata,
    )
    whole = Statistics(
        version=1,
        splits=tuple(
            SplitStatistics(name=split.name, rows=split.rows, sampled=0, columns=(), shards=of_shards)
            for split, of_shards in zip(made, figures, strict=True)
        ),
    )
    manifest = Manifest(
        version=1,
        name=name,
        contents=store.put(contents.encode()),
        statistics=store.put(whole.encode()),
    )
    digest = store.put(manifest.encode())
    store.add_manifest(digest)
    return digest


def _put_statistics(store: Store, table: pa.Table, shard_rows: int) -> tuple[Digest]:
    """Shard statistics of one group, whose shards have so many rows."""
    stored = stored_schema(table.schema)
    summary = GroupSummary(stored)
    firsts = range(0, table.num_rows, shard_rows)
    for first in firsts:
        summary.begin_shard()
        piece = table.slice(first, shard_rows).combine_chunks().to_batches()[0]
        summary.add(to_stored(piece, stored).columns)
    summary.end_shard()
    return (store.put(summary.take_shards(len(firsts))),)


def _put_group(store: Store, table: pa.Table, block_rows: int, shard_blocks: int, tamper: Tamper | None) -> GroupShards:
    stored = stored_schema(table.schema)
    batches = []
    for first in range(0, table.num_rows, block_rows):
        piece = table.slice(first, block_rows).combine_chunks().to_batches()[0]
        batches.append(to_stored(piece, stored))
    entries = []
    for first in range(0, len(batches), shard_blocks):
        shard, blocks = shard_of(batches[first : first + shard_blocks], stored, tamper)
        entries.append(ShardEntry(store.put(shard), store.put(blocks.encode()), blocks.row_count, blocks.shard_bytes))
    index = store.put(Index.build(entries).encode())
    return GroupShards(indexes=(index,), shards=len(entries), bytes=sum(entry.size for entry in entries))
