"""Mixes: exact in every source's epochs, with the shares that were asked for, the same for everyone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.order import EpochOrder, Pieces, Share, mixing
from dhtdata.order.mixing import Mixing, MixSteps, split
from dhtdata.order.permutation import SOURCES, permutation
from dhtdata.order.shares import MAX_PARTS, Pattern, parts_of
from tests.order.test_order import slow_sequence

Row = tuple[int, int]
SPAN = 6


@dataclass(frozen=True)
class Case:
    """A mix: parts, and by source its row ranges, seed and whether it is shuffled."""

    parts: tuple[int, ...]
    ranges: tuple[tuple[int, ...], ...]
    shuffled: tuple[bool, ...]
    batching: str
    stop: str
    lanes: int
    seed: int = 3
    window: int = 2

    @property
    def sizes(self) -> list[int]:
        return [sum(ranges) for ranges in self.ranges]

    def orders(self) -> list[EpochOrder]:
        return [
            EpochOrder(Pieces(ranges), seed=10 + source, epoch=0, shuffle=shuffle, window=self.window, lanes=self.lanes)
            for source, (ranges, shuffle) in enumerate(zip(self.ranges, self.shuffled, strict=True))
        ]

    def mixing(self, global_batch: int) -> Mixing:
        return Mixing(
            Pattern(self.parts), self.sizes, batching=self.batching, stop=self.stop, seed=self.seed,
            global_batch=global_batch, lanes=self.lanes,
        )  # fmt: skip

    def steps(
        self, share: Share, *, epoch: int, global_batch: int, remainder: str = "uneven", consumed: int = 0
    ) -> MixSteps:
        return MixSteps(
            self.mixing(global_batch), self.orders(), share, epoch=epoch, global_batch=global_batch,
            remainder=remainder, consumed=consumed,
        )  # fmt: skip

    def stream(self, source: int, epochs: int) -> list[int]:
        """The source's own epochs, end to end."""
        if not self.shuffled[source]:
            return list(range(self.sizes[source])) * epochs
        arguments = {"seed": 10 + source, "window": self.window, "lanes": self.lanes}
        sequences = (slow_sequence(list(self.ranges[source]), epoch=epoch, **arguments) for epoch in range(epochs))
        return list(itertools.chain(*sequences))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(2, 4))
    ranges = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
    return Case(
        parts=tuple(draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))),
        ranges=tuple(draw(st.lists(ranges, min_size=count, max_size=count))),
        shuffled=tuple(draw(st.lists(st.booleans(), min_size=count, max_size=count))),
        batching=draw(st.sampled_from(mixing.BATCHINGS)),
        stop=draw(st.sampled_from(mixing.STOPS)),
        lanes=draw(st.integers(1, 3)),
    )


def slow_sources(case: Case, global_batch: int, epoch: int) -> list[int]:
    """The sources of an epoch's rows: points 2 to 4 of the module's docstring, word for word."""
    each = global_batch if case.batching == "per_source" else case.lanes
    given = [0] * len(case.parts)
    rows: list[int] = []
    pattern = Pattern(case.parts)
    for turn in itertools.count():
        source = int(pattern.sources(turn, turn + 1)[0])
        for _ in range(each):
            if case.stop == "first" and given[source] == case.sizes[source]:
                return slow_shuffled(case, rows, each, epoch)
            given[source] += 1
            rows.append(source)
            if case.stop == "all" and all(had >= size for had, size in zip(given, case.sizes, strict=True)):
                return slow_shuffled(case, rows, each, epoch)
    raise AssertionError


def slow_shuffled(case: Case, rows: list[int], each: int, epoch: int) -> list[int]:
    if case.batching != "random":
        return rows
    whole = len(rows) // each
    turns = rows[: whole * each : each]
    made: list[int] = []
    for first in range(0, whole, SPAN):
        span = turns[first : first + SPAN]
        made += [span[i] for i in permutation(len(span), (case.seed, epoch), SOURCES, 0, first // SPAN)]
    return [source for source in made for _ in range(each)] + rows[whole * each :]


def slow_batches(case: Case, global_batch: int, epoch: int) -> list[list[Row]]:
    """The global batches of an epoch of the mix, as (source, row): points 1 and 5 of the docstring."""
    rows = slow_sources(case, global_batch, epoch)
    taken = [rows.count(source) for source in range(len(case.parts))]
    epochs = [(epoch + 1) * n // size + 1 for n, size in zip(taken, case.sizes, strict=True)]
    streams = [case.stream(source, count) for source, count in enumerate(epochs)]
    stands = [epoch * n for n in taken]
    batches = []
    for first in range(0, len(rows), global_batch):
        positions = list(range(first, min(first + global_batch, len(rows))))
        if case.batching != "per_source":
            positions.sort(key=lambda position: position % case.lanes)
        queues = []
        for source, size in enumerate(case.sizes):
            lanes = case.lanes if case.shuffled[source] else 1
            count = sum(rows[position] == source for position in positions)
            mine = sorted(range(stands[source], stands[source] + count), key=lambda at: (at // size, at % size % lanes))
            queues.append(iter([streams[source][at] for at in mine]))
            stands[source] += count
        batches.append([(rows[position], next(queues[rows[position]])) for position in positions])
    return batches


def dealt(
    case: Case, *, ranks: int, workers: int, global_batch: int, epoch: int, remainder: str = "uneven", consumed: int = 0
) -> tuple[list[list[Row]], list[int]]:
    """The global batches, all ranks and workers together, without padding; and each rank's steps."""
    table: dict[tuple[int, int], list[Row]] = {}
    lengths = []
    for rank in range(ranks):
        for worker in range(workers):
            steps = case.steps(
                Share(rank, ranks, worker, workers), epoch=epoch, global_batch=global_batch, remainder=remainder,
                consumed=consumed,
            )  # fmt: skip
            for turns in (*steps.turns(2),) if worker % 2 else (range(worker, len(steps), workers),):
                given = steps.deal(turns)
                sources, rows = split(given.rows)
                kept = np.ones(rows.size, np.bool_) if given.valid is None else given.valid
                for step, first, stop in zip(turns, given.bounds, given.bounds[1:], strict=False):
                    pairs = zip(sources[first:stop].tolist(), rows[first:stop].tolist(), strict=True)
                    table[step, rank] = [pair for pair, valid in zip(pairs, kept[first:stop], strict=True) if valid]
        lengths.append(len(steps))
    count = max(lengths)
    return [
        list(itertools.chain(*(table.get((step, rank), []) for rank in range(ranks)))) for step in range(count)
    ], lengths


@pytest.fixture(autouse=True, scope="module")
def short_spans() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "SPAN", SPAN)
        yield


@given(cases(), st.sampled_from([1, 2, 6, 12]), st.integers(0, 3), st.sampled_from([(1, 1), (1, 3), (2, 1), (6, 2)]))
@settings(deadline=None, max_examples=150)
def test_global_batches_are_those_the_docstring_describes_whatever_ranks_and_workers_are(
    case: Case, global_batch: int, epoch: int, crew: tuple[int, int]
) -> None:
    ranks, workers = crew if global_batch % crew[0] == 0 else (1, crew[1])
    batches, _ = dealt(case, ranks=ranks, workers=workers, global_batch=global_batch, epoch=epoch)
    assert batches == slow_batches(case, global_batch, epoch)


@given(cases(), st.integers(1, 7), st.integers(1, 6))
@settings(deadline=None, max_examples=80)
def test_every_epoch_of_a_source_is_seen_whole_and_once_over_the_epochs_of_a_mix(
    case: Case, global_batch: int, epochs: int
) -> None:
    streams: list[list[int]] = [[] for _ in case.parts]
    for epoch in range(epochs):
        batches, _ = dealt(case, ranks=1, workers=1, global_batch=global_batch, epoch=epoch, remainder="pad")
        for source, row in itertools.chain(*batches):
            streams[source].append(row)
    for size, stream in zip(case.sizes, streams, strict=True):
        whole = len(stream) // size
        assert all(sorted(stream[e * size : (e + 1) * size]) == list(range(size)) for e in range(whole))
        rest = stream[whole * size :]
        if case.lanes == 1:  # lanes sort rows within a batch only, so here the stream is in order
            assert len(set(rest)) == len(rest)


@given(cases(), st.integers(1, 7))
@settings(deadline=None, max_examples=80)
def test_an_epoch_ends_with_the_first_source_or_with_the_last(case: Case, global_batch: int) -> None:
    made = case.mixing(global_batch)
    seen = list(itertools.chain(*dealt(case, ranks=1, workers=1, global_batch=global_batch, epoch=0)[0]))
    taken = [sum(source == each for source, _ in seen) for each in range(len(case.parts))]
    assert taken == made.taken and len(seen) == made.rows
    if case.stop == "first":
        assert all(n <= size for n, size in zip(taken, case.sizes, strict=True))
        assert len(set(seen)) == len(seen)
    else:
        assert all(n >= size for n, size in zip(taken, case.sizes, strict=True))
        assert set(seen) == {(source, row) for source, size in enumerate(case.sizes) for row in range(size)}
    assert any(n == size for n, size in zip(taken, case.sizes, strict=True))


@given(cases(), st.data())
@settings(deadline=None, max_examples=80)
def test_a_mix_resumes_at_any_step_with_other_ranks_and_workers(case: Case, data: st.DataObject) -> None:
    expected = slow_batches(case, 12, 1)
    at = 0
    for _ in range(3):
        ranks, workers = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])), data.draw(st.integers(1, 3))
        batches, lengths = dealt(
            case, ranks=ranks, workers=workers, global_batch=12, epoch=1, remainder="pad", consumed=min(
                at * 12, case.mixing(12).rows)
        )  # fmt: skip
        assert batches == expected[at:] and len(set(lengths)) == 1
        at += data.draw(st.integers(0, 3))
        if at > len(expected):
            break


@given(cases(), st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 4)), min_size=2, max_size=4))
@settings(deadline=None, max_examples=60)
def test_other_batch_sizes_go_on_with_exactly_the_rows_that_are_left(
    case: Case, crews: list[tuple[int, int, int]]
) -> None:
    if case.batching == "per_source":  # whose turns are batches: the mount refuses another size
        return
    seen: list[Row] = []
    consumed = 0
    for ranks, batch, count in crews:
        batches, _ = dealt(case, ranks=ranks, workers=1, global_batch=ranks * batch, epoch=2, consumed=consumed)
        seen += itertools.chain(*batches[:count])
        consumed = min(consumed + count * ranks * batch, case.mixing(1).rows)
    seen += itertools.chain(*dealt(case, ranks=1, workers=1, global_batch=4, epoch=2, consumed=consumed)[0])
    assert sorted(seen) == sorted(itertools.chain(*slow_batches(case, 4, 2)))


@given(cases(), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["pad", "drop", "uneven"]))
@settings(deadline=None, max_examples=80)
def test_ranks_make_equal_steps_where_that_is_promised(case: Case, ranks: int, batch: int, remainder: str) -> None:
    _, lengths = dealt(case, ranks=ranks, workers=2, global_batch=ranks * batch, epoch=0, remainder=remainder)
    assert max(lengths) - min(lengths) <= (remainder == "uneven")
    for rank in range(ranks):
        steps = case.steps(Share(rank, ranks), epoch=0, global_batch=ranks * batch, remainder=remainder)
        sizes = np.diff(steps.deal(range(len(steps))).bounds)
        assert remainder == "uneven" or (sizes == batch).all()


@given(cases(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_what_is_read_ahead_covers_what_the_coming_steps_need_before_they_need_it(
    case: Case, ranks: int, lane_rows: int, after: int
) -> None:
    batch = lane_rows * case.lanes
    consumed = min(after * batch * ranks, case.mixing(batch * ranks).rows)
    for rank in range(ranks):
        steps = case.steps(Share(rank, ranks), epoch=1, global_batch=batch * ranks, consumed=consumed)
        parts = steps.paths()
        announced: list[dict[tuple[int, int], int]] = [{} for _ in parts]
        for source, part in enumerate(parts):
            positions = [position for position, _ in part.windows()]
            assert positions == sorted(positions)
            for position, window in part.windows():
                for first, count in window.spans.tolist():
                    for row in range(first, first + count):
                        announced[source].setdefault((position // part.order.rows, row), position)
        for step in range((steps.rows - consumed) // (batch * ranks)):
            stood, reached = (steps.mixing.streams(1, steps.position(number)) for number in (step, step + 1))
            limits = steps.reached(steps.position(step + 1))
            sources, rows = split(steps.deal(range(step, step + 1)).rows)
            for source, row in zip(sources.tolist(), rows.tolist(), strict=True):
                if case.lanes > 1 and reached[source][0] > stood[source][0]:
                    continue  # where a source's epoch ends, a few rows may be of lanes that are not read ahead for
                assert min(at for (_, known), at in announced[source].items() if known == row) < limits[source]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=9))
@settings(deadline=None, max_examples=100)
def test_shares_hold_to_within_less_than_a_turn_at_any_time(parts: list[int]) -> None:
    pattern = Pattern(parts)
    turns = 2 * pattern.period + 3
    sources = pattern.sources(0, turns)
    counts = np.cumsum(sources[:, None] == np.arange(len(parts)), axis=0)
    due = np.arange(1, turns + 1)[:, None] * np.array(parts) / pattern.period
    assert np.abs(counts - due).max() <= 1 - 1 / (2 * len(parts) - 2) + 1e-9
    assert [pattern.before(turn + 1) for turn in range(turns)] == counts.tolist()
    for source in range(len(parts)):
        places = np.flatnonzero(sources == source).tolist()
        assert [pattern.place(source, number) for number in range(len(places))] == places


@given(st.lists(st.integers(1, 200), min_size=2, max_size=6), st.floats(0.1, 1e6))
@settings(deadline=None, max_examples=60)
def test_weights_in_a_simple_ratio_become_that_ratio(weights: list[int], scale: float) -> None:
    parts = parts_of([weight * scale for weight in weights])
    divisor = np.gcd.reduce(weights)
    assert list(parts) == [weight // divisor for weight in weights]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
@settings(deadline=None, max_examples=60)
def test_other_weights_are_met_nearly(weights: list[float]) -> None:
    parts = parts_of(weights)
    assert sum(parts) <= MAX_PARTS
    shares = np.array(weights) / sum(weights)
    assert np.abs(np.array(parts) / sum(parts) / shares - 1).max() < 0.01


def test_a_third_is_a_third() -> None:
    assert parts_of([1 / 3, 2 / 3]) == (1, 2)
    assert parts_of([0.7, 0.3]) == (7, 3)
    assert parts_of([0.1] * 10) == (1,) * 10


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_weights_that_make_no_mix_are_refused_by_source(weight: float) -> None:
    with pytest.raises(ConfigError, match="source 1"):
        parts_of([1.0, weight])


@pytest.mark.parametrize(
    ("batching", "stop", "named"), [("lucky", "first", "lucky.*random"), ("random", "never", "never.*first")]
)
def test_modes_are_refused_by_name(batching: str, stop: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Mixing(Pattern([1, 1]), [5, 5], batching=batching, stop=stop, seed=0, global_batch=1)


def test_random_batches_look_like_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "SPAN", 1 << 16)
    made = Mixing(Pattern([7, 3]), [10**9, 10**9], batching="random", stop="first", seed=5, global_batch=64)
    counts = made.sources(2, 1 << 20, 3 << 20).reshape(-1, 64).sum(axis=1)
    assert abs(counts.mean() - 0.3 * 64) < 0.05
    assert abs(counts.std() - (64 * 0.3 * 0.7) ** 0.5) < 0.1
    assert np.array_equal(np.bincount(made.sources(2, 0, 10 << 16)), [7 << 16, 3 << 16])
    assert not np.array_equal(made.sources(2, 0, 1000), made.sources(3, 0, 1000))


@pytest.mark.parametrize("batching", mixing.BATCHINGS)
def test_a_step_far_into_a_huge_mix_is_found_without_counting_up_to_it(
    batching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "SPAN", 1 << 16)
    sizes = [3 * 10**12, 10**12, 5]
    orders = [EpochOrder(Pieces([size]), seed=source, epoch=0, shuffle=False) for source, size in enumerate(sizes)]
    made = Mixing(Pattern([70, 29, 1]), sizes, batching=batching, stop="all", seed=0, global_batch=512)
    consumed = 10**9 * 512
    steps = MixSteps(made, orders, Share(1, 4), epoch=3, global_batch=512, remainder="pad", consumed=consumed)
    given = steps.deal(range(2))
    sources, rows = split(given.rows)
    before = made.before(3, consumed)
    assert sum(before) == consumed and made.streams(3, consumed) == [
        divmod(3 * n + done, size) for n, done, size in zip(made.taken, before, sizes, strict=True)
    ]
    for source in np.unique(sources).tolist():
        assert abs(int(rows[sources == source][0]) - made.streams(3, consumed)[source][1]) < 512 or sizes[source] < 512


def test_a_golden_mix_never_changes() -> None:
    made = Mixing(Pattern([5, 2, 1]), [100, 100, 100], batching="random", stop="first", seed=7, global_batch=8)
    assert "".join(map(str, made.sources(1, 0, 40).tolist())) == "1020000101000210000012102010001001002010"


def test_rows_are_named_with_their_sources() -> None:
    case = Case((1, 1), ((8,), (8,)), (False, False), "stratified", "first", 1)
    given = case.steps(Share(), epoch=0, global_batch=4).deal(range(2))
    assert given.named(0, 1) == "row 0 of source 0"
    assert given.named(0, 8) == "rows 0, 1, 2, 3 of source 0, rows 0, 1, 2, 3 of source 1"
