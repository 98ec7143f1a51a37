"""The order: exact, the same for everyone, resumable anywhere."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.order import MAX_PIECE_ROWS, EpochOrder, OrderKey, Pieces, Share, State, Steps
from dhtdata.order.permutation import part_of_permutation, permutation

_Item = TypeVar("_Item")

ranges = st.lists(st.integers(1, 40), min_size=1, max_size=12)
remainders = st.sampled_from(["pad", "drop", "uneven"])


def order_of(
    rows: Sequence[int], *, shuffle: bool = True, seed: int = 1, epoch: int = 0, window: int = 3, lanes: int = 1
) -> EpochOrder:
    return EpochOrder(Pieces(rows), seed=seed, epoch=epoch, shuffle=shuffle, window=window, lanes=lanes)


def slow_sequence(counts: list[int], *, seed: int, epoch: int, window: int, lanes: int) -> list[int]:
    """The package's docstring, word for word, in plain Python; pieces are ranges as long as these are short."""

    def permuted(items: Sequence[_Item], what: int, lane: int = 0, number: int = 0) -> list[_Item]:
        return [items[i] for i in permutation(len(items), (seed, epoch), what, lane, number)]

    firsts = [0, *itertools.accumulate(counts)]
    pieces = permuted([list(range(first, first + n)) for first, n in zip(firsts, counts, strict=False)], 0)
    total = sum(counts)
    cut = [lane * (total // lanes) + min(lane, total % lanes) for lane in range(lanes + 1)]
    lane_rows = []
    for lane in range(lanes):
        position, own = 0, []
        for piece in pieces:
            own.append([row for at, row in enumerate(piece, position) if cut[lane] <= at < cut[lane + 1]])
            position += len(piece)
        own = [piece for piece in own if piece]
        head, tail = own[:window], own[window:]
        slots = [piece[k * len(piece) // 32 : (k + 1) * len(piece) // 32] for piece in head for k in range(32)]
        slots = permuted([slot for slot in slots if slot], 1, lane)
        windows, size = [], 1
        while slots:
            windows.append(list(itertools.chain(*slots[:size])))
            slots, size = slots[size:], size * 4
        windows += [list(itertools.chain(*tail[i : i + window])) for i in range(0, len(tail), window)]
        lane_rows.append([row for number, rows in enumerate(windows) for row in permuted(rows, 2, lane, number)])
    return [lane_rows[p % lanes][p // lanes] for p in range(total)]


@given(ranges, st.integers(0, 99), st.integers(0, 9), st.integers(1, 5), st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_the_sequence_is_the_one_the_docstring_describes(
    counts: list[int], seed: int, epoch: int, window: int, lanes: int
) -> None:
    order = order_of(counts, seed=seed, epoch=epoch, window=window, lanes=lanes)
    steps = Steps(order, Share(), global_batch=lanes, remainder="uneven")
    rows = steps.deal(range(len(steps))).rows
    assert rows.tolist() == slow_sequence(counts, seed=seed, epoch=epoch, window=window, lanes=lanes)


def deal_all(
    order: EpochOrder, *, ranks: int, workers: int, batch: int, remainder: str, consumed: int = 0
) -> tuple[dict[tuple[int, int], list[int]], list[int]]:
    """Per step, per rank: the valid rows; and the number of steps of each rank."""
    table: dict[tuple[int, int], list[int]] = {}
    lengths = []
    for rank in range(ranks):
        dealt_steps = 0
        for worker in range(workers):
            steps = Steps(
                order, Share(rank, ranks, worker, workers),
                global_batch=batch * ranks, remainder=remainder, consumed=consumed,
            )  # fmt: skip
            for turns in steps.turns(5):
                dealt = steps.deal(turns)
                assert len(dealt.bounds) == len(turns) + 1 and dealt.bounds[-1] == len(dealt.rows)
                for step, first, stop in zip(turns, dealt.bounds, dealt.bounds[1:], strict=False):
                    rows = dealt.rows[first:stop]
                    if dealt.valid is not None:
                        assert len(rows) == batch
                        rows = rows[dealt.valid[first:stop]]
                    table[step, rank] = rows.tolist()
                dealt_steps += len(turns)
        assert dealt_steps == len(steps)
        lengths.append(dealt_steps)
    return table, lengths


@given(
    counts=ranges, shuffle=st.booleans(), lanes=st.integers(1, 5), window=st.integers(1, 4), ranks=st.integers(1, 5),
    workers=st.integers(1, 4), batch=st.integers(1, 9), remainder=remainders, epoch=st.integers(0, 3),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_every_row_comes_exactly_once_over_all_ranks_and_workers(
    counts: list[int],
    shuffle: bool,
    lanes: int,
    window: int,
    ranks: int,
    workers: int,
    batch: int,
    remainder: str,
    epoch: int,
) -> None:
    order = order_of(counts, shuffle=shuffle, lanes=lanes, window=window, epoch=epoch)
    table, lengths = deal_all(order, ranks=ranks, workers=workers, batch=batch, remainder=remainder)
    seen = sorted(itertools.chain(*table.values()))
    if remainder == "drop":
        assert len(set(seen)) == len(seen) == sum(counts) // (batch * ranks) * batch * ranks
    else:
        assert seen == list(range(sum(counts)))
    assert max(lengths) - min(lengths) <= (remainder == "uneven")
    if remainder == "uneven":
        last = max(lengths) - 1
        sizes = [len(table.get((last, rank), ())) for rank in range(ranks)]
        assert max(sizes) - min(sizes) <= 1


@given(
    counts=ranges, shuffle=st.booleans(), lanes=st.integers(1, 4), global_batch=st.sampled_from([1, 2, 6, 12]),
    remainder=remainders, crew=st.tuples(st.integers(1, 12), st.integers(1, 3)),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_global_batches_do_not_depend_on_ranks_and_workers(
    counts: list[int], shuffle: bool, lanes: int, global_batch: int, remainder: str, crew: tuple[int, int]
) -> None:
    ranks, workers = crew
    if global_batch % ranks:
        ranks = 1
    order = order_of(counts, shuffle=shuffle, lanes=lanes)

    def global_batches(ranks: int, workers: int) -> list[list[int]]:
        table, _ = deal_all(order, ranks=ranks, workers=workers, batch=global_batch // ranks, remainder=remainder)
        return [
            list(itertools.chain(*(table.get((step, rank), ()) for rank in range(ranks))))
            for step in range(1 + max((step for step, _ in table), default=-1))
        ]

    assert global_batches(ranks, workers) == global_batches(1, 1)


@given(
    counts=ranges, shuffle=st.booleans(), lanes=st.integers(1, 4),
    crews=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)), min_size=2,
                   max_size=4),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_an_epoch_resumes_at_any_step_with_other_ranks_workers_and_batches(
    counts: list[int], shuffle: bool, lanes: int, crews: list[tuple[int, int, int, int]]
) -> None:
    order = order_of(counts, shuffle=shuffle, lanes=lanes)
    seen: list[int] = []
    consumed = 0
    for ranks, workers, batch, steps_taken in crews:
        table, _ = deal_all(order, ranks=ranks, workers=workers, batch=batch, remainder="pad", consumed=consumed)
        seen += [row for (step, _), rows in table.items() if step < steps_taken for row in rows]
        consumed = Steps(
            order, Share(0, ranks), global_batch=ranks * batch, remainder="pad", consumed=consumed
        ).position(steps_taken)
    table, _ = deal_all(order, ranks=3, workers=2, batch=2, remainder="uneven", consumed=consumed)
    seen += itertools.chain(*table.values())
    assert sorted(seen) == list(range(sum(counts)))


@dataclass(frozen=True)
class Leg:
    """One start of a run."""

    ranks: int
    workers: int
    batch: int

    @property
    def global_batch(self) -> int:
        return self.ranks * self.batch


@dataclass(frozen=True)
class Epoch:
    """An epoch that is read in two legs, the second from ``taken`` steps of the first on, if there are as many."""

    counts: list[int]
    shuffle: bool
    nodes: int
    window: int
    remainder: str
    seed: int
    epoch: int
    first: Leg
    second: Leg
    taken: int

    def order(self) -> EpochOrder:
        return order_of(
            self.counts, shuffle=self.shuffle, seed=self.seed, epoch=self.epoch, window=self.window, lanes=self.nodes
        )

    def sequence(self) -> list[int]:
        """Source rows by position of the epoch, in plain Python."""
        if not self.shuffle:
            return list(range(sum(self.counts)))
        return slow_sequence(
            self.counts, seed=self.seed, epoch=self.epoch, window=self.window, lanes=self.order().lanes
        )

    def batches(self, leg: Leg, consumed: int) -> list[list[int]]:
        """Global batches from a position on: known without ranks and workers."""
        sequence, lanes = self.sequence(), self.order().lanes
        cut = [
            sorted(range(first, min(first + leg.global_batch, len(sequence))), key=lambda position: position % lanes)
            for first in range(consumed, len(sequence), leg.global_batch)
        ]
        if self.remainder == "drop" and cut and len(cut[-1]) < leg.global_batch:
            cut.pop()
        return [[sequence[position] for position in batch] for batch in cut]

    def dealt(self, leg: Leg, consumed: int) -> list[list[int]]:
        """The same out of the pieces that all ranks and workers get; sizes and numbers of steps as promised."""
        table, lengths = deal_all(
            self.order(),
            ranks=leg.ranks,
            workers=leg.workers,
            batch=leg.batch,
            remainder=self.remainder,
            consumed=consumed,
        )
        steps = max(lengths)
        assert min(lengths) >= steps - (self.remainder == "uneven")
        assert all((step, rank) in table for step in range(steps - 1) for rank in range(leg.ranks))
        sizes = [[len(table.get((step, rank), ())) for rank in range(leg.ranks)] for step in range(steps)]
        assert all(of_step == [leg.batch] * leg.ranks for of_step in sizes[: -1 if self.remainder != "drop" else None])
        assert all(max(of_step) - min(of_step) <= 1 for of_step in sizes)
        return [
            list(itertools.chain(*(table.get((step, rank), ()) for rank in range(leg.ranks)))) for step in range(steps)
        ]


@st.composite
def epochs(draw: st.DrawFn) -> Epoch:
    nodes = draw(st.integers(1, 4))
    first = Leg(nodes * draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9)))
    ranks = draw(st.integers(1, 12))
    kept = first.global_batch % ranks == 0 and draw(st.booleans())
    batch = first.global_batch // ranks if kept else draw(st.integers(1, 9))
    return Epoch(
        counts=draw(ranges),
        shuffle=draw(st.booleans()),
        nodes=nodes,
        window=draw(st.integers(1, 5)),
        remainder=draw(remainders),
        seed=draw(st.integers(0, 99)),
        epoch=draw(st.integers(0, 9)),
        first=first,
        second=Leg(ranks, draw(st.integers(1, 4)), batch),
        taken=draw(st.integers(0, 30)),
    )


@given(epochs())
@settings(deadline=None, max_examples=150)
def test_an_epoch_in_two_legs_is_exact_whatever_the_run_looks_like(run: Epoch) -> None:
    """Rows, ranges, nodes, ranks, workers, batch, window, remainder, epoch and resume point, all of them at once."""
    before = run.dealt(run.first, 0)
    assert before == run.batches(run.first, 0)
    taken = before[: run.taken]
    reached = sum(map(len, taken))
    after = run.dealt(run.second, reached)
    assert after == run.batches(run.second, reached)
    if run.second.global_batch == run.first.global_batch:
        assert taken + after == before
    seen = list(itertools.chain(*taken, *after))
    left = sum(run.counts) - reached
    missing = left % run.second.global_batch if run.remainder == "drop" else 0
    assert len(set(seen)) == len(seen) == sum(run.counts) - missing
    if not missing:
        assert sorted(seen) == list(range(sum(run.counts)))


@given(
    counts=ranges, lanes=st.integers(1, 4), ranks=st.integers(1, 4), batch=st.integers(1, 6), after=st.integers(0, 9)
)
@settings(deadline=None, max_examples=80)
def test_windows_cover_what_the_coming_steps_need_before_they_need_it(
    counts: list[int], lanes: int, ranks: int, batch: int, after: int
) -> None:
    order = order_of(counts, lanes=lanes)
    for rank in range(ranks):
        steps = Steps(order, Share(rank, ranks), global_batch=batch * ranks, remainder="uneven")
        announced: dict[int, int] = {}
        for position, window in steps.windows(after):
            for first, count in window.spans:
                announced |= dict.fromkeys(range(first, first + count), position)
        for step in range(after, order.rows // (batch * ranks)):
            for row in steps.deal(range(step, step + 1)).rows.tolist():
                assert announced[row] < steps.position(step + 1)


@given(
    counts=ranges, ranks=st.integers(1, 3), workers=st.integers(1, 5), batch=st.integers(1, 6), most=st.integers(1, 9),
    remainder=remainders,
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_parcels_of_all_workers_in_turn_are_the_steps_in_order(
    counts: list[int], ranks: int, workers: int, batch: int, most: int, remainder: str
) -> None:
    order = order_of(counts)
    taken = []
    for worker in range(workers):
        share = Share(0, ranks, worker, workers)
        steps = Steps(order, share, global_batch=batch * ranks, remainder=remainder)
        taken.append(list(steps.parcels(most)))
    rounds = itertools.chain(*itertools.zip_longest(*taken, fillvalue=range(0)))
    assert [step for parcel in rounds for step in parcel] == list(range(len(steps)))
    assert all(0 < len(parcel) <= most for of_worker in taken for parcel in of_worker)


def test_windows_of_source_order_are_in_source_order() -> None:
    order = order_of([100, 50, 7], shuffle=False)
    steps = Steps(order, Share(), global_batch=10, remainder="uneven")
    spans = [tuple(span) for _, window in steps.windows(3) for span in window.spans.tolist()]
    covered = [row for first, count in spans for row in range(first, first + count)]
    assert covered == list(range(covered[0], 157)) and covered[0] <= 30
    assert len(spans) > 40


@given(st.lists(st.integers(1, 5 * MAX_PIECE_ROWS), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_pieces_tile_the_ranges_and_none_is_long(counts: list[int]) -> None:
    pieces = Pieces(counts)
    assert pieces.counts.max() <= MAX_PIECE_ROWS and pieces.counts.min() >= 1
    stops = pieces.firsts + pieces.counts
    assert pieces.firsts[0] == 0 and stops[-1] == sum(counts) and (pieces.firsts[1:] == stops[:-1]).all()
    assert set(np.cumsum(counts).tolist()) <= set(stops.tolist())


@given(st.integers(0, 3000), st.integers(0, 1 << 55), st.integers(0, 1 << 55), st.integers(0, 1 << 40))
@settings(deadline=None, max_examples=60)
def test_a_permutation_is_the_stable_argsort_of_philox_words(count: int, seed: int, epoch: int, number: int) -> None:
    counter = np.array([0, 0, (2 << 56) | 5, number], np.uint64)
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter).random_raw(count)
    expected = np.argsort(words >> np.uint64(32), kind="stable")
    assert permutation(count, (seed, epoch), 2, 5, number).tolist() == expected.tolist()


def test_golden_sequences_never_change() -> None:
    assert permutation(10, (0, 0), 0).tolist() == GOLDEN_PERMUTATION
    order = order_of([5, 3, 9, 4], seed=7, epoch=2, window=2, lanes=2)
    steps = Steps(order, Share(), global_batch=4, remainder="uneven")
    assert steps.deal(range(len(steps))).rows.tolist() == GOLDEN_ORDER


GOLDEN_PERMUTATION = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_ORDER = [4, 7, 12, 20, 3, 0, 8, 11, 5, 1, 16, 9, 2, 6, 14, 15, 19, 17, 10, 13, 18]


def test_epochs_and_seeds_give_different_sequences() -> None:
    def rows(*, seed: int = 1, epoch: int = 0) -> tuple[int, ...]:
        steps = Steps(order_of([50] * 9, seed=seed, epoch=epoch), Share(), global_batch=450, remainder="uneven")
        return tuple(steps.deal(range(1)).rows.tolist())

    assert len({rows(seed=1), rows(seed=2), rows(epoch=1), rows(epoch=2)}) == 4


def test_the_first_batch_of_a_small_dataset_touches_one_slot_wherever_it_is() -> None:
    starts = set()
    for epoch in range(40):
        order = order_of([3200], epoch=epoch, window=8)
        rows = Steps(order, Share(), global_batch=64, remainder="pad").deal(range(1)).rows
        assert rows.max() - rows[: 3200 // 32].min() < 3200
        window = next(order.windows(0, 0))
        assert window.stop - window.first == 100 and len(window.spans) == 1
        starts.add(int(window.spans[0, 0]))
    assert len(starts) > 15


def test_lanes_of_ranks_on_different_nodes_hardly_share_ranges() -> None:
    order = order_of([100] * 64, lanes=8, window=2)
    touched = []
    for rank in range(8):
        steps = Steps(order, Share(rank, 8), global_batch=64, remainder="pad")
        touched.append(set((steps.deal(range(len(steps))).rows // 100).tolist()))
    assert sum(map(len, touched)) == 64


def test_seeking_in_an_epoch_of_a_billion_rows_is_small() -> None:
    pieces = Pieces([33_333] * 30_000)
    tracemalloc.start()
    order = EpochOrder(pieces, seed=0, epoch=3, shuffle=True, window=8, lanes=1)
    steps = Steps(order, Share(), global_batch=256, remainder="pad", consumed=500_000_256)
    rows = steps.deal(range(4)).rows
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 1024
    assert peak < 16 << 20


def key() -> OrderKey:
    return OrderKey("train", shuffle=True, window=8)


def test_a_state_is_small_json_and_comes_back_equal() -> None:
    state = State("ab" * 32, key(), 3, 4, 1 << 40, 64, 2)
    text = json.dumps(state.as_dict())
    assert len(text) < 1000
    assert State.from_dict(json.loads(text), contents="ab" * 32, key=key(), seed=3) == state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"contents": "cd" * 32}, "another dataset"),
        ({"seed": 4}, "seed=4"),
        ({"version": 2}, "version 2"),
        ({"rows": -1}, "damaged"),
        ({"lanes": 0}, "damaged"),
        ({"epoch": "1"}, "damaged"),
        ({"epoch": 1 << 56}, "damaged: its epoch"),
        ({"order": {1: 2, "split": "train"}}, "1=2"),
        ({"order": None}, "damaged"),
        ({"order": {**OrderKey("test", True, 8).__dict__}}, "split='test'"),
        ({"order": {**OrderKey("train", False, 0).__dict__}}, "shuffle=False"),
        ({"order": {**OrderKey("train", True, 4).__dict__}}, "window=4"),
    ],
)
def test_a_state_of_something_else_is_refused_by_what_differs(change: dict[str, object], named: str) -> None:
    saved = State("ab" * 32, key(), 3, 4, 100, 64, 2).as_dict() | change
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        State.from_dict(saved, contents="ab" * 32, key=key(), seed=3)


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a state"):
        State.from_dict({}, contents="", key=key(), seed=0)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Pieces([]), "row range"),
        (lambda: Pieces([3, 0]), "row range"),
        (lambda: order_of([3], seed=-1), "seed"),
        (lambda: order_of([3], window=0), "window"),
        (lambda: Share(2, 2), "rank 2 of 2"),
        (lambda: Steps(order_of([3]), Share(), global_batch=1, remainder="keep"), "remainder"),
        (lambda: Steps(order_of([3]), Share(0, 2), global_batch=3, remainder="pad"), "2 ranks"),
        (lambda: Steps(order_of([3]), Share(), global_batch=3, remainder="pad", consumed=4), "another dataset"),
    ],
)
def test_nonsense_is_refused_by_name(build: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build()


@given(ranges, st.booleans(), st.integers(0, 9), st.integers(1, 5), st.integers(1, 7))
@settings(deadline=None, max_examples=80)
def test_sources_say_which_rows_are_read_while_and_nothing_else(
    counts: list[int], shuffle: bool, epoch: int, window: int, lanes: int
) -> None:
    order = order_of(counts, shuffle=shuffle, epoch=epoch, window=window, lanes=lanes)
    for lane in range(order.lanes):
        spans, firsts, stops = order.sources(lane)
        taken = order.take(lane, 0, order.lane_rows(lane)).tolist()
        read = [row for first, count in spans.tolist() for row in range(first, first + count)]
        assert sorted(read) == sorted(taken)
        when = dict(zip(taken, range(len(taken)), strict=True))
        for (first, count), begin, end in zip(spans.tolist(), firsts.tolist(), stops.tolist(), strict=True):
            assert all(begin <= when[row] < end for row in range(first, first + count))
        heads = [first for first in set(firsts.tolist()) if first == 0]
        assert len(heads) == bool(taken)
        if shuffle:
            windows = {(w.first, w.stop) for w in order.windows(lane, 0)}
            ramp = max(
                stop for first, stop in zip([0, *firsts.tolist()], [0, *stops.tolist()], strict=True) if not first
            )
            assert {pair for pair in windows if pair[0] >= ramp} == {
                pair for pair in zip(firsts.tolist(), stops.tolist(), strict=True) if pair[0]
            }


def test_another_epoch_of_an_order_is_that_epochs_order() -> None:
    order = order_of([30] * 9, seed=5, epoch=2, window=2, lanes=3)
    other = order_of([30] * 9, seed=5, epoch=3, window=2, lanes=3)
    assert order.of_epoch(3).take(1, 0, 90).tolist() == other.take(1, 0, 90).tolist()
    assert order.every_epoch == other.every_epoch and (order.epoch, other.epoch) == (2, 3)


@given(st.integers(1, 3_000), st.integers(0, 99), st.data())
def test_part_of_a_permutation_is_that_part(count: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(first, count))
    whole = permutation(count, (seed, 3), 2, 5, 7)
    assert part_of_permutation((first, stop), count, (seed, 3), 2, 5, 7).tolist() == whole[first:stop].tolist()


@given(ranges, st.integers(1, 4), st.integers(1, 4), st.data())
@settings(deadline=None)
def test_a_loop_that_starts_in_the_middle_of_a_window_takes_the_same_rows(
    counts: list[int], window: int, lanes: int, data: st.DataObject
) -> None:
    rows = order_of(counts, window=window, lanes=lanes).lane_rows(0)
    start = data.draw(st.integers(0, rows))
    steps = sorted(data.draw(st.lists(st.integers(start, rows), max_size=4)))
    resumed, whole = order_of(counts, window=window, lanes=lanes), order_of(counts, window=window, lanes=lanes)
    expected = whole.take(0, 0, rows).tolist()
    for first, stop in itertools.pairwise([start, *steps]):
        assert resumed.take(0, first, stop).tolist() == expected[first:stop]
