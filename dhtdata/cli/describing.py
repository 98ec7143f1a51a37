"""``head info``: look into a dataset without fetching all of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markdown import Markdown
from rich.rule import Rule

from dhtdata.cli.fetching import ColumnsOption
from dhtdata.cli.held import Held
from dhtdata.cli.locating import choose_columns, choose_splits, contents_of, listed, locate
from dhtdata.cli.output import facts, number, plain, rows_table, size, table
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
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
from dhtdata.cli.summary import statistics_table
from dhtdata.cli.values import as_document, cell, to_json
from dhtdata.counts import counted
from dhtdata.errors import ConfigError, NotFoundError, PeerError
from dhtdata.formats.schema import Field
from dhtdata.formats.statistics import MAX_STATISTICS_BYTES, Statistics
from dhtdata.formats.ticket import parse_target
from dhtdata.store import Store

_SHOWN_SOURCES = 8


def head(
    target: TargetArgument,
    count: Annotated[int, typer.Option("--rows", "-n", help="How many rows.", min=1, max=10_000)] = 5,
    split: Annotated[str | None, typer.Option("--split", help="Which split; the first if left out.")] = None,
    columns: ColumnsOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = SEARCH_S,
    as_json: JsonOption = False,
) -> None:
    """Show the first rows; fetches no more than the blocks that hold them.

    Example: `dhtdata head my-dataset -n 3`
    """
    from dhtdata.mount import mount

    opened = session(store, home, as_json, bootstrap=bootstrap, network=network, web_seeds=web_seeds)
    opened = opened.entering(parse_target(target))
    with opened.store() as blobs:
        entry, _ = locate(opened, blobs, target, timeout)
    contents = contents_of(entry)
    chosen = choose_splits(contents, [split] if split else [])[0]
    names = choose_columns(contents, listed(columns))
    with mount(
        entry.digest.hex(), split=chosen, columns=names, format="python", timeout=timeout, settings=opened.settings
    ) as dataset:
        total = dataset.num_rows
        columns_of = dataset.map_style()[0 : min(count, total)]
    rows = list(zip(*(columns_of[name] for name in names), strict=True))
    found = [{name: to_json(value) for name, value in zip(names, row, strict=True)} for row in rows]
    document = {"split": chosen, "rows_total": total, "rows": found}
    drawn = rows_table(names, [[cell(value) for value in row] for row in rows], opened.output.width)
    opened.output.result(document, drawn, plain(f"{number(len(rows))} of {counted(total, 'row')} of split {chosen}."))


def info(
    target: TargetArgument,
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    web_seeds: WebSeedsOption = None,
    timeout: TimeoutOption = SEARCH_S,
    as_json: JsonOption = False,
) -> None:
    """Describe a dataset: schema, splits, column groups, licence, provenance, statistics, card.

    Fetches the description only, not the rows.

    Example: `dhtdata info my-dataset`
    """
    opened = session(store, home, as_json, bootstrap=bootstrap, network=network, web_seeds=web_seeds)
    opened = opened.entering(parse_target(target))
    with opened.store() as blobs:
        entry, stale = locate(opened, blobs, target, timeout)
        statistics = _statistics(opened, blobs, entry, timeout)
    opened.output.result(_document(entry, stale, statistics), *_portrait(entry, stale, statistics))


def _statistics(opened: Session, blobs: Store, entry: Held, timeout_s: float) -> Statistics | None:
    """Statistics of whole columns; None, with a note, if nobody has them."""
    digest = entry.manifest.statistics
    if not blobs.has(digest):
        try:
            with opened.peer(blobs) as peer:
                peer.fetch_blobs(entry.manifest.contents, [(digest, MAX_STATISTICS_BYTES)], timeout_s)
        except (NotFoundError, ConfigError, PeerError) as failure:
            opened.output.note(f"Without statistics: {failure}")
            return None
    return Statistics.decode(blobs.read(digest, limit_bytes=MAX_STATISTICS_BYTES))


def _document(entry: Held, stale: bool, statistics: Statistics | None) -> dict[str, Any]:
    contents, manifest = contents_of(entry), entry.manifest
    return {
        "name": entry.label,
        "uri": str(entry.known.name) if entry.known else None,
        "stale": stale,
        "manifest": entry.digest.hex(),
        "contents": manifest.contents.hex(),
        "parent": manifest.parent.hex() if manifest.parent else None,
        "rows": contents.row_count,
        "bytes": contents.byte_count,
        "bytes_held": entry.bytes_held,
        "shards": contents.shard_count,
        "licence": manifest.licence,
        "card": manifest.card,
        "source_url": manifest.provenance.url,
        "web_seeds": [seed.url for seed in manifest.web_seeds],
        "source_files": manifest.provenance.files,
        "sources": [{"name": source.name, "bytes": source.bytes} for source in manifest.provenance.sources],
        "columns": [
            {"name": field.name, "type": type_text(field), "nullable": field.nullable} for field in contents.columns
        ],
        "groups": [list(group.columns) for group in contents.groups],
        "splits": [
            {
                "name": split.name,
                "rows": split.rows,
                "shards": sum(group.shards for group in split.groups),
                "bytes": sum(group.bytes for group in split.groups),
            }
            for split in contents.splits
        ],
        "statistics": as_document(statistics) if statistics is not None else None,
    }


def _portrait(entry: Held, stale: bool, statistics: Statistics | None) -> list[RenderableType]:
    contents, manifest = contents_of(entry), entry.manifest
    named = str(entry.known.name) + (" (stale)" if stale or entry.known.stale else "") if entry.known else "none here"
    held = f"{size(entry.bytes_held)} here, {entry.share}"
    lines = [
        ("name", named),
        ("manifest", str(entry.digest)),
        ("contents", str(manifest.contents)),
        ("parent", str(manifest.parent) if manifest.parent else "none: the first version"),
        ("size", f"{counted(contents.row_count, 'row')}, {size(contents.byte_count)} ({held})"),
        ("licence", manifest.licence or "not stated"),
        ("source", _provenance(entry)),
        ("web seeds", ", ".join(seed.url for seed in manifest.web_seeds) or "none"),
    ]
    group_of = {name: place for place, group in enumerate(contents.groups) for name in group.columns}
    columns = [
        (field.name, type_text(field), "" if field.nullable else "never null", str(group_of[field.name]))
        for field in contents.columns
    ]
    splits = [
        (
            split.name,
            number(split.rows),
            number(sum(group.shards for group in split.groups)),
            size(sum(group.bytes for group in split.groups)),
        )
        for split in contents.splits
    ]
    shown: list[RenderableType] = [
        facts(lines),
        table("Columns", "column", "type", "nulls", "group", rows=columns, right=("group",)),
        table("Splits", "split", "rows", "shards", "size", rows=splits, right=("rows", "shards", "size")),
    ]
    if statistics is not None:
        shown += [statistics_table(split) for split in statistics.splits]
    if manifest.card:
        shown += [Rule("Card", align="left", style="dim"), Markdown(manifest.card)]
    return shown


def _provenance(entry: Held) -> str:
    provenance = entry.manifest.provenance
    names = ", ".join(source.name for source in provenance.sources[:_SHOWN_SOURCES])
    more = ", …" if provenance.files > _SHOWN_SOURCES else ""
    files = f"{counted(provenance.files, 'file')} ({names}{more})" if provenance.files else ""
    return "; ".join(part for part in (provenance.url, files) if part) or "not stated"


def type_text(field: Field) -> str:
    """A column's type as people write it: ``list<int64>``, ``timestamp[us, UTC]``."""
    parameters = dict(field.parameters)
    children = [type_text(child) for child in field.children]
    if field.type in ("struct", "dense_union", "sparse_union"):
        children = [f"{child.name}: {text}" for child, text in zip(field.children, children, strict=True)]
    if field.type == "extension":
        return str(parameters.get("extension_name", "extension"))
    inside = f"<{', '.join(children)}>" if children else ""
    values = [str(value) for name, value in sorted(parameters.items(), reverse=True) if value not in ("", False)]
    return field.type + inside + (f"[{', '.join(values)}]" if values else "")
