"""Whether this process may read what came: Arrow from strangers is checked in a process of its own.

A whole shard is checked once (`check_shard`), and that is remembered. Until one shard of a publisher has passed whole,
every block of theirs is checked in a process of its own (`Checker`) before this one reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dhtdata.errors import FormatError
from dhtdata.formats.index import ShardEntry
from dhtdata.store import Store
from dhtdata.vault.opened import OpenShard

if TYPE_CHECKING:
    from dhtdata.tables.check import Checker


class Trust:
    """In one publisher (32 bytes). ``title`` names the dataset in messages."""

    def __init__(self, store: Store, publisher: bytes, title: str) -> None:
        self._store = store
        self._publisher = publisher
        self._title = title
        self._lock = threading.Lock()
        self._trusted = False
        self._checker: Checker | None = None

    def check(self, shard: OpenShard, path: Path) -> None:
        """A whole shard, once; that is remembered for every process. FormatError if it is malformed."""
        digest, schema = shard.entry.digest, shard.group.schema_digest
        if self._store.is_checked(digest, schema):
            return
        if not self._trusts():
            with self._lock:
                if not self._trusts():
                    with self.blaming(shard.entry):
                        self._stranger_checker().check(path, shard.table, shard.group.stored)
                    self._store.mark_checked(digest, schema)
                    self._store.trust_publisher(self._publisher)
                    self._end_checker()
                    return
        from dhtdata.tables.check import check_shard

        with self.blaming(shard.entry):
            check_shard(path, shard.table, shard.group.stored)
        self._store.mark_checked(digest, schema)

    def expect_stranger(self) -> None:
        """Start the process that a stranger's blocks are checked in, so that it is ready when the first one is here."""
        if not self._trusts():
            with self._lock:
                self._stranger_checker()

    def _stranger_checker(self) -> Checker:
        from dhtdata.tables.check import Checker

        if self._checker is None:
            self._checker = Checker()
        return self._checker

    def close(self) -> None:
        with self._lock:
            self._end_checker()

    def _end_checker(self) -> None:
        checker, self._checker = self._checker, None
        if checker is not None:
            checker.close()

    def check_blocks(self, shard: OpenShard, path: Path, blocks: list[int]) -> None:
        """Check a stranger's blocks, so that this process may read them. StoreError if the file has gone meanwhile."""
        if self._trusts():
            return
        with self._lock, self.blaming(shard.entry):
            if not self._trusts():
                self._stranger_checker().check(path, shard.table, shard.group.stored, blocks)

    def _trusts(self) -> bool:
        self._trusted = self._trusted or self._store.trusts(self._publisher)
        return self._trusted

    @contextmanager
    def blaming(self, entry: ShardEntry) -> Iterator[None]:
        """FormatError within says whose shard it is, and whose fault."""
        try:
            yield
        except FormatError as failure:
            raise FormatError(
                f"shard {entry.digest} of {self._title} is refused: {failure}. Its publisher signed these "
                "bytes: do not use this dataset, and tell the publisher"
            ) from failure
