from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.tables.fingerprint import row_fingerprints, value_fingerprints

A = 0x9E3779B97F4A7C15
B = 0xC2B2AE3D27D4EB4F
NULL = 0x165667B19E3779F9
SEED = 0x27D4EB2F165667C5
MASK = (1 << 64) - 1


# The specification again, one value at a time: the oracle.


def start(x: int) -> int:
    t = (x + A) * B & MASK
    return t ^ (t >> 32)


def fold(a: int, x: int) -> int:
    return ((a ^ (a >> 32)) * A + x) & MASK


def of_bytes(value: bytes) -> int:
    n = len(value)

    def sample(p: int) -> int:
        return int.from_bytes(value[p : p + 8], "little")

    f = fold(start(n), sample(0))
    if n > 8:
        f = fold(f, sample(n - 8))
    if n > 16:
        for j in (1, 2, 3):
            f = fold(f, sample((n - 8) * j // 4))
    return f


def of_elements(elements: list[int]) -> int:
    n = len(elements)
    f = start(n)
    if n > 0:
        for j in range(5):
            f = fold(f, elements[(n - 1) * j // 4])
    return f


def of_fields(fields: list[int]) -> int:
    f = SEED
    for field in fields:
        f = fold(f, field)
    return f


def of_scalar(value: pa.Scalar) -> int:
    kind = value.type
    if not value.is_valid:
        return NULL
    if pa.types.is_boolean(kind):
        return start(int(value.as_py()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return of_bytes(value.as_py().encode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return of_bytes(value.as_py())
    if pa.types.is_map(kind):
        return of_elements([of_fields([of_scalar(entry["key"]), of_scalar(entry["value"])]) for entry in value.values])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return of_elements([of_scalar(element) for element in value.values])
    if pa.types.is_struct(kind):
        return of_fields([of_scalar(value[position]) for position in range(kind.num_fields)])
    width = kind.bit_width // 8
    raw = pa.array([value.as_py()], kind).buffers()[1].to_pybytes()[:width]
    if width > 8:
        return fold(start(int.from_bytes(raw[:8], "little")), int.from_bytes(raw[-8:], "little"))
    return start(int.from_bytes(raw, "little"))


texts = st.text(max_size=40) | st.text("ab", min_size=6, max_size=20)
VALUES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint16(), st.integers(0, 65_535)),
    (pa.int32(), st.integers(-(1 << 31), (1 << 31) - 1)),
    (pa.uint64(), st.integers(0, MASK)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.decimal128(20, 3), st.integers(-(10**17), 10**17).map(lambda n: decimal.Decimal(n) / 1000)),
    (pa.decimal256(60, 0), st.integers(-(10**50), 10**50).map(decimal.Decimal)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us", "UTC"), st.datetimes(datetime.datetime(1800, 1, 1), timezones=st.just(datetime.UTC))),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.binary(8), st.binary(min_size=8, max_size=8)),
    (pa.binary(11), st.binary(min_size=11, max_size=11)),
    (pa.string(), texts),
    (pa.large_string(), texts),
    (pa.binary(), st.binary(max_size=50)),
    (pa.large_binary(), st.binary(max_size=50)),
    (pa.list_(pa.int16()), st.lists(st.integers(-9, 9) | st.none(), max_size=9)),
    (pa.large_list(pa.string()), st.lists(texts | st.none(), max_size=7)),
    (pa.list_(pa.float32(), 3), st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3)),
    (pa.list_(pa.list_(pa.string())), st.lists(st.lists(texts, max_size=4) | st.none(), max_size=6)),
    (
        pa.struct([("a", pa.int32()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.integers(0, 9) | st.none(), "b": texts}),
    ),
    (pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(texts, st.integers(0, 9) | st.none()), max_size=6)),
]


@pytest.mark.parametrize(
    ("kind", "values"), VALUES, ids=lambda part: str(part) if isinstance(part, pa.DataType) else ""
)
def test_fingerprints_agree_with_the_specification_value_by_value(
    kind: pa.DataType, values: st.SearchStrategy[Any]
) -> None:
    @settings(max_examples=40, deadline=None)
    @given(rows=st.lists(values | st.none(), min_size=1, max_size=30), cut=st.integers(0, 12), keep=st.integers(0, 30))
    def agree(rows: list[Any], cut: int, keep: int) -> None:
        array = pa.array(rows, kind).slice(cut, keep)
        assert value_fingerprints(array).tolist() == [of_scalar(value) for value in array]

    agree()


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_union_fingerprints_take_the_selected_child(mode: str) -> None:
    codes = pa.array([7, 2, 2, 7, 7, 2], pa.int8())
    numbers = pa.array([1, 2, 3, None, 5, 6], pa.int32())
    words = pa.array(["a", None, "a rather longer text", "d", "e", "f"])
    if mode == "sparse":
        array = pa.UnionArray.from_sparse(codes, [numbers, words], ["n", "w"], [7, 2])
    else:
        places = pa.array([0, 1, 2, 3, 4, 0], pa.int32())
        array = pa.UnionArray.from_dense(codes, places, [numbers, words], ["n", "w"], [7, 2])
    rows = zip(codes.to_pylist(), array, strict=True)
    expected = [fold(start(code), NULL if row.value is None else of_scalar(row.value)) for code, row in rows]
    for first, last in ((0, 6), (2, 6), (1, 4)):
        assert value_fingerprints(array.slice(first, last - first)).tolist() == expected[first:last]


def test_a_row_folds_its_columns_in_order() -> None:
    columns = [pa.array([1, None, 3]), pa.array(["x", "y", None])]
    expected = [of_fields([of_scalar(left), of_scalar(right)]) for left, right in zip(*columns, strict=True)]
    assert row_fingerprints(columns).tolist() == expected
    assert row_fingerprints(columns[::-1]).tolist() != expected


def test_bytes_under_nulls_do_not_matter() -> None:
    validity = pa.array([True, False, True]).buffers()[1]
    clean = pa.array([1, None, 3], pa.int64())
    dirty = pa.Array.from_buffers(pa.int64(), 3, [validity, pa.py_buffer(np.array([1, 99, 3], np.int64).tobytes())])
    assert clean.equals(dirty)
    assert value_fingerprints(clean).tolist() == value_fingerprints(dirty).tolist()


def test_values_at_the_end_of_an_unpadded_buffer_are_read_within_it() -> None:
    for text in (b"", b"a", b"abcdefg", b"abcdefgh", b"abcdefghi"):
        offsets = pa.py_buffer(np.array([0, len(text), len(text)], np.int32).tobytes())
        array = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(text)])
        assert value_fingerprints(array).tolist() == [of_bytes(text), of_bytes(b"")]


def test_lists_whose_nulls_lack_values_are_fingerprinted() -> None:
    values = pa.array([1, 2, 3, 4], pa.int8())
    array = pa.array([[1, 2], None, [3, 4], None], pa.list_(pa.int8(), 2))
    assert value_fingerprints(array).tolist() == [of_scalar(value) for value in array]
    assert len(values) == 4


def test_a_type_that_is_never_stored_is_named() -> None:
    with pytest.raises(ConfigError, match="string_view"):
        value_fingerprints(pa.array(["a"], pa.string_view()))


def test_fingerprints_of_version_1_are_pinned() -> None:
    columns = [
        pa.array([0, 1, None, -1], pa.int64()),
        pa.array([True, False, None, True]),
        pa.array(["", "short", "a text of more than sixteen bytes", None]),
        pa.array([[1.0, 2.0], [], None, [float(n) for n in range(100)]], pa.list_(pa.float32())),
    ]
    assert [f"{value:016x}" for value in row_fingerprints(columns).tolist()] == [
        "84e09e8d1553d210",
        "3b0b8e1958e2d45a",
        "c77372e2285d411c",
        "83a8baf60bdf9e15",
    ]
