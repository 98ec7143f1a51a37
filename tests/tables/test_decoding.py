from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.tables.canonical import to_stored
from dhtdata.tables.decoding import decodable
from dhtdata.tables.schema import stored_schema

WORDS = ["", "a", "x" * 400, "y" * 900, None]


def encoded(rows: list[int], kind: str) -> pa.Array:
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array(rows, pa.int8()), pa.array(WORDS))
    return pa.RunEndEncodedArray.from_arrays(
        pa.array(np.arange(1, len(rows) + 1), pa.int32()), pa.array([WORDS[row] for row in rows])
    )


@pytest.mark.parametrize("kind", ["dictionary", "run ends"])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 4), min_size=2, max_size=60), target=st.integers(1, 3_000))
def test_slices_stay_near_the_target_once_decoded_and_lose_nothing(kind: str, rows: list[int], target: int) -> None:
    batch = pa.RecordBatch.from_pydict({"n": list(range(len(rows))), "word": encoded(rows, kind)}).slice(1)
    stored = stored_schema(batch.schema)
    parts = [to_stored(part, stored) for part in decodable(batch, target)]
    assert pa.Table.from_batches(parts).column("word").to_pylist() == [WORDS[row] for row in rows[1:]]
    for part in parts:
        sizes = [4 + len(value or "") for value in part.column("word").to_pylist()]
        assert sum(sizes) <= target or len(sizes) == 1


def test_a_batch_without_anything_to_decode_is_passed_on() -> None:
    batch = pa.RecordBatch.from_pydict({"n": [1, 2], "t": ["x" * 999, "y"]})
    assert list(decodable(batch, 1)) == [batch]


def test_a_dictionary_of_nulls_only_is_one_slice() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.array([], pa.string()))
    (part,) = decodable(pa.RecordBatch.from_arrays([column], ["x"]))
    assert part.num_rows == 2
