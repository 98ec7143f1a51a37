"""A progress bar for a training loop: rows a second, what the loop waits for, what is here ahead of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dhtdata.durations import spoken
from dhtdata.mount.meter import Held
from dhtdata.mount.speed import Speedometer

DRAWN_S = 0.25
_MIB = 1 << 20
_A_co = TypeVar("_A_co", covariant=True)


class Metered(Protocol[_A_co]):
    """What can be followed: a mounted dataset, a mix, or `dhtdata.torch.DataLoader` over one."""

    @property
    def rows_per_item(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_A_co]: ...

    def held(self) -> Held:
        """What all processes that read for it waited for and hold."""
        ...

    def standing(self) -> tuple[int, int]:
        """Epoch, and how many items of it this rank has had."""
        ...


def progress(loop: Metered[_A_co], *, console: Console | None = None) -> Iterator[_A_co]:
    """Iterate over a dataset or loader and draw on standard error how it goes; nothing where that is no terminal.

        for batch in dhtdata.progress(loader):
            ...

    *waits* is the share of the last seconds that the loop spent waiting for its next batch: input-bound above half,
    compute-bound below. *ahead* are bytes that are here and that the loop has not reached; *stalled* is how long those
    who make batches, in all workers together, waited for bytes that were not here.
    """
    console = console or Console(stderr=True)
    view = _View(loop)
    shown = Live(get_renderable=view.drawn, console=console, refresh_per_second=1 / DRAWN_S, transient=False)
    with shown if console.is_terminal else nullcontext():
        yield from view.followed()


class _View:
    def __init__(self, loop: Metered[Any]) -> None:
        self._loop = loop
        self._count = len(loop)
        self._batch = loop.rows_per_item
        self._meter = Speedometer(time.monotonic())
        self._stalled_s = loop.held().stalled_s
        self._first = 0
        self._epoch = 0

    def followed(self) -> Iterator[Any]:
        items = iter(self._loop)
        while True:
            asked_s = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            now_s = time.monotonic()
            if not self._meter.items:
                self._epoch, had = self._loop.standing()
                self._first = max(had - 1, 0)
            self._meter.received(now_s, _rows_of(item, self._batch), now_s - asked_s)
            yield item

    def drawn(self) -> Table:
        speed = self._meter.speed()
        held = self._loop.held()
        done = self._first + self._meter.items
        left_s = (self._count - done) / speed.items_s if speed.items_s else None
        line = Table.grid(padding=(0, 2))
        parts = [
            f"epoch {self._epoch}",
            f"{done:,}/{self._count:,}",
            f"{speed.rows_s:,.0f} rows/s",
            f"waits {speed.waiting:.0%} ({speed.verdict})",
            "all is stored" if held.stored else f"ahead {held.ahead_bytes / _MIB:,.0f} MiB",
            f"stalled {spoken(held.stalled_s - self._stalled_s)}",
            *([f"{spoken(left_s)} left"] if left_s is not None else []),
        ]
        bar = ProgressBar(total=max(self._count, 1), completed=min(done, self._count), width=24)
        line.add_row(Text(parts[0]), bar, *(Text(part) for part in parts[1:]))
        return line


def _rows_of(item: Any, expected: int) -> int:
    """Rows of a batch: all but the filling. What a transform made of it counts as a whole batch."""
    if isinstance(item, Mapping) and "_valid" in item and hasattr(item["_valid"], "sum"):
        return int(item["_valid"].sum())
    return expected
