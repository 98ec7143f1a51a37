"""``get``: fetch a dataset into the store, and write it elsewhere too if asked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from dhtdata.cli.filling import fill
from dhtdata.cli.held import Held, held
from dhtdata.cli.locating import choose_columns, choose_splits, contents_of, listed, locate
from dhtdata.cli.output import number, percent, plain, size
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
    CacheLimitOption,
    DownOption,
    HomeOption,
    JsonOption,
    NetworkOption,
    PeerDownOption,
    PeerUpOption,
    Session,
    StoreOption,
    TargetArgument,
    TimeoutOption,
    UpOption,
    WebSeedsOption,
    session,
)
from dhtdata.cli.transfer_view import against_bound
from dhtdata.cli.values import as_document
from dhtdata.control.protocol import Progress
from dhtdata.counts import counted
from dhtdata.errors import ConfigError
from dhtdata.formats.ticket import parse_target
from dhtdata.mirror import write_mirror
from dhtdata.store import Store


class ExportFormat(StrEnum):
    """What ``get --as`` writes."""

    ARROW = "arrow"
    PARQUET = "parquet"


SplitsOption = Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Only these columns, separated by commas.", metavar="NAMES")
]


def get(
    target: TargetArgument,
    split: SplitsOption = None,
    columns: ColumnsOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="Also write the rows as files here.", metavar="DIR")] = None,
    as_: Annotated[ExportFormat, typer.Option("--as", help="Format of the files that --to writes.")] = (
        ExportFormat.PARQUET
    ),
    mirror: Annotated[
        Path | None,
        typer.Option(
            "--mirror",
            help="Also write a static mirror here, for a web server that answers range requests.",
            metavar="DIR",
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    cache_limit: CacheLimitOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = SEARCH_S,
    up: UpOption = None,
    down: DownOption = None,
    peer_up: PeerUpOption = None,
    peer_down: PeerDownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a dataset into the store; optionally write it elsewhere too.

    Interrupted, it goes on where it stopped.

    Example: `dhtdata get my-dataset --split train --to ./rows --as parquet`
    """
    if mirror is not None and (split or columns):
        raise ConfigError("--mirror writes whole datasets: leave --split and --columns out")
    opened = session(
        store,
        home,
        as_json,
        bootstrap=bootstrap,
        network=network,
        web_seeds=web_seeds,
        cache_limit=cache_limit,
        rates={"up": up, "down": down, "peer_up": peer_up, "peer_down": peer_down},
    ).entering(parse_target(target))
    with opened.store() as blobs:
        entry, stale = locate(opened, blobs, target, timeout, newest=True)
        contents = contents_of(entry)
        splits = choose_splits(contents, split or [])
        names = choose_columns(contents, listed(columns))
        went: Progress | None = None
        if not entry.complete:
            with opened.peer(blobs) as peer:
                title = f"fetching {entry.label}"
                went = fill(opened, peer, entry.digest, timeout, title=title, splits=splits, columns=names)
        files = _export(opened, entry, (splits, names), to, as_) if to is not None else []
        mirrored = _mirror(opened, blobs, entry, mirror) if mirror is not None else None
        entry = held(blobs, entry.digest.hex())
    document: dict[str, Any] = {
        "name": entry.label,
        "manifest": entry.digest.hex(),
        "contents": entry.manifest.contents.hex(),
        "rows": sum(part.rows for part in contents.splits if part.name in splits),
        "bytes": entry.bytes_total,
        "bytes_held": entry.bytes_held,
        "stale": stale,
        "files": [str(path) for path in files],
        "mirror": mirrored,
        **_figures(went),
    }
    share = f"{size(entry.bytes_held)} of {size(entry.bytes_total)}, {percent(entry.bytes_held, entry.bytes_total)}"
    lines: list[RenderableType] = [
        plain(f"{entry.label} is in the store ({share})."),
        plain(f"manifest {entry.digest}"),
    ]
    if went is not None and went.fetched:
        lines.append(_told(went))
    if files:
        lines.append(plain(f"Wrote {counted(len(files), f'{as_.value} file')} to {to}."))
    if mirrored:
        lines += [
            plain(
                f"The mirror in {mirror} is complete: serve that folder with a web server that answers range requests"
            ),
            plain("(nginx, Caddy, Apache and buckets do; python -m http.server does not)."),
        ]
    opened.output.result(document, *lines)


def _figures(went: Progress | None) -> dict[str, Any]:
    """How a fetch went, for programs; all nothing if there was nothing to fetch."""
    went = went or Progress(shards=0, shards_total=0, bytes=0, bytes_total=0)
    return {
        "fetched": went.fetched,
        "reused": went.reused,
        "wasted": went.wasted,
        "blocks_verified": went.blocks,
        "seconds": round(went.elapsed_s, 3),
        "bound_seconds": None if went.bound_s is None else round(went.bound_s, 3),
        "providers": as_document(went.traffic),
    }


def _told(went: Progress) -> str:
    """How a fetch went, for people."""
    sources = sum(entry.blocks > 0 for entry in went.traffic)
    told = f"Fetched {size(went.fetched)} in {went.elapsed_s:.1f} s from {counted(sources, 'provider')}"
    if went.reused:
        told += f", reused {size(went.reused)}"
    if went.wasted:
        told += f", threw {size(went.wasted)} away"
    return told + (f": {against_bound(went):.2f} times the lower bound." if went.bound_s is not None else ".")


def _export(
    opened: Session, entry: Held, chosen: tuple[list[str], list[str]], to: Path, kind: ExportFormat
) -> list[Path]:
    from dhtdata.export import export

    with opened.output.progress(f"writing {kind.value}", number) as report:
        return export(
            opened.settings, entry.digest, to, kind.value, splits=chosen[0], columns=chosen[1], progress=report
        )


def _mirror(opened: Session, blobs: Store, entry: Held, folder: Path) -> dict[str, Any]:
    from dhtdata.transfer.answers import VERSION, HaveMap

    everything = HaveMap(version=VERSION, contents=entry.manifest.contents, revision=1, complete=True)
    with opened.output.progress("writing the mirror") as report:
        written = write_mirror(blobs, entry.digest, folder, have=everything.encode(), progress=report)
    return {"folder": str(folder), "blobs": written.blobs, "bytes": written.bytes, "new": written.new}
