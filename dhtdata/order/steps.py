"""Steps through one epoch of one dataset: global batches sorted by lane."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dhtdata.order.epoch import EpochOrder, Rows, Window
from dhtdata.order.turns import Path, Share, Turns, joined


class Steps(Turns):
    """What one rank takes from position ``consumed`` of an epoch on."""

    def __init__(
        self, order: EpochOrder, share: Share, *, global_batch: int, remainder: str, consumed: int = 0
    ) -> None:
        super().__init__(order.rows, share, global_batch=global_batch, remainder=remainder, consumed=consumed)
        self.order = order

    def paths(self) -> Sequence[Path]:
        return [self]

    def reached(self, position: int) -> Sequence[int]:
        return [position]

    def windows(self, after_steps: int = 0) -> Iterator[tuple[int, Window]]:
        """Windows that this rank will need and the epoch position at which it first does, in that order.

        A short last batch may take a few rows of other lanes' windows besides.
        """
        return windows_of(self.order, self.lanes, self.position(after_steps))

    @property
    def lanes(self) -> range:
        """Lanes that this rank's steps take rows of, but for a few of a short last batch."""
        return lanes_of(self.order, self.share, self.global_batch)

    def _whole_steps(self, steps: range) -> Rows:
        if self.order.lanes > 1 or not steps:
            return joined([self.order.take(*run) for run in self._runs(steps)])
        # One lane: this rank's slices lie at equal distances, so nothing is done step by step.
        first = self.position(steps[0]) + self.share.rank * self.batch
        apart = steps.step * self.global_batch
        last = first + (len(steps) - 1) * apart
        return every(self.order.take(0, first, last + self.batch), self.batch, apart)

    def _slice(self, first: int, stop: int, low: int, high: int) -> Rows:
        return joined([self.order.take(*run) for run in lane_runs(self.order.lanes, first, stop, low, high)])

    def _runs(self, steps: range) -> Iterator[tuple[int, int, int]]:
        """(lane, first, stop) of these steps in order, neighbours joined."""
        lane, first, stop = -1, 0, 0
        for step in steps:
            for run in lane_runs(self.order.lanes, *self._span(step)):
                if run[0] == lane and run[1] == stop:
                    stop = run[2]
                    continue
                if stop > first:
                    yield lane, first, stop
                lane, first, stop = run
        if stop > first:
            yield lane, first, stop


def every(rows: Rows, size: int, apart: int) -> Rows:
    """The first ``size`` of every ``apart`` rows; at the end there may be only ``size``."""
    if apart == size or rows.size == size:
        return rows
    return np.lib.stride_tricks.sliding_window_view(rows, size)[::apart].reshape(-1)


def lane_runs(lanes: int, first: int, stop: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(lane, first, stop) of the slice ``[low, high)`` of an epoch's positions ``[first, stop)`` sorted by lane."""
    if lanes == 1:
        yield 0, first + low, first + high
        return
    numbers = np.arange(lanes, dtype=np.int64)
    begins = _before(first, numbers, lanes)
    ends = np.cumsum(_before(stop, numbers, lanes) - begins)
    lane = int(np.searchsorted(ends, low, "right"))
    while low < high:
        before = int(ends[lane - 1]) if lane else 0
        until = min(int(ends[lane]), high)
        begin = int(begins[lane])
        yield lane, begin + low - before, begin + until - before
        low, lane = until, lane + 1


def lanes_of(order: EpochOrder, share: Share, global_batch: int) -> range:
    """Lanes that whole global batches give this rank rows of."""
    # Slices of a batch that the lanes do not divide drift by up to one lane: the neighbours count, too.
    drift = int(global_batch % order.lanes != 0)
    first = max(share.rank * order.lanes // share.ranks - drift, 0)
    return range(first, min(-(-(share.rank + 1) * order.lanes // share.ranks) + drift, order.lanes))


def windows_of(order: EpochOrder, lanes: range, start: int) -> Iterator[tuple[int, Window]]:
    """Windows of these lanes from the epoch position ``start`` on, and the position that needs each first."""
    return heapq.merge(*(_lane_windows(order, lane, start) for lane in lanes), key=lambda item: item[0])


def _lane_windows(order: EpochOrder, lane: int, start: int) -> Iterator[tuple[int, Window]]:
    for window in order.windows(lane, _before(start, lane, order.lanes)):
        yield max(window.first * order.lanes + lane, start), window


_Number = TypeVar("_Number", int, NDArray[np.int64])


def _before(position: int, lane: _Number, lanes: int) -> _Number:
    """Rows of a lane among the epoch's first ``position`` rows: lanes take turns."""
    return (position - lane + lanes - 1) // lanes
