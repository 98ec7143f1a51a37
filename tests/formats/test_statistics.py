from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.codec import encode_json, encode_msgpack
from dhtdata.formats.statistics import (
    MAX_STATISTICS_BYTES,
    ColumnStatistics,
    Histogram,
    Lengths,
    ShardColumn,
    ShardStatistics,
    SplitStatistics,
    Statistics,
    TopValue,
)

counts = st.integers(0, 1 << 40)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | finite | st.text(max_size=64)
lengths = st.tuples(counts, counts, finite).map(lambda t: Lengths(min=min(t[:2]), max=max(t[:2]), mean=t[2]))
columns = st.builds(
    ColumnStatistics,
    name=st.text(max_size=20),
    nulls=counts,
    nans=counts,
    infinities=st.tuples(counts, counts),
    min=values,
    max=values,
    min_cut=st.booleans(),
    max_cut=st.booleans(),
    mean=st.none() | finite,
    lengths=st.none() | lengths,
    histogram=st.none()
    | st.builds(
        Histogram,
        of=st.sampled_from(["values", "lengths"]),
        low=finite,
        high=finite,
        counts=st.lists(counts, min_size=1, max_size=20).map(tuple),
    ),
    top=st.lists(st.builds(TopValue, value=values, count=counts), max_size=10).map(tuple),
)
digests = st.binary(min_size=32, max_size=32).map(Digest)
splits = st.builds(
    SplitStatistics,
    name=st.text(min_size=1, max_size=9),
    rows=st.just(1 << 45),
    sampled=counts,
    columns=st.lists(columns, max_size=3).map(tuple),
    shards=st.lists(st.lists(digests, max_size=2).map(tuple), max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(splits, min_size=1, max_size=3, unique_by=lambda split: split.name))
def test_statistics_round_trip(given_splits: list[SplitStatistics]) -> None:
    statistics = Statistics(version=1, splits=tuple(given_splits))
    assert Statistics.decode(statistics.encode()) == statistics
    assert statistics.encode_thinned() == statistics.encode()


@st.composite
def shard_statistics(draw: st.DrawFn) -> ShardStatistics:
    shards = draw(st.integers(1, 5))

    def parallel(entries: st.SearchStrategy[Any]) -> Any:
        return draw(st.just(()) | st.lists(entries, min_size=shards, max_size=shards).map(tuple))

    column = ShardColumn(
        name=draw(st.text(max_size=9)),
        nulls=tuple(draw(st.lists(counts, min_size=shards, max_size=shards))),
        nans=parallel(counts),
        infinities=parallel(st.tuples(counts, counts)),
        min=parallel(values),
        max=parallel(values),
        min_cut=parallel(st.booleans()),
        max_cut=parallel(st.booleans()),
        mean=parallel(st.none() | finite),
        lengths=parallel(st.none() | lengths),
    )
    return ShardStatistics(version=1, shards=shards, columns=(column,))


@settings(max_examples=60, deadline=None)
@given(shard_statistics())
def test_shard_statistics_round_trip(statistics: ShardStatistics) -> None:
    assert ShardStatistics.decode(statistics.encode()) == statistics


SMALL = Statistics(
    version=1,
    splits=(
        SplitStatistics(
            name="train",
            rows=3,
            sampled=3,
            columns=(
                ColumnStatistics(
                    name="text",
                    nulls=1,
                    min="a",
                    max="b",
                    max_cut=True,
                    lengths=Lengths(min=1, max=80, mean=40.5),
                    histogram=Histogram(of="lengths", low=1.0, high=80.0, counts=(1, 1)),
                    top=(TopValue(value="a", count=2),),
                ),
            ),
            shards=((Digest(bytes(32)),),),
        ),
    ),
)
SHARDS = ShardStatistics(
    version=1,
    shards=2,
    columns=(ShardColumn(name="x", nulls=(0, 1), min=(1, None), max=(2, None), mean=(1.5, None)),),
)


def test_version_1_is_pinned() -> None:
    assert SMALL.encode() == (
        b'{"splits":[{"columns":[{"histogram":{"counts":[1,1],"high":80.0,"low":1.0,"of":"lengths"},'
        b'"lengths":{"max":80,"mean":40.5,"min":1},"max":"b","max_cut":true,"min":"a","name":"text","nulls":1,'
        b'"top":[{"count":2,"value":"a"}]}],"name":"train","rows":3,"sampled":3,"shards":[["' + b"0" * 64 + b'"]]}],'
        b'"version":1}'
    )
    assert SHARDS.encode().hex() == (
        "83a7636f6c756d6e739185a36d61789202c0a46d65616e92cb3ff8000000000000c0a36d696e9201c0a46e616d65a178a56e756c6c"
        "73920001a673686172647302a776657273696f6e01"
    )


def changed(**fields: Any) -> Statistics:
    split = SMALL.splits[0]
    return replace(SMALL, splits=(replace(split, columns=(replace(split.columns[0], **fields),)),))


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        (replace(SMALL, version=2), "upgrade dhtdata"),
        (replace(SMALL, splits=()), "1 to 256 splits"),
        (replace(SMALL, splits=SMALL.splits * 2), "names of their own"),
        (replace(SMALL, splits=(replace(SMALL.splits[0], rows=-1),)), "negative"),
        (changed(nulls=4), "more nulls than rows"),
        (changed(nans=-1), "negative"),
        (changed(lengths=Lengths(min=2, max=1, mean=1.5)), "lengths make no sense"),
        (changed(histogram=Histogram(of="colours", low=0.0, high=1.0, counts=(1,))), "malformed histogram"),
        (changed(histogram=Histogram(of="values", low=0.0, high=1.0, counts=(1,) * 21)), "malformed histogram"),
        (changed(top=(TopValue(value=1, count=1),) * 11), "more than 10 top values"),
        (replace(SMALL, ext={str(n): "" for n in range(65)}), "ext has 65 entries"),
    ],
)
def test_malformed_statistics_are_refused(statistics: Statistics, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        Statistics.decode(encode_json(statistics))
    with pytest.raises(FormatError, match=complaint):
        statistics.encode()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"nulls": (1,)}, "1 entries for 2 shards"),
        ({"mean": (1.0, 2.0, 3.0)}, "3 entries for 2 shards"),
        ({"nans": (0, -1)}, "negative"),
        ({"min": (float("nan"), 1.0)}, "not finite"),
        ({"mean": (float("inf"), None)}, "not finite"),
        ({"lengths": (Lengths(min=-1, max=1, mean=0.0), None)}, "lengths make no sense"),
    ],
)
def test_malformed_shard_statistics_are_refused(fields: dict[str, Any], complaint: str) -> None:
    broken = replace(SHARDS, columns=(replace(SHARDS.columns[0], **fields),))
    with pytest.raises(FormatError, match=complaint):
        ShardStatistics.decode(encode_msgpack(broken))


@pytest.mark.parametrize(
    "broken",
    [
        replace(SHARDS, shards=0, columns=()),
        replace(SHARDS, shards=4_097, columns=()),
        replace(SHARDS, columns=SHARDS.columns * 65),
    ],
)
def test_shard_statistics_out_of_bounds_are_refused(broken: ShardStatistics) -> None:
    with pytest.raises(FormatError, match="need 1 to 4096 shards and at most 64 columns"):
        ShardStatistics.decode(encode_msgpack(broken))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"splits": [], "version": 1}', b'{"x":1}'])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="statistics"):
        Statistics.decode(data)
    with pytest.raises(FormatError, match="shard statistics"):
        ShardStatistics.decode(data)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_format_error_or_other_statistics(at: int, byte: int) -> None:
    for data, decode in ((SMALL.encode(), Statistics.decode), (SHARDS.encode(), ShardStatistics.decode)):
        changed_bytes = bytearray(data)
        changed_bytes[at % len(data)] = byte
        try:
            decoded = decode(bytes(changed_bytes))
        except FormatError:
            continue
        assert decoded.encode() == bytes(changed_bytes)


def test_sketches_go_first_and_then_the_last_columns_when_the_blob_would_be_too_large() -> None:
    column = changed(top=tuple(TopValue(value=f"{n:060}", count=2) for n in range(10))).splits[0].columns[0]

    def with_columns(count: int) -> Statistics:
        named = tuple(replace(column, name=f"{n:06}") for n in range(count))
        return Statistics(version=1, splits=(replace(SMALL.splits[0], columns=named),))

    few = Statistics.decode(with_columns(4_000).encode_thinned()).splits[0].columns
    assert len(few) == 4_000
    assert all(c.histogram is None and c.top == () and c.lengths is not None for c in few)
    huge = with_columns(40_000)
    with pytest.raises(FormatError, match="at most"):
        huge.encode()
    data = huge.encode_thinned()
    assert MAX_STATISTICS_BYTES // 4 < len(data) <= MAX_STATISTICS_BYTES
    kept = Statistics.decode(data).splits[0].columns
    assert [c.name for c in kept] == [f"{n:06}" for n in range(len(kept))]
