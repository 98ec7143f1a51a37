from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.tables.cutting import Cut, Cutter, GroupBlocks, row_ranges
from dhtdata.tables.fingerprint import row_fingerprints
from dhtdata.tables.sizes import row_bytes

KIB, MIB = 1 << 10, 1 << 20
MASK = (1 << 64) - 1
P = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ x >> 33


def slow_cuts(fingerprints: list[int], sizes: list[int]) -> list[Cut]:
    """The specification, row by row: the oracle."""
    blocks: list[tuple[int, int, int]] = []  # rows, bytes, h of the last row
    rows = total = 0
    last = 0
    for i, size in enumerate(sizes):
        window = sum(pow(P, k, 1 << 64) * fingerprints[i - k] for k in range(16) if i - k >= 0) & MASK
        h = mix(window)
        if rows and total + size > 4 * MIB:
            blocks.append((rows, total, last))
            rows = total = 0
        rows, total, last = rows + 1, total + size, h
        if total >= 256 * KIB and h <= min(size * 23456248059221, MASK):
            blocks.append((rows, total, last))
            rows = total = 0
    if rows:
        blocks.append((rows, total, last))
    cuts = []
    shard, may_end = 0, True
    for rows, total, last in blocks:
        starts = may_end or shard + total > 64 * MIB
        shard = total if starts else shard + total
        may_end = shard >= 8 * MIB and mix(last ^ 0xD6E8FEB86659FD93) < (1 << 64) // 24
        cuts.append(Cut(rows, total, starts))
    return cuts


def cuts_of(fingerprints: np.ndarray, sizes: np.ndarray, batch_ends: Iterable[int] = ()) -> list[Cut]:
    cutter = Cutter()
    cuts = []
    first = 0
    for end in [*sorted(batch_ends), len(sizes)]:
        cuts += cutter.push(fingerprints[first:end].astype(np.uint64), sizes[first:end].astype(np.int64))
        first = end
    return cuts + cutter.finish()


def random_rows(seed: int, count: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.Philox(seed)
    return random.random_raw(count), low + (random.random_raw(count) % np.uint64(high - low)).astype(np.int64)


# (rows, smallest size, largest size): why
SHAPES = [
    (3_000, 1, 2),  # everything stays under the minimum: one block
    (4_000, 1_000, 60_000),  # ordinary rows, several shards
    (600, 200 * KIB, 300 * KIB),  # around the minimum
    (300, 700 * KIB, 900 * KIB),  # around the size that always ends a block
    (200, 1, 9 * MIB),  # rows over the maximum of a block
    (30, 60 * MIB, 70 * MIB),  # rows around the maximum of a shard
    (1, 1, 2),
]


@pytest.mark.parametrize(("count", "low", "high"), SHAPES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 32), distinct=st.sampled_from([None, 1, 2]), ends=st.lists(st.integers(0, 4_000)))
def test_cuts_agree_with_the_specification_however_the_rows_are_batched(
    count: int, low: int, high: int, seed: int, distinct: int | None, ends: list[int]
) -> None:
    fingerprints, sizes = random_rows(seed, count, low, high)
    if distinct is not None:
        fingerprints %= np.uint64(distinct)
    expected = slow_cuts(fingerprints.tolist(), sizes.tolist())
    assert cuts_of(fingerprints, sizes, [end for end in ends if end <= count]) == expected


def test_row_by_row_batches_cut_alike() -> None:
    fingerprints, sizes = random_rows(5, 700, 1_000, 90_000)
    assert cuts_of(fingerprints, sizes, range(1, 700)) == cuts_of(fingerprints, sizes)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 32), high=st.sampled_from([50, 5_000, 500_000, 6_000_000]))
def test_minimum_and_maximum_sizes_hold(seed: int, high: int) -> None:
    fingerprints, sizes = random_rows(seed, 3_000, 1, high)
    cuts = cuts_of(fingerprints, sizes)
    assert sum(cut.rows for cut in cuts) == len(sizes)
    assert sum(cut.row_bytes for cut in cuts) == sizes.sum()
    ends = list(accumulate(cut.rows for cut in cuts))
    for cut, end in zip(cuts, ends, strict=True):
        # Under the minimum only at the split's end, or where the next row does not fit.
        assert cut.row_bytes >= 256 * KIB or end == len(sizes) or cut.row_bytes + sizes[end] > 4 * MIB
        assert cut.row_bytes <= 4 * MIB or cut.rows == 1
    shards = shards_of(cuts)
    for shard in shards:
        assert sum(cut.row_bytes for cut in shard) <= 64 * MIB or len(shard) == 1
    for shard, following in zip(shards, shards[1:], strict=False):
        taken = sum(cut.row_bytes for cut in shard)
        assert taken >= 8 * MIB or taken + following[0].row_bytes > 64 * MIB


def shards_of(cuts: list[Cut]) -> list[list[Cut]]:
    shards: list[list[Cut]] = []
    for cut in cuts:
        if cut.starts_shard:
            shards.append([])
        shards[-1].append(cut)
    return shards


def test_blocks_and_shards_come_out_near_their_targets() -> None:
    fingerprints, sizes = random_rows(11, 1_000_000, 400, 2_400)
    cuts = cuts_of(fingerprints, sizes)
    shards = shards_of(cuts)
    assert 0.8 * MIB < sizes.sum() / len(cuts) < 1.2 * MIB
    assert 24 * MIB < sizes.sum() / len(shards) < 40 * MIB


def test_a_column_of_three_values_is_cut_by_content_too() -> None:
    random = np.random.Generator(np.random.Philox(3))
    column = pa.array(random.integers(0, 3, 3_000_000).astype(np.int32))
    cuts = cuts_of(row_fingerprints([column]), np.full(len(column), 4))
    assert len(cuts) > 5
    assert max(cut.row_bytes for cut in cuts) < 4 * MIB


def blocks_of(rows: np.ndarray, sizes: np.ndarray) -> set[bytes]:
    """Digests of the rows of every block: equal blocks would not be shipped again."""
    ends = [0, *accumulate(cut.rows for cut in cuts_of(rows, sizes))]
    return {hashlib.sha256(rows[first:end].tobytes()).digest() for first, end in zip(ends, ends[1:], strict=False)}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows, extra: np.concatenate([rows[:41_234], extra, rows[41_234:]]),
        lambda rows, extra: np.concatenate([extra, rows]),
        lambda rows, extra: np.concatenate([rows, extra]),
        lambda rows, extra: np.delete(rows, np.s_[70_000:70_300]),
        lambda rows, extra: rows[300:],
        lambda rows, extra: np.concatenate([rows[:50_000], extra[:1], rows[50_001:]]),
    ],
    ids=["insert", "prepend", "append", "delete", "drop the head", "change one row"],
)
def test_a_small_change_re_ships_few_blocks(change: object) -> None:
    assert callable(change)
    random = np.random.Generator(np.random.Philox(7))
    rows = random.integers(0, MASK, 100_000, dtype=np.uint64)
    extra = random.integers(0, MASK, 300, dtype=np.uint64)
    # The size belongs to the row, as it does in a table.
    before = blocks_of(rows, 500 + (rows % np.uint64(3_000)).astype(np.int64))
    changed = change(rows, extra)
    after = blocks_of(changed, 500 + (changed % np.uint64(3_000)).astype(np.int64))
    assert len(before) > 150
    assert len(after - before) <= 0.03 * len(after)


def fixed_table() -> pa.Table:
    """The same on every machine: raw words of Philox."""
    random = np.random.Philox(20)
    texts = [bytes(97 + word % 26 for word in words).decode() for words in random.random_raw((257, 40)).tolist()]
    count = 40_000
    lengths = random.random_raw(count) % np.uint64(900)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    payload = random.random_raw(int(offsets[-1]) // 8 + 1).astype("<u8").tobytes()[: int(offsets[-1])]
    columns = {
        "id": pa.array(np.arange(count)),
        "label": pa.array((random.random_raw(count) % np.uint64(5)).astype(np.int8)),
        "text": pa.array([texts[word % 257] if word % 11 else None for word in random.random_raw(count).tolist()]),
        "bytes": pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(payload)]),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(random.random_raw(count * 8).astype(np.uint8).astype(np.float32)), 8
        ),
    }
    return pa.table(columns)


@pytest.mark.parametrize("rows", [40_000, 1_234])
def test_cuts_of_version_1_are_pinned(rows: int) -> None:
    cutter = Cutter()
    cuts = []
    for batch in fixed_table().to_batches(max_chunksize=rows):
        cuts += cutter.push(row_fingerprints(batch.columns), row_bytes(batch))
    cuts += cutter.finish()
    assert [cut.rows for cut in cuts] == GOLDEN_ROWS
    assert sum(cut.row_bytes for cut in cuts) == GOLDEN_BYTES
    assert [position for position, cut in enumerate(cuts) if cut.starts_shard] == GOLDEN_SHARDS


def test_shard_ends_of_version_1_are_pinned() -> None:
    fingerprints, sizes = random_rows(20, 100_000, 200, 12_000)
    ends = [0, *accumulate(cut.rows for cut in cuts_of(fingerprints, sizes))]
    starts = [end for end, cut in zip(ends, cuts_of(fingerprints, sizes), strict=False) if cut.starts_shard]
    assert starts == GOLDEN_SHARD_STARTS
    assert len(ends) == GOLDEN_END_COUNT


GOLDEN_ROWS: list[int] = [
    1145,
    1560,
    1005,
    2779,
    540,
    1639,
    688,
    3600,
    693,
    1398,
    3262,
    2311,
    1006,
    1750,
    5802,
    686,
    2353,
    1274,
    2674,
    1395,
    1164,
    884,
    392,
]
GOLDEN_BYTES = 21384571
GOLDEN_SHARDS: list[int] = [0, 15]
GOLDEN_SHARD_STARTS: list[int] = [
    0,
    1866,
    3476,
    11929,
    13470,
    23460,
    25244,
    36198,
    47070,
    53457,
    57783,
    66126,
    69756,
    74483,
    76224,
    81037,
    86695,
    90391,
    95247,
]
GOLDEN_END_COUNT = 603


def slow_ranges(groups: list[GroupBlocks]) -> list[int]:
    totals = [sum(group.sizes) for group in groups]
    widest = groups[totals.index(max(totals))]

    def before(row: int) -> int:
        total = 0
        for group in groups:
            ends = [0, *accumulate(group.rows)]
            block = bisect.bisect_right(ends, row) - 1
            total += sum(group.sizes[:block])
            if block < len(group.rows):
                total += group.sizes[block] * (row - ends[block]) // group.rows[block]
        return total

    ranges = []
    first = 0
    ends = list(accumulate(widest.rows))
    for end in ends[:-1]:
        if before(end) - before(first) >= 32 * MIB:
            ranges.append(end - first)
            first = end
    return [*ranges, ends[-1] - first]


@st.composite
def grouped_blocks(draw: st.DrawFn) -> list[GroupBlocks]:
    random = np.random.Generator(np.random.Philox(draw(st.integers(0, 1 << 32))))
    row_count = draw(st.sampled_from([1, 7, 500, 100_000]))
    groups = []
    for largest in draw(st.lists(st.sampled_from([1, 300, MIB, 4 * MIB, 200 * MIB]), min_size=1, max_size=4)):
        blocks = draw(st.integers(1, min(row_count, 60)))
        inner = random.choice(row_count - 1, blocks - 1, replace=False) + 1 if blocks > 1 else np.zeros(0, np.int64)
        ends = [0, *sorted(inner.tolist()), row_count]
        rows = [end - first for first, end in zip(ends, ends[1:], strict=False)]
        groups.append(GroupBlocks(rows, [int(size) for size in random.integers(1, largest + 1, blocks)]))
    return groups


@settings(max_examples=200, deadline=None)
@given(grouped_blocks())
def test_row_ranges_agree_with_the_specification(groups: list[GroupBlocks]) -> None:
    ranges = row_ranges(groups)
    assert ranges == slow_ranges(groups)
    assert sum(ranges) == sum(groups[0].rows)
    assert min(ranges) >= 1
