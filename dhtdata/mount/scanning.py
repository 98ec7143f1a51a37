"""How far a scan of rows is: a bar on a terminal, a line in the log elsewhere. Starts no thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLOW_S = 2.0
_DRAWN_S = 0.25
_log = logging.getLogger("dhtdata")


@contextmanager
def scanning(title: str, total_rows: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many rows are done; shows something once the work has taken a while."""
    begun_s = drawn_s = time.monotonic()
    bar = None

    def tell(rows: int) -> None:
        nonlocal bar, drawn_s
        now_s = time.monotonic()
        if now_s - begun_s < SLOW_S or now_s - drawn_s < _DRAWN_S:
            return
        if bar is None:
            bar = _bar(title, total_rows)
            _log.info("%s: %d of %d rows after %.0f s", title, rows, total_rows, now_s - begun_s)
        drawn_s = now_s
        bar(rows)

    try:
        yield tell
    finally:
        if bar is not None:
            bar(None)


def _bar(title: str, total_rows: int) -> Callable[[int | None], None]:
    """Draws so many rows; None wipes it out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    drawn = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = drawn.add_task(escape(title), total=total_rows)
    drawn.start()

    def draw(rows: int | None) -> None:
        if rows is None:
            drawn.stop()
        else:
            drawn.update(task, completed=rows, refresh=True)

    return draw
