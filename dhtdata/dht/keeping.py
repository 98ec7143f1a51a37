"""The record table on disk: loaded at the start, saved while it runs, each in a thread.

A node listens before all is taken up: a full table takes seconds, because every signature is verified anew, a few at a
time between other work.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from dhtdata.dht.archive import Archive
from dhtdata.dht.holdings import Changes, Holdings, Kept
from dhtdata.errors import StoreError

ROWS_AT_ONCE = 16
SAVED_AT_ONCE = 2_000
FORGOTTEN_AT_ONCE = 1_000

_LOG = logging.getLogger(__name__)


class RecordKeeper:
    """Keeps `Holdings` in a file; without a path, and where the file cannot be used, only in memory.

    Losing the file costs others a republication, so a failure is logged and the node goes on; what could not be
    written, as on a full disk, is tried again at the next `save`.
    """

    def __init__(self, holdings: Holdings, path: Path | None) -> None:
        self._holdings = holdings
        self._path = path
        self._archive: Archive | None = None
        self._rows: list[Kept] = []
        self._pending: Changes | None = None
        self._failing = False
        self._saving = asyncio.Lock()

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
        """Write what changed since the last time, in parts: the event loop must not wait for a full table."""
        async with self._saving:
            while await self._save_some():
                pass

    async def _save_some(self) -> bool:
        """Write a part: whether more is left."""
        if self._archive is None:
            return False
        changes = self._pending = self._pending or self._holdings.changes(SAVED_AT_ONCE)
        try:
            await asyncio.to_thread(self._archive.save, changes)
        except StoreError as failure:
            if not self._failing:
                _LOG.warning("records of the DHT cannot be kept on disk for now: %s", failure)
            self._failing = True
            return False
        self._pending, self._failing = None, False
        return len(changes.added) == SAVED_AT_ONCE

    async def forget_expired(self) -> None:
        """Drop what has expired, in parts."""
        dropped = FORGOTTEN_AT_ONCE
        while dropped == FORGOTTEN_AT_ONCE:
            dropped = self._holdings.forget_expired(FORGOTTEN_AT_ONCE)
            await asyncio.sleep(0)

    async def close(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            await asyncio.to_thread(archive.close)
