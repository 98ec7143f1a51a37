"""Fetch shards into the store with a progress bar, and give up when nothing arrives any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from dhtdata.cli.output import size
from dhtdata.cli.session import Session
from dhtdata.control import PeerClient
from dhtdata.control.protocol import Progress
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, NotFoundError

LOOK_S = 0.25


class _Fetch(threading.Thread):
    """Asks for a dataset and waits. A daemon: if nothing arrives, the program ends with it still waiting."""

    def __init__(self, peer: PeerClient, manifest: Digest, splits: Sequence[str], columns: Sequence[str]) -> None:
        super().__init__(name="fetch", daemon=True)
        self._peer = peer
        self._wanted = (manifest, splits, columns)
        self.seen = Progress(shards=0, shards_total=0, bytes=0, bytes_total=0)
        self.held_at_first: int | None = None
        self.failure: DhtDataError | None = None

    def run(self) -> None:
        try:
            self._peer.fetch_dataset(*self._wanted, on_progress=self._on_progress)
        except DhtDataError as failure:
            self.failure = failure

    def _on_progress(self, seen: Progress) -> None:
        if self.held_at_first is None:
            self.held_at_first = seen.bytes
        self.seen = seen


def fill(
    opened: Session,
    peer: PeerClient,
    manifest: Digest,
    timeout_s: float,
    *,
    title: str,
    splits: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Fetch what is missing of these splits and columns. NotFoundError if nothing arrives for ``timeout_s``."""
    fetch = _Fetch(peer, manifest, splits, columns)
    begun = most = peer.status().bytes_fetched
    moved_s = time.monotonic()
    with opened.output.progress(title) as report:
        fetch.start()
        while fetch.is_alive():
            fetch.join(LOOK_S)
            fetched = peer.status().bytes_fetched
            total = fetch.seen.bytes_total
            done = min(total, (fetch.held_at_first or 0) + fetched - begun)
            report(done, total)
            if fetched != most:
                most, moved_s = fetched, time.monotonic()
            elif fetch.is_alive() and time.monotonic() - moved_s > timeout_s:
                raise NotFoundError(
                    f"nothing arrived for {timeout_s:.0f} s: {size(done)} of {size(total)} are here and kept; "
                    "try again later, or ask for a fresh ticket"
                )
    if fetch.failure is not None:
        raise fetch.failure
