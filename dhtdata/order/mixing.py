"""Mixing: which source each row of a mix is from, and which row of it. Pure, lazy, O(one span) to seek.

N_i are the rows of source i, G is the global batch, L the number of lanes, all sources alike.

1. **Streams.** A source's epochs, end to end, are its stream: each in the source's own exact order, each shuffled anew.
   The mix takes from every stream row after row, so within a source's epoch no row comes twice and none is missing,
   whatever the mix does.
2. **Turns.** Sources take turns by the pattern of `shares`. A turn is G rows under "per_source", else L rows, one of
   each lane; with one node that is a row.
3. **Epochs of the mix** begin with the pattern's first turn. Under "first" one ends before the first row that would be
   a source's N_i + 1st: no source gives more than one epoch, and one gives exactly that. Under "all" it ends as soon as
   every source has given N_i rows. So all epochs of the mix have the same length and take the same n_i rows of source
   i. Where one leaves off in a stream the next goes on: at row e n_i in epoch e. (What ``remainder="drop"`` leaves out
   at the end of an epoch is passed over.)
4. **Batching.** "stratified" takes turns as they come, so after any number of turns each source has had its share to
   within less than a turn. "random" shuffles the turns within spans of `SPAN` by (seed, epoch, span): rows drawn from
   an urn with the exact shares of a span, filled again when it is empty. "per_source" gives whole batches in turn.
5. **Batch.** Positions ``[p, p + G)``, stably sorted by lane; position p is in lane ``p mod L``. What the batch takes
   of one epoch of a source is sorted by that source's lanes and fills the source's places in order. Rank r of W takes
   the r-th of W equal slices. If L divides G, every node has the same number of rows of each source, of its own lanes.

Why spans: if rows were drawn one by one, where a source stands would be known only after all earlier draws, and the
length of an epoch only at its end. The number of rows of a source in a batch has the mean of independent draws and a
standard deviation that is smaller by the factor sqrt(1 - G / (L SPAN)).

Why streams go on: if every epoch of the mix began all sources anew, it would cut off another part of a long source
every time, and no epoch of that source would ever be whole. For the same reason lanes stay what they were at the first
start (the state has them): a source's epoch goes on in the mix's next one.

Why a turn has a row of each lane: with turns of one row, some rows of each batch would be of a neighbouring node's
lane, and nearly every block of it would be fetched twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.order import permutation as permute
from dhtdata.order.epoch import EpochOrder, Rows, Window
from dhtdata.order.shares import Pattern, Sources
from dhtdata.order.steps import every, lane_runs, lanes_of, windows_of
from dhtdata.order.turns import Dealt, Path, Share, Turns, joined, listed

BATCHINGS = ("random", "stratified", "per_source")
STOPS = ("first", "all")
SPAN = 1 << 16
ROW_BITS = 48
_CACHED = 2
_MARK = 1 << 11


@dataclass(frozen=True)
class _Span:
    """Shuffled turns, and how many each source has before every `_MARK`-th of them."""

    turns: Sources
    marks: NDArray[np.int64]

    @classmethod
    def of(cls, turns: Sources, count: int) -> _Span:
        parts = [turns[first : first + _MARK] for first in range(0, turns.size, _MARK)]
        counts = [np.zeros(count, np.int64), *(np.bincount(part, minlength=count) for part in parts)]
        return cls(turns, np.cumsum(counts, axis=0))


class Mixing:
    """Which source every position of an epoch of the mix is of. ``sizes``: rows of an epoch of each source."""

    def __init__(
        self,
        pattern: Pattern,
        sizes: Sequence[int],
        *,
        batching: str,
        stop: str,
        seed: int,
        global_batch: int,
        lanes: int = 1,
    ) -> None:
        if batching not in BATCHINGS:
            raise ConfigError(f"batching: {batching!r} is none of {', '.join(BATCHINGS)}")
        if stop not in STOPS:
            raise ConfigError(f"stop: {stop!r} is none of {', '.join(STOPS)}")
        if max(sizes) >= 1 << ROW_BITS - 1:
            raise ConfigError(f"a source with {max(sizes)} rows cannot be mixed: {1 << ROW_BITS - 1} are too many")
        self.pattern = pattern
        self.sizes = tuple(sizes)
        self.lanes = 1 if batching == "per_source" else lanes
        """Lanes by which a batch is sorted."""
        self.rows_a_turn = global_batch if batching == "per_source" else lanes
        self._seed = seed
        self._shuffled = batching == "random"
        self._spans: dict[tuple[int, int], _Span] = {}
        if stop == "first":
            self.rows = min(self._place(source, size) for source, size in enumerate(sizes))
        else:
            self.rows = max(self._place(source, size - 1) for source, size in enumerate(sizes)) + 1
        self.taken = self._counted(self.pattern.before(self.rows // self.rows_a_turn), self.rows, pattern.sources)
        """Rows that an epoch of the mix takes of each source."""

    def starts(self, epoch: int) -> list[int]:
        """Where each source's stream stands when this epoch of the mix begins."""
        return [epoch * rows for rows in self.taken]

    def streams(self, epoch: int, position: int) -> list[tuple[int, int]]:
        """Epoch of each source, and row of that epoch, at which its stream stands at this position."""
        standing = zip(self.starts(epoch), self.before(epoch, position), self.sizes, strict=True)
        return [divmod(start + rows, size) for start, rows, size in standing]

    def sources(self, epoch: int, first: int, stop: int) -> Sources:
        """Sources of the rows at the positions ``[first, stop)`` of this epoch."""
        each = self.rows_a_turn
        begin = first // each
        turns = self._turns(epoch, begin, -(-stop // each))
        return turns if each == 1 else np.repeat(turns, each)[first - begin * each : stop - begin * each]

    def batch(self, epoch: int, first: int, stop: int) -> Sources:
        """The same sorted by lane."""
        lanes = self.lanes
        if lanes == 1:
            return self.sources(epoch, first, stop)
        if first % lanes == 0 and stop % lanes == 0:
            return np.tile(self._turns(epoch, first // lanes, stop // lanes), lanes)
        order = np.argsort(np.arange(first, stop) % lanes, kind="stable")
        return self.sources(epoch, first, stop)[order]

    def before(self, epoch: int, position: int) -> list[int]:
        """Rows of each source before this position of this epoch."""
        turn = position // self.rows_a_turn
        number, rest = divmod(turn, SPAN)
        if not self._shuffled or not rest:
            return self._counted(self.pattern.before(turn), position, partial(self._turns, epoch))
        span = self._span(epoch, number)
        mark = rest // _MARK
        inside = span.marks[mark] + np.bincount(span.turns[mark * _MARK : rest], minlength=len(self.sizes))
        before = zip(self.pattern.before(number * SPAN), inside.tolist(), strict=True)
        return self._counted([count + more for count, more in before], position, partial(self._turns, epoch))

    def _counted(self, turns: list[int], position: int, sources: Callable[[int, int], Sources]) -> list[int]:
        """Rows of each source before a position, given the whole turns before it."""
        counts = [count * self.rows_a_turn for count in turns]
        turn, rest = divmod(position, self.rows_a_turn)
        if rest:
            counts[int(sources(turn, turn + 1)[0])] += rest
        return counts

    def _place(self, source: int, number: int) -> int:
        """Position of the source's row of that number if nothing is shuffled."""
        turn, rest = divmod(number, self.rows_a_turn)
        return self.pattern.place(source, turn) * self.rows_a_turn + rest

    def _turns(self, epoch: int, first: int, stop: int) -> Sources:
        """Whose the turns ``[first, stop)`` of this epoch are."""
        if not self._shuffled:
            return self.pattern.sources(first, stop)
        parts = [
            self._span(epoch, number).turns[max(first - number * SPAN, 0) : stop - number * SPAN]
            for number in range(first // SPAN, -(-stop // SPAN))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)

    def _span(self, epoch: int, number: int) -> _Span:
        """The turns of one span, shuffled, but for an epoch's last turn if it is not whole.

        Threads may ask: what is cached is replaced, never changed.
        """
        key = (epoch, number)
        span = self._spans.get(key)
        if span is None:
            first = number * SPAN
            base = self.pattern.sources(first, min(first + SPAN, -(-self.rows // self.rows_a_turn)))
            whole = min(base.size, self.rows // self.rows_a_turn - first)
            chosen = permute.permutation(whole, (self._seed, epoch), permute.SOURCES, 0, number)
            span = _Span.of(np.concatenate([base[chosen], base[whole:]]), len(self.sizes))
            self._spans = dict([*self._spans.items()][1 - _CACHED :]) | {key: span}
        return span


@dataclass(frozen=True)
class MixDealt(Dealt):
    """What is dealt of a mix: a row is one number, its source above `ROW_BITS` bits of row."""

    def named(self, first: int, stop: int) -> str:
        sources, rows = split(self.rows[first:stop])
        return ", ".join(
            f"{listed(rows[sources == source])} of source {source}" for source in dict.fromkeys(sources.tolist())
        )


@dataclass(frozen=True)
class Part:
    """What an epoch of a mix takes of one source, from where the mix stands: a `Path` up to ``stop``."""

    order: EpochOrder
    lanes: range
    consumed: int
    stop: int

    def windows(self) -> Iterator[tuple[int, Window]]:
        size = self.order.rows
        for number in range(-(-self.stop // size)):
            order = self.order.of_epoch(self.order.epoch + number)
            for position, window in windows_of(order, self.lanes, max(self.consumed - number * size, 0)):
                if number * size + position >= self.stop:
                    break
                yield number * size + position, window


class MixSteps(Turns):
    """What one rank takes from position ``consumed`` of an epoch of a mix on. ``orders``: the sources' of any epoch."""

    def __init__(
        self,
        mixing: Mixing,
        orders: Sequence[EpochOrder],
        share: Share,
        *,
        epoch: int,
        global_batch: int,
        remainder: str,
        consumed: int = 0,
    ) -> None:
        super().__init__(mixing.rows, share, global_batch=global_batch, remainder=remainder, consumed=consumed)
        self.mixing = mixing
        self.epoch = epoch
        self._orders = orders
        self._starts = mixing.starts(epoch)
        self._opened: dict[tuple[int, int], EpochOrder] = {}

    @cached_property
    def _parts(self) -> list[Part]:
        stops = self.mixing.streams(self.epoch, self.rows)
        parts = []
        for source, (epoch, first) in enumerate(self.mixing.streams(self.epoch, self.consumed)):
            order = self._orders[source].of_epoch(epoch)
            stop = (stops[source][0] - epoch) * order.rows + stops[source][1]
            parts.append(Part(order, lanes_of(order, self.share, self.global_batch), first, stop))
        return parts

    def paths(self) -> Sequence[Path]:
        return self._parts

    def reached(self, position: int) -> Sequence[int]:
        streams = zip(self._parts, self.mixing.streams(self.epoch, position), strict=True)
        return [(epoch - part.order.epoch) * part.order.rows + row for part, (epoch, row) in streams]

    def deal(self, steps: range) -> MixDealt:
        dealt = super().deal(steps)
        return MixDealt(dealt.rows, dealt.bounds, dealt.valid)

    @cached_property
    def _one_lane(self) -> bool:
        return self.mixing.lanes == 1 and all(order.lanes == 1 for order in self._orders)

    def _whole_steps(self, steps: range) -> Rows:
        if not (steps and self._one_lane):
            return joined([self._slice(*self._span(step)) for step in steps])
        # Nothing is sorted, so the rows of all steps are one run of positions.
        first = self.position(steps[0]) + self.share.rank * self.batch
        apart = steps.step * self.global_batch
        last = first + (len(steps) - 1) * apart + self.batch
        return every(self._slice(first, last, 0, last - first), self.batch, apart)

    def _slice(self, first: int, stop: int, low: int, high: int) -> Rows:
        sources = self.mixing.batch(self.epoch, first, stop)
        begins = self.mixing.before(self.epoch, first)
        lows, mine, highs = (
            np.bincount(part, minlength=len(begins)).tolist() for part in np.split(sources, [low, high])
        )
        sources = sources[low:high]
        rows = np.empty(high - low, np.int64)
        for source, begin in enumerate(begins):
            if mine[source]:
                end = lows[source] + mine[source]
                taken = self._taken(source, begin, end + highs[source], (lows[source], end))
                rows[sources == source] = coded(source, taken)
        return rows

    def _taken(self, source: int, begin: int, count: int, part: tuple[int, int]) -> Rows:
        """A part of the ``count`` rows that the source gives to a batch, from its row ``begin`` in this epoch on."""
        size, (low, high) = self.mixing.sizes[source], part
        parts, done = [], 0
        while done < high:
            epoch, first = divmod(self._starts[source] + begin + done, size)
            here = min(count - done, size - first)
            span = (first, first + here, max(low - done, 0), min(high - done, here))
            if span[2] < span[3]:
                order = self._order(source, epoch)
                parts += [order.take(*run) for run in lane_runs(order.lanes, *span)]
            done += here
        return joined(parts)

    def _order(self, source: int, epoch: int) -> EpochOrder:
        order = self._opened.get((source, epoch))
        if order is None:
            for old in [key for key in self._opened if key[0] == source][: 1 - _CACHED]:
                del self._opened[old]
            order = self._opened[source, epoch] = self._orders[source].of_epoch(epoch)
        return order


def coded(source: int, rows: Rows) -> Rows:
    """Rows of a source as rows of a mix."""
    return rows | source << ROW_BITS


def split(rows: Rows) -> tuple[Sources, Rows]:
    """The source of every row of a mix, and the row of that source."""
    return (rows >> ROW_BITS).astype(np.uint16), rows & ((1 << ROW_BITS) - 1)
