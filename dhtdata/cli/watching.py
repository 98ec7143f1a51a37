"""``status peers doctor version``: look at the running peer and at this machine."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version as installed_version

from rich.console import RenderableType
from rich.markup import escape

from dhtdata.cli.dht_view import summary
from dhtdata.cli.held import Held, held
from dhtdata.cli.limits import limits_text
from dhtdata.cli.output import blank_table, facts, number, percent, short, size, table
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
    HomeOption,
    JsonOption,
    ListenOption,
    NetworkOption,
    PortOption,
    Session,
    StoreOption,
    TargetArgument,
    session,
)
from dhtdata.cli.transfer_view import printable, without_address
from dhtdata.cli.values import as_document
from dhtdata.control.protocol import HeldDataset, PeerStatus, ProviderStatus, Traffic, Upload
from dhtdata.counts import counted
from dhtdata.durations import spoken, trip
from dhtdata.errors import NotFoundError
from dhtdata.formats.ticket import parse_target

_SHOWN_PACKAGES = ("pyarrow", "numpy", "aiohttp", "kademlia", "blake3", "msgspec", "cryptography", "zstandard")


def status(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the running peer: datasets, addresses, traffic.

    Example: `dhtdata status`
    """
    opened = session(store, home, as_json)
    with opened.store() as blobs, opened.running_peer(blobs) as peer:
        if peer is None:
            raise NotFoundError(f"no peer runs on the store {blobs.path}: start one with dhtdata seed")
        show_status(opened, peer.status())


def show_status(opened: Session, seen: PeerStatus) -> None:
    """A peer's status as facts and tables."""

    def now(bytes_s: float) -> str:
        return f", now {_rate(bytes_s)}" if bytes_s else ""

    document = as_document(seen)
    where = ", ".join(seen.addresses) or "nowhere: it is private and serves nobody"
    shown = [
        ("peer", f"{seen.kind}, process {seen.pid}, version {seen.version}, up {spoken(seen.uptime_s)}"),
        ("store", seen.store),
        ("network", seen.network if seen.network == "public" else f"private, fingerprint {seen.network}"),
        ("reachable at", where),
        ("DHT", summary(seen.dht)),
        ("uploads", f"{number(seen.uploads)} under way, {number(seen.uploads_waiting)} waiting"),
        ("limits", limits_text(seen.limits)),
        (
            "fetched",
            f"{size(seen.bytes_fetched)}, {counted(seen.blocks_verified, 'block')} verified{now(seen.down_bytes_s)}",
        ),
        ("served", f"{size(seen.bytes_served)} in {counted(seen.requests_served, 'request')}{now(seen.up_bytes_s)}"),
    ]
    pieces: list[RenderableType] = [facts(shown)]
    if seen.datasets:
        pieces.append(_datasets_table(seen))
    if seen.traffic:
        pieces.append(_traffic_table(seen.traffic))
    if seen.fetchers:
        pieces.append(_uploads_table(seen.fetchers))
    opened.output.result(document, *pieces)


def peers(
    target: TargetArgument = "",
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who provides a dataset; without TARGET, who delivered bytes to the running peer.

    Example: `dhtdata peers my-dataset`
    """
    opened = session(store, home, as_json, bootstrap=bootstrap, network=network)
    parsed = parse_target(target) if target else None
    if parsed is not None:
        opened = opened.entering(parsed)
    with opened.store() as blobs:
        if parsed is None:
            with opened.running_peer(blobs, any_network=False) as peer:
                if peer is None:
                    raise NotFoundError(f"no peer runs on the store {blobs.path}: start one with dhtdata seed")
                traffic = peer.status().traffic
            document = {"traffic": as_document(traffic)}
            opened.output.result(
                document, _traffic_table(traffic) if traffic else "No peer has delivered anything yet."
            )
            return
        with opened.peer(blobs) as peer:
            found = peer.resolve(opened.asking(parsed), SEARCH_S)
            providers = peer.providers(found.contents)
            alone = "" if providers else _alone(held(blobs, found.manifest.hex()), peer.status())
        document = {
            "manifest": found.manifest.hex(),
            "contents": found.contents.hex(),
            "providers": as_document(providers),
        }
        opened.output.result(document, alone or _providers_table(providers))


def doctor(
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    listen: ListenOption = None,
    port: PortOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what is wrong with this machine's set-up, and what to do about it.

    Ends with exit code 2 if something must be changed.

    Example: `dhtdata doctor`
    """
    from dhtdata.doctor import examine

    opened = session(store, home, as_json, bootstrap=bootstrap, network=network, listen=listen, port=port)
    findings = examine(opened.settings)
    wrong = [finding for finding in findings if finding.verdict == "wrong"]
    marks = {"good": "[green]ok[/green]", "doubtful": "[yellow]look[/yellow]", "wrong": "[red]wrong[/red]"}
    drawn = blank_table("", "what", "found")
    for finding in findings:
        drawn.add_row(marks[finding.verdict], finding.subject, escape(finding.text))
    summary = "Nothing is in the way." if not wrong else f"{len(wrong)} to mend: the lines marked wrong say how."
    document = {
        "ok": not wrong,
        "findings": [
            {"subject": finding.subject, "verdict": finding.verdict, "text": finding.text} for finding in findings
        ],
    }
    opened.output.result(document, drawn, summary)
    return 2 if wrong else 0


def version(as_json: JsonOption = False) -> None:
    """Show the version of dhtdata and of what it stands on.

    Example: `dhtdata version`
    """
    from dhtdata.cli.output import Output
    from dhtdata.formats import contents, manifest, records

    packages = {name: installed_version(name) for name in _SHOWN_PACKAGES}
    formats = {"contents": contents.VERSION, "manifest": manifest.VERSION, "records": records.VERSION}
    document = {
        "dhtdata": installed_version("dhtdata"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "formats": formats,
        "packages": packages,
    }
    shown = facts(
        [
            ("dhtdata", str(document["dhtdata"])),
            ("Python", f"{document['python']} on {document['system']}"),
            ("formats", ", ".join(f"{name} {number}" for name, number in formats.items())),
            ("packages", ", ".join(f"{name} {number}" for name, number in packages.items())),
        ]
    )
    Output(as_json).result(document, shown)


def _datasets_table(seen: PeerStatus) -> RenderableType:
    rows = [
        (
            entry.name_uri.rpartition("/")[2] or short(entry.manifest),
            short(entry.manifest),
            size(entry.bytes),
            percent(entry.bytes_held, entry.bytes),
            _announced(entry, seen),
            entry.state,
        )
        for entry in seen.datasets
    ]
    columns = ("dataset", "version", "size", "held", "announced", "state")
    return table("Datasets", *columns, rows=rows, right=("size", "held"))


def _traffic_table(traffic: tuple[Traffic, ...]) -> RenderableType:
    rows = [
        (
            printable(entry.address),
            size(entry.bytes),
            number(entry.blocks),
            size(entry.wasted),
            _rate(entry.rate_bytes_s),
            _latency(entry.latency_s),
            printable(without_address(entry.avoided, entry.address)),
        )
        for entry in traffic
    ]
    columns = ("from", "bytes", "blocks", "thrown away", "rate", "latency", "avoided because")
    return table("Received", *columns, rows=rows, right=columns[1:-1])


def _uploads_table(uploads: tuple[Upload, ...]) -> RenderableType:
    rows = [(entry.address, size(entry.bytes), _rate(entry.rate_bytes_s)) for entry in uploads]
    return table("Served", "to", "bytes", "rate", rows=rows, right=("bytes", "rate"))


def _providers_table(providers: tuple[ProviderStatus, ...]) -> RenderableType:
    rows = [
        (
            entry.address,
            "everything" if entry.seed else counted(entry.shards, "shard") if entry.shards >= 0 else "unknown",
            size(entry.bytes),
            _rate(entry.rate_bytes_s),
            _latency(entry.latency_s),
            entry.source,
            printable(without_address(entry.avoided, entry.address)),
        )
        for entry in providers
    ]
    columns = ("address", "has", "received", "rate", "latency", "found by", "avoided because")
    return table("Providers", *columns, rows=rows, right=("received", "rate", "latency"))


def _alone(entry: Held, seen: PeerStatus) -> str:
    """Nobody else provides a dataset: what this machine does about it, and the next step."""
    name = printable(entry.label)
    if any(each.manifest == entry.digest for each in seen.datasets):
        itself = f"Nobody else who was asked provides {name} now; this machine itself seeds it"
        if entry.complete:
            return f"{itself}. To seed it elsewhere too: dhtdata seed TICKET, which dhtdata ticket {name} prints."
        return f"{itself}, but has only {entry.share} of it: start a seed of it on a machine that has the rest."
    if entry.complete:
        return f"Nobody who was asked provides {name} now, but this store has all of it: dhtdata seed {name} serves it."
    return f"Nobody who was asked provides {name} now: run dhtdata seed on a machine that has it, or name a --web-seed."


def _rate(bytes_s: float) -> str:
    return f"{size(int(bytes_s))}/s"


def _latency(seconds: float) -> str:
    return trip(seconds) if seconds else ""


def _announced(entry: HeldDataset, seen: PeerStatus) -> str:
    if seen.kind != "seed":
        return "never: private"
    if not entry.announced:
        if not seen.dht_contacts:
            return "nobody to tell yet"
        return "not yet" if seen.dht.reached else "no: strangers cannot reach us"
    return f"{spoken(max(0.0, time.time() - entry.announced))} ago, at {counted(entry.holders, 'DHT node')}"
