"""Steps of one rank and worker: global batches, slices, turns, and what happens to the last rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.order.epoch import EpochOrder, Rows, Window

REMAINDERS = ("pad", "drop", "uneven")


@dataclass(frozen=True)
class Share:
    """Who takes part: this rank of ``ranks``, this worker of ``workers`` of that rank."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.ranks and 0 <= self.worker < self.workers):
            raise ConfigError(
                f"rank {self.rank} of {self.ranks}, worker {self.worker} of {self.workers}: counted from 0"
            )


@dataclass(frozen=True)
class Dealt:
    """Rows of some steps of one rank, end to end: step i has ``rows[bounds[i]:bounds[i + 1]]``.

    Under "pad" ``valid`` says of each row whether it counts; else it is None.
    """

    rows: Rows
    bounds: tuple[int, ...]
    valid: NDArray[np.bool_] | None


class Steps:
    """What one rank takes from position ``consumed`` of an epoch on.

    ``pad``: every rank makes equally many steps of equally many rows; what is short repeats rows and is marked.
    ``drop``: a last global batch that is short is left out. ``uneven``: it is dealt out as equally as it goes, so a
    rank may get one row less than another, or, with fewer rows than ranks, no last step.
    """

    def __init__(
        self, order: EpochOrder, share: Share, *, global_batch: int, remainder: str, consumed: int = 0
    ) -> None:
        if remainder not in REMAINDERS:
            raise ConfigError(f"remainder: {remainder!r} is none of {', '.join(REMAINDERS)}")
        if global_batch < 1 or global_batch % share.ranks:
            raise ConfigError(f"a global batch of {global_batch} rows cannot be dealt to {share.ranks} ranks equally")
        if not 0 <= consumed <= order.rows:
            raise ConfigError(f"{consumed} rows consumed of {order.rows}: this state belongs to another dataset")
        self.order = order
        self.share = share
        self.global_batch = global_batch
        self.batch = global_batch // share.ranks
        self.remainder = remainder
        self.consumed = consumed
        left = order.rows - consumed
        self.count = left // global_batch if remainder == "drop" else -(-left // global_batch)
        """Steps that all ranks make together; under "uneven" this rank's last one may be empty."""

    def __len__(self) -> int:
        """Steps in which this rank has rows, all its workers together."""
        if self.remainder != "uneven" or not self.count:
            return self.count
        return self.count - (self._size(self.count - 1) == 0)

    def position(self, steps: int) -> int:
        """Rows consumed by all ranks after ``steps`` steps."""
        return min(self.consumed + steps * self.global_batch, self.order.rows)

    @property
    def finished(self) -> int:
        """Position at which the epoch has no further step."""
        return self.position(self.count)

    def turns(self, most: int) -> Iterator[range]:
        """Steps of this worker if workers take turns after every step: 1 to begin with, then 2, 4, ... ``most``."""
        steps = range(self.share.worker, len(self), self.share.workers)
        first, size = 0, 1
        while first < len(steps):
            yield steps[first : first + size]
            first, size = first + size, min(2 * size, most)

    def parcels(self, most: int) -> Iterator[range]:
        """Consecutive steps that this worker takes together.

        Workers take turns, with 1 step each, then 2, 4, ... ``most``: the first item is soon there.
        """
        first, size, last = 0, 1, len(self)
        while first < last:
            for worker in range(self.share.workers):
                stop = min(first + size, last)
                if worker == self.share.worker and first < stop:
                    yield range(first, stop)
                first = stop
            size = min(2 * size, most)

    def deal(self, steps: range) -> Dealt:
        """Rows of these steps for this rank."""
        whole = steps
        if steps and self.position(steps[-1]) + self.global_batch > self.order.rows:
            whole = steps[:-1]  # only an epoch's last step is short
        rows = [self._whole_steps(whole)]
        bounds = list(range(0, len(whole) * self.batch + 1, self.batch))
        short = 0
        for step in steps[len(whole) :]:
            rows += [self.order.take(*run) for run in self._step_runs(*self._span(step))]
            short = self.batch - self._size(step)
            bounds.append(bounds[-1] + self.batch - short)
            if self.remainder == "pad":
                rows.append(self._filling(step, self.batch - short))
                bounds[-1] += short
        if self.remainder != "pad":
            return Dealt(_joined(rows), tuple(bounds), None)
        valid = np.ones(bounds[-1], np.bool_)
        valid[valid.size - short :] = False
        return Dealt(_joined(rows), tuple(bounds), valid)

    def _whole_steps(self, steps: range) -> Rows:
        """Rows of steps none of which is short."""
        if self.order.lanes > 1 or not steps:
            return _joined([self.order.take(*run) for run in self._runs(steps)])
        # One lane: this rank's slices lie at equal distances, so nothing is done step by step.
        first = self.position(steps[0]) + self.share.rank * self.batch
        apart = steps.step * self.global_batch
        last = first + (len(steps) - 1) * apart
        rows = self.order.take(0, first, last + self.batch)
        if apart == self.batch or len(steps) == 1:
            return rows
        return np.lib.stride_tricks.sliding_window_view(rows, self.batch)[::apart].reshape(-1)

    def windows(self, after_steps: int = 0) -> Iterator[tuple[int, Window]]:
        """Windows that this rank will need and the epoch position at which it first does, in that order.

        A short last batch may take a few rows of other lanes' windows besides.
        """
        start = self.position(after_steps)
        return heapq.merge(*(self._lane_windows(lane, start) for lane in self.lanes), key=lambda item: item[0])

    @property
    def lanes(self) -> range:
        """Lanes that this rank's steps take rows of, but for a few of a short last batch."""
        lanes, share = self.order.lanes, self.share
        # Slices of a batch that the lanes do not divide drift by up to one lane: the neighbours count, too.
        drift = int(self.global_batch % lanes != 0)
        first = max(share.rank * lanes // share.ranks - drift, 0)
        return range(first, min(-(-(share.rank + 1) * lanes // share.ranks) + drift, lanes))

    def _lane_windows(self, lane: int, start: int) -> Iterator[tuple[int, Window]]:
        lanes = self.order.lanes
        for window in self.order.windows(lane, _before(start, lane, lanes)):
            yield max(window.first * lanes + lane, start), window

    def _span(self, step: int) -> tuple[int, int, int, int]:
        """Epoch positions ``[p, q)`` of the global batch, and this rank's slice ``[a, b)`` of it."""
        first, stop = self.position(step), self.position(step + 1)
        share = self.share
        rows = stop - first
        return first, stop, share.rank * rows // share.ranks, (share.rank + 1) * rows // share.ranks

    def _size(self, step: int) -> int:
        _, _, low, high = self._span(step)
        return high - low

    def _runs(self, steps: range) -> Iterator[tuple[int, int, int]]:
        """(lane, first, stop) of these steps in order, neighbours joined."""
        lane, first, stop = -1, 0, 0
        for step in steps:
            for run in self._step_runs(*self._span(step)):
                if run[0] == lane and run[1] == stop:
                    stop = run[2]
                    continue
                if stop > first:
                    yield lane, first, stop
                lane, first, stop = run
        if stop > first:
            yield lane, first, stop

    def _step_runs(self, first: int, stop: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Lane runs of the slice ``[low, high)`` of a global batch sorted by lane."""
        lanes = self.order.lanes
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

    def _filling(self, step: int, size: int) -> Rows:
        """Rows that fill a short step: its own again, or, if it has none, the global batch's first."""
        first, stop, low, high = self._span(step)
        if size:
            own = _joined([self.order.take(*run) for run in self._step_runs(first, stop, low, high)])
        else:
            own = self.order.take(first % self.order.lanes, first // self.order.lanes, first // self.order.lanes + 1)
        return np.resize(own, self.batch - size)


_Number = TypeVar("_Number", int, NDArray[np.int64])


def _before(position: int, lane: _Number, lanes: int) -> _Number:
    """Rows of a lane among the epoch's first ``position`` rows: lanes take turns."""
    return (position - lane + lanes - 1) // lanes


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
