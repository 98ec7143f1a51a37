"""The record table on disk: loaded at the start, saved while it runs, each in a thread.

A node listens before all is taken up: a full table takes seconds, because every signature is verified anew, a few at a
time between other work.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from dhtdata.dht.archive import Archive
from dhtdata.dht.holdings import Holdings, Kept
from dhtdata.errors import StoreError

ROWS_AT_ONCE = 16

_LOG = logging.getLogger(__name__)


class RecordKeeper:
    """Keeps `Holdings` in a file; without a path, and where the file cannot be used, only in memory.

    Losing the file costs others a republication, so a failure is logged and the node goes on.
    """

    def __init__(self, holdings: Holdings, path: Path | None) -> None:
        self._holdings = holdings
        self._path = path
        self._archive: Archive | None = None
        self._rows: list[Kept] = []

    async def open(self) -> None:
        """Read what was kept; `restore` takes it up."""
        if self._path is None:
            return
        try:
            self._archive = await asyncio.to_thread(Archive.open, self._path)
            self._rows = await asyncio.to_thread(self._archive.load)
        except StoreError as failure:
            _LOG.warning("records of the DHT are not kept on disk: %s", failure)

    async def restore(self) -> None:
        """Take up what was read, as if it came from outside."""
        rows, self._rows = self._rows, []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            self._holdings.restore(rows[first : first + ROWS_AT_ONCE])
            await asyncio.sleep(0)

    async def save(self) -> None:
        """Write what changed since the last time."""
        changes = self._holdings.changes()
        if self._archive is None:
            return
        try:
            await asyncio.to_thread(self._archive.save, changes)
        except StoreError as failure:
            _LOG.warning("records of the DHT are not kept on disk any more: %s", failure)
            await self.close()

    async def close(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            await asyncio.to_thread(archive.close)
