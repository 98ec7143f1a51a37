"""``publish seed ticket stop``: bring a dataset into the network and keep it there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from dhtdata.cli.held import held
from dhtdata.cli.output import facts, number, plain, size
from dhtdata.cli.seeding import reader_needs, run_seed
from dhtdata.cli.session import (
    BootstrapOption,
    CacheLimitOption,
    DownOption,
    HomeOption,
    JsonOption,
    ListenOption,
    NetworkOption,
    PackedOption,
    PeerDownOption,
    PeerUpOption,
    PortOption,
    Session,
    StoreOption,
    TargetArgument,
    UpOption,
    WebSeedsOption,
    session,
)
from dhtdata.counts import counted
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Ticket, parse_target
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.network import network_at

if TYPE_CHECKING:
    from dhtdata.publish import Published

_DEFAULT_SPLIT = "train"
PublishedSeedsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--web-seed",
        help="Public URL of a mirror, for readers to fetch from as well; may be repeated.",
        metavar="URL",
    ),
]
_MEMBERS_ONLY = "The ticket carries the network's secret: whoever reads it is a member. Give it to nobody else."


def publish(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Parquet, CSV, JSON lines (also .gz, .zst), Arrow IPC files, or a folder of files; globs.",
            metavar="[SOURCE]...",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Name of the dataset, required: a-z 0-9 . _ -", show_default=False)
    ] = "",
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="Files or a folder of one split, such as train='data/*.parquet'; may be repeated."
        ),
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence, by its SPDX identifier.", metavar="SPDX")] = "",
    source_url: Annotated[str, typer.Option("--source-url", help="Where the rows came from.", metavar="URL")] = "",
    card: Annotated[
        Path | None, typer.Option("--card", help="Description in Markdown.", metavar="FILE", show_default=False)
    ] = None,
    web_seed: PublishedSeedsOption = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Fill columns that some files lack with nulls.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, store nothing.")] = False,
    seed: Annotated[bool, typer.Option("--seed", help="Stay up and seed it; prints a ticket.")] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    cache_limit: CacheLimitOption = None,
    listen: ListenOption = None,
    port: PortOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    up: UpOption = None,
    down: DownOption = None,
    peer_up: PeerUpOption = None,
    peer_down: PeerDownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut files into a dataset, store it and sign its name.

    The same rows give the same digests, and shards that an earlier version had are not stored again. Interrupted, it
    can be run again; finished shards are not redone.

    Example: `dhtdata publish 'data/*.parquet' --name my-dataset --licence CC-BY-4.0 --seed`
    """
    if dry_run and seed:
        raise ConfigError("--dry-run stores nothing that could be seeded: leave --seed out")
    if not name:
        raise ConfigError("a dataset needs a name: add --name NAME")
    opened = session(
        store,
        home,
        as_json,
        bootstrap=bootstrap,
        network=network,
        listen=listen,
        port=port,
        cache_limit=cache_limit,
        rates={"up": up, "down": down, "peer_up": peer_up, "peer_down": peer_down},
    )
    splits = _splits(sources or [], split or [])
    if seed:
        # A wrong network file must not be noticed only after hours of publishing.
        network_at(opened.settings.network)
    from dhtdata.publish import publish as publish_rows

    with opened.output.progress(f"publishing {name}") as report:
        done = publish_rows(
            splits=splits,
            name=name,
            licence=licence,
            source_url=source_url,
            card=_card(card),
            web_seeds=web_seed or (),
            allow_missing=allow_missing,
            dry_run=dry_run,
            settings=opened.settings,
            progress=lambda seen: report(seen.source_done, seen.source_total),
        )
    document = _document(done)
    shown = _shown(done)
    for count, kind in ((done.skipped_hidden, "hidden file"), (done.skipped_links, "symbolic link")):
        if count:
            opened.output.note(f"Skipped {counted(count, kind)}.")
    if seed:
        run_seed(opened, [str(done.name).partition("@")[0]], document, [shown])
        return
    opened.output.result(document, shown, plain(_last_line(opened, name, done, dry_run)))


def seed(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Names, manifest digests, tickets, or files with one of them a line.",
            metavar="TARGET...",
            show_default=False,
        ),
    ],
    store: StoreOption = None,
    home: HomeOption = None,
    cache_limit: CacheLimitOption = None,
    listen: ListenOption = None,
    port: PortOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    up: UpOption = None,
    down: DownOption = None,
    peer_up: PeerUpOption = None,
    peer_down: PeerDownOption = None,
    web_seeds: WebSeedsOption = None,
    packed: PackedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch, keep and serve datasets until stopped; prints a ticket for each.

    Serves whatever is pinned as well, which includes what this machine published. New versions of a name are looked
    for every ten minutes, fetched and served.

    Runs in the foreground on a fixed port. If a seed of this store already runs, the datasets are added to it.

    Example: `dhtdata seed my-dataset`
    """
    opened = session(
        store,
        home,
        as_json,
        bootstrap=bootstrap,
        network=network,
        web_seeds=web_seeds,
        listen=listen,
        port=port,
        cache_limit=cache_limit,
        rates={"up": up, "down": down, "peer_up": peer_up, "peer_down": peer_down},
        packed=packed,
    )
    run_seed(opened, expand_targets(targets), {}, [])


def ticket(
    target: TargetArgument,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at", help="Address of a static mirror to name in the ticket; may be repeated.", metavar="IP:PORT"
        ),
    ] = None,
    web_seed: PublishedSeedsOption = None,
    with_secret: Annotated[
        bool,
        typer.Option("--with-secret", help="Carry the secret of the seed's private network: its reader is a member."),
    ] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a ticket: one string that leads others to a dataset that is being seeded.

    Example: `dhtdata ticket my-dataset`
    """
    parsed = parse_target(target)
    opened = session(store, home, as_json, network=network).entering(parsed)
    mirrors = tuple(Address.parse(text) for text in at or [])
    web_seeds = _web_seeds(web_seed or [])
    needs: list[str] = []
    with opened.store() as blobs, opened.running_peer(blobs, any_network=False) as peer:
        seen = peer.status() if peer is not None else None
        if peer is not None and seen is not None and seen.kind == "seed":
            made = Ticket.parse(peer.ticket(parsed, with_secret=with_secret))
            addresses = tuple(dict.fromkeys([*mirrors, *made.addresses]))
            made = replace(made, addresses=addresses, web_seeds=web_seeds)
            needs = [_MEMBERS_ONLY] if with_secret else reader_needs(seen)
        elif with_secret:
            raise ConfigError(
                f"--with-secret needs a seed in a private network: run dhtdata seed {target[:80]} --network FILE"
            )
        elif mirrors or web_seeds:
            made = Ticket(held(blobs, target).digest, mirrors, web_seeds=web_seeds)
        else:
            raise NotFoundError(f"nobody on this machine seeds {target[:80]}: run dhtdata seed {target[:80]}")
    document = {
        "ticket": str(made),
        "target": str(made.target),
        "addresses": [str(address) for address in made.addresses],
        "web_seeds": [seed.url for seed in made.web_seeds],
        "network": seen.network if seen is not None else None,
        "secret": made.secret is not None,
    }
    opened.output.result(document, plain(str(made)))
    for sentence in needs:
        # Apart from the ticket, so that standard output can be piped to where it is needed.
        opened.output.note(sentence)


def stop(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop the running peer of the store.

    Example: `dhtdata stop`
    """
    opened = session(store, home, as_json)
    with opened.store() as blobs, opened.running_peer(blobs) as peer:
        if peer is None:
            raise NotFoundError(f"no peer runs on the store {blobs.path}")
        seen = peer.status()
        peer.stop()
    opened.output.result({"stopped": seen.pid, "kind": seen.kind}, f"Stopped the {seen.kind} peer, process {seen.pid}.")


def expand_targets(targets: list[str]) -> list[str]:
    """Targets, with each that is a file replaced by the lines in it; empty lines and ``#`` comments are left out."""
    found: list[str] = []
    for target in targets:
        path = Path(target)
        if not path.is_file():
            if "/" in target and "://" not in target:
                raise ConfigError(f"list of datasets {target[:200]} does not exist: check the path")
            found.append(target)
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as failure:
            raise ConfigError(f"list of datasets {path} cannot be read: {failure}") from failure
        found += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise ConfigError(f"{', '.join(targets)[:200]} lists no dataset: one name, digest or ticket a line")
    for target in found:
        parse_target(target)
    return found


def _document(done: Published) -> dict[str, Any]:
    return {
        "name": str(done.name) if done.name else None,
        "manifest": done.manifest.hex(),
        "contents": done.contents.hex(),
        "sequence": done.sequence,
        "rows": done.rows,
        "splits": dict(done.splits),
        "bytes": done.bytes,
        "new_bytes": done.new_bytes,
        "shards": done.shards,
        "new_shards": done.new_shards,
        "unchanged": done.unchanged,
        "files": done.files,
        "skipped_hidden": done.skipped_hidden,
        "skipped_links": done.skipped_links,
        "dry_run": done.dry_run,
    }


def _shown(done: Published) -> RenderableType:
    splits = ", ".join(f"{number(count)} {name}" for name, count in done.splits.items())
    version = "unchanged: this version was published before" if done.unchanged else f"sequence {done.sequence}"
    return facts(
        [
            ("name", str(done.name) if done.name else "made with the first real publish"),
            ("version", version),
            ("manifest", str(done.manifest)),
            ("contents", str(done.contents)),
            ("rows", f"{number(done.rows)} ({splits})"),
            ("size", f"{size(done.bytes)}, {size(done.new_bytes)} new"),
            ("shards", f"{number(done.shards)}, {number(done.new_shards)} new"),
        ]
    )


def _splits(sources: list[str], named: list[str]) -> dict[str, list[str]]:
    """Sources by split. SOURCE arguments are the split ``train`` unless ``--split`` names splits."""
    if sources and named:
        raise ConfigError("give files either as SOURCE or with --split NAME=GLOB, not both")
    if sources:
        return {_DEFAULT_SPLIT: sources}
    splits: dict[str, list[str]] = {}
    for text in named:
        split, equals, pattern = text.partition("=")
        if not split or not equals or not pattern:
            raise ConfigError(f"--split {text!r}: write it like train='data/*.parquet'")
        splits.setdefault(split, []).append(pattern)
    if not splits:
        raise ConfigError("nothing to publish: give files, folders or globs, or --split NAME=GLOB")
    return splits


def _web_seeds(urls: list[str]) -> tuple[WebSeed, ...]:
    """Mirrors that everybody reaches."""
    try:
        return tuple(dict.fromkeys(map(WebSeed.parse, urls)))
    except FormatError as failure:
        raise ConfigError(f"--web-seed: {failure}") from failure


def _card(path: Path | None) -> str:
    if path is None:
        return ""
    if not path.is_file():
        raise ConfigError(f"card {path} is not a file: check the path")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"card {path} cannot be read as text: {failure}") from failure


def _last_line(opened: Session, name: str, done: Published, dry_run: bool) -> str:
    """What to know next: whether anybody can fetch this."""
    if dry_run:
        return "Dry run: nothing was stored."
    with opened.store() as blobs, opened.running_peer(blobs) as peer:
        if peer is not None and peer.status().kind == "seed":
            peer.announce(done.manifest)
            return f"The running seed announces it; dhtdata ticket {name} prints a ticket."
    return f"Nobody can fetch this until a seed of this store runs: dhtdata seed {name}"
