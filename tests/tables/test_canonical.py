from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.tables.canonical import is_plain, to_stored
from dhtdata.tables.schema import stored_schema, stored_type
from tests.tables.shards import block_bytes, column_bytes
from tests.tables.strategies import LEAVES, batches, poisoned, regrouped, seeded, shifted, types

SEEDS = st.integers(0, 2**32)
COUNTS = st.integers(0, 20)


def stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    return to_stored(batch, stored_schema(batch.schema))


@settings(max_examples=100, deadline=None)
@given(batch=batches(), seed=SEEDS)
def test_equal_tables_give_equal_bytes_however_they_lie_in_memory(batch: pa.RecordBatch, seed: int) -> None:
    values = seeded(seed)
    for source in batch.columns:
        expected = column_bytes(source)
        assert column_bytes(shifted(values, source)) == expected
        assert column_bytes(regrouped(values, source)) == expected
        plain = stored(pa.RecordBatch.from_arrays([source], ["c"])).column(0)
        every_row = pa.array(np.arange(len(plain)))
        for equal in (
            shifted(values, plain),
            regrouped(values, plain),
            poisoned(values, plain),
            shifted(values, poisoned(values, plain)),
            plain.take(every_row),
            plain.filter(pa.array(np.ones(len(plain), np.bool_))),
        ):
            assert column_bytes(equal) == expected


@settings(max_examples=60, deadline=None)
@given(batch=batches(), cut=st.integers(0, 20))
def test_bytes_of_a_block_depend_on_its_own_rows_only(batch: pa.RecordBatch, cut: int) -> None:
    whole = stored(batch)
    part = batch.slice(cut, 7)
    alone = pa.RecordBatch.from_arrays(
        [column.take(pa.array(np.arange(len(column)))) for column in whole.slice(cut, 7).columns], batch.schema.names
    )
    assert block_bytes(part) == block_bytes(whole.slice(cut, 7)) == block_bytes(alone)


@settings(max_examples=100, deadline=None)
@given(kind=types(), count=COUNTS, first=SEEDS, second=SEEDS)
def test_bytes_are_equal_exactly_where_values_are(kind: pa.DataType, count: int, first: int, second: int) -> None:
    kind = stored_type(kind)
    one, other = (seeded(seed, nans=False, few=True).array(kind, count) for seed in (first, second))
    assert (column_bytes(one) == column_bytes(other)) == one.equals(other)


@pytest.mark.parametrize("kind", [kind for kind in LEAVES if not isinstance(kind, pa.BaseExtensionType)], ids=str)
def test_each_leaf_gives_the_same_bytes_dictionary_and_run_end_encoded(kind: pa.DataType) -> None:
    array = seeded(1).array(kind, 20)
    rows = pa.array(np.arange(20), pa.uint8())
    dictionary = pa.DictionaryArray.from_arrays(rows, array)
    runs = pa.RunEndEncodedArray.from_arrays(pa.array(np.arange(1, 21), pa.int16()), array)
    assert column_bytes(dictionary) == column_bytes(runs) == column_bytes(array)
    assert column_bytes(dictionary.slice(3, 9)) == column_bytes(runs.slice(3, 9)) == column_bytes(array.slice(3, 9))


def test_names_of_list_and_map_children_do_not_matter() -> None:
    items = seeded(2).array(pa.list_(pa.int8()), 9)
    pairs = seeded(2).array(pa.map_(pa.string(), pa.int8()), 9)
    renamed_pairs = pa.map_(pa.field("k", pa.string(), nullable=False), pa.field("v", pa.int8()))
    for array, renamed in (
        (items, items.cast(pa.list_(pa.field("element", pa.int8())))),
        (pairs, pa.Array.from_buffers(renamed_pairs, 9, pairs.buffers()[:2], children=[pairs.values])),
    ):
        assert column_bytes(array) == column_bytes(renamed)


def test_bits_of_floats_are_kept() -> None:
    bits = pa.array([0, 1 << 63, 0x7FF8000000000001, 0x7FF8000000000002, 0xFFF0000000000001], pa.uint64())
    floats = bits.view(pa.float64())
    assert b"".join(bits.buffers()[1].to_pybytes()[i * 8 : i * 8 + 8] for i in range(5)) in column_bytes(floats)
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, 4]), floats)
    assert column_bytes(dictionary) == column_bytes(floats)


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_a_table_that_went_through_arrow_ipc_gives_the_same_bytes(batch: pa.RecordBatch) -> None:
    sink = io.BytesIO()
    whole = stored(batch)
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_batch(whole)
    read = pa.ipc.open_stream(sink.getvalue()).read_next_batch()
    assert block_bytes(read) == block_bytes(batch)


# What Parquet keeps as it is in every release: no unions, intervals, large types in maps, or units that it widens.
PARQUET_LEAVES = [pa.int8(), pa.uint64(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.date32()]
PARQUET_LEAVES += [pa.binary(3), pa.decimal128(30, 4), pa.time64("us"), pa.timestamp("us", "UTC")]
PARQUET_TYPES = st.recursive(
    st.sampled_from(PARQUET_LEAVES),
    lambda kinds: st.one_of(
        st.builds(pa.list_, kinds),
        st.builds(lambda kind: pa.struct([("a", kind), ("b", pa.int32())]), kinds),
        st.builds(lambda kind: pa.map_(pa.string(), kind), kinds),
    ),
    max_leaves=3,
)


@settings(max_examples=40, deadline=None)
@given(batch=batches(PARQUET_TYPES))
def test_a_table_that_went_through_parquet_gives_the_same_bytes(batch: pa.RecordBatch) -> None:
    sink = io.BytesIO()
    # Old releases cannot write lists with elements under their nulls, so what is written has been tidied up.
    data = block_bytes(batch)
    tidy = pa.ipc.read_record_batch(pa.py_buffer(data), stored_schema(batch.schema))
    pq.write_table(pa.Table.from_batches([tidy]), sink, row_group_size=7)
    read = pq.read_table(sink).combine_chunks()
    again = read.to_batches() or [batch.slice(0, 0)]
    assert len(again) == 1
    assert block_bytes(again[0]) == data


def test_plain_columns_are_passed_on_without_a_copy() -> None:
    numbers = pa.array(np.arange(1000))
    batch = pa.RecordBatch.from_arrays([numbers.slice(10)], ["n"])
    assert stored(batch).column(0).buffers()[1].address == numbers.buffers()[1].address


@given(kind=types())
def test_a_stored_type_is_plain_and_its_own_stored_type(kind: pa.DataType) -> None:
    assert is_plain(stored_type(kind))
    assert stored_type(stored_type(kind)) == stored_type(kind)


def test_text_that_is_not_utf8_is_refused_by_column() -> None:
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(ConfigError, match="column 'text' holds malformed values"):
        stored(pa.RecordBatch.from_arrays([column], ["text"]))


def test_offsets_out_of_range_are_refused_by_column() -> None:
    offsets = pa.array([0, 99, 1], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.list_(pa.int8()), 2, [None, offsets], children=[pa.array([1], pa.int8())])
    with pytest.raises(ConfigError, match="column 'bad' holds malformed values"):
        stored(pa.RecordBatch.from_arrays([column], ["bad"]))


def test_overlapping_list_views_over_two_gib_are_refused_by_column() -> None:
    offsets = pa.array([0] * 3, pa.int32()).buffers()[1]
    sizes = pa.array([1 << 30] * 3, pa.int32()).buffers()[1]
    views = pa.Array.from_buffers(
        pa.list_view(pa.null()), 3, [None, offsets, sizes], children=[pa.Array.from_buffers(pa.null(), 1 << 30, [None])]
    )
    with pytest.raises(ConfigError, match="column 'views'.*more than 2 GiB"):
        stored(pa.RecordBatch.from_arrays([views], ["views"]))


def test_null_structs_hide_the_nulls_and_values_of_their_children() -> None:
    kind = pa.struct([("a", pa.int8()), ("b", pa.string())])
    bitmap = pa.py_buffer(b"\x01")
    child = [pa.array([1, None], pa.int8()), pa.array(["x", "under a null"])]
    messy = pa.Array.from_buffers(kind, 2, [bitmap], children=child)
    assert column_bytes(messy) == column_bytes(pa.array([{"a": 1, "b": "x"}, None], kind))
    assert pc.is_null(messy).to_pylist() == [False, True]


_NEVER = pa.field("x", pa.int8(), nullable=False)  # lists and maps rename it
_PAIR = pa.struct([_NEVER])
_PROMISES: dict[str, tuple[pa.DataType, list[object], list[object]]] = {
    "struct": (_PAIR, [{"x": 1}, None], [{"x": None}]),
    "list": (pa.list_(_NEVER), [[1], None, []], [[1, None]]),
    "large list of structs": (pa.large_list(_PAIR), [[{"x": 1}], [None], None], [[{"x": None}]]),
    "list view": (pa.list_view(_NEVER), [[1], None], [[None]]),
    "fixed-size list": (pa.list_(_NEVER, 2), [[1, 2], None], [[1, None]]),
    "fixed-size list of structs": (pa.list_(_PAIR, 1), [[{"x": 1}], [None], None], [[{"x": None}]]),
    "map": (pa.map_(pa.string(), _NEVER), [[("k", 1)], None], [[("k", None)]]),
    "map of structs": (pa.map_(pa.string(), _PAIR), [[("k", None)], None], [[("k", {"x": None})]]),
    "struct of structs": (pa.struct([("s", _PAIR)]), [None, {"s": None}, {"s": {"x": 1}}], [{"s": {"x": None}}]),
}


@pytest.mark.parametrize("name", _PROMISES)
def test_a_null_where_the_schema_says_there_is_none_is_refused_at_any_depth(name: str) -> None:
    kind, kept, broken = _PROMISES[name]
    for first in range(len(kept)):
        assert stored(pa.RecordBatch.from_arrays([pa.array(kept, kind).slice(first)], ["c"])).num_rows
    whole = pa.array(kept + broken, kind)
    assert stored(pa.RecordBatch.from_arrays([whole.slice(0, len(kept))], ["c"])).num_rows == len(kept)
    for first in range(len(whole)):
        with pytest.raises(ConfigError, match=r"column 'c\.[a-z.]+' has a null, but its schema says it has none"):
            stored(pa.RecordBatch.from_arrays([whole.slice(first)], ["c"]))


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_only_the_selected_members_of_unions_must_keep_to_the_schema(mode: str) -> None:
    members = [pa.array([1, None], pa.int8()), pa.array([None, 2], pa.int8())]
    kind = pa.union([pa.field("x", pa.int8(), nullable=False), pa.field("y", pa.int8())], mode=mode)
    places = [pa.array([0, 0], pa.int32()).buffers()[1]] if mode == "dense" else []

    def union(*codes: int) -> pa.RecordBatch:
        buffers = [None, pa.array(codes, pa.int8()).buffers()[1], *places]
        return pa.RecordBatch.from_arrays([pa.Array.from_buffers(kind, 2, buffers, children=members)], ["c"])

    assert stored(union(0, 1)).num_rows == 2
    if mode == "sparse":
        with pytest.raises(ConfigError, match="column 'c.x' has a null"):
            stored(union(0, 0))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["a", None])),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["a", None])),
        pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.nulls(1)),
    ],
    ids=["plain", "dictionary", "runs", "dictionary of nulls"],
)
def test_encodings_do_not_hide_a_null_that_the_schema_denies(column: pa.Array) -> None:
    schema = pa.schema([pa.field("c", column.type, nullable=False)])
    with pytest.raises(ConfigError, match="column 'c' has a null, but its schema says it has none"):
        stored(pa.RecordBatch.from_arrays([column], schema=schema))
