from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.ipc import ALIGNMENT, BatchNumbers, batch_block, batch_header, counts, schema_block
from dhtdata.tables.schema import stored_schema
from tests.tables.shards import block_bytes, shard
from tests.tables.strategies import batches


@settings(max_examples=100, deadline=None)
@given(batch=batches(nans=False), cut=st.integers(1, 20))
def test_pyarrow_reads_every_shard_back_equal(batch: pa.RecordBatch, cut: int) -> None:
    parts = [part for part in (batch.slice(0, cut), batch.slice(cut)) if part.num_rows]
    if not parts:
        return
    data, _, stored = shard(parts)
    file = pa.ipc.open_file(pa.py_buffer(data))
    assert file.schema.equals(stored, check_metadata=True)
    assert file.num_record_batches == len(parts)
    for position, part in enumerate(parts):
        read = file.get_batch(position)
        read.validate(full=True)
        assert read.equals(to_stored(part, stored))
        assert block_bytes(read) == block_bytes(part)


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_a_shard_is_an_arrow_stream_too_once_the_magic_is_cut_off(batch: pa.RecordBatch) -> None:
    if not batch.num_rows:
        return
    data, _, stored = shard([batch])
    read = pa.ipc.open_stream(pa.py_buffer(data[8:])).read_all()
    assert read.schema.equals(stored)
    assert block_bytes(read.to_batches()[0]) == block_bytes(batch)


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_blocks_and_buffers_are_aligned_and_counted(batch: pa.RecordBatch) -> None:
    stored = stored_schema(batch.schema)
    assert len(schema_block(stored)) % ALIGNMENT == 0
    parts = batch_block(to_stored(batch, stored))
    header = batch_header(*counts(stored))
    assert len(parts[0]) == header.size
    assert header.size % ALIGNMENT == 0
    numbers = header.read(b"".join(parts))
    assert header.size + numbers.body_length == sum(len(part) for part in parts)
    assert all(offset % ALIGNMENT == 0 for offset, _ in numbers.buffers)


@given(
    nodes=st.integers(0, 9), buffers=st.integers(0, 9), numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=40)
)
def test_headers_round_trip_any_numbers(nodes: int, buffers: int, numbers: list[int]) -> None:
    given_numbers = BatchNumbers(
        numbers[0],
        numbers[1],
        tuple(zip(numbers[2 : 2 + nodes], numbers[11 : 11 + nodes], strict=True)),
        tuple(zip(numbers[20 : 20 + buffers], numbers[30 : 30 + buffers], strict=True)),
    )
    header = batch_header(nodes, buffers)
    assert header.read(header.fill(given_numbers)) == given_numbers


def test_any_other_header_is_refused() -> None:
    header = batch_header(2, 4)
    numbers = BatchNumbers(1, 64, ((1, 0), (1, 0)), ((0, 1),) * 4)
    good = header.fill(numbers)
    varying = set(range(header.rows_at, header.rows_at + 8)) | set(
        range(header.body_length_at, header.body_length_at + 8)
    )
    varying |= set(range(header.nodes_at, header.nodes_at + 32)) | set(range(header.buffers_at, header.buffers_at + 64))
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        if position in varying:
            assert header.read(bytes(bad)) != numbers
        else:
            with pytest.raises(FormatError, match="canonical form"):
                header.read(bytes(bad))
    with pytest.raises(FormatError, match="cut short"):
        header.read(good[:-1])


def test_values_without_nulls_are_not_copied() -> None:
    numbers = pa.array(range(1000), pa.int64())
    texts = pa.array([f"text {i}" for i in range(1000)])
    parts = batch_block(pa.RecordBatch.from_arrays([numbers.slice(8), texts.slice(8)], ["n", "t"]))
    shared = {pa.py_buffer(part).address for part in parts}
    assert numbers.buffers()[1].address + 64 in shared
    assert texts.buffers()[2].address + 8 * len("text 0") in shared


def test_a_type_without_stored_form_is_refused() -> None:
    with pytest.raises(FormatError, match="shards do not hold string_view"):
        schema_block(pa.schema([("v", pa.string_view())]))
