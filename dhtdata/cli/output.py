"""What people and programs see (door of ``rich`` and of printing).

Results go to standard output, everything else (progress, notes, errors) to standard error. With ``--json`` a command
prints exactly one line on standard output: its result, or ``{"error": {"class", "message", "exit_code"}}``. Progress
bars and live views appear only where standard error is a terminal. Tables fit 100 columns.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import ControlType, Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 160
MANY_COLUMNS = 8
GAP_WIDTH = 3
SHORT_DIGITS = 12
REFRESH_PER_S = 4
_STEPS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

Report = Callable[[int, int], None]
"""Told (done, total) as work goes on; a total of 0 means not known."""


class _Console(Console):
    """Leaves it to `dhtdata.__main__` what happens when whoever reads us goes away."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Output:
    """The two streams of one command."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=_width(sys.stdout))
        self._err = _Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty(), width=_width(sys.stderr))
        self._status: Status | _Painter | None = None

    @property
    def width(self) -> int:
        """Columns of the screen, or what a pipe gets."""
        return self._out.width

    def result(self, document: Mapping[str, Any], *shown: RenderableType) -> None:
        """A command's one result: the document with ``--json``, else what people read."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, sort_keys=False) + "\n")
            sys.stdout.flush()
            return
        if self._status is not None:
            # Else the first line of the result would begin with what is left of the status line.
            self._status.stop()
        for piece in shown:
            # What may be copied, such as a ticket, must not be broken into lines by us.
            # Sentences are printed as they are: in them [fd00::1] is an address, not markup.
            shown_as = Text(piece) if isinstance(piece, str) else piece
            self._out.print(shown_as, soft_wrap=True if isinstance(piece, Text) else None)
        if self._status is not None:
            self._status.start()

    def note(self, text: str) -> None:
        """A sentence for people about what is going on."""
        if not self.as_json:
            self._err.print(Text(text))

    @contextmanager
    def progress(self, title: str, show: Callable[[int], str] | None = None) -> Iterator[Report]:
        """A bar that ends with the block. ``show`` turns a count into text; sizes by default."""
        if self.as_json or not self._err.is_terminal:
            yield lambda done, total: None
            return
        show = show or size
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=self._err,
            transient=True,
        )
        with bar:
            task = bar.add_task(title, total=None, amount="")
            begun = time.monotonic()

            def report(done: int, total: int) -> None:
                rate = done / max(time.monotonic() - begun, 1e-3)
                amount = f"{show(done)} of {show(total)}" if total else show(done)
                per_second = f", {show(int(rate))}/s" if show is size else ""
                bar.update(task, completed=done, total=total or None, amount=amount + per_second)

            yield report

    @contextmanager
    def status_line(self) -> Iterator[Callable[[str], None] | None]:
        """A line that is rewritten in place on a terminal; None elsewhere."""
        if self.as_json or not self._err.is_terminal:
            yield None
            return
        with self._err.status("") as status:
            self._status = status
            try:
                yield lambda text: status.update(Text(text))
            finally:
                self._status = None

    @contextmanager
    def live(self, view: RenderableType) -> Iterator[bool]:
        """Draws the view again and again while inside, and wipes it out at the end; whether anybody sees it."""
        if self.as_json or not self._err.is_terminal:
            yield False
            return
        self._status = painter = _Painter(view, self._err)
        painter.start()
        try:
            yield True
        finally:
            self._status = None
            painter.stop()


class _Drawn:
    """A view that remembers how wide its lines were when it was drawn last.

    The cursor rests on an empty line below it: where a terminal echoes ``^C`` at the end of a full line, it would wrap,
    and what rich then wipes out begins a line too low.
    """

    def __init__(self, view: RenderableType) -> None:
        self._view = view
        self._widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self._view, options, pad=False)
        self._widths = [Segment.get_line_length(line) for line in lines]
        for line in [*lines, []]:
            yield from line
            yield Segment.line()

    def wipe_wrapped(self, console: Console) -> None:
        """Wipe out what a terminal that became narrower has wrapped, of which rich knows nothing."""
        more = sum(max(width - 1, 0) // console.width for width in self._widths)
        if more:
            wipe = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
            up = Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            console.control(wipe, *([up] * more))


class _Painter:
    """Draws a view on a terminal again and again, in a thread of its own, between `start` and `stop`."""

    def __init__(self, view: RenderableType, console: Console) -> None:
        self._view = view
        self._console = console

    def start(self) -> None:
        self._drawn = _Drawn(self._view)
        # A new one each time: the old one would wipe as many lines again as it drew before it was stopped.
        self._live = Live(self._drawn, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="live-view")
        self._live.start(refresh=True)
        self._thread.start()

    def stop(self) -> None:
        """What was drawn is wiped out."""
        self._ended.set()
        self._thread.join()
        self._live.stop()

    def _refresh(self) -> None:
        while not self._ended.wait(1 / REFRESH_PER_S):
            self._drawn.wipe_wrapped(self._console)
            self._live.refresh()


def table(title: str, *columns: str, rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> RenderableType:
    """A plain table; columns named in ``right`` hold numbers and stand flush right."""
    drawn = blank_table(*columns, right=right)
    for row in rows:
        drawn.add_row(*map(escape, row))
    # A title of the table itself would be broken at the table's width, which may be small.
    return Group(Text(f"\n{title}", style="bold"), drawn) if title else drawn


def blank_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without rows yet, for rows that have colours."""
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return drawn


def rows_table(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    """Rows of a dataset, at least one: a line each, cut to fit; with many columns one value a line."""
    if len(names) > MANY_COLUMNS:
        blocks = [facts([("", f"row {number}"), *zip(names, row, strict=True)]) for number, row in enumerate(rows)]
        return Group(*(piece for block in blocks for piece in (block, "")))
    drawn = blank_table(*names)
    wanted = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for column, fitted in zip(drawn.columns, fit(wanted, width - GAP_WIDTH * len(names)), strict=True):
        column.no_wrap, column.overflow, column.max_width = True, "ellipsis", fitted
    for row in rows:
        drawn.add_row(*map(escape, row))
    return drawn


def fit(wanted: Sequence[int], width: int) -> list[int]:
    """Widths that share ``width``: short columns get what they want, long ones equal parts of the rest."""
    fitted = [0] * len(wanted)
    left = width
    for done, place in enumerate(sorted(range(len(wanted)), key=lambda place: wanted[place])):
        fitted[place] = max(1, min(wanted[place], left // (len(wanted) - done)))
        left -= fitted[place]
    return fitted


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Names and values, one a line; values are never shortened."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        drawn.add_row(name, escape(value))
    return drawn


def size(count: int) -> str:
    """``1.5 MiB``."""
    amount, step = float(count), 0
    while amount >= 1024 and step < len(_STEPS) - 1:
        amount, step = amount / 1024, step + 1
    return f"{count} B" if step == 0 else f"{amount:.{1 if amount < 100 else 0}f} {_STEPS[step]}"


def number(count: int) -> str:
    """``1,234,567``."""
    return f"{count:,}"


def percent(part: int, whole: int) -> str:
    """``99.9%``, and 100% only when nothing is missing."""
    if part >= whole:
        return "100%"
    return f"{min(99.9, 100 * part / whole):.1f}%"


def short(digest: bytes) -> str:
    """First digits of a digest, for tables; `--json` has all of them."""
    return digest.hex()[:SHORT_DIGITS]


def plain(text: str) -> Text:
    """Text that is printed as it is, whatever brackets it holds, and never broken."""
    return Text(text, no_wrap=True, overflow="ignore")


def _width(stream: Any) -> int | None:
    return None if stream.isatty() else PIPE_WIDTH
