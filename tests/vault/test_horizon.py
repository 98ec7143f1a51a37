"""What a loop will read, shard by shard, and what it must hold at once."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.formats.index import Index, ShardEntry
from dhtdata.order import EpochOrder, Pieces, Share, Steps
from dhtdata.vault.horizon import Needs, Uses
from dhtdata.vault.shards import GroupShards

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=10)


def group_of(rows: list[int], row_bytes: int = 10) -> GroupShards:
    entries = [
        ShardEntry(Digest.of(b"shard%d" % number), Digest.of(b"table%d" % number), count, count * row_bytes)
        for number, count in enumerate(rows)
    ]
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(rows, np.int64))])
    stored = pa.schema([("x", pa.int8())])
    return GroupShards(stored, ("x",), (Index.build(entries),), firsts, (0,), row_bytes * sum(rows), Digest(bytes(32)))


def cut_as(total: int, rows: list[int]) -> list[int]:
    """The same lengths, stretched or cut to a total."""
    bounds = sorted({min(bound, total) for bound in np.cumsum(rows).tolist()} | {total})
    lengths: list[int] = np.diff([0, *bounds]).tolist()
    return lengths


@given(
    ranges=lengths, shards=lengths, shuffle=st.booleans(), epoch=st.integers(0, 3), window=st.integers(1, 3),
    lanes=st.integers(1, 3), ranks=st.integers(1, 3), batch=st.integers(1, 4), data=st.data(),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_every_row_is_read_while_its_shard_is_said_to_be_in_use(
    ranges: list[int],
    shards: list[int],
    shuffle: bool,
    epoch: int,
    window: int,
    lanes: int,
    ranks: int,
    batch: int,
    data: st.DataObject,
) -> None:
    order = EpochOrder(Pieces(ranges), seed=7, epoch=epoch, shuffle=shuffle, window=window, lanes=lanes)
    group = group_of(cut_as(sum(ranges), shards))
    rank = data.draw(st.integers(0, ranks - 1))
    steps = Steps(order, Share(rank, ranks), global_batch=batch * ranks, remainder="uneven")
    uses = Uses.of(group, order, steps.lanes)
    for number in range(len(group)):
        own = uses.numbers == number
        spans = sorted(zip(uses.firsts[own].tolist(), uses.stops[own].tolist(), strict=True))
        assert all(before[1] < after[0] for before, after in zip(spans, spans[1:], strict=False))
    for step in range(len(steps) - (order.rows % (batch * ranks) != 0)):  # a short last batch may take a few others
        for row in steps.deal(range(step, step + 1)).rows.tolist():
            shard = int(np.searchsorted(group.firsts, row, "right")) - 1
            reached = range(steps.position(step), steps.position(step + 1))
            assert any(shard in uses.at(position) for position in reached)


@given(ranges=lengths, shards=lengths, window=st.integers(1, 3), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_no_window_of_any_epoch_holds_more_than_it_needs(
    ranges: list[int], shards: list[int], window: int, seed: int
) -> None:
    pieces = Pieces(ranges)
    groups = [group_of(cut_as(sum(ranges), shards)), group_of([sum(ranges)], row_bytes=1)]
    needs = Needs.of(groups, pieces, window, 1)
    for epoch in range(3):
        order = EpochOrder(pieces, seed=seed, epoch=epoch, shuffle=True, window=window)
        uses = [Uses.of(group, order, range(1)) for group in groups]
        for position in range(order.rows):
            held = [
                group.entry(number).size for group, own in zip(groups, uses, strict=True) for number in own.at(position)
            ]
            assert sum(held) + needs.table_bytes <= needs.bytes_for(0)
    assert (
        needs.bytes_for(0)
        <= needs.bytes_for(1)
        <= needs.bytes_for(1 << 40)
        == sum(needs.group_bytes) + needs.table_bytes
    )


@pytest.mark.parametrize("given_bytes", [None, 0, 300, 2_000])
def test_what_is_read_ahead_fits_or_the_limit_that_it_takes_is_named(given_bytes: int | None) -> None:
    needs = Needs.of([group_of([10] * 40)], Pieces([10] * 40), 4, 1)
    assert needs.bytes_for(0) == 400 + needs.table_bytes
    least = needs.bytes_for(given_bytes or 0) + 50
    assert needs.ahead(given_bytes, 1_000, 20_000, 50) == (1_000 if given_bytes is None else given_bytes)
    found = needs.ahead(given_bytes, 1_000, least, 50)
    assert found == (given_bytes or 0)
    with pytest.raises(ConfigError, match="cache limit") as failure:
        needs.ahead(given_bytes, 1_000, least - 1, 50)
    named = re.search(r"at least (\d+) bytes", str(failure.value))
    assert named is not None and int(named[1]) == least
    assert ("a smaller predownload" in str(failure.value)) == bool(given_bytes)


@given(limit=st.integers(5_600, 9_000), usual=st.integers(0, 3_000))
def test_the_usual_look_ahead_is_reduced_to_what_fits(limit: int, usual: int) -> None:
    needs = Needs.of([group_of([10] * 40)], Pieces([10] * 40), 4, 1)
    found = needs.ahead(None, usual, limit, 50)
    assert found <= usual and needs.bytes_for(found) + 50 <= limit
    assert found == usual or needs.bytes_for(2 * found + 2) + 50 > limit or found == 0
