"""The record table on disk: loaded at the start, saved while it runs, each in a thread."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from dhtdata.dht.archive import Archive
from dhtdata.dht.holdings import Holdings
from dhtdata.errors import StoreError

_LOG = logging.getLogger(__name__)


class RecordKeeper:
    """Keeps `Holdings` in a file; without a path, and where the file cannot be used, only in memory.

    Losing the file costs others a republication, so a failure is logged and the node goes on.
    """

    def __init__(self, holdings: Holdings, path: Path | None) -> None:
        self._holdings = holdings
        self._path = path
        self._archive: Archive | None = None

    async def open(self) -> None:
        """Take up what was kept, verified anew. Nothing else uses the table meanwhile."""
        if self._path is None:
            return
        try:
            self._archive = await asyncio.to_thread(self._load, self._path)
        except StoreError as failure:
            _LOG.warning("records of the DHT are not kept on disk: %s", failure)

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

    def _load(self, path: Path) -> Archive:
        archive = Archive.open(path)
        self._holdings.restore(archive.load())
        return archive
