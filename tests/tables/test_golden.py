"""Bytes that must never change: see ``tests/golden/every_type.py``; for the oldest and the newest pyarrow allowed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from dhtdata.digest import Digest
from dhtdata.formats.codec import encode_json
from dhtdata.formats.schema import TYPES, Field
from dhtdata.tables.logical import to_logical
from dhtdata.tables.reader import read_block
from dhtdata.tables.schema import to_arrow, to_fields
from tests.golden.every_type import ROWS, every_type
from tests.tables.shards import block_bytes, shard

GOLDEN = Path(__file__).parent.parent / "golden"
SHARD_DIGEST = "ce4106d69bfee695b26f5b04572d317926b8c3187301dea338efe1e92783dc28"
SCHEMA_SHA256 = "988eba047290c63e7b179ff454e54065c119eb1aa86fceb107c1f4e38a36e1bd"


def built() -> bytes:
    batch = every_type()
    data, _, _ = shard([batch, batch.slice(1, 2)])
    return data


def test_the_shard_of_every_type_has_the_golden_bytes() -> None:
    data = built()
    assert data == (GOLDEN / "every_type.arrow").read_bytes()
    assert str(Digest.of(data)) == SHARD_DIGEST


def test_the_columns_of_every_type_have_the_golden_json() -> None:
    columns, metadata = to_fields(every_type().schema)
    data = encode_json([metadata, columns])
    assert data == (GOLDEN / "every_type.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SCHEMA_SHA256


def test_pyarrow_reads_the_golden_shard() -> None:
    with pa.memory_map(str(GOLDEN / "every_type.arrow")) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 2
        whole, part = file.get_batch(0), file.get_batch(1)
    whole.validate(full=True)
    assert (whole.num_rows, part.num_rows) == (ROWS, 2)
    assert block_bytes(whole.slice(1, 2)) == block_bytes(part) == block_bytes(every_type().slice(1, 2))


def test_the_golden_shard_reads_back_as_what_was_written() -> None:
    batch = every_type()
    data, table, stored = shard([batch, batch.slice(1, 2)])
    block = table.blocks[1]
    read = read_block(data[block.offset : block.offset + block.length], block, stored)
    logical = to_arrow(*to_fields(batch.schema))
    assert logical.equals(batch.schema)
    assert logical.metadata == batch.schema.metadata
    assert [field.metadata for field in logical] == [field.metadata for field in batch.schema]
    back = to_logical(read, logical)
    decoded = {"dictionary", "dictionary_ordered", "dictionary_of_lists", "float64"}
    for name, column, original in zip(batch.schema.names, back.columns, batch.columns, strict=True):
        assert name in decoded or column.equals(original), name
    assert block_bytes(back) == block_bytes(batch)


def test_the_golden_table_has_every_type_that_pyarrow_can_hold() -> None:
    columns, _ = to_fields(every_type().schema)

    def names(field: Field) -> set[str]:
        return {field.type}.union(*map(names, field.children))

    assert set().union(*map(names, columns)) == TYPES - {"interval_months", "interval_days"}
