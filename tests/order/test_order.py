"""The order: exact, the same for everyone, resumable anywhere."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.order import MAX_PIECE_ROWS, EpochOrder, OrderKey, Pieces, Share, State, Steps
from dhtdata.order.permutation import permutation

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
            turns = steps.turns()
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
