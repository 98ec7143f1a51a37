from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.blocks import Block, BlockTable
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.ipc import BatchNumbers, batch_header, counts
from dhtdata.tables.reader import ShardReader, read_block
from dhtdata.tables.schema import stored_schema
from tests.tables.shards import block_bytes, write_shard
from tests.tables.strategies import batches, seeded

Edit = Callable[[BatchNumbers], BatchNumbers]


def block_for(data: bytes, rows: int) -> Block:
    return Block(offset=0, length=len(data), first_row=0, rows=rows, digest=Digest.of(data))


@settings(max_examples=80, deadline=None)
@given(batch=batches(nans=False))
def test_a_block_is_read_back_as_its_stored_form(batch: pa.RecordBatch) -> None:
    stored = stored_schema(batch.schema)
    data = block_bytes(batch)
    for buffer in (data, memoryview(data), pa.py_buffer(data)):
        read = read_block(buffer, block_for(data, batch.num_rows), stored)
        assert read.equals(to_stored(batch, stored))
        assert read.schema.equals(stored)


def sample() -> tuple[bytes, pa.Schema]:
    """A block with every way in which a length is stated twice."""
    batch = pa.RecordBatch.from_pydict(
        {
            "number": pa.array([1, None, 3], pa.int32()),
            "text": pa.array(["a", "bcd", None]),
            "flags": pa.array([[True], [], [False, True]]),
            "pair": pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2)),
            "none": pa.nulls(3),
        }
    )
    return block_bytes(batch), stored_schema(batch.schema)


def edited(edit: Edit) -> bytes:
    data, stored = sample()
    header = batch_header(*counts(stored))
    return header.fill(edit(header.read(data))) + data[header.size :]


def with_node(position: int, length: int, null_count: int) -> Edit:
    return lambda n: replace(n, nodes=(*n.nodes[:position], (length, null_count), *n.nodes[position + 1 :]))


def with_buffer(position: int, offset: int, length: int) -> Edit:
    return lambda n: replace(n, buffers=(*n.buffers[:position], (offset, length), *n.buffers[position + 1 :]))


# Nodes: number 0, text 1, flags 2 and 3, pair 4 and 5, none 6. Buffers: 0-1, 2-4, 5-6 and 7-8, 9 and 10-11.
LIES = {
    "more rows": lambda n: replace(n, row_count=4),
    "no rows": lambda n: replace(n, row_count=0),
    "negative rows": lambda n: replace(n, row_count=-1),
    "longer body": lambda n: replace(n, body_length=n.body_length + 64),
    "negative body": lambda n: replace(n, body_length=-64),
    "node shorter": with_node(0, 2, 1),
    "node huge": with_node(0, 2**62, 1),
    "more nulls": with_node(0, 3, 2),
    "more nulls than values": with_node(0, 3, 4),
    "negative nulls": with_node(0, 3, -1),
    "nulls denied": with_node(0, 3, 0),
    "nulls invented": with_node(3, 3, 1),
    "null type with values": with_node(6, 3, 0),
    "child longer than its list": with_node(3, 4, 0),
    "child of another size": with_node(5, 5, 0),
    "buffer elsewhere": with_buffer(1, 0, 12),
    "buffer unaligned": with_buffer(1, 72, 12),
    "buffer behind the body": with_buffer(1, 2**40, 12),
    "buffer at a negative place": with_buffer(1, -64, 12),
    "buffer shorter": with_buffer(1, 64, 8),
    "buffer longer": with_buffer(1, 64, 2**62),
    "buffer of negative length": with_buffer(1, 64, -12),
    "bitmap dropped": with_buffer(0, 0, 0),
    "texts longer": with_buffer(4, 256, 60),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused(lie: str) -> None:
    _, stored = sample()
    data = edited(LIES[lie])
    with pytest.raises(FormatError):
        read_block(data, block_for(data, 3), stored)


def patched(find: bytes, put: bytes) -> bytes:
    data, _ = sample()
    assert data.count(find) == 1
    return data.replace(find, put)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: patched(struct.pack("<4i", 0, 1, 4, 4), struct.pack("<4i", 0, 9, 4, 4)), "values are malformed"),
        (lambda: patched(struct.pack("<4i", 0, 1, 4, 4), struct.pack("<4i", 0, -1, 4, 4)), "values are malformed"),
        (lambda: patched(struct.pack("<4i", 0, 1, 4, 4), struct.pack("<4i", 1, 1, 4, 4)), "expected to start at 0"),
        (lambda: patched(struct.pack("<4i", 0, 1, 4, 4), struct.pack("<4i", 0, 1, 4, 2**31 - 1)), "text"),
        (lambda: patched(struct.pack("<4i", 0, 1, 4, 4), struct.pack("<4i", 0, 1, 4, -4)), "expected to start at 0"),
        (lambda: patched(b"abcd", b"\xff\xfe\xfd\xfc"), "values are malformed"),
        (lambda: patched(b"abcd\0", b"abcd\1"), "padding"),
        (lambda: sample()[0][:-64], "bytes"),
        (lambda: sample()[0] + bytes(64), "bytes"),
        (lambda: sample()[0][:100], "cut short"),
        (lambda: b"", "cut short"),
    ],
)
def test_bodies_that_lie_are_refused(data: Callable[[], bytes], reason: str) -> None:
    _, stored = sample()
    bad = data()
    with pytest.raises(FormatError, match=reason):
        read_block(bad, block_for(bad, 3), stored)


@pytest.mark.parametrize(("change", "reason"), [(64, "64 bytes after the last buffer"), (-64, "ends at")])
def test_bodies_that_buffers_do_not_tile_are_refused(change: int, reason: str) -> None:
    _, stored = sample()
    data = edited(lambda numbers: replace(numbers, body_length=numbers.body_length + change))
    data = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(FormatError, match=reason):
        read_block(data, block_for(data, 3), stored)


def test_bits_behind_the_last_value_are_refused() -> None:
    data, stored = sample()
    header = batch_header(*counts(stored))
    bitmap = bytearray(data)
    bitmap[header.size] |= 0x80
    with pytest.raises(FormatError, match="bits after the last one of 'number'"):
        read_block(bytes(bitmap), block_for(data, 3), stored)


def test_nulls_that_the_schema_denies_are_refused() -> None:
    inner = pa.struct([("x", pa.int8())])
    for values, kind, denied in (
        ([1, None], pa.int8(), pa.int8()),
        ([{"x": 1}, {"x": None}], inner, pa.struct([pa.field("x", pa.int8(), nullable=False)])),
    ):
        data = block_bytes(pa.RecordBatch.from_arrays([pa.array(values, kind)], ["c"]))
        schema = pa.schema([pa.field("c", denied, nullable=kind is inner)])
        with pytest.raises(FormatError, match="has 1 nulls, its field none"):
            read_block(data, block_for(data, 2), schema)


def test_a_block_of_another_length_or_row_count_than_its_table_says_is_refused() -> None:
    data, stored = sample()
    with pytest.raises(FormatError, match="the block table says 4"):
        read_block(data, block_for(data, 4), stored)
    with pytest.raises(FormatError, match="the block table says"):
        read_block(data, replace(block_for(data, 3), length=len(data) - 1), stored)


def test_pyarrow_shards_with_compression_or_dictionaries_are_refused() -> None:
    batch = pa.RecordBatch.from_pydict({"a": ["x" * 1000] * 50})
    for options in (pa.ipc.IpcWriteOptions(compression="zstd"), pa.ipc.IpcWriteOptions()):
        data = batch.serialize().to_pybytes() if options.compression is None else compressed(batch, options)
        with pytest.raises(FormatError, match="canonical form|cut short"):
            read_block(data, block_for(data, 50), batch.schema)


def compressed(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    return bytes(reader.read_next_message().serialize().to_pybytes())


def three(folder: Path) -> tuple[Path, BlockTable, pa.Schema, list[pa.RecordBatch]]:
    kinds = [pa.int64(), pa.string(), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
    made = [
        pa.RecordBatch.from_arrays([seeded(i, nans=False).array(kind, 5 + i) for kind in kinds], ["a", "b", "c"])
        for i in range(3)
    ]
    path, table, stored = write_shard(folder, made)
    return path, table, stored, [to_stored(batch, stored) for batch in made]


def test_a_shard_reader_maps_batches_in_any_order(tmp_path: Path) -> None:
    path, table, stored, expected = three(tmp_path)
    reader = ShardReader(path, table, stored)
    assert len(reader) == 3
    assert [reader.batch(i).equals(expected[i]) for i in (2, 0, 1, 2)] == [True] * 4
    for position in (-1, 3):
        with pytest.raises(IndexError):
            reader.batch(position)
    path.unlink()
    assert reader.batch(1).equals(expected[1])


def test_values_are_not_copied_out_of_the_mapping(tmp_path: Path) -> None:
    path, table, stored, _ = three(tmp_path)
    reader = ShardReader(path, table, stored)
    block = reader.bytes_of(1)
    address = reader.batch(0).column("a").buffers()[1].address
    assert block.address < address < block.address + block.size
    assert address % 64 == 0


def test_values_are_validated_unless_the_shard_was_checked(tmp_path: Path) -> None:
    path, table, stored, _ = three(tmp_path)
    data = path.read_bytes()
    text = next(word for word in (b"long text", b"xxxxxxxxxxxxx", b"gr\xc3\xbcn") if word in data)
    path.write_bytes(data.replace(text[:4], b"\xff\xff\xff\xff"))
    with pytest.raises(FormatError, match="values are malformed"):
        for position in range(3):
            ShardReader(path, table, stored).batch(position)
    checked = ShardReader(path, table, stored, checked=True)
    assert sum(checked.batch(position).num_rows for position in range(3)) == 18


def test_blocks_of_a_partial_shard_can_be_read_before_the_rest_arrives(tmp_path: Path) -> None:
    path, table, stored, expected = three(tmp_path)
    block = table.blocks[2]
    partial = tmp_path / "partial"
    with partial.open("wb") as file:
        file.truncate(table.shard_bytes)
        file.seek(block.offset)
        file.write(path.read_bytes()[block.offset : block.offset + block.length])
    reader = ShardReader(partial, table, stored)
    assert reader.batch(1).equals(expected[1])
    with pytest.raises(FormatError):
        reader.batch(0)


def test_files_that_are_missing_or_of_another_size_are_refused(tmp_path: Path) -> None:
    path, table, stored, _ = three(tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        ShardReader(tmp_path / "missing", table, stored)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="its block table says"):
        ShardReader(path, table, stored)
