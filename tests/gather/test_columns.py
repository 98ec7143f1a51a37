"""Columns: what every Arrow type becomes."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dhtdata.gather.columns import Flat, item, part, to_numpy

DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 30, 1, 5000)


def plain(value: object) -> object:
    """A converted value as Arrow's own Python values have it, for comparison."""
    if isinstance(value, dict):
        return {name: plain(child) for name, child in value.items()}
    if isinstance(value, np.ma.MaskedArray):
        return [None if mask is np.True_ else plain(value[i]) for i, mask in enumerate(np.ma.getmaskarray(value))]
    if isinstance(value, np.ndarray):
        return [plain(child) for child in value]
    if isinstance(value, np.datetime64 | np.timedelta64):
        return None if np.isnat(value) else int(value.astype(np.int64))
    if isinstance(value, np.generic):
        return None if value.dtype.kind == "f" and np.isnan(value) else value.item()
    return [plain(child) for child in value] if isinstance(value, list) else value


def expected(array: pa.Array) -> list[object]:
    """Arrow's Python values; dates and times as counts of their unit."""
    kind = array.type
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        array = array.view(width)
    values: list[object] = array.to_pylist()
    return values


def array_of(array: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    """What a column of any type but a struct becomes."""
    column = to_numpy(array, kind)
    assert isinstance(column, np.ndarray)
    return column


ALL_TYPES = {
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**63, 1, None], pa.uint64()),
    "float16": pa.array([np.float16(1.5), None, np.float16(2)], pa.float16()),
    "float64": pa.array([1.5, None, -0.0]),
    "bool": pa.array([True, None, False]),
    "null": pa.nulls(3),
    "date32": pa.array([DAY, None, DAY], pa.date32()),
    "date64": pa.array([DAY, None, DAY], pa.date64()),
    "time32": pa.array([NOON.time().replace(microsecond=0), None, datetime.time(0)], pa.time32("s")),
    "time64": pa.array([NOON.time(), None, datetime.time(0)], pa.time64("us")),
    "timestamp": pa.array([NOON, None, NOON], pa.timestamp("ms", "Europe/Berlin")),
    "duration": pa.array([datetime.timedelta(hours=1), None, None], pa.duration("us")),
    "decimal128": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3.00")], pa.decimal128(9, 2)),
    "string": pa.array(["a", None, ""]),
    "large_binary": pa.array([b"a", None, b""], pa.large_binary()),
    "fixed_size_binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "list": pa.array([[1, 2], None, []], pa.list_(pa.int32())),
    "list_nulls_inside": pa.array([[1, None], None, [3]], pa.list_(pa.int32())),
    "large_list_of_strings": pa.array([["a", None], [], ["b"]], pa.large_list(pa.string())),
    "list_of_lists": pa.array([[[1.0], []], [[2.0, 3.0]], None], pa.list_(pa.list_(pa.float32()))),
    "list_of_structs": pa.array([[{"a": 1}], [], None], pa.list_(pa.struct([("a", pa.int8())]))),
    "fixed_list": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int16(), 2)),
    "fixed_list_of_fixed_lists": pa.array([[[1, 2]], [[3, 4]], [[5, 6]]], pa.list_(pa.list_(pa.int16(), 2), 1)),
    "fixed_list_of_bools": pa.array([[True, False], [False, False], [True, True]], pa.list_(pa.bool_(), 2)),
    "fixed_list_of_strings": pa.array([["a", "b"], ["c", None], ["", "d"]], pa.list_(pa.string(), 2)),
    "fixed_list_of_nothing": pa.array([[], [], []], pa.list_(pa.int16(), 0)),
    "struct": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": None}, {"a": 3, "b": "y"}]),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int8())),
    "interval": pa.array([(1, 2, 3), None, (0, 0, 0)], pa.month_day_nano_interval()),
    "union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([5, 6]), pa.array(["a"])]
    ),
}


@pytest.mark.parametrize("name", ALL_TYPES)
def test_values_are_those_of_arrow(name: str) -> None:
    array = ALL_TYPES[name]
    column = to_numpy(array, array.type)
    assert [plain(item(column, row)) for row in range(3)] == expected(array)


@pytest.mark.parametrize("name", ALL_TYPES)
def test_a_slice_converts_like_the_whole(name: str) -> None:
    array = pa.concat_arrays([ALL_TYPES[name]] * 7)[4:14]
    column = to_numpy(array, array.type)
    assert [plain(item(column, row)) for row in range(10)] == expected(array)
    assert [plain(item(part(column, 3, 9), row)) for row in range(6)] == expected(array[3:9])


@pytest.mark.parametrize("name", [name for name, array in ALL_TYPES.items() if Flat.of(array.type)])
def test_flat_types_gather_like_an_arrow_take(name: str) -> None:
    array = pa.concat_arrays([ALL_TYPES[name]] * 7)[4:14]
    rows = np.array([9, 0, 3, 3, 7])
    flat = Flat.of(array.type)
    assert flat is not None
    values, valid = flat.take(array, rows)
    column = flat.shown(values, valid)
    assert [plain(item(column, row)) for row in range(5)] == expected(array.take(pa.array(rows)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("int8", "int8"), ("float16", "float16"), ("bool", "bool"), ("date32", "datetime64[D]"),
        ("date64", "datetime64[ms]"), ("time32", "timedelta64[s]"), ("timestamp", "datetime64[ms]"),
        ("duration", "timedelta64[us]"), ("string", "object"), ("fixed_list_of_fixed_lists", "int16"),
        ("fixed_list_of_bools", "bool"), ("decimal128", "object"),
    ],
)  # fmt: skip
def test_types_map_as_the_table_says(name: str, dtype: str) -> None:
    column = array_of(ALL_TYPES[name], ALL_TYPES[name].type)
    assert column.dtype == np.dtype(dtype)
    assert column.flags.writeable


def test_fixed_size_lists_have_a_dimension_per_level() -> None:
    array = ALL_TYPES["fixed_list_of_fixed_lists"]
    assert array_of(array, array.type).shape == (3, 1, 2)


def test_integers_with_nulls_are_masked_and_without_are_plain() -> None:
    column = to_numpy(ALL_TYPES["int8"], pa.int8())
    assert isinstance(column, np.ma.MaskedArray) and column.tolist() == [1, None, -3]
    assert type(part(column, 2, 3)) is np.ndarray
    assert item(column, 1) is None


def test_nulls_inside_fixed_size_lists_are_marked_one_by_one() -> None:
    floats = pa.array([[1.0, None], None], pa.list_(pa.float32(), 2))
    assert np.isnan(array_of(floats, floats.type)).tolist() == [[False, True], [True, True]]
    ints = pa.array([[1, None], None, [3, 4]], pa.list_(pa.int32(), 2))
    column = array_of(ints, ints.type)
    assert isinstance(column, np.ma.MaskedArray)
    assert column.mask.tolist() == [[False, True], [True, True], [False, False]]
    assert type(item(column, 2)) is np.ndarray


def test_a_null_struct_has_null_fields() -> None:
    array = pa.array([{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int8()), ("b", pa.string())]))
    column = to_numpy(array, array.type)
    assert isinstance(column, dict)
    assert column["a"].tolist() == [1, None] and column["b"].tolist() == ["x", None]


@pytest.mark.parametrize("permutation", [None, [1, 0], [0, 1]])
def test_tensors_have_the_shape_and_order_of_arrow(permutation: list[int] | None) -> None:
    kind = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=permutation)
    storage = pa.array([list(range(6)), list(range(6, 12))], pa.list_(pa.int32(), 6))
    column = array_of(storage, kind)
    assert column.tolist() == pa.ExtensionArray.from_storage(kind, storage).to_numpy_ndarray().tolist()


def test_encodings_are_read_as_their_values() -> None:
    values = pa.array(["a", None, "b"])
    for kind in (pa.dictionary(pa.int8(), pa.string()), pa.run_end_encoded(pa.int32(), pa.string())):
        assert array_of(values, kind).tolist() == ["a", None, "b"]
    assert array_of(pa.array([b"0" * 16], pa.binary(16)), pa.uuid()).tolist() == [b"0" * 16]


def test_no_rows_convert_too() -> None:
    for array in ALL_TYPES.values():
        column = to_numpy(array[:0], array.type)
        assert all(len(child) == 0 for child in (column.values() if isinstance(column, dict) else [column]))
