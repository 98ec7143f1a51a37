"""From the steps of a worker to what its loop gets: dealt, fetched, gathered, transformed, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from dhtdata.gather.parcels import Parcel, with_gaps
from dhtdata.mount.loop import Loop
from dhtdata.mount.orphans import end_with_parent
from dhtdata.mount.ranks import find_worker
from dhtdata.mount.view import View
from dhtdata.order import Dealt, Steps
from dhtdata.vault.crew import Crew

NOTED_S = 0.25
GATHER_BYTES = 2 << 20
MAX_GATHER_ROWS = 8_192


class Pipeline:
    """Makes parcels of a view as a loop wants them. ``format`` overrides the loop's."""

    def __init__(self, view: View, loop: Loop, format: str | None = None) -> None:
        self._view = view
        self._loop = loop
        self._reading = loop.reading(format)

    @property
    def steps_at_once(self) -> int:
        """How many steps are gathered together: a few megabytes."""
        row_bytes = max(self._view.byte_count / self._view.num_rows, 1.0)
        rows = min(GATHER_BYTES / row_bytes, MAX_GATHER_ROWS)
        return max(int(rows / (self._loop.batch_size or 1)), 1)

    def parcels(self, steps: Steps, turns: Iterable[range]) -> Iterator[Parcel]:
        """What these steps take, a parcel for each range of them."""
        if find_worker() is not None:
            end_with_parent()
        with ExitStack() as opened:
            crew = opened.enter_context(_crew(self._loop.threads))
            ahead = opened.enter_context(self._view.reading_ahead(steps, self._loop.predownload_bytes or 0))

            def jobs() -> Iterator[Callable[[], Parcel]]:
                noted_s = 0.0
                for turn in turns:
                    if ahead is not None:
                        ahead.advance(steps.position(turn[-1] + 1))
                        if time.monotonic() - noted_s >= NOTED_S:
                            self._view.note(ahead)
                            noted_s = time.monotonic()
                    dealt = steps.deal(turn)
                    dealt = replace(dealt, rows=self._view.rows(dealt.rows))
                    yield partial(self._make, dealt)

            yield from _in_order(jobs(), crew, self._loop.threads)

    def _make(self, dealt: Dealt) -> Parcel:
        transform = self._loop.transform
        batched = self._loop.batched if transform is None else transform.reads_batches
        parcel, dealt = self._view.gather(dealt, self._reading, batched)
        if transform is None:
            return with_gaps(parcel, dealt.bounds)
        return transform.apply(parcel, dealt, self._reading, self._loop.batched)


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
