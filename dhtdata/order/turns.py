"""Turns: how the rows of an epoch, whatever they are, become steps of ranks and workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.order.epoch import EpochOrder, Rows, Window

REMAINDERS = ("pad", "drop", "uneven")
_NAMED_ROWS = 5


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

    def named(self, first: int, stop: int) -> str:
        """Some of these rows, for a message."""
        return listed(self.rows[first:stop])


def listed(rows: Rows) -> str:
    """The first few of these row numbers."""
    named = ", ".join(map(str, rows[:_NAMED_ROWS].tolist())) + (", …" if rows.size > _NAMED_ROWS else "")
    return f"row{'s' * (rows.size > 1)} {named}"


class Path(Protocol):
    """What one rank reads of one dataset. Positions count from the start of ``order``'s epoch, and on through others.

    ``lanes``: those it takes rows of, but for a few; ``consumed``: where it begins.
    """

    @property
    def order(self) -> EpochOrder: ...

    @property
    def lanes(self) -> range: ...

    @property
    def consumed(self) -> int: ...

    def windows(self) -> Iterator[tuple[int, Window]]:
        """Windows that it will need and the position at which it first does, in that order."""
        ...


class Turns(ABC):
    """What one rank takes from position ``consumed`` of an epoch of ``rows`` rows on.

    ``pad``: every rank makes equally many steps of equally many rows; what is short repeats rows and is marked.
    ``drop``: a last global batch that is short is left out. ``uneven``: it is dealt out as equally as it goes, so a
    rank may get one row less than another, or, with fewer rows than ranks, no last step.
    """

    def __init__(self, rows: int, share: Share, *, global_batch: int, remainder: str, consumed: int = 0) -> None:
        if remainder not in REMAINDERS:
            raise ConfigError(f"remainder: {remainder!r} is none of {', '.join(REMAINDERS)}")
        if global_batch < 1 or global_batch % share.ranks:
            raise ConfigError(f"a global batch of {global_batch} rows cannot be dealt to {share.ranks} ranks equally")
        if not 0 <= consumed <= rows:
            raise ConfigError(f"{consumed} rows consumed of {rows}: this state belongs to another dataset")
        self.rows = rows
        self.share = share
        self.global_batch = global_batch
        self.batch = global_batch // share.ranks
        self.remainder = remainder
        self.consumed = consumed
        left = rows - consumed
        self.count = left // global_batch if remainder == "drop" else -(-left // global_batch)
        """Steps that all ranks make together; under "uneven" this rank's last one may be empty."""

    def __len__(self) -> int:
        """Steps in which this rank has rows, all its workers together."""
        if self.remainder != "uneven" or not self.count:
            return self.count
        return self.count - (self._size(self.count - 1) == 0)

    def position(self, steps: int) -> int:
        """Rows consumed by all ranks after ``steps`` steps."""
        return min(self.consumed + steps * self.global_batch, self.rows)

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

    def parcels(self, most: int, least: int = 1) -> Iterator[range]:
        """Consecutive steps that this worker takes together.

        Workers take turns, with ``least`` steps each, then twice as many, up to ``most``: the first item is soon there.
        """
        first, size, last = 0, least, len(self)
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
        if steps and self.position(steps[-1]) + self.global_batch > self.rows:
            whole = steps[:-1]  # only an epoch's last step is short
        rows = [self._whole_steps(whole)]
        bounds = list(range(0, len(whole) * self.batch + 1, self.batch))
        short = 0
        for step in steps[len(whole) :]:
            rows.append(self._slice(*self._span(step)))
            short = self.batch - self._size(step)
            bounds.append(bounds[-1] + self.batch - short)
            if self.remainder == "pad":
                rows.append(self._filling(step, self.batch - short))
                bounds[-1] += short
        if self.remainder != "pad":
            return Dealt(joined(rows), tuple(bounds), None)
        valid = np.ones(bounds[-1], np.bool_)
        valid[valid.size - short :] = False
        return Dealt(joined(rows), tuple(bounds), valid)

    def _span(self, step: int) -> tuple[int, int, int, int]:
        """Epoch positions ``[p, q)`` of the global batch, and this rank's slice ``[a, b)`` of it."""
        first, stop = self.position(step), self.position(step + 1)
        share = self.share
        rows = stop - first
        return first, stop, share.rank * rows // share.ranks, (share.rank + 1) * rows // share.ranks

    def _size(self, step: int) -> int:
        _, _, low, high = self._span(step)
        return high - low

    def _filling(self, step: int, size: int) -> Rows:
        """Rows that fill a short step: its own again, or, if it has none, the global batch's first."""
        span = self._span(step)
        own = self._slice(*span) if size else self._slice(span[0], span[0] + 1, 0, 1)
        return np.resize(own, self.batch - size)

    @abstractmethod
    def paths(self) -> Sequence[Path]:
        """What this rank reads of each dataset."""

    @abstractmethod
    def reached(self, position: int) -> Sequence[int]:
        """This position on each of the paths."""

    @abstractmethod
    def _whole_steps(self, steps: range) -> Rows:
        """Rows of steps none of which is short, end to end."""

    @abstractmethod
    def _slice(self, first: int, stop: int, low: int, high: int) -> Rows:
        """Rows of the slice ``[low, high)`` of the global batch at the epoch positions ``[first, stop)``."""


def joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
