"""Run the store's seed in the foreground, or hand datasets to the one that runs."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from dhtdata.cli.output import plain
from dhtdata.cli.session import SEARCH_S, Session
from dhtdata.cli.transfer_view import SeedView
from dhtdata.control import PeerClient
from dhtdata.control.protocol import PeerStatus, Seeded
from dhtdata.entrances import in_use_by_seed, seed_answers
from dhtdata.errors import ConfigError, DhtDataError
from dhtdata.formats.ticket import Target, parse_target
from dhtdata.store import Store

REFRESH_S = 0.25


def run_seed(
    opened: Session, targets: Sequence[str], document: dict[str, Any], shown: Sequence[RenderableType]
) -> None:
    """Seed these datasets until stopped. ``document`` and ``shown`` say what a publish did before.

    If a seed of this store runs already, or another one starts faster, it takes them up and this returns.
    """
    from dhtdata.peer import AlreadyRunning

    wanted = [parse_target(target) for target in targets]
    opened = opened.entering(*wanted)
    parsed = [opened.asking(target) for target in wanted]
    with opened.store() as blobs:
        if _added(opened, blobs, parsed, (document, shown)):
            return
        try:
            _run(opened, blobs, parsed, (document, shown))
        except AlreadyRunning:
            if not _added(opened, blobs, parsed, (document, shown)):
                raise


def _added(
    opened: Session,
    blobs: Store,
    targets: Sequence[Target],
    before: tuple[dict[str, Any], Sequence[RenderableType]],
) -> bool:
    """Whether a seed of this store runs; it has these datasets now."""
    with opened.running_peer(blobs, any_network=False) as peer:
        if peer is None or (status := peer.status()).kind != "seed":
            return False
        if opened.port not in (None, 0, status.port):
            raise ConfigError(
                f"a seed of this store (process {status.pid}) runs on port {status.port}, not {opened.port}: "
                "leave --port out to add to it, or run dhtdata stop first"
            )
        _add(opened, peer, targets, before)
        return True


def _add(
    opened: Session,
    peer: PeerClient,
    targets: Sequence[Target],
    before: tuple[dict[str, Any], Sequence[RenderableType]],
) -> None:
    if opened.rates:
        peer.limit(opened.rates)
    seeded = [peer.seed(target, SEARCH_S) for target in targets]
    status = peer.status()
    document, shown = before
    note = f"The running seed, process {status.pid}, has taken {'it' if len(seeded) == 1 else 'them'} up."
    shown = [*shown, *map(_shown, seeded), *reader_needs(status)]
    opened.output.result(document | _document(status, seeded), *shown, note)


def _run(
    opened: Session,
    blobs: Store,
    targets: Sequence[Target],
    before: tuple[dict[str, Any], Sequence[RenderableType]],
) -> None:
    from dhtdata.peer import run_seed as serve

    listening: list[PeerStatus] = []
    seeded: list[Seeded] = []
    document, shown = before

    def on_seeded(dataset: Seeded) -> None:
        seeded.append(dataset)
        if len(seeded) == len(targets):
            status = listening[0]
            where = f"Seeding on {', '.join(status.addresses)} (process {status.pid}); Ctrl-C or dhtdata stop ends it."
            pieces = [*shown, *map(_shown, seeded), *reader_needs(status), where]
            opened.output.result(document | _document(status, seeded), *pieces)

    try:
        with _live_view(opened, blobs):
            serve(opened.settings, targets, on_listening=listening.append, on_seeded=on_seeded)
    except ConfigError as failure:
        if _held_by_seed(opened, failure):
            raise ConfigError(in_use_by_seed(opened.settings.port)) from failure
        raise
    if len(seeded) < len(targets):
        raise KeyboardInterrupt
    opened.output.note("Stopped seeding; what was fetched is kept.")


def _held_by_seed(opened: Session, failure: ConfigError) -> bool:
    """Whether a start failed because another seed has the port."""
    cause = failure.__cause__
    in_use = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
    return in_use and seed_answers(opened.settings.listen, opened.settings.port)


@contextmanager
def _live_view(opened: Session, blobs: Store) -> Iterator[None]:
    """While inside, the terminal shows what the seed does."""
    ended = threading.Event()
    view = SeedView()

    def look() -> None:
        """Over one connection, for as long as it lasts."""
        with PeerClient.connect(blobs, opened.settings, start=False, keeps_alive=False, any_network=True) as peer:
            while not ended.wait(REFRESH_S):
                view.seen = peer.status()

    def refresh() -> None:
        while not ended.wait(REFRESH_S):
            try:
                look()
            except DhtDataError as failure:
                # Not listening yet, or on its way out: the view says so, and the next look tells more.
                view.seen, view.said = None, str(failure)

    with opened.output.live(view) as seen:
        if not seen:
            yield
            return
        watcher = threading.Thread(target=refresh, name="live-view")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _shown(dataset: Seeded) -> Text:
    return plain(f"{dataset.name_uri or dataset.manifest}\nticket {dataset.ticket}")


def reader_needs(status: PeerStatus) -> list[str]:
    """What to say beside a ticket that carries no secret."""
    if status.network == "public":
        return []
    return [
        f"This is private network {status.network}: who reads the ticket needs the network file as well (--network), "
        "or a ticket made with dhtdata ticket TARGET --with-secret."
    ]


def _document(status: PeerStatus, seeded: Sequence[Seeded]) -> dict[str, Any]:
    datasets = [
        {
            "name": entry.name_uri or None,
            "manifest": entry.manifest.hex(),
            "contents": entry.contents.hex(),
            "ticket": entry.ticket,
        }
        for entry in seeded
    ]
    return {
        "pid": status.pid,
        "addresses": list(status.addresses),
        "port": status.port,
        "network": status.network,
        "ticket": datasets[0]["ticket"],
        "datasets": datasets,
    }
