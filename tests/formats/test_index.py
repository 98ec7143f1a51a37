from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_SHARD_BYTES
from dhtdata.formats.index import (
    MAX_INDEX_BYTES,
    MAX_RANGES,
    MAX_RANGES_BYTES,
    MAX_ROWS,
    MAX_SHARDS,
    Index,
    ShardEntry,
    decode_ranges,
    encode_ranges,
)
from tests.formats.samples import named

digests = st.binary(min_size=32, max_size=32).map(Digest)
entries = st.builds(
    ShardEntry, digest=digests, table=digests, rows=st.integers(1, 1 << 40), size=st.integers(1, MAX_SHARD_BYTES)
)
counts = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=50).map(tuple)


@given(many=st.lists(entries, min_size=1, max_size=20))
def test_an_index_is_read_back(many: list[ShardEntry]) -> None:
    index = Index.decode(Index.build(many).encode())
    assert len(index) == len(many)
    assert [index[i] for i in range(len(index))] == many
    assert index.digests() == [entry.digest for entry in many]


def test_an_index_has_no_entry_outside() -> None:
    index = Index.build([ShardEntry(named("a"), named("b"), 1, 1)])
    for position in (-1, 1):
        with pytest.raises(IndexError):
            index[position]


def entry(rows: int = 1, size: int = 1) -> ShardEntry:
    return ShardEntry(named("shard"), named("table"), rows, size)


LIMITS: dict[str, tuple[list[ShardEntry], bool]] = {
    "no shard": ([], False),
    "one shard": ([entry()], True),
    "most shards": ([entry()] * MAX_SHARDS, True),
    "one shard too many": ([entry()] * (MAX_SHARDS + 1), False),
    "a shard without rows": ([entry(rows=0)], False),
    "negative rows": ([entry(rows=5), entry(rows=-1)], False),
    "most rows": ([entry(rows=MAX_ROWS)], True),
    "one row too many": ([entry(rows=MAX_ROWS), entry()], False),
    "an empty shard": ([entry(size=0)], False),
    "the largest shard": ([entry(size=MAX_SHARD_BYTES)], True),
    "a shard one byte too large": ([entry(size=MAX_SHARD_BYTES + 1)], False),
}


@pytest.mark.parametrize("case", LIMITS)
def test_only_what_can_be_stored_is_an_index(case: str) -> None:
    many, allowed = LIMITS[case]
    if allowed:
        assert len(Index.decode(Index.build(many).encode())) == len(many)
    else:
        with pytest.raises(FormatError, match="index"):
            Index.build(many)


def test_the_largest_index_fits_its_limit() -> None:
    assert len(Index.build([entry(1 << 30, MAX_SHARD_BYTES)] * MAX_SHARDS).encode()) < MAX_INDEX_BYTES


@given(rows=counts)
def test_row_ranges_are_read_back(rows: tuple[int, ...]) -> None:
    assert decode_ranges(encode_ranges(rows)) == rows
    assert encode_ranges(list(rows)) == encode_ranges(rows)


def test_most_ranges_fit_their_limit() -> None:
    encoded = encode_ranges([MAX_ROWS // MAX_RANGES] * MAX_RANGES)
    assert len(encoded) < MAX_RANGES_BYTES
    assert len(decode_ranges(encoded)) == MAX_RANGES


@pytest.mark.parametrize("rows", [[], [0], [1, -1], [MAX_ROWS, 1], [1] * (MAX_RANGES + 1)])
def test_ranges_that_make_no_sense_are_refused(rows: list[int]) -> None:
    with pytest.raises(FormatError, match="row ranges"):
        encode_ranges(rows)
