"""Parquet files, row group by row group, in batches that stay small however large the row group is.

`iter_batches` decodes as many rows as it is told; how many bytes these make is known only afterwards (a dictionary page
says nothing of the length of its values), so the first rows of a file are decoded once as a probe, and later row groups
start from what the ones before showed. ``pre_buffer=False`` and a bounded read buffer keep compressed column chunks out
of memory: otherwise a row group of 2 GiB is read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dhtdata.tables.sources.reading import check_names, reading, rows_for, small

_PROBE_ROWS = 64
_READ_BUFFER_BYTES = 1 << 20
_FIELD_ID = b"PARQUET:field_id"


class ParquetReader:
    """One Parquet file."""

    guesses = False

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.name = str(path)
        self.byte_count = size
        self.done_bytes = 0

    def schema(self) -> pa.Schema:
        with reading(self.path, "Parquet"), self._open() as file:
            schema = file.schema_arrow
        check_names(self.name, schema)
        fields = [_without_ids(field) for field in schema]
        return pa.schema(fields, metadata=schema.metadata)

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with reading(self.path, "Parquet"), self._open() as file:
            widest = 0.0  # bytes a row, the most that was seen
            done = 0
            for group in range(file.num_row_groups):
                row_count = file.metadata.row_group(group).num_rows
                if row_count == 0:
                    continue
                widest = max(widest, file.metadata.row_group(group).total_byte_size / row_count)
                if group == 0:
                    widest = max(widest, _row_bytes(next(file.iter_batches(_PROBE_ROWS, [group]))))
                rows = rows_for(int(widest * row_count), row_count)
                for batch in file.iter_batches(rows, [group]):
                    widest = max(widest, _row_bytes(batch))
                    done += batch.num_rows
                    self.done_bytes = self.byte_count * done // file.metadata.num_rows
                    yield from small(batch)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.path,
            pre_buffer=False,
            buffer_size=_READ_BUFFER_BYTES,
            memory_map=False,
            page_checksum_verification=True,
        )


def _row_bytes(batch: pa.RecordBatch) -> float:
    mean: float = batch.nbytes / max(batch.num_rows, 1)
    return mean


def _without_ids(field: pa.Field) -> pa.Field:
    """Field ids number the columns of one file; they say nothing about the dataset."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if key != _FIELD_ID}
    kind = field.type
    if isinstance(kind, pa.StructType):
        kind = pa.struct([_without_ids(kind.field(position)) for position in range(kind.num_fields)])
    elif isinstance(kind, pa.MapType):
        kind = pa.map_(_without_ids(kind.key_field), _without_ids(kind.item_field), kind.keys_sorted)
    elif isinstance(kind, pa.FixedSizeListType):
        kind = pa.list_(_without_ids(kind.value_field), kind.list_size)
    elif isinstance(kind, pa.LargeListType):
        kind = pa.large_list(_without_ids(kind.value_field))
    elif isinstance(kind, pa.ListType):
        kind = pa.list_(_without_ids(kind.value_field))
    return pa.field(field.name, kind, field.nullable, metadata or None)
