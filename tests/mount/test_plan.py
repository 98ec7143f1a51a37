"""A plan says what the order will touch: against a walk over every row, and against a real mount."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhtdata
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.index import MAX_SHARDS, Index, ShardEntry
from dhtdata.mount.plan import Job, Plan, make_plan
from dhtdata.order import EpochOrder, Pieces, Share, Steps
from dhtdata.store import Store
from dhtdata.tables.cutting import Cutter, row_ranges
from dhtdata.tables.cutting import GroupBlocks as CutBlocks
from dhtdata.vault.blocks import GroupBlocks, lay_blocks
from dhtdata.vault.shards import GroupShards
from tests.cli.machine import Machine
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed, settled_status

NOTHING = Digest(bytes(32))
DESCRIBED = 1_000
BANDWIDTH = 50_000.0

Shard = list[tuple[int, int]]
"""(length, rows) of each block that holds rows."""


@dataclass(frozen=True)
class World:
    """A dataset and how it is read."""

    groups: list[list[Shard]]
    ranges: list[int]
    job: Job

    def blocks(self) -> list[GroupBlocks]:
        return [
            lay_blocks(group_of(shards), dict(enumerate(map(table_of, shards))), list(accumulate(self.ranges)))
            for shards in self.groups
        ]

    def order(self) -> EpochOrder:
        job = self.job
        return EpochOrder(Pieces(self.ranges), seed=0, epoch=0, shuffle=job.shuffle, window=job.window, lanes=job.nodes)

    def plan(self, **changed: Any) -> Plan:
        return make_plan(self.blocks(), self.ranges, replace(self.job, **changed), DESCRIBED)


def table_of(shard: Shard) -> BlockTable:
    return BlockTable.build([(7, 0, NOTHING), *((*block, NOTHING) for block in shard), (5, 0, NOTHING)])


def group_of(shards: Sequence[Shard]) -> GroupShards:
    tables = list(map(table_of, shards))
    return sized_group([table.row_count for table in tables], [table.shard_bytes for table in tables])


def sized_group(rows: Sequence[int], sizes: Sequence[int]) -> GroupShards:
    entries = [ShardEntry(NOTHING, NOTHING, *pair) for pair in zip(rows, sizes, strict=True)]
    indexes = tuple(Index.build(entries[first : first + MAX_SHARDS]) for first in range(0, len(entries), MAX_SHARDS))
    firsts = np.array([0, *accumulate(rows)], np.int64)
    return GroupShards(pa.schema([]), (), indexes, firsts, (), sum(sizes), NOTHING)


@st.composite
def cut(draw: st.DrawFn, rows: int, most: int) -> list[int]:
    """Positive parts that add up to ``rows``."""
    ends = draw(st.lists(st.integers(1, max(rows - 1, 1)), max_size=most, unique=True))
    bounds = [0, *sorted(end for end in ends if end < rows), rows]
    return [stop - first for first, stop in zip(bounds, bounds[1:], strict=False)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rows = draw(st.integers(1, 300))
    groups = []
    for _ in range(draw(st.integers(1, 2))):
        blocks = [(draw(st.integers(1, 5_000)), count) for count in draw(cut(rows, 25))]
        shards = draw(cut(len(blocks), 6))
        ends = [0, *accumulate(shards)]
        groups.append([blocks[first:stop] for first, stop in zip(ends, ends[1:], strict=False)])
    nodes = draw(st.integers(1, 5))
    ranks = nodes * draw(st.integers(1, 3))
    job = Job(
        nodes=nodes,
        ranks=ranks,
        global_batch=ranks * draw(st.integers(1, 8)),
        shuffle=draw(st.booleans()),
        window=draw(st.integers(1, 4)),
        ahead_bytes=draw(st.sampled_from([0, 1_000, 20_000, 1 << 40])),
        bandwidth_bytes_s=BANDWIDTH,
        step_s=draw(st.sampled_from([0.0, 0.01, 1.0])),
    )
    return World(groups, draw(cut(rows, 12)), job)


def blocks_by_row(shards: Sequence[Shard]) -> list[tuple[int, int]]:
    """(shard, block) of every row."""
    return [
        (number, block) for number, shard in enumerate(shards) for block, (_, rows) in enumerate(shard)
        for _ in range(rows)
    ]  # fmt: skip


def bytes_of(shards: Sequence[Shard], rows: set[int]) -> int:
    """Bytes of the blocks that hold these rows, with the envelopes of shards of which every block does."""
    places = blocks_by_row(shards)
    touched = {places[row] for row in rows}
    whole = [number for number, shard in enumerate(shards) if all((number, b) in touched for b in range(len(shard)))]
    return sum(shards[number][block][0] for number, block in touched) + 12 * len(whole)


def steps_of(world: World, rank: int) -> Steps:
    job = world.job
    return Steps(world.order(), Share(rank, job.ranks), global_batch=job.global_batch, remainder="uneven")


def foreseen(world: World, node: int) -> set[int]:
    """Rows of all windows that the node's ranks read ahead, one by one."""
    job = world.job
    local = job.ranks // job.nodes
    return {
        row
        for rank in range(node * local, (node + 1) * local)
        for _, window in steps_of(world, rank).windows()
        for first, count in window.spans.tolist()
        for row in range(first, first + count)
    }


@given(worlds())
@settings(deadline=None, max_examples=80)
def test_bytes_of_a_node_are_those_of_the_blocks_that_its_order_touches(world: World) -> None:
    plan = world.plan()
    expected = [
        sum(bytes_of(shards, foreseen(world, node)) for shards in world.groups) for node in range(world.job.nodes)
    ]
    assert list(plan.node_bytes) == expected
    envelopes = 12 * sum(map(len, world.groups))
    assert sum(plan.node_bytes) + envelopes >= plan.byte_count
    if world.job.nodes == 1 or not world.job.shuffle:
        assert set(plan.node_bytes) == {plan.byte_count}


@given(worlds())
@settings(deadline=None, max_examples=80)
def test_a_node_reads_nothing_else_but_a_few_rows_in_a_short_last_batch(world: World) -> None:
    job = world.job
    local, full = job.ranks // job.nodes, world.order().rows // job.global_batch
    for node in range(job.nodes):
        own, strayed = foreseen(world, node), 0
        for rank in range(node * local, (node + 1) * local):
            steps = steps_of(world, rank)
            assert own.issuperset(steps.deal(range(full)).rows.tolist())
            strayed += len(set(steps.deal(range(full, len(steps))).rows.tolist()) - own)
        assert strayed <= -(-job.nodes // 4)


def windows_of(world: World) -> Iterator[tuple[int, list[tuple[int, int, set[int]]]]]:
    """By lane: (first lane row, end, source rows) of each window."""
    order = world.order()
    for lane in range(order.lanes):
        yield lane, [
            (w.first, w.stop, {row for first, count in w.spans.tolist() for row in range(first, first + count)})
            for w in order.windows(lane, 0)
        ]  # fmt: skip


def shard_bytes(world: World, rows: set[int]) -> int:
    """Full size of the shards that hold these rows."""
    total = 0
    for shards in world.groups:
        places = blocks_by_row(shards)
        total += sum(12 + sum(length for length, _ in shards[number]) for number in {places[row][0] for row in rows})
    return total


@given(worlds())
@settings(deadline=None, max_examples=80)
def test_the_least_cache_holds_the_shards_of_the_windows_that_any_step_reads(world: World) -> None:
    plan = world.plan(ahead_bytes=0)
    least, whole = 0, 0
    for lane, windows in windows_of(world):
        batch = world.job.global_batch // world.order().lanes
        described = plan.described_bytes[lane]
        for step in range(-(-windows[-1][1] // batch) if windows else 0):
            reading = [rows for first, stop, rows in windows if first < (step + 1) * batch and stop > step * batch]
            least = max(least, described + shard_bytes(world, set().union(*reading)))
        whole = max(whole, described + shard_bytes(world, set().union(*(rows for _, _, rows in windows))))
    assert (plan.cache_least_bytes, plan.cache_epoch_bytes) == (least, whole)
    assert plan.cache_peak_bytes == plan.cache_least_bytes
    assert world.plan(ahead_bytes=1 << 40).cache_peak_bytes == whole
    assert least <= world.plan(ahead_bytes=5_000).cache_peak_bytes <= whole


@given(worlds())
@settings(deadline=None, max_examples=60)
def test_with_room_to_fetch_everything_ahead_the_loop_is_as_late_as_the_latest_window(world: World) -> None:
    plan = world.plan(ahead_bytes=1 << 40)
    job = world.job
    late, first = DESCRIBED / BANDWIDTH, DESCRIBED / BANDWIDTH
    for _, windows in windows_of(world):
        batch = job.global_batch // world.order().lanes
        seen: set[int] = set()
        for begin, _, rows in windows:
            seen |= rows
            step = begin // batch
            # Tables are estimated as the plan estimates them; they are few bytes of many.
            arrived = sum(bytes_of(shards, seen) for shards in world.groups)
            tables = sum(tables_of(world, number, seen) for number in range(len(world.groups)))
            here = (DESCRIBED + arrived + tables) / BANDWIDTH
            late = max(late, here - step * job.step_s)
            if step == 0:
                first = max(first, here)
    assert plan.epoch_s == pytest.approx(late + plan.steps * job.step_s)
    if job.step_s:
        assert plan.first_batch_s == pytest.approx(first)
        assert plan.stall_s == pytest.approx(late - first, abs=1e-9)


def tables_of(world: World, group: int, rows: set[int]) -> int:
    laid = world.blocks()[group]
    places = blocks_by_row(world.groups[group])
    return int(sum(laid.tables[number] for number in {places[row][0] for row in rows}))


@given(worlds())
@settings(deadline=None, max_examples=60)
def test_with_nothing_fetched_ahead_one_node_waits_for_every_byte(world: World) -> None:
    alone = replace(world, job=replace(world.job, nodes=1, shuffle=True))
    plan = alone.plan(ahead_bytes=0, step_s=1.0)
    whole_s = (plan.byte_count + plan.described_bytes[0]) / BANDWIDTH
    assert plan.network_s == pytest.approx(whole_s)
    assert plan.first_batch_s + plan.stall_s == pytest.approx(whole_s)
    assert plan.network_rows_s == pytest.approx(plan.rows / whole_s)


@given(worlds(), st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_more_room_never_makes_a_run_longer_and_the_picture_shows_all_waiting(world: World, parts: int) -> None:
    lengths = [world.plan(ahead_bytes=ahead).epoch_s for ahead in (0, 500, 5_000, 50_000, 1 << 40)]
    assert all(later <= sooner + 1e-9 for sooner, later in zip(lengths, lengths[1:], strict=False))
    plan = world.plan()
    arriving, waiting = plan.shares(parts)
    assert len(arriving) == len(waiting) == parts
    assert all(0 <= share <= 1 for share in (*arriving, *waiting))
    waited = plan.epoch_s - plan.steps * world.job.step_s
    assert sum(waiting) * plan.epoch_s / parts == pytest.approx(waited, abs=1e-6)
    assert sum(arriving) * plan.epoch_s / parts == pytest.approx(sum(seconds for _, seconds in plan.arrivals), abs=1e-6)


def test_without_block_tables_the_plan_is_nearly_the_same() -> None:
    draw = np.random.Generator(np.random.Philox(5))
    rows = 400_000
    cuts = []
    for width in (900, 60):
        cutter = Cutter()
        sizes = draw.integers(width // 2, 2 * width, rows)
        found = cutter.push(draw.integers(0, 1 << 63, rows, dtype=np.uint64), sizes) + cutter.finish()
        cuts.append(found)
    ranges = row_ranges([CutBlocks([c.rows for c in found], [c.row_bytes for c in found]) for found in cuts])
    plans = []
    for known in (True, False):
        groups = []
        for place, found in enumerate(cuts):
            shards: list[Shard] = []
            for c in found:
                if c.starts_shard:
                    shards.append([])
                shards[-1].append((c.row_bytes, c.rows))
            tables = dict(enumerate(map(table_of, shards))) if known else {}
            groups.append(lay_blocks(group_of(shards), tables, [] if place else list(accumulate(ranges))))
        job = Job(4, 4, 256, True, 2, 64 << 20, 1e8, 0.001)
        plans.append(make_plan(groups, ranges, job, DESCRIBED))
    exact, guessed = plans
    assert guessed.byte_count == exact.byte_count
    assert sum(guessed.node_bytes) == pytest.approx(sum(exact.node_bytes), rel=0.02)
    assert max(guessed.node_bytes) == pytest.approx(max(exact.node_bytes), rel=0.03)
    assert guessed.epoch_s == pytest.approx(exact.epoch_s, rel=0.03)
    assert guessed.cache_least_bytes == pytest.approx(exact.cache_least_bytes, rel=0.05)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_plan_for_a_billion_rows_is_small(shuffle: bool) -> None:
    rows = [33_333] * 30_000
    group = sized_group(rows, [32 << 20] * len(rows))
    tracemalloc.start()
    blocks = lay_blocks(group, {}, list(accumulate(rows)))
    plan = make_plan([blocks], rows, Job(8, 64, 4096, shuffle, 8, 256 << 20, 125e6, 0.1), 3_000_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 128 << 20
    share = max(plan.node_bytes) / plan.byte_count
    assert share == 1 if not shuffle else 1 / 8 <= share <= 1.15 / 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nodes": 7}, "64 ranks do not spread evenly over 7 nodes: take 63 or 70 ranks"),
        ({"nodes": 128}, "take 128 ranks"),
        ({"nodes": 0}, "nodes: 0"),
        ({"global_batch": 100}, "100 rows cannot be dealt to 64 ranks equally: take 64 or 128 rows"),
        ({"global_batch": 10}, "take 64 rows"),
    ],
)
def test_a_job_that_does_not_divide_is_told_the_next_sizes(change: dict[str, Any], told: str) -> None:
    fitting = Job(8, 64, 4096, True, 8, 0, 1e6)
    with pytest.raises(ConfigError, match=told):
        replace(fitting, **change)


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_each_node_of_a_real_run_fetches_what_the_plan_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Machine(tmp_path, "asker")
    monkeypatch.setenv("XDG_RUNTIME_DIR", asker.environment["XDG_RUNTIME_DIR"])
    rows = 6_000
    table = pa.table({"number": pa.array(range(rows), pa.int64()), "text": [f"row {n} " * 200 for n in range(rows)]})
    with Store.open(tmp_path / "origin" / "store") as store:
        manifest = put_dataset(store, table, groups=[["text"], ["number"]], block_rows=20, range_rows=200)
    with seed(tmp_path / "origin", manifest) as (ticket, _):
        with peer_of(asker.home):
            plan = asker.document(
                "plan", ticket, "--nodes", "3", "--ranks", "3", "--global-batch", "60", "--window", "2"
            )
            assert settled_status(asker.home).bytes_fetched < 50_000
        assert plan["shards_known"] == 0 and plan["rows"] == rows and plan["steps"] == 100
        for node in range(3):
            home = tmp_path / f"node{node}"
            with peer_of(home):
                with dhtdata.mount(
                    ticket, home=home, batch_size=20, shuffle=True, shuffle_window=2, timeout=20, rank=node,
                    world_size=3, lanes=3,
                ) as dataset:  # fmt: skip
                    assert sum(len(batch["number"]) for batch in dataset) == rows // 3
                    fetched = settled_status(home).bytes_fetched
            assert fetched == pytest.approx(plan["node_bytes"][node] + plan["described_bytes"][node], rel=0.05)
