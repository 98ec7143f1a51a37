"""What a transfer looks like on a terminal: pure, from what the peer tells to something that rich draws.

A view is drawn anew each time, at the width and height that the terminal has then. It takes at most `WIDEST` columns,
the table of providers all there are: a reason for leaving one alone can be long. Two lines of the screen stay free: the
cursor rests on one, and the other is fed when all is wiped out. Shades and signs tell everything that colours tell.
What a remote may have had a say in is shown without control characters and never read as markup.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dhtdata.cli.output import SHORT_DIGITS, number, percent, short, size
from dhtdata.control.protocol import HeldDataset, PeerStatus, Progress, Traffic
from dhtdata.counts import counted
from dhtdata.durations import spoken, trip

WIDEST = 100
WIDE = 72
MAX_PROVIDERS = 8
MAX_UPLOADS = 8
MAX_DATASETS = 6
FULL = 255
_STRIP_WIDTH = 44
_STATE_WIDTH = 14
_MORE_LINES = 2
_DIGEST = re.compile(rf"\b([0-9a-f]{{{SHORT_DIGITS}}})[0-9a-f]{{{64 - SHORT_DIGITS}}}\b")
_FREE_LINES = 2
_GAP = 2
_SHADES = "·░▒▓█"
_ASCII_SHADES = "-.:+#"
_PACE_S = 20.0
_FIRST_PACE_S = 4.0
_UNCERTAIN_PACE_BYTES_S = 1.0


def printable(text: str) -> str:
    """The text with everything that is not to be seen, or moves a cursor, replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def strip(cells: bytes, width: int, *, ascii_only: bool = False) -> str:
    """A have-map in so many characters: nothing, up to a third, up to two thirds, more, all of it."""
    shades = _ASCII_SHADES if ascii_only else _SHADES
    return "".join(shades[_shade(cells, place, width)] for place in range(width))


def _shade(cells: bytes, place: int, width: int) -> int:
    """0 only if nothing of these cells is there, 4 only if all of it is."""
    seen = cells[place * len(cells) // width : -(-(place + 1) * len(cells) // width)]
    if not any(seen):
        return 0
    if all(cell == FULL for cell in seen):
        return 4
    return 1 + min(3 * sum(seen) // (FULL * len(seen)), 2)


@dataclass
class Strip:
    """A have-map, drawn."""

    cells: bytes
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        drawn = strip(self.cells, self.width, ascii_only=options.ascii_only)
        shades = _ASCII_SHADES if options.ascii_only else _SHADES
        line = Text(no_wrap=True)
        for character in drawn:
            line.append(character, "green" if character == shades[4] else "dim" if character == shades[0] else "cyan")
        yield line


@dataclass(frozen=True)
class _Delivered:
    """What a provider had delivered, and made us throw away, before a fetch began."""

    bytes: int
    blocks: int
    wasted: int


class _Pace:
    """Bytes per second over about the last `_PACE_S` seconds, for the time left.

    On a slow link bytes come in gusts seconds apart. The time before the first byte is left out.
    """

    def __init__(self) -> None:
        self.measured_s = 0.0
        self._sum = 0.0
        self._weight = 0.0

    @property
    def bytes_s(self) -> float:
        """0 while it is too early to say."""
        return self._sum / self._weight if self.measured_s >= _FIRST_PACE_S else 0.0

    def see(self, rate_bytes_s: float, passed_s: float) -> None:
        """So much a second, for so long. Weights fade; their sum is kept, so that the first seconds count in full."""
        if not (rate_bytes_s or self.measured_s) or passed_s <= 0:
            return
        kept = math.exp(-passed_s / _PACE_S)
        self.measured_s += passed_s
        self._sum = kept * self._sum + (1 - kept) * rate_bytes_s
        self._weight = kept * self._weight + (1 - kept)


class FetchView:
    """A fetch: `seen` is replaced whenever the peer tells more.

    What providers delivered and what of it was thrown away counts since this fetch began, like the sums do; the peer
    counts it since its own start.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._pace = _Pace()
        self._before: dict[str, _Delivered] = {}
        self._seen = Progress(shards=0, shards_total=0, bytes=0, bytes_total=0)

    @property
    def seen(self) -> Progress:
        return self._seen

    def see(self, seen: Progress) -> None:
        """What the peer tells."""
        self._pace.see(seen.rate_bytes_s, seen.elapsed_s - self._seen.elapsed_s)
        values = {name: getattr(seen, name) for name in seen.__struct_fields__}
        self._seen = Progress(**values | {"traffic": tuple(self._since_begun(entry, seen) for entry in seen.traffic)})

    def _since_begun(self, entry: Traffic, seen: Progress) -> Traffic:
        """Whatever is more than this fetch got from everybody came before it."""
        before = self._before.setdefault(
            entry.address,
            _Delivered(
                max(entry.bytes - seen.fetched, 0),
                max(entry.blocks - seen.blocks, 0),
                max(entry.wasted - seen.wasted, 0),
            ),
        )
        values = {name: getattr(entry, name) for name in entry.__struct_fields__}
        return Traffic(
            **values
            | {
                "bytes": max(entry.bytes - before.bytes, 0),
                "blocks": max(entry.blocks - before.blocks, 0),
                "wasted": max(entry.wasted - before.wasted, 0),
            }
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width, room = min(options.max_width, WIDEST), max(console.size.height - _FREE_LINES, 1)
        seen = self._seen
        lines: list[RenderableType] = [
            _ends(printable(self.title), spoken(seen.elapsed_s) if seen.elapsed_s >= 1 else "", width),
            _beside(_bar(seen, _strip_width(width)), self._amount(), width),
            _beside(
                Strip(seen.have, _strip_width(width)), f"{seen.shards} of {counted(seen.shards_total, 'shard')}", width
            ),
            *_sentences(self._speed(), width, options),
            *_sentences(_account(seen), width, options),
        ]
        if not seen.bytes_total:
            lines = [lines[0], _line("looking for providers and for what is missing", width, "dim")]
        yield from lines[:room]
        left = room - len(lines) - 2
        if left > 0 and seen.traffic:
            yield Text()
            yield providers_table(seen.traffic, left, (seen.providers, seen.rate_bytes_s), options.max_width)

    def _amount(self) -> str:
        seen = self._seen
        return f"{percent(seen.bytes, seen.bytes_total)} of {size(seen.bytes_total)}"

    def _speed(self) -> list[str]:
        seen = self._seen
        left = seen.bytes_total - seen.bytes
        said = [f"{size(int(seen.rate_bytes_s))}/s"]
        if left and self._pace.bytes_s > _UNCERTAIN_PACE_BYTES_S:
            said.append(f"{spoken(left / self._pace.bytes_s)} left")
        return [*said, f"{size(seen.bytes)} here", f"{size(seen.fetched)} fetched"] + (
            [f"{size(seen.reused)} reused"] if seen.reused else []
        )


def _account(seen: Progress) -> list[str]:
    about = "" if seen.bytes >= seen.bytes_total else "about "
    blocks = counted(seen.blocks, "block")
    if seen.blocks_total:
        blocks = f"{number(seen.blocks)} of {about}{counted(seen.blocks_total, 'block')}"
    said = [f"{blocks} verified", f"{size(seen.wasted)} wasted"]
    return said if seen.bound_s is None else [*said, f"{against_bound(seen):.2f} × lower bound"]


def against_bound(seen: Progress) -> float:
    """Time taken over the least time that it could have taken: 1.0 is perfect. Needs a bound."""
    return seen.elapsed_s / seen.bound_s if seen.bound_s else 0.0


def providers_table(traffic: Sequence[Traffic], lines: int, total: tuple[int, float], width: int) -> Table:
    """The first providers in at most so many ``lines`` below the heads, the others in one line.

    ``total``: how many there are, and the rate of all together.
    """
    rows = min(lines, MAX_PROVIDERS)
    shown = traffic if len(traffic) <= rows and total[0] <= rows else traffic[: rows - 1]
    told = [("has", 5)] if any(entry.share is not None for entry in shown) else []
    columns = [*told, ("rate", 11)] + ([("latency", 7), ("wasted", 8)] if width >= WIDE else [])
    room = width - sum(column_width + _GAP for _, column_width in columns) - _GAP
    longest = max([len("provider"), *(len(printable(entry.address)) for entry in shown)])
    address_width = max(min(longest, room - _STATE_WIDTH), 8)
    state_width = room - address_width
    drawn = _grid([("provider", address_width)], columns, [("now", state_width)] if state_width >= _STATE_WIDTH else [])
    spare = lines - len(shown) - (total[0] > len(shown)) if state_width >= _STATE_WIDTH else 0
    for entry in shown:
        state = _state(entry, max(state_width, _STATE_WIDTH), 1 + min(spare, _MORE_LINES))
        spare -= state.plain.count("\n")
        cells: dict[str, str | Text] = {
            "provider": Text(printable(entry.address)),
            "has": "?" if entry.share is None else percent(int(entry.share * 1_000_000), 1_000_000),
            "rate": f"{size(int(entry.rate_bytes_s))}/s",
            "latency": trip(entry.latency_s) if entry.latency_s else "",
            "wasted": size(entry.wasted) if entry.wasted else "",
            "now": state,
        }
        drawn.add_row(*(cells[str(column.header)] for column in drawn.columns))
    if (more := total[0] - len(shown)) > 0:
        rest = max(total[1] - sum(entry.rate_bytes_s for entry in shown), 0.0)
        drawn.add_row(Text(f"{more} more", "dim"), *[""] * len(told), f"{size(int(rest))}/s")
    return drawn


def _state(entry: Traffic, width: int, lines: int) -> Text:
    """What a provider does; a reason takes as many lines as it needs and may."""
    if entry.avoided:
        said = f"avoided: {printable(without_address(entry.avoided, entry.address))}"
        return Text("\n".join(textwrap.wrap(said, width, max_lines=max(lines, 1), placeholder=" …")), "yellow")
    if entry.outstanding:
        return Text(f"{size(entry.outstanding)} asked")
    return Text("idle", "dim")


def without_address(reason: str, address: str) -> str:
    """A reason without the address of its provider, next to which it is shown, and with digests cut short."""
    place = re.sub("^[a-z]+://", "", address)
    host = re.sub(r":[0-9]+$", "", place.partition("/")[0]).strip("[]")
    spelled = rf"([a-z]+://)?({re.escape(place)}(/\S*?)?|\[?{re.escape(host)}\]?( port [0-9]+)?)"
    reason = re.sub(rf"^{spelled}(:? )(?=\S)", "", reason).replace(f" from {address} ", " ")
    return _DIGEST.sub(r"\1…", reason)


@dataclass
class SeedView:
    """A seed at work. ``said``: why there is nothing to see yet, or any more."""

    seen: PeerStatus | None = None
    said: str = "starting"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width, room = min(options.max_width, WIDEST), max(console.size.height - _FREE_LINES, 1)
        seen = self.seen
        if seen is None:
            yield _ends(printable(self.said), "", width)
            return
        datasets = (
            seen.datasets[:MAX_DATASETS] if len(seen.datasets) <= MAX_DATASETS else seen.datasets[: MAX_DATASETS - 1]
        )
        lines: list[RenderableType] = [
            _ends(f"seeding {counted(len(seen.datasets), 'dataset')}", f"up {spoken(seen.uptime_s)}", width),
            *(_dataset(entry, width) for entry in datasets),
        ]
        if (more := len(seen.datasets) - len(datasets)) > 0:
            lines.append(_line(f"and {more} more: dhtdata status lists all", width, "dim"))
        lines += _sentences(_going_out(seen), width, options)
        lines += _sentences(_coming_in(seen), width, options)
        yield from lines[:room]
        left = room - len(lines)
        active = [entry for entry in seen.traffic if entry.rate_bytes_s or entry.outstanding]
        uploads = [entry for entry in seen.fetchers if entry.rate_bytes_s] or list(seen.fetchers)
        if uploads and left >= 3:
            rows = min(left - 2, MAX_UPLOADS, len(uploads))
            yield Text()
            yield _uploads_table(seen, rows, width)
            left -= rows + 2
        if active and left >= 3:
            yield Text()
            whole = (len(active), sum(entry.rate_bytes_s for entry in active))
            yield providers_table(active, left - 2, whole, options.max_width)


def _dataset(entry: HeldDataset, width: int) -> RenderableType:
    name = entry.name_uri.rpartition("/")[2] or short(entry.manifest)
    drawn = Table.grid(padding=(0, 2, 0, 0))
    strip_width = _strip_width(width) // 2
    for column_width in (18, strip_width, 6, 9):
        drawn.add_column(no_wrap=True, overflow="ellipsis", width=column_width)
    drawn.add_column(no_wrap=True, overflow="ellipsis", width=max(width - strip_width - 41, 4))
    state = "green" if entry.state == "complete" else "yellow" if entry.state.startswith("waiting") else ""
    held = percent(entry.bytes_held, entry.bytes) if entry.bytes else ""
    drawn.add_row(
        Text(printable(name), "bold"),
        Strip(entry.have, strip_width),
        held,
        size(entry.bytes) if entry.bytes else "",
        Text(printable(entry.state), state),
    )
    return drawn


def _going_out(seen: PeerStatus) -> list[str]:
    return [
        f"serving {size(int(seen.up_bytes_s))}/s",
        f"{size(seen.bytes_served)} in {counted(seen.requests_served, 'request')}",
        counted(seen.dht_contacts, "DHT contact"),
    ]


def _coming_in(seen: PeerStatus) -> list[str]:
    wasted = sum(entry.wasted for entry in seen.traffic)
    return [
        f"fetching {size(int(seen.down_bytes_s))}/s",
        f"{size(seen.bytes_fetched)} in {counted(seen.blocks_verified, 'verified block')}",
        f"{size(wasted)} wasted",
    ]


def _uploads_table(seen: PeerStatus, rows: int, width: int) -> Table:
    shown = seen.fetchers if len(seen.fetchers) <= rows else seen.fetchers[: max(rows - 1, 1)]
    drawn = _grid([("fetches from us", max(min(40, width - 26), 8))], [("rate", 11), ("so far", 9)])
    for entry in shown:
        drawn.add_row(Text(printable(entry.address)), f"{size(int(entry.rate_bytes_s))}/s", size(entry.bytes))
    if (more := len(seen.fetchers) - len(shown)) > 0 and rows > 1:
        rest = max(seen.up_bytes_s - sum(entry.rate_bytes_s for entry in shown), 0.0)
        drawn.add_row(Text(f"{more} more", "dim"), f"{size(int(rest))}/s")
    return drawn


def _grid(
    left: Sequence[tuple[str, int]], right: Sequence[tuple[str, int]], last: Sequence[tuple[str, int]] = ()
) -> Table:
    """Columns of fixed width, the ones in the middle flush right: figures that change must not make others jump."""
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for name, width in (*left, *right, *last):
        justify: JustifyMethod = "right" if (name, width) in right else "left"
        drawn.add_column(name, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    return drawn


def _bar(seen: Progress, width: int) -> ProgressBar:
    total = max(seen.bytes_total, 1)
    return ProgressBar(total, seen.bytes, width, complete_style="cyan", finished_style="green")


def _strip_width(width: int) -> int:
    return max(min(_STRIP_WIDTH, width - 34), 8)


def _beside(drawn: RenderableType, said: str, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_strip_width(width), no_wrap=True)
    grid.add_column(width=max(width - _strip_width(width) - 2, 4), no_wrap=True, overflow="ellipsis")
    grid.add_row(drawn, Text(said))
    return grid


def _ends(left: str, right: str, width: int) -> Text:
    """Two texts at the ends of one line; the left one is cut if need be."""
    first = Text(left, "bold")
    first.truncate(max(width - len(right) - 1, 1), overflow="ellipsis", pad=True)
    return Text.assemble(first, " ", (right, "dim"), no_wrap=True)


def _sentences(parts: Sequence[str], width: int, options: ConsoleOptions) -> list[Text]:
    """The parts on one line, or on as many as they need."""
    between = " | " if options.ascii_only else " · "
    lines: list[str] = []
    for part in parts:
        said = part.replace("×", "x") if options.ascii_only else part
        if lines and len(lines[-1]) + len(between) + len(said) <= width:
            lines[-1] += between + said
        else:
            lines.append(said)
    return [_line(line, width) for line in lines]


def _line(said: str, width: int, style: str = "") -> Text:
    line = Text(said, style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line
