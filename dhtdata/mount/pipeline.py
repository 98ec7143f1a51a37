"""From the steps of a worker to what its loop gets: dealt, fetched, gathered, transformed, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dhtdata.gather.columns import copied_bytes
from dhtdata.gather.parcels import Parcel, Reading, with_gaps
from dhtdata.mount.loop import Loop
from dhtdata.mount.orphans import end_with_parent
from dhtdata.mount.ranks import find_worker
from dhtdata.mount.view import View
from dhtdata.order import Dealt, Turns
from dhtdata.vault.crew import Crew
from dhtdata.vault.readahead import Readahead

NOTED_S = 0.25
GATHER_BYTES = 4 << 20
FOUND_BYTES = 16 << 20
MAX_GATHER_ROWS = 8_192
KEPT_BYTES = 16 << 20


class Supply(Protocol):
    """Rows of a dataset, or of several as one."""

    @property
    def row_bytes(self) -> float:
        """Of a row, on average."""
        ...

    @property
    def copied_bytes(self) -> int | None:
        """See `copied_bytes`."""
        ...

    @property
    def views(self) -> Sequence[tuple[View, int]]:
        """What is read, and how many bytes ahead, in the order of `Turns.paths`."""
        ...

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `View.rows`."""
        ...

    def gather(self, dealt: Dealt, reading: Reading, batched: bool) -> tuple[Parcel, Dealt]:
        """See `View.gather`."""
        ...


class Single:
    """The supply of one dataset."""

    def __init__(self, view: View, loop: Loop) -> None:
        self.views = [(view, loop.predownload_bytes or 0)]
        self.row_bytes = view.byte_count / view.num_rows
        self.copied_bytes = copied_bytes(view.schema)
        self.rows = view.rows
        self.gather = view.gather


class Pipeline:
    """Makes parcels of a supply as a loop wants them. ``format`` overrides the loop's."""

    def __init__(self, supply: Supply, loop: Loop, format: str | None = None) -> None:
        self._supply = supply
        self._loop = loop
        self._reading = loop.reading(format)

    @property
    def steps_at_once(self) -> int:
        """How many steps are gathered together: a few megabytes, more of what is only found now and copied later."""
        copied = None if self._copies_all else self._supply.copied_bytes
        row_bytes = max(self._supply.row_bytes, 1.0)
        rows = GATHER_BYTES / row_bytes
        if copied is not None:
            rows = max(rows, min(GATHER_BYTES / max(copied, 1), FOUND_BYTES / row_bytes))
        return max(int(min(rows, MAX_GATHER_ROWS) / (self._loop.batch_size or 1)), 1)

    @property
    def steps_at_first(self) -> int:
        """How many of them an epoch begins with: all, where they take a millisecond."""
        shaping = self._reading.shaping
        slow = (
            self._loop.transform is not None
            or shaping.decodes
            or not all(view.complete for view, _ in self._supply.views)
        )
        return 1 if slow else self.steps_at_once

    @property
    def _copies_all(self) -> bool:
        """Whether strings and binaries are made when they are gathered, or soon after."""
        shaping = self._reading.shaping
        made = self._reading.format == "arrow" or self._loop.transform is not None
        return bool(made or shaping.collates or shaping.decodes or find_worker() is not None)

    def parcels(self, steps: Turns, turns: Iterable[range]) -> Iterator[Parcel]:
        """What these steps take, a parcel for each range of them."""
        if find_worker() is not None:
            end_with_parent()
            # Its rows go elsewhere: they are copied once, to where they are sent.
            self._reading = replace(self._reading, later=self._loop.transform is None)
        _keep_memory()
        with ExitStack() as opened:
            crew = opened.enter_context(_crew(self._loop.threads))
            aheads = [
                (view, opened.enter_context(view.reading_ahead(path, limit_bytes)))
                for (view, limit_bytes), path in zip(self._supply.views, steps.paths(), strict=True)
            ]

            def jobs() -> Iterator[Callable[[], Parcel]]:
                noted_s = 0.0
                for turn in turns:
                    noted_s = self._advance(aheads, steps, turn[-1] + 1, noted_s)
                    dealt = steps.deal(turn)
                    dealt = replace(dealt, rows=self._supply.rows(dealt.rows))
                    yield partial(self._make, dealt)

            yield from _in_order(jobs(), crew, self._loop.threads)

    def _advance(
        self, aheads: Sequence[tuple[View, Readahead | None]], steps: Turns, done: int, noted_s: float
    ) -> float:
        """The loop gets to so many steps. Returns when it was last noted what is here ahead of it."""
        due = time.monotonic() - noted_s >= NOTED_S
        for (view, ahead), reached in zip(aheads, steps.reached(steps.position(done)), strict=True):
            if ahead is not None:
                ahead.advance(reached)
                if due:
                    view.note(ahead)
        return time.monotonic() if due else noted_s

    def _make(self, dealt: Dealt) -> Parcel:
        transform = self._loop.transform
        batched = self._loop.batched if transform is None else transform.reads_batches
        parcel, dealt = self._supply.gather(dealt, self._reading, batched)
        if transform is None:
            return with_gaps(parcel, dealt.bounds)
        return transform.apply(parcel, dealt, self._reading, self._loop.batched)


def _keep_memory() -> None:
    """Have the allocator keep what a parcel leaves for the next one, instead of getting fresh pages every time.

    glibc maps what is larger than the largest piece that was ever mapped and given back, and trims what is free beyond
    twice that (mallopt(3), M_MMAP_THRESHOLD): a page fault for every 4 KB of a parcel, a third of its time. A piece
    that is given back untouched costs nothing.
    """
    np.empty(KEPT_BYTES, np.uint8)


@contextmanager
def _crew(threads: int) -> Iterator[Crew | None]:
    if not threads:
        yield None
        return
    crew = Crew(threads, "dhtdata-gather")
    try:
        yield crew
    finally:
        crew.close()


def _in_order(jobs: Iterable[Callable[[], Parcel]], crew: Crew | None, threads: int) -> Iterator[Parcel]:
    """What the jobs make, in their order; each thread is one job ahead of the loop."""
    if crew is None:
        for job in jobs:
            yield job()
        return
    waiting: deque[Future[Parcel]] = deque()
    for job in jobs:
        waiting.append(crew.submit(job))
        if len(waiting) > threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
