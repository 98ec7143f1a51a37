"""``plan``: what a run will fetch, hold and wait for, told before it begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from dhtdata.cli.fetching import ColumnsOption
from dhtdata.cli.held import Held
from dhtdata.cli.locating import choose_columns, contents_of, listed, locate
from dhtdata.cli.output import facts, number, percent, plain, size
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
    CacheLimitOption,
    HomeOption,
    JsonOption,
    NetworkOption,
    Session,
    StoreOption,
    TargetArgument,
    TimeoutOption,
    WebSeedsOption,
    session,
)
from dhtdata.config import parse_bandwidth, parse_seconds, parse_size
from dhtdata.counts import counted
from dhtdata.digest import Digest
from dhtdata.durations import spoken, trip
from dhtdata.errors import ConfigError
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.ticket import parse_target
from dhtdata.store import Store

if TYPE_CHECKING:
    from dhtdata.mount.plan import Job, Plan
    from dhtdata.vault.blocks import GroupBlocks
    from dhtdata.vault.shards import GroupShards

BATCH_ROWS = 64
MOST_TABLES = 2_048
_BARS = 16
_STRIP = 72
_LEVELS = " ▁▂▃▄▅▆▇█"


def plan(
    target: TargetArgument,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines, each with a cache of its own.", min=1)] = 1,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", help="Training processes on all nodes together; one a node if left out.", min=1),
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option("--global-batch", help=f"Rows a step, all ranks; {BATCH_ROWS} a rank if left out.", min=1),
    ] = None,
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", help="What each node receives: 1Gbit/s, 125MB/s.", metavar="RATE")
    ] = "1Gbit/s",
    step_time: Annotated[
        str | None,
        typer.Option("--step-time", help="Time that a step takes if it never waits: 0.2s, 150ms.", metavar="TIME"),
    ] = None,
    rows_per_second: Annotated[
        float | None,
        typer.Option("--rows-per-second", help="The same as rows of all ranks together.", min=1e-6, metavar="ROWS"),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split.")] = "train",
    columns: ColumnsOption = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Order of the rows.")] = True,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", help="Row ranges that are shuffled together; what mount takes if left out.", min=1, metavar="N"
        ),
    ] = None,
    predownload: Annotated[
        str | None,
        typer.Option(
            "--predownload",
            help="Bytes to fetch ahead of the windows being read; what mount takes if left out.",
            metavar="SIZE",
        ),
    ] = None,
    cache_limit: CacheLimitOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = SEARCH_S,
    as_json: JsonOption = False,
) -> None:
    """Say before a training run what it will fetch, hold and wait for.

    Walks the real order of an epoch over the dataset's description; fetches no shard. Reckoned for nodes with empty
    stores and one copy of the program each; round trips are left out.

    Example: `dhtdata plan my-dataset --nodes 8 --ranks 64 --bandwidth 1Gbit/s --global-batch 4096`
    """
    from dhtdata.mount import DEFAULT_WINDOW
    from dhtdata.mount.plan import Job, make_plan
    from dhtdata.vault.readahead import usual_ahead_bytes

    ranks = nodes if ranks is None else ranks
    global_batch = BATCH_ROWS * ranks if global_batch is None else global_batch
    job = Job(
        nodes=nodes,
        ranks=ranks,
        global_batch=global_batch,
        shuffle=shuffle,
        window=DEFAULT_WINDOW if window is None else window,
        ahead_bytes=0 if predownload is None else parse_size(predownload),
        bandwidth_bytes_s=parse_bandwidth(bandwidth),
        step_s=_step_s(step_time, rows_per_second, global_batch),
    )
    opened = session(
        store, home, as_json, bootstrap=bootstrap, network=network, web_seeds=web_seeds, cache_limit=cache_limit
    ).entering(parse_target(target))
    with opened.store() as blobs:
        asked = _Asked(opened, blobs, target, timeout)
        entry, _ = locate(opened, blobs, target, timeout)
        laid = _laid(asked, entry, split, listed(columns))
    if predownload is None:
        window_of = job.window if shuffle else 0
        job = replace(job, ahead_bytes=usual_ahead_bytes(laid.byte_count, len(laid.ranges), window_of))
    made = make_plan(laid.blocks, laid.ranges, job, laid.described_bytes)
    limit = opened.settings.cache_limit
    shown = [plain(line) for line in _heading(entry, split, laid, job, bandwidth)]
    opened.output.result(
        _document(entry, split, laid, job, made, limit), *shown, _figures(job, made, limit), _picture(job, made)
    )


@dataclass(frozen=True)
class _Asked:
    """Where the description of a dataset comes from."""

    opened: Session
    blobs: Store
    target: str
    timeout_s: float

    def fetch(self, contents: Digest, wanted: list[tuple[Digest, int]]) -> None:
        with self.opened.peer(self.blobs) as peer:
            peer.resolve(self.opened.asking(parse_target(self.target)), self.timeout_s)
            peer.fetch_blobs(contents, wanted, self.timeout_s)


@dataclass(frozen=True)
class _Laid:
    """A split as the plan takes it."""

    ranges: tuple[int, ...]
    blocks: list[GroupBlocks]
    described_bytes: int

    @property
    def byte_count(self) -> int:
        return sum(int(group.shard_sizes.sum()) for group in self.blocks)

    @property
    def rows(self) -> int:
        return sum(self.ranges)


def _step_s(step_time: str | None, rows_per_second: float | None, global_batch: int) -> float:
    """0 if nobody said."""
    if step_time is not None and rows_per_second is not None:
        raise ConfigError("--step-time and --rows-per-second say the same: give one of them")
    if step_time is not None:
        return parse_seconds(step_time)
    return global_batch / rows_per_second if rows_per_second is not None else 0.0


def _laid(asked: _Asked, entry: Held, split: str, columns: list[str]) -> _Laid:
    """Row ranges and blocks of a split; what is not in the store is fetched, but no shard and no block table."""
    from dhtdata.mount.resolve import read_dataset, read_indexes
    from dhtdata.tables.schema import to_arrow
    from dhtdata.vault.blocks import lay_blocks
    from dhtdata.vault.shards import find_split, lay_out, needed_groups

    blobs, contents = asked.blobs, contents_of(entry)
    part = find_split(contents, split)
    names = choose_columns(contents, columns)
    numbers = needed_groups(contents, names)
    dataset = read_dataset(entry.digest, blobs, None)
    fetch = partial(asked.fetch, entry.manifest.contents)
    ranges, indexes = read_indexes(dataset, part, numbers, blobs, fetch)
    logical = to_arrow(contents.columns, {})
    widest = max(part.groups, key=lambda group: group.bytes)
    blocks = []
    for place, of_group in zip(numbers, indexes, strict=True):
        group = lay_out(contents, part, place, names, logical, of_group)
        ends = accumulate(ranges) if part.groups[place] is widest else ()
        blocks.append(lay_blocks(group, _tables(blobs, group), list(ends)))
    read = [
        entry.digest,
        entry.manifest.contents,
        part.ranges,
        *(digest for place in numbers for digest in part.groups[place].indexes),
    ]
    described = sum(blobs.path_of(digest).stat().st_size for digest in dict.fromkeys(read))
    return _Laid(ranges, blocks, described)


def _tables(blobs: Store, group: GroupShards) -> dict[int, BlockTable]:
    """Block tables that are here. Of very many shards none: that would take longer than what comes of it is worth."""
    if len(group) > MOST_TABLES:
        return {}
    entries = [group.entry(number) for number in range(len(group))]
    return {
        number: BlockTable.decode(blobs.read(entry.table, limit_bytes=MAX_TABLE_BYTES))
        for number, entry in enumerate(entries)
        if blobs.has(entry.table)
    }


# What is shown


def _heading(entry: Held, split: str, laid: _Laid, job: Job, bandwidth: str) -> list[str]:
    spread = f"{counted(job.nodes, 'node')}, {counted(job.ranks, 'rank')}, {number(job.global_batch)} rows a step"
    order = f"shuffled in windows of {counted(job.window, 'row range')}" if job.shuffle else "in source order"
    return [
        f"{entry.label}, split {split}: {counted(laid.rows, 'row')}, {size(laid.byte_count)} in "
        f"{counted(len(laid.ranges), 'row range')}",
        f"{spread}, {order}; {bandwidth} to each node",
        "",
    ]


def _figures(job: Job, made: Plan, limit: int | None) -> RenderableType:
    fetched, described = max(made.node_bytes), max(made.described_bytes)
    step_s = made.network_s / made.steps
    lines = [
        (
            "each node fetches",
            f"{size(fetched)} an epoch, {percent(fetched, made.byte_count)} of the dataset, and {size(described)} that "
            "say where rows are",
        ),
        ("cache, least", f"{size(made.cache_least_bytes)}: the windows that a step reads"),
        ("cache, at ease", f"{size(made.cache_peak_bytes)}: with {size(job.ahead_bytes)} fetched ahead"),
        ("cache, an epoch", f"{size(made.cache_epoch_bytes)}, if nothing is given up"),
        ("first batch", f"after {trip(made.first_batch_s)}"),
        (
            "network",
            f"{_time(made.network_s)} an epoch at least: it is the limit above {number(int(made.network_rows_s))} "
            f"rows/s, {trip(step_s)} a step",
        ),
    ]
    if job.step_s:
        share = percent(round(1e3 * made.stall_s), round(1e3 * made.epoch_s))
        waiting = f"{_time(made.stall_s)} ({share})" if made.stall_s >= 1e-3 else "none"
        lines.append(("stalls", f"{waiting} in an epoch of {_time(made.epoch_s)}, at {trip(job.step_s)} a step"))
    drawn: list[RenderableType] = [facts(lines)]
    if limit is not None:
        drawn.append(Text(*_limit_told(made, limit)))
    if not job.shuffle and job.nodes > 1:
        drawn.append(Text("In source order every node reads all rows' blocks: shuffle to share them out.", "yellow"))
    return Group(*drawn)


def _limit_told(made: Plan, limit: int) -> tuple[str, str]:
    """What a cache limit is good for, and its colour."""
    told = f"A cache limit of {size(limit)}"
    if limit < made.cache_least_bytes:
        return f"{told} is too small: give at least {size(made.cache_least_bytes)}, or a smaller --window.", "red"
    if limit < made.cache_peak_bytes:
        return f"{told} slows fetching ahead: {size(made.cache_peak_bytes)} would not.", "yellow"
    if limit < made.cache_epoch_bytes:
        return f"{told} suffices; shards are given up and fetched again in later epochs.", "green"
    return f"{told} holds all that a node fetches in an epoch.", "green"


def _picture(job: Job, made: Plan) -> RenderableType:
    """Network and loop over time; without a pace of the loop, what each node fetches."""
    if job.step_s:
        return _strips(made)
    shown = made.node_bytes[:_BARS]
    most = max(made.node_bytes)
    rows = [
        (f"node {place}", f"{'█' * max(round(_STRIP / 2 * amount / most), 1)} {size(amount)}")
        for place, amount in enumerate(shown)
    ]
    if len(made.node_bytes) > _BARS:
        rows.append(("", f"and {counted(len(made.node_bytes) - _BARS, 'node')} more"))
    return Group(Text(""), facts(rows))


def _strips(made: Plan) -> RenderableType:
    arriving, waiting = made.shares(_STRIP)
    loop = Text()
    for share in waiting:
        loop.append(_level(1 - share), "green" if share < 0.05 else "yellow" if share < 0.5 else "red")
    end = _time(made.epoch_s)
    return Group(
        Text(""),
        Text.assemble("network  ", ("".join(map(_level, arriving)), "cyan")),
        Text.assemble("loop     ", loop),
        Text(f"         0{end:>{_STRIP - 1}}", "dim"),
    )


def _level(share: float) -> str:
    return _LEVELS[min(-int(-share * (len(_LEVELS) - 1) // 1), len(_LEVELS) - 1)]


def _time(seconds: float) -> str:
    return trip(seconds) if seconds < 10 else spoken(seconds)


def _document(entry: Held, split: str, laid: _Laid, job: Job, made: Plan, limit: int | None) -> dict[str, Any]:
    arriving, waiting = made.shares(_STRIP)
    known = sum(group.known for group in laid.blocks)
    return {
        "name": entry.label,
        "manifest": entry.digest.hex(),
        "split": split,
        "rows": made.rows,
        "bytes": made.byte_count,
        "row_ranges": len(laid.ranges),
        "shards_known": known,
        "shards_estimated": sum(group.shard_sizes.size for group in laid.blocks) - known,
        **asdict(job),
        "steps": made.steps,
        "node_bytes": list(made.node_bytes),
        "described_bytes": list(made.described_bytes),
        "cache_least_bytes": made.cache_least_bytes,
        "cache_peak_bytes": made.cache_peak_bytes,
        "cache_epoch_bytes": made.cache_epoch_bytes,
        "cache_limit": limit,
        "cache_limit_suffices": limit is None or limit >= made.cache_least_bytes,
        "network_seconds": made.network_s,
        "network_rows_per_second": made.network_rows_s,
        "network_step_seconds": made.network_s / made.steps,
        "first_batch_seconds": made.first_batch_s,
        "stall_seconds": made.stall_s if job.step_s else None,
        "epoch_seconds": made.epoch_s,
        "timeline": {
            "network": [round(share, 3) for share in arriving],
            "loop": [round(1 - share, 3) for share in waiting],
        },
    }
