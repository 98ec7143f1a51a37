from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import math
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.formats.statistics import ColumnStatistics, Lengths, ShardStatistics
from dhtdata.tables.statistics import ColumnSummary, GroupSummary, Sample, column_statistics


def summed(array: pa.Array, batch_rows: int = 1 << 30) -> ColumnSummary:
    summary = ColumnSummary(array.type)
    for first in range(0, max(len(array), 1), batch_rows):
        summary.add(array.slice(first, batch_rows))
    return summary


def published(array: pa.Array, batch_rows: int = 1 << 30) -> ColumnStatistics:
    schema = pa.schema([("x", array.type)])
    sample = Sample(schema)
    for first in range(0, max(len(array), 1), batch_rows):
        sample.add(pa.RecordBatch.from_arrays([array.slice(first, batch_rows)], schema=schema))
    return column_statistics("x", summed(array, batch_rows), sample, 0)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.int64(), pa.uint64()], ids=str)
@settings(max_examples=40, deadline=None)
@given(draw=st.data(), batch_rows=st.integers(1, 9))
def test_integers_are_summed_exactly(kind: pa.DataType, draw: st.DataObject, batch_rows: int) -> None:
    bounds = np.iinfo(np.dtype(str(kind)))
    values = draw.draw(st.lists(st.none() | st.integers(int(bounds.min), int(bounds.max)), max_size=30))
    summary = summed(pa.array(values, kind), batch_rows)
    present = [value for value in values if value is not None]
    assert (summary.rows, summary.nulls) == (len(values), len(values) - len(present))
    assert (summary.low, summary.high) == (min(present, default=None), max(present, default=None))
    assert summary.total == sum(present)
    assert summary.mean() == (sum(present) / len(present) if present else None)


@pytest.mark.parametrize(("kind", "width"), [(pa.float16(), 16), (pa.float32(), 32), (pa.float64(), 64)], ids=str)
@settings(max_examples=60, deadline=None)
@given(draw=st.data(), batch_rows=st.integers(1, 9))
def test_floats_are_summed_exactly_and_oddities_counted_apart(
    kind: pa.DataType, width: Literal[16, 32, 64], draw: st.DataObject, batch_rows: int
) -> None:
    values = draw.draw(st.lists(st.none() | st.floats(width=width), max_size=30))
    array = pa.array(np.array([0 if v is None else v for v in values], f"f{width // 8}"), kind)
    if None in values:
        array = pa.array(array.to_numpy(), kind, mask=np.array([value is None for value in values]))
    summary = summed(array, batch_rows)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    assert summary.nulls == values.count(None)
    assert summary.nans == sum(value is not None and math.isnan(value) for value in values)
    assert summary.infinities == (values.count(-math.inf), values.count(math.inf))
    assert (summary.low, summary.high) == (min(finite, default=None), max(finite, default=None))
    mean = sum(map(fractions.Fraction, finite)) / len(finite) if finite else None
    assert summary.mean() == (None if mean is None else float(mean))


def test_the_smallest_zero_has_no_sign() -> None:
    for values in ([0.0, -0.0], [-0.0, 0.0]):
        summary = summed(pa.array(values))
        assert math.copysign(1, summary.low) == math.copysign(1, summary.high) == 1


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.none() | st.text(max_size=90), max_size=20), batch_rows=st.integers(1, 7))
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_texts_have_bounds_in_byte_order_and_lengths_in_bytes(
    kind: pa.DataType, values: list[str | None], batch_rows: int
) -> None:
    summary = summed(pa.array(values, kind).slice(1), batch_rows)
    present = sorted(value.encode() for value in values[1:] if value is not None)
    low, high, low_cut, high_cut = summary.bounds(16)
    if not present:
        assert (low, high, summary.shown_lengths()) == (None, None, None)
        return
    for shown, cut, full in ((low, low_cut, present[0]), (high, high_cut, present[-1])):
        assert isinstance(shown, str)
        assert full.startswith(shown.encode())
        assert cut == (len(full) > 16)
        assert len(shown.encode()) == len(full) if not cut else 13 <= len(shown.encode()) <= 16
    sizes = [len(value) for value in present]
    assert summary.shown_lengths() == Lengths(min=min(sizes), max=max(sizes), mean=sum(sizes) / len(sizes))


def test_lists_maps_and_binaries_have_lengths() -> None:
    assert summed(pa.array([[1, 2, 3], None, []], pa.list_(pa.int8()))).shown_lengths() == Lengths(
        min=0, max=3, mean=1.5
    )
    assert summed(pa.array([[(1, 2)], None], pa.map_(pa.int8(), pa.int8()))).lengths == (1, 1, 1)
    binaries = published(pa.array([b"ab", b""] * 3))
    assert (binaries.lengths, binaries.min, binaries.top) == (Lengths(min=0, max=2, mean=1.0), None, ())


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
@settings(max_examples=30, deadline=None)
@given(units=st.lists(st.none() | st.integers(-(10**9) + 1, 10**9 - 1), min_size=1, max_size=12))
def test_decimals_have_text_bounds_and_an_exact_mean(bits: int, units: list[int | None]) -> None:
    kind = getattr(pa, f"decimal{bits}")(9, 4)
    values = [None if unit is None else decimal.Decimal(unit).scaleb(-4) for unit in units]
    figures = published(pa.array(values, kind), 5)
    present = [value for value in values if value is not None]
    if present:
        assert (figures.min, figures.max) == (format(min(present), "f"), format(max(present), "f"))
        assert figures.mean == float(fractions.Fraction(sum(map(fractions.Fraction, present))) / len(present))
    else:
        assert figures.min is figures.mean is None


def test_large_decimals_are_summed_over_all_their_limbs() -> None:
    values = [decimal.Decimal(10) ** 75, decimal.Decimal(-3), decimal.Decimal(2) ** 200]
    assert summed(pa.array(values, pa.decimal256(76, 0))).total == sum(map(int, values))


def test_temporal_columns_show_raw_integers_of_their_unit() -> None:
    moments = [datetime.datetime(1970, 1, 1, 0, 0, second) for second in (5, 5, 8)]
    figures = published(pa.array([*moments, None], pa.timestamp("ms")))
    assert (figures.min, figures.max, figures.mean, figures.nulls) == (5_000, 8_000, 6_000.0, 1)
    assert [(top.value, top.count) for top in figures.top] == [(5_000, 2)]
    assert published(pa.array([datetime.date(1970, 1, 3)], pa.date32())).max == 2
    assert published(pa.array([datetime.time(0, 0, 1)], pa.time64("us"))).max == 1_000_000


def test_booleans_have_a_mean() -> None:
    figures = published(pa.array([True, False, None, True, True]).slice(1))
    assert (figures.min, figures.max, figures.mean) == (False, True, 2 / 3)
    assert [(top.value, top.count) for top in figures.top] == [(True, 2)]


@pytest.mark.parametrize(
    "array",
    [
        pa.nulls(4),
        pa.array([{"a": 1}, None]),
        pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
        pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
        pa.array([b"abc", None], pa.binary(3)),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([None], pa.int8())]),
    ],
    ids=lambda array: str(array.type),
)
def test_other_types_have_counts_only(array: pa.Array) -> None:
    figures = published(array)
    nulls = 0 if pa.types.is_union(array.type) else array.null_count
    assert figures == ColumnStatistics(name="x", nulls=nulls)


def test_an_empty_or_all_null_column_has_counts_only() -> None:
    for kind in (pa.int8(), pa.float64(), pa.string(), pa.decimal128(5), pa.list_(pa.int8()), pa.bool_()):
        assert published(pa.array([None, None], kind)) == ColumnStatistics(name="x", nulls=2)
        assert published(pa.array([], kind)) == ColumnStatistics(name="x")


# The sample


def mix(x: int) -> int:
    mask = (1 << 64) - 1
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & mask
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & mask
    return x ^ x >> 33


def sampled_rows(count: int, cap: int) -> list[int]:
    limit = (1 << 64) - 1
    rows: list[int] = []
    for row in range(count):
        if mix(row + 1) <= limit:
            rows.append(row)
        while len(rows) > cap:
            limit >>= 1
            rows = [kept for kept in rows if mix(kept + 1) <= limit]
    return rows


@pytest.mark.parametrize("batch_rows", [1 << 30, 777, 20_000])
def test_the_sample_is_drawn_by_row_number_however_the_rows_are_batched(batch_rows: int) -> None:
    array = pa.array(np.arange(50_000) // 4)
    figures = published(array, batch_rows)
    rows = sampled_rows(50_000, 8_192)
    assert 3_000 < len(rows) <= 8_192
    assert figures.histogram is not None
    assert sum(figures.histogram.counts) == len(rows)
    counts = collections.Counter(row // 4 for row in rows)
    expected = sorted(((v, c) for v, c in counts.items() if c > 1), key=lambda entry: (-entry[1], str(entry[0])))
    assert [(top.value, top.count) for top in figures.top] == expected[:10]


def test_a_wide_table_samples_fewer_rows() -> None:
    schema = pa.schema([(f"c{n}", pa.int8()) for n in range(1_024)])
    sample = Sample(schema)
    columns = [pa.array(np.zeros(3_000, np.int8))] * 1_024
    sample.add(pa.RecordBatch.from_arrays(columns, schema=schema))
    assert sample.rows <= 1_024


def test_a_histogram_counts_what_lies_in_each_bin() -> None:
    values = [0.0, 0.49, 0.5, 5.0, 9.99, 10.0, math.nan, math.inf, None]
    histogram = published(pa.array(values)).histogram
    assert histogram is not None
    assert (histogram.low, histogram.high, histogram.of) == (0.0, 10.0, "values")
    assert histogram.counts == (2, 1, *[0] * 8, 1, *[0] * 8, 2)


def test_a_histogram_survives_the_whole_range_of_doubles() -> None:
    histogram = published(pa.array([-1.7e308, 0.0, 1.7e308])).histogram
    assert histogram is not None
    assert histogram.counts == (1, *[0] * 9, 1, *[0] * 8, 1)
    smallest = published(pa.array([0.0, 5e-324])).histogram
    assert smallest is not None
    assert smallest.counts == (1, *[0] * 18, 1)


def test_one_value_fills_one_bin() -> None:
    histogram = published(pa.array([7, 7, 7])).histogram
    assert histogram is not None
    assert (histogram.low, histogram.high, histogram.counts) == (7.0, 7.0, (3,))


def test_only_texts_of_up_to_64_bytes_are_counted_for_the_top() -> None:
    figures = published(pa.array(["a" * 64, "b" * 65, "ä" * 32, "c", None] * 2))
    assert {top.value for top in figures.top} == {"a" * 64, "ä" * 32, "c"}
    assert figures.histogram is not None
    assert figures.histogram.of == "lengths"
    assert sum(figures.histogram.counts) == 8


# Shards


def test_shard_statistics_add_up_to_the_whole() -> None:
    table = pa.table({"n": [1, 2, None, 4, 5], "t": ["b", "a", "x" * 20, None, "c"]})
    batch = table.to_batches()[0]
    group = GroupSummary(table.schema)
    for first, rows in ((0, 2), (2, 3)):
        group.begin_shard()
        for row in range(first, first + rows):
            group.add(batch.slice(row, 1).columns)
    group.end_shard()
    assert [summary.rows for summary in group.whole] == [5, 5]
    assert [summary.nulls for summary in group.whole] == [1, 1]
    assert group.whole[0].mean() == 3.0
    shards = ShardStatistics.decode(group.take_shards(2))
    numbers, texts = shards.columns
    assert (numbers.nulls, numbers.min, numbers.max, numbers.mean) == ((0, 1), (1, 4), (2, 5), (1.5, 4.5))
    assert (texts.min, texts.max, texts.max_cut) == (("a", "c"), ("b", "x" * 16), (False, True))
    assert texts.min_cut == texts.nans == ()
    assert [lengths.mean for lengths in texts.lengths if lengths] == [1.0, 10.5]


def test_shards_keep_the_first_64_columns() -> None:
    schema = pa.schema([(f"c{n}", pa.int8()) for n in range(70)])
    group = GroupSummary(schema)
    group.begin_shard()
    group.add([pa.array([1], pa.int8())] * 70)
    group.end_shard()
    assert len(group.whole) == 70
    assert [column.name for column in ShardStatistics.decode(group.take_shards(1)).columns] == schema.names[:64]


def test_shards_are_taken_in_order() -> None:
    group = GroupSummary(pa.schema([("n", pa.int8())]))
    for value in (1, 2, 3):
        group.begin_shard()
        group.add([pa.array([value], pa.int8())])
    group.end_shard()
    assert ShardStatistics.decode(group.take_shards(2)).columns[0].min == (1, 2)
    assert ShardStatistics.decode(group.take_shards(1)).columns[0].min == (3,)
