"""One epoch's sequence of rows: pieces, line, lanes, windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.order import permutation as permute

MAX_PIECE_ROWS = 1 << 17
MAX_EXTRA_PIECES = 1 << 20
SLOTS_PER_PIECE = 32
RAMP = 4
_CACHED_WINDOWS = 2

Rows = NDArray[np.int64]


class Pieces:
    """Row ranges, the long ones cut: ``firsts`` and ``counts`` in source order."""

    def __init__(self, ranges: Sequence[int]) -> None:
        counts = np.asarray(ranges, np.int64)
        if counts.ndim != 1 or not counts.size or counts.min() < 1:
            raise ConfigError("an order needs at least one row range, and none may be empty")
        self.rows = int(counts.sum())
        longest = max(MAX_PIECE_ROWS, -(-self.rows // MAX_EXTRA_PIECES))
        parts = -(-counts // longest)
        whole = np.repeat(counts, parts)
        part = np.arange(whole.size) - np.repeat(np.cumsum(parts) - parts, parts)
        total = np.repeat(parts, parts)
        self.counts: Rows = whole // total + (part < whole % total)
        self.firsts: Rows = np.cumsum(self.counts) - self.counts

    def __len__(self) -> int:
        return self.counts.size


@dataclass(frozen=True)
class Window:
    """Rows ``[first, stop)`` of a lane; they come from the source spans ``(first row, rows)`` of shape (n, 2)."""

    lane: int
    number: int
    first: int
    stop: int
    spans: Rows


@dataclass(frozen=True)
class _Lane:
    """``bounds`` are the windows' ends within the lane, from 0; the first ``heads`` windows take ``slots``."""

    number: int
    bounds: Rows
    heads: int
    slots: Rows
    slot_bounds: Rows
    pieces: tuple[int, int]
    line: tuple[int, int]


class EpochOrder:
    """The rows of one epoch by lane. Windows are shuffled when they are first touched; two per lane are kept."""

    def __init__(
        self, pieces: Pieces, *, seed: int, epoch: int, shuffle: bool, window: int = 1, lanes: int = 1
    ) -> None:
        for name, value, least in (("seed", seed, 0), ("epoch", epoch, 0), ("window", window, 1), ("lanes", lanes, 1)):
            if not least <= value < 1 << 56:
                raise ConfigError(f"{name}: {value} is not in {least} to 2^56")
        self.pieces = pieces
        self.rows = pieces.rows
        self.lanes = lanes if shuffle else 1
        self._key = (seed, epoch)
        self._shuffle = shuffle
        self._window = window
        self._lanes: dict[int, _Lane] = {}
        self._shuffled: dict[tuple[int, int], Rows] = {}
        self._begun: set[int] = set()
        order = (
            permute.permutation(len(pieces), self._key, permute.RANGES)
            if shuffle
            else np.arange(len(pieces), dtype=np.int64)
        )
        self._firsts: Rows = pieces.firsts[order]
        self._ends: Rows = np.cumsum(pieces.counts[order])

    def lane_rows(self, lane: int) -> int:
        return self.rows // self.lanes + (lane < self.rows % self.lanes)

    def take(self, lane: int, first: int, stop: int) -> Rows:
        """Source rows at the lane's positions ``[first, stop)``, in order."""
        if not self._shuffle:
            return np.arange(first, stop, dtype=np.int64)
        begun = lane in self._begun
        self._begun.add(lane)
        parts = []
        while first < stop:
            number = self.window_at(lane, first)
            begin, end = self._bounds(lane, number)
            parts.append(self._rows(lane, number, first - begin, min(stop, end) - begin, whole=begun))
            first = end
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def window_at(self, lane: int, position: int) -> int:
        """Number of the window that holds the lane's position."""
        return int(np.searchsorted(self._lane(lane).bounds, position, "right")) - 1

    def windows(self, lane: int, position: int) -> Iterator[Window]:
        """Windows of a lane from the one that holds ``position`` on, for reading ahead. Nothing is shuffled."""
        last = self._lane(lane).bounds.size - 1
        for number in range(self.window_at(lane, position), last):
            first, stop = self._bounds(lane, number)
            yield Window(lane, number, first, stop, self._spans(lane, number))

    def sources(self, lane: int) -> tuple[Rows, Rows, Rows]:
        """Every source span (first row, rows) of a lane, and the lane's positions from and to which it is read.

        A span is read as long as its window is dealt out; the windows that ramp up count as one.
        """
        if not self._shuffle:
            firsts, counts = self.pieces.firsts, self.pieces.counts
            return np.stack([firsts, counts], axis=1), firsts, firsts + counts
        bounds = self._lane(lane).bounds[self._lane(lane).heads :]
        if bounds.size < 1 or not bounds[-1]:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        spans = self._source(*self._lane(lane).line)
        starts = np.cumsum(spans[:, 1]) - spans[:, 1]
        window = np.searchsorted(bounds, starts, "right")
        return spans, np.append(0, bounds)[window], bounds[window]

    def of_epoch(self, epoch: int) -> EpochOrder:
        """The same in another epoch."""
        return EpochOrder(
            self.pieces,
            seed=self._key[0],
            epoch=epoch,
            shuffle=self._shuffle,
            window=self._window,
            lanes=self.lanes,
        )

    @property
    def epoch(self) -> int:
        return self._key[1]

    @property
    def every_epoch(self) -> tuple[int, bool, int, int]:
        """What the orders of all epochs of one way through a dataset have in common."""
        return (self._key[0], self._shuffle, self._window, self.lanes)

    def _bounds(self, lane: int, number: int) -> tuple[int, int]:
        bounds = self._lane(lane).bounds
        return int(bounds[number]), int(bounds[number + 1])

    def _rows(self, lane: int, number: int, first: int, stop: int, *, whole: bool) -> Rows:
        """Rows ``[first, stop)`` of a window.

        Unless ``whole``, only these are shuffled: a loop that begins in the middle of an epoch has its first batch
        sooner.
        """
        if whole or (lane, number) in self._shuffled:
            return self._shuffled_rows(lane, number)[first:stop]
        spans = self._spans(lane, number)
        ends = np.cumsum(spans[:, 1])
        chosen = permute.part_of_permutation((first, stop), int(ends[-1]), self._key, permute.WINDOWS, lane, number)
        span = np.searchsorted(ends, chosen, "right")
        begins: Rows = spans[:, 0] - (ends - spans[:, 1])
        return begins.take(span) + chosen

    def _shuffled_rows(self, lane: int, number: int) -> Rows:
        cached = self._shuffled.get((lane, number))
        if cached is None:
            for old in [key for key in self._shuffled if key[0] == lane][: 1 - _CACHED_WINDOWS]:
                del self._shuffled[old]
            spans = self._spans(lane, number)
            count = int(spans[:, 1].sum())
            chosen = permute.permutation(count, self._key, permute.WINDOWS, lane, number)
            cached = self._shuffled[lane, number] = _expand(spans)[chosen]
        return cached

    def _spans(self, lane: int, number: int) -> Rows:
        """Source spans (first row, rows) of a window."""
        self_lane = self._lane(lane)
        if number < self_lane.heads:
            first, stop = self_lane.slot_bounds[number : number + 2]
            return self_lane.slots[first:stop]
        offset = self_lane.line[0]
        first, stop = (offset + bound for bound in self._bounds(lane, number))
        return self._source(first, stop)

    def _source(self, first: int, stop: int) -> Rows:
        """Source spans of the line's rows ``[first, stop)``."""
        begin = int(np.searchsorted(self._ends, first, "right"))
        end = int(np.searchsorted(self._ends, stop, "left")) + 1
        ends = self._ends[begin:end]
        starts = ends - np.diff(ends, prepend=self._ends[begin - 1] if begin else 0)
        low = np.maximum(starts, first)
        counts = np.minimum(ends, stop) - low
        return np.stack([self._firsts[begin:end] + (low - starts), counts], axis=1)

    def _lane(self, number: int) -> _Lane:
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = self._cut_lane(number)
        return lane

    def _cut_lane(self, number: int) -> _Lane:
        first = number * (self.rows // self.lanes) + min(number, self.rows % self.lanes)
        stop = first + self.lane_rows(number)
        if first == stop:
            empty = np.zeros((0, 2), np.int64)
            return _Lane(number, np.zeros(1, np.int64), 0, empty, np.zeros(1, np.int64), (0, 0), (first, stop))
        begin = int(np.searchsorted(self._ends, first, "right"))
        end = int(np.searchsorted(self._ends, stop, "left")) + 1
        ends = np.minimum(self._ends[begin:end], stop) - first
        if not self._shuffle:
            return self._unshuffled_lane(number, (begin, end), (first, stop))
        head_rows = int(ends[min(self._window, ends.size) - 1])
        slots = _slots(self._source(first, first + head_rows))
        slots = slots[permute.permutation(len(slots), self._key, permute.SLOTS, number)]
        slot_bounds = _ramp(len(slots))
        slot_ends = np.cumsum(slots[:, 1])[slot_bounds[1:] - 1]
        tail = ends[2 * self._window - 1 :: self._window]
        bounds = [np.zeros(1, np.int64), slot_ends, tail, ends[-1:]]
        return _Lane(
            number, np.unique(np.concatenate(bounds)), slot_ends.size, slots, slot_bounds, (begin, end), (first, stop)
        )

    def _unshuffled_lane(self, number: int, pieces: tuple[int, int], line: tuple[int, int]) -> _Lane:
        """Windows of a slot each (about a block): what a reader ahead of the loop asks for at a time."""
        starts = self.pieces.firsts[:, None]
        cuts = starts + self.pieces.counts[:, None] * np.arange(SLOTS_PER_PIECE, dtype=np.int64) // SLOTS_PER_PIECE
        # Ascending as they are. numpy's own `unique` puts them through a table: 0.8 s for a terabyte, this takes 5 ms.
        ascending = np.append(cuts, self.rows)
        bounds = ascending[np.append(True, ascending[1:] > ascending[:-1])]
        return _Lane(number, bounds, 0, np.zeros((0, 2), np.int64), np.zeros(1, np.int64), pieces, line)


def _slots(spans: Rows) -> Rows:
    """Spans cut into `SLOTS_PER_PIECE` equal parts each; parts without rows are left out."""
    cuts = spans[:, 1:] * np.arange(SLOTS_PER_PIECE + 1, dtype=np.int64) // SLOTS_PER_PIECE
    firsts = (spans[:, :1] + cuts[:, :-1]).ravel()
    counts = np.diff(cuts, axis=1).ravel()
    kept = counts > 0
    return np.stack([firsts[kept], counts[kept]], axis=1)


def _ramp(count: int) -> Rows:
    """Bounds 0, 1, 5, 21, ... , count."""
    bounds, step = [0], 1
    while bounds[-1] < count:
        bounds.append(min(bounds[-1] + step, count))
        step *= RAMP
    return np.array(bounds, np.int64)


def _expand(spans: Rows) -> Rows:
    """Every row of the spans, in order."""
    counts = spans[:, 1]
    before = np.cumsum(counts) - counts
    rows = np.arange(int(counts.sum()), dtype=np.int64)
    rows += np.repeat(spans[:, 0] - before, counts)
    return rows
