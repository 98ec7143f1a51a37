"""Fetch shards into the store with a live view, and give up when nothing arrives any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from dhtdata.cli.output import size
from dhtdata.cli.session import Session
from dhtdata.cli.transfer_view import FetchView, printable
from dhtdata.control import PeerClient
from dhtdata.control.protocol import Progress
from dhtdata.counts import counted
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, NotFoundError

LOOK_S = 0.25
SLOWEST_BYTES_S = 1_000
"""Less than this is nothing: a block of many megabytes may take minutes, but not days."""
_MAX_NAMED = 3


class _Fetch(threading.Thread):
    """Asks for a dataset and waits. A daemon: if nothing arrives, the program ends with it still waiting."""

    def __init__(self, peer: PeerClient, wanted: tuple[Digest, Sequence[str], Sequence[str]], view: FetchView) -> None:
        super().__init__(name="fetch", daemon=True)
        self._peer = peer
        self._wanted = wanted
        self._view = view
        self.failure: DhtDataError | None = None

    def run(self) -> None:
        try:
            self._peer.fetch_dataset(*self._wanted, on_progress=self._view.see)
        except DhtDataError as failure:
            self.failure = failure


def fill(
    opened: Session,
    peer: PeerClient,
    manifest: Digest,
    timeout_s: float,
    *,
    title: str,
    splits: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Progress:
    """Fetch what is missing of these splits and columns; how it went. NotFoundError if nothing arrives for so long."""
    view = FetchView(title)
    fetch = _Fetch(peer, (manifest, splits, columns), view)
    received, moved_s = 0, time.monotonic()
    with opened.output.live(view):
        fetch.start()
        while fetch.is_alive():
            fetch.join(LOOK_S)
            seen = view.seen
            if seen.peer_received >= received + SLOWEST_BYTES_S * (time.monotonic() - moved_s) + 1:
                received, moved_s = seen.peer_received, time.monotonic()
            elif fetch.is_alive() and time.monotonic() - moved_s > timeout_s:
                held = f"{size(seen.bytes)} of {size(seen.bytes_total)} are here and kept"
                raise NotFoundError(
                    f"{title}: nothing arrived for {timeout_s:.0f} s, {held}. {_whom(seen)}; try again later, or ask "
                    "for a fresh ticket"
                )
    if fetch.failure is not None:
        raise fetch.failure
    return view.seen


def _whom(seen: Progress) -> str:
    """Who could have sent something, and why they did not."""
    named = [f"{one.address}: {one.avoided}" for one in seen.traffic if one.avoided][:_MAX_NAMED]
    if not named:
        return f"{counted(seen.providers, 'provider')} known"
    return f"{counted(seen.providers, 'provider')} known ({'; '.join(map(printable, named))})"
