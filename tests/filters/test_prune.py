from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dhtdata.filters import Filter, read_filter
from dhtdata.filters.bounds import Bounds, join_bounds, range_bounds, shard_bounds, successor, unknown_shards
from dhtdata.filters.prune import may_match
from dhtdata.filters.tree import tree_of
from dhtdata.formats.statistics import ShardColumn, ShardStatistics
from dhtdata.tables.statistics import GroupSummary
from tests.filters.expressions import SCHEMA, Meant, Row, filters, rows, table_of


def statistics_of(table: pa.Table, shards: Sequence[int]) -> ShardStatistics:
    """As publishing makes them."""
    summary = GroupSummary(table.schema)
    first = 0
    for count in shards:
        summary.begin_shard()
        summary.add(table.slice(first, count).combine_chunks().to_batches()[0].columns)
        first += count
    summary.end_shard()
    return ShardStatistics.decode(summary.take_shards(len(shards)))


def bounds_of(table: pa.Table, shards: Sequence[int], ranges: Sequence[int]) -> dict[str, Bounds]:
    statistics = statistics_of(table, shards)
    firsts = np.concatenate([[0], np.cumsum(shards)])
    return {
        column.name: range_bounds(
            shard_bounds(column, table.schema.field(column.name).type, shards), firsts, np.asarray(ranges, np.int64)
        )
        for column in statistics.columns
    }


def hopeful(found: Filter, table: pa.Table, shards: Sequence[int], ranges: Sequence[int]) -> NDArray[np.bool_]:
    return may_match(tree_of(found.expression), bounds_of(table, shards, ranges), len(ranges))


def matching(found: Filter, table: pa.Table, ranges: Sequence[int]) -> list[bool]:
    """Which row ranges have a row that Arrow itself keeps."""
    ends = np.cumsum(ranges).tolist()
    return [
        table.slice(end - count, count).filter(found.expression).num_rows > 0
        for end, count in zip(ends, ranges, strict=True)
    ]


def cut(count: int, cuts: Sequence[int]) -> list[int]:
    bounds = sorted({0, count, *(cut % count for cut in cuts)})
    return [high - low for low, high in pairwise(bounds)]


CUTS = st.lists(st.integers(1, 30), max_size=4)


@given(meant=filters(), found=st.lists(rows(), min_size=1, max_size=16), shards=CUTS, ranges=CUTS)
def test_what_is_ruled_out_has_no_row_that_the_filter_keeps(
    meant: Meant, found: list[Row], shards: list[int], ranges: list[int]
) -> None:
    table, wanted = table_of(found), read_filter(meant.text, SCHEMA)
    by_shard, by_range = cut(len(found), shards), cut(len(found), ranges)
    left = hopeful(wanted, table, by_shard, by_range)
    for may, does in zip(left.tolist(), matching(wanted, table, by_range), strict=True):
        assert may or not does


_F = pc.field
EXPRESSIONS = [
    _F("big").cast(pa.float64()) > 1.0,
    _F("big") > pa.scalar(1.5),
    _F("big") == pa.scalar(float(1 << 24)),
    _F("single") < pa.scalar(16777216),
    _F("double") <= pa.scalar(2, pa.int8()),
    _F("small") == pa.scalar(2, pa.int64()),
    _F("free") < pa.scalar(3, pa.int8()),
    _F("single") != pa.scalar(math.nan),
    ~(_F("double") < pa.scalar(math.nan)),
    _F("text") > pa.scalar("ab", pa.large_string()),
    _F("at") > pa.scalar(1, pa.timestamp("s")),
    _F("at") > _F("day"),
    _F("small").is_null(nan_is_null=True) | _F("double").is_null(nan_is_null=True),
    ~_F("double").is_null(nan_is_null=True),
    _F("double").isin([1.0, math.nan]),
    _F("text").isin(["a", None]),
    ~_F("big").isin([1, 2]),
    ~_F("flag"),
    _F("flag") > pa.scalar(False),
    pc.if_else(_F("flag"), _F("small") > 0, _F("small") < 0),
    pc.coalesce(_F("flag"), pa.scalar(True)),
    pc.xor(_F("flag"), _F("small") > 0),
    pc.and_not(_F("flag"), _F("small") > 0),
    pc.starts_with(_F("text"), "A", ignore_case=True),
    (_F("small") > 0).is_valid(),
    _F("inner").is_null(),
    _F("inner", "number") > 1,
    pc.starts_with(_F("text"), "\U0010ffff"),
    _F("small") == pa.scalar(None, pa.int8()),
    pc.is_finite(_F("double")),
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
@settings(max_examples=30)
@given(found=st.lists(rows(), min_size=1, max_size=8), shards=CUTS)
def test_nor_is_anything_by_arrows_own_expressions(
    expression: pc.Expression, found: list[Row], shards: list[int]
) -> None:
    if "(big" in str(expression) or "cast" in str(expression):  # Arrow refuses to cast what a float cannot hold
        found = [{**row, "big": row["big"] if row["big"] is None or abs(row["big"]) <= 1 << 24 else 1} for row in found]
    if "free" in str(expression):
        found = [{**row, "free": None if row["free"] is None else row["free"] % 7} for row in found]
    table, wanted = table_of(found), read_filter(expression, SCHEMA)
    by_shard = cut(len(found), shards)
    left = hopeful(wanted, table, by_shard, by_shard)
    for may, does in zip(left.tolist(), matching(wanted, table, by_shard), strict=True):
        assert may or not does


SORTED = pa.table(
    {
        "number": pa.array(range(100), pa.int32()),
        "nullable": pa.array([None if row % 10 == 3 else row for row in range(100)], pa.int64()),
        "empty": pa.array([None if row < 50 else row for row in range(100)], pa.int64()),
        "real": pa.array([row / 2 for row in range(100)], pa.float32()),
        "text": [f"{row:04d} and more than sixteen bytes" for row in range(100)],
        "flag": [row >= 50 for row in range(100)],
        "at": pa.array(range(100), pa.timestamp("us", "UTC")),
        "price": pa.array(range(100), pa.decimal128(10, 2)),
    }
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("number == 42", [4]),
        ("number < 10", [0]),
        ("20 <= number < 30", [2]),
        ("number in [5, 99]", [0, 9]),
        ("not number >= 10", [0]),
        ("number > 1000", []),
        ("number > 89.5", [9]),
        ("nullable == 42", [4]),
        ("nullable is None and number < 20", [0, 1]),
        ("empty is not None", [5, 6, 7, 8, 9]),
        ("empty < 60", [5]),
        ("empty is None", [0, 1, 2, 3, 4]),
        ("real > 44.5", [9]),
        ("number != 5 and number == 5", list(range(1))),
        ("text < '0010'", [0]),
        ("startswith(text, '004')", [4]),
        ("text > '0089 and more than sixteen bytes'", [8, 9]),  # of 16 bytes all that is known is that more may follow
        ("flag", [5, 6, 7, 8, 9]),
        ("not flag", [0, 1, 2, 3, 4]),
        ("at >= timestamp('1970-01-01T00:00:00.00009Z')", [9]),
        ("price >= 90", [9]),
        ("number < 10 or price >= 90", [0, 9]),
        ("number < 10 or len(text) > 1", list(range(10))),
    ],
)
def test_sorted_columns_rule_out_all_other_ranges(text: str, left: list[int]) -> None:
    found = hopeful(read_filter(text, SORTED.schema), SORTED, [10] * 10, [10] * 10)
    assert np.flatnonzero(found).tolist() == left


def test_thirty_thousand_ranges_are_judged_by_their_own_bounds() -> None:
    """In one go: a loop over ranges with an expression each took 6 s."""
    count = 30_000
    column = ShardColumn(
        name="number", nulls=(1,) * count, min=tuple(range(0, 10 * count, 10)), max=tuple(range(9, 10 * count, 10))
    )
    shards = shard_bounds(column, pa.int64(), [11] * count)
    bounds = range_bounds(shards, np.arange(count + 1) * 11, np.full(count, 11))
    found = read_filter("number in [0, 77, 200000] or number > 299980", pa.schema([("number", pa.int64())]))
    left = may_match(tree_of(found.expression), {"number": bounds}, count)
    assert np.flatnonzero(left).tolist() == [0, 7, 20_000, 29_998, 29_999]


def test_without_statistics_nothing_is_ruled_out() -> None:
    found = read_filter("number > 3 and nullable is None", SORTED.schema)
    nothing = range_bounds(unknown_shards(4, pa.int64()), np.arange(5) * 25, np.full(4, 25))
    assert may_match(tree_of(found.expression), {}, 4).all()
    assert may_match(tree_of(found.expression), {"number": nothing, "nullable": nothing}, 4).all()


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (pa.int32(), "a", "b"),
        (pa.int32(), 9, 1),
        (pa.int32(), True, True),
        (pa.string(), 1, 2),
        (pa.float32(), "a", "b"),
        (pa.decimal128(5, 2), "one", "two"),
        (pa.decimal128(5, 2), "NaN", "NaN"),
        (pa.binary(), "a", "b"),
        (pa.bool_(), 0, 1),
    ],
)
def test_statistics_that_make_no_sense_rule_nothing_out(kind: pa.DataType, low: Any, high: Any) -> None:
    column = ShardColumn(name="x", nulls=(0,), min=(low,), max=(high,))
    assert shard_bounds(column, kind, [10]).bounds == [None]


def test_shards_of_several_indexes_lie_end_to_end() -> None:
    first = shard_bounds(ShardColumn(name="x", nulls=(0, 5), min=(1, None), max=(2, None)), pa.int8(), [5, 5])
    second = shard_bounds(ShardColumn(name="x", nulls=(2,), min=(7,), max=(9,)), pa.int8(), [5])
    joined = range_bounds(join_bounds([first, second]), np.array([0, 5, 10, 15]), np.array([4, 4, 7]))
    assert joined.low.tolist() == [1, 1, 7] and joined.high.tolist() == [2, 2, 9]
    assert joined.nulls.tolist() == [False, True, True] and joined.values.tolist() == [True, True, True]


@given(text=st.text("ab\ud7ff\ue000\U0010ffff", max_size=4), more=st.text(max_size=6))
@example(text="\U0010ffff", more="")
def test_the_successor_is_above_every_text_with_that_prefix(text: str, more: str) -> None:
    above = successor(text)
    if above is None:
        assert set(text) <= {"\U0010ffff"}
    else:
        assert (text + more).encode() < above.encode()
