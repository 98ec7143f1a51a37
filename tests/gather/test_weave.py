"""Columns of several sources put together: as if they had been one column, of which rows were taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.gather.columns import part, to_numpy
from dhtdata.gather.ragged import Ragged
from dhtdata.gather.weave import Weave

whichs = st.integers(1, 4).flatmap(
    lambda count: st.tuples(st.just(count), st.lists(st.integers(0, count - 1), min_size=1, max_size=30))
)
KINDS: dict[str, tuple[pa.DataType, Callable[[int], Any]]] = {
    "integers": (pa.int32(), lambda n: n),
    "integers with nulls": (pa.int32(), lambda n: None if n % 3 == 0 else n),
    "floats": (pa.float64(), lambda n: n / 2),
    "vectors": (pa.list_(pa.int16(), 3), lambda n: [n, n + 1, n + 2]),
    "bools": (pa.bool_(), lambda n: n % 2 == 0),
    "strings": (pa.string(), lambda n: None if n % 5 == 0 else f"text {n}"),
    "lists": (pa.list_(pa.int64()), lambda n: list(range(n % 4))),
    "structs": (pa.struct({"a": pa.int8(), "b": pa.string()}), lambda n: {"a": n % 100, "b": str(n)}),
}


def parts_of(kind: str, counts: list[int]) -> list[pa.Array]:
    type_, value = KINDS[kind]
    return [pa.array([value(100 * source + row) for row in range(count)], type_) for source, count in enumerate(counts)]


def taken(arrays: list[pa.Array], which: list[int]) -> pa.Array:
    """The oracle: each value is the next one of its part."""
    items = [iter(array.to_pylist()) for array in arrays]
    return pa.array([next(items[source]) for source in which], arrays[0].type)


def same(made: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(same(made[name], child) for name, child in expected.items())
    if isinstance(expected, np.ma.MaskedArray):
        return (
            bool((np.ma.getmaskarray(made) == np.ma.getmaskarray(expected)).all())
            and made.tolist() == expected.tolist()
        )
    assert type(made) is type(expected) and made.dtype == expected.dtype and made.shape == expected.shape
    return all(
        np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        for one, other in zip(made, expected, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@given(whichs)
@settings(deadline=None, max_examples=30)
def test_arrays_are_woven_in_the_order_asked_for(kind: str, asked: tuple[int, list[int]]) -> None:
    count, which = asked
    weave = Weave.of(np.array(which, np.uint16), count)
    arrays = parts_of(kind, [which.count(source) for source in range(count)])
    made = weave.column([to_numpy(array, array.type) for array in arrays])
    made = part(made, 0, len(which)) if isinstance(made, np.ma.MaskedArray) else made
    assert same(made, to_numpy(taken(arrays, which), arrays[0].type))


@given(whichs, st.data())
@settings(deadline=None, max_examples=60)
def test_sequences_are_woven_when_they_are_handed_out(asked: tuple[int, list[int]], data: st.DataObject) -> None:
    count, which = asked
    weave = Weave.of(np.array(which, np.uint16), count)
    arrays = parts_of("strings", [which.count(source) for source in range(count)])
    made = weave.column([array.to_pylist() for array in arrays])
    expected = taken(arrays, which).to_pylist()
    first, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(which))] * 2)))
    row = data.draw(st.integers(-len(which), len(which) - 1))
    assert list(made) == expected and made[first:stop] == expected[first:stop] and made[row] == expected[row]


@given(whichs)
@settings(deadline=None, max_examples=60)
def test_lists_end_to_end_are_woven(asked: tuple[int, list[int]]) -> None:
    count, which = asked
    weave = Weave.of(np.array(which, np.uint16), count)
    arrays = parts_of("lists", [which.count(source) for source in range(count)])
    made = weave.column([Ragged.of(array, array.type) for array in arrays])
    expected = Ragged.of(taken(arrays, which), arrays[0].type)
    assert made.values.tolist() == expected.values.tolist() and made.bounds.tolist() == expected.bounds.tolist()


@pytest.mark.parametrize("kind", KINDS)
@given(whichs)
@settings(deadline=None, max_examples=20)
def test_arrow_batches_are_woven(kind: str, asked: tuple[int, list[int]]) -> None:
    count, which = asked
    weave = Weave.of(np.array(which, np.uint16), count)
    arrays = parts_of(kind, [which.count(source) for source in range(count)])
    made = weave.batch([pa.RecordBatch.from_arrays([array], ["x"]) for array in arrays])
    assert made.column(0).equals(taken(arrays, which))
