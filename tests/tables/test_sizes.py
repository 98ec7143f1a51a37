from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.digest import Buffer
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.ipc import children_of, own_buffers
from dhtdata.tables.layout import layout_of
from dhtdata.tables.schema import stored_schema
from dhtdata.tables.sizes import offset_width, row_bytes
from tests.tables.strategies import batches, poisoned, seeded


def laid_out_bytes(kind: pa.DataType, nodes: Iterator[tuple[int, int]], buffers: Iterator[Buffer]) -> int:
    """What the canonical buffers of a type hold, bitmaps and the one offset too many left out: the oracle of a sum."""
    count, _ = next(nodes)
    own = [len(next(buffers)) for _ in range(own_buffers(kind))]
    if not pa.types.is_union(kind) and own:
        own = own[1:]
    if pa.types.is_boolean(kind):
        own = [count]
    elif width := offset_width(kind):
        own[0] -= width
    children = [laid_out_bytes(child.type, nodes, buffers) for child in children_of(kind)]
    empty = not children or (isinstance(kind, pa.FixedSizeListType) and not kind.list_size)
    return sum(own) + sum(children) if sum(own) or not empty or offset_width(kind) else count


@settings(max_examples=100, deadline=None)
@given(batch=batches())
def test_sizes_sum_up_to_what_the_canonical_buffers_hold(batch: pa.RecordBatch) -> None:
    plain = to_stored(batch, stored_schema(batch.schema))
    layout = layout_of(plain)
    nodes, buffers = iter(layout.nodes), iter(layout.buffers)
    expected = sum(laid_out_bytes(field.type, nodes, buffers) for field in plain.schema)
    assert int(row_bytes(plain).sum()) == expected


@settings(max_examples=60, deadline=None)
@given(batch=batches(), seed=st.integers(0, 99))
def test_a_row_has_the_same_size_wherever_it_lies(batch: pa.RecordBatch, seed: int) -> None:
    plain = to_stored(batch, stored_schema(batch.schema))
    sizes = row_bytes(plain)
    assert sizes.dtype == np.int64
    assert [int(row_bytes(plain.slice(row, 1))[0]) for row in range(plain.num_rows)] == sizes.tolist()
    messy = [poisoned(seeded(seed), column) for column in plain.columns]
    assert row_bytes(pa.RecordBatch.from_arrays(messy, plain.schema.names)).tolist() == sizes.tolist()


def test_sizes_of_known_rows() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "number": pa.array([1, None, 3], pa.int32()),  # 4
            "flag": [True, None, False],  # 1
            "text": ["", "abc", None],  # 4 + length
            "texts": [["a", "bc"], None, []],  # 4 + sum of (4 + length)
            "none": pa.nulls(3),  # 1
        }
    )
    assert row_bytes(batch).tolist() == [4 + 1 + 4 + (4 + 4 + 1 + 4 + 2) + 1, 4 + 1 + 7 + 4 + 1, 4 + 1 + 4 + 4 + 1]
