from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.logical import to_logical, to_logical_table
from dhtdata.tables.schema import stored_schema
from tests.tables.shards import block_bytes
from tests.tables.strategies import batches, joinable, seeded


def stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    return to_stored(batch, stored_schema(batch.schema))


@settings(max_examples=100, deadline=None)
@given(batch=batches(nans=False))
def test_what_was_stored_comes_back_with_its_types_and_values(batch: pa.RecordBatch) -> None:
    back = to_logical(stored(batch), batch.schema)
    back.validate(full=True)
    assert back.schema.equals(batch.schema, check_metadata=True)
    for column, original in zip(back.columns, batch.columns, strict=True):
        # Dictionaries are made anew, so such arrays are equal in value only; that is what the bytes compare.
        assert not joinable(original.type) or column.equals(original)
    assert block_bytes(back) == block_bytes(batch)


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_any_bits_come_back(batch: pa.RecordBatch) -> None:
    assert block_bytes(to_logical(stored(batch), batch.schema)) == block_bytes(batch)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@given(seed=st.integers(0, 2**32))
def test_a_null_in_a_union_stays_in_its_member(mode: str, seed: int) -> None:
    union = pa.union([pa.field("a", pa.bool_()), pa.field("b", pa.int8())], mode=mode, type_codes=[5, 0])
    for kind in (pa.dictionary(pa.int8(), union), pa.run_end_encoded(pa.int16(), union)):
        batch = pa.RecordBatch.from_arrays([seeded(seed).array(kind, 8)], ["u"])
        assert block_bytes(to_logical(stored(batch), batch.schema)) == block_bytes(batch)


def test_floats_that_compare_equal_keep_entries_of_their_own() -> None:
    bits = pa.array([0, 1 << 63, 0x7FF8000000000001, 0x7FF8000000000002, 0], pa.uint64()).view(pa.float64())
    for kind in (pa.dictionary(pa.int8(), pa.float64()), pa.run_end_encoded(pa.int16(), pa.float64())):
        plain = pa.RecordBatch.from_arrays([bits], ["f"])
        back = to_logical(plain, pa.schema([("f", kind)]))
        assert block_bytes(back) == block_bytes(plain)


def test_dictionaries_and_runs_are_as_short_as_they_can_be() -> None:
    plain = pa.RecordBatch.from_arrays([pa.array(["a", "a", None, None, "b", "a"])] * 2, ["d", "r"])
    back = to_logical(
        plain,
        pa.schema(
            [
                ("d", pa.dictionary(pa.uint8(), pa.string(), ordered=True)),
                ("r", pa.run_end_encoded(pa.int32(), pa.string())),
            ]
        ),
    )
    assert back.column("d").dictionary.to_pylist() == ["a", "b"]
    assert back.column("d").indices.to_pylist() == [0, 0, None, None, 1, 0]
    assert back.column("r").values.to_pylist() == ["a", None, "b", "a"]
    assert back.column("r").run_ends.to_pylist() == [2, 4, 5, 6]


def test_dictionaries_of_nested_values_hold_each_value_once() -> None:
    kind = pa.dictionary(pa.int8(), pa.list_(pa.string()))
    plain = pa.RecordBatch.from_arrays([pa.array([["a"], None, [], ["a"], [None], []])], ["d"])
    column = to_logical(plain, pa.schema([("d", kind)])).column("d")
    assert column.dictionary.to_pylist() == [["a"], [], [None]]
    assert column.indices.to_pylist() == [0, None, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("kind", "rows", "pieces"),
    [
        (pa.dictionary(pa.int8(), pa.int32()), 128, 1),
        (pa.dictionary(pa.int8(), pa.int32()), 129, 2),
        (pa.dictionary(pa.uint8(), pa.int32()), 256, 1),
        (pa.run_end_encoded(pa.int16(), pa.int32()), 32_767, 1),
        (pa.run_end_encoded(pa.int16(), pa.int32()), 32_768, 2),
    ],
    ids=str,
)
def test_tables_are_split_where_an_index_type_ends(kind: pa.DataType, rows: int, pieces: int) -> None:
    plain = pa.RecordBatch.from_arrays([pa.array(range(rows), pa.int32())], ["c"])
    logical = pa.schema([("c", kind)])
    table = to_logical_table([plain], logical)
    assert table.column(0).num_chunks == pieces
    assert [value for batch in table.to_batches() for value in stored(batch).column(0).to_pylist()] == list(range(rows))
    if pieces > 1:
        with pytest.raises(FormatError, match="column 'c'.*read fewer rows"):
            to_logical(plain, logical)


def test_a_single_row_that_passes_a_capacity_is_refused() -> None:
    plain = pa.RecordBatch.from_arrays([pa.array([list(range(200))], pa.list_(pa.int32()))], ["c"])
    with pytest.raises(FormatError, match="a single row needs more"):
        to_logical_table([plain], pa.schema([("c", pa.list_(pa.dictionary(pa.int8(), pa.int32())))]))


def test_other_columns_than_the_schema_names_are_refused() -> None:
    plain = pa.RecordBatch.from_arrays([pa.array([1])], ["a"])
    with pytest.raises(FormatError, match="the contents say"):
        to_logical(plain, pa.schema([("b", pa.int64())]))


def test_metadata_of_the_logical_schema_come_back() -> None:
    logical = pa.schema([pa.field("a", pa.int64(), metadata={"unit": "m"})], metadata={"k": "v"})
    plain = pa.RecordBatch.from_arrays([pa.array([1])], ["a"])
    assert to_logical(plain, logical).schema.equals(logical, check_metadata=True)


def test_plain_columns_come_back_without_a_copy() -> None:
    plain = pa.RecordBatch.from_arrays([pa.array([1, 2])], ["a"])
    back = to_logical(plain, plain.schema)
    assert back.column(0).buffers()[1].address == plain.column(0).buffers()[1].address


def test_columns_of_nulls_come_back_encoded() -> None:
    plain = pa.RecordBatch.from_arrays([pa.nulls(3), pa.nulls(3)], ["d", "r"])
    logical = pa.schema([("d", pa.dictionary(pa.int8(), pa.null())), ("r", pa.run_end_encoded(pa.int16(), pa.null()))])
    back = to_logical(plain, logical)
    back.validate(full=True)
    assert back.column("d").indices.to_pylist() == [None] * 3
    assert back.column("r").run_ends.to_pylist() == [3]


def test_columns_of_another_stored_type_are_refused() -> None:
    plain = pa.RecordBatch.from_arrays([pa.array([1])], ["a"])
    with pytest.raises(FormatError, match="column 'a' holds int64, the contents say string_view"):
        to_logical(plain, pa.schema([("a", pa.string_view())]))
