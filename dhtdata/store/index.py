"""The store's SQLite index: schema and access (door of ``sqlite3``).

WAL mode, ``synchronous=FULL``: a committed row survives a power cut. Every change of a file under a final or partial
path happens inside a write transaction (`Database.writing`), so two processes never rename and unlink the same name at
once; SQLite's write lock is the only lock between processes that use one store.

Connections are pooled per process. None is open while the process forks: SQLite's locks belong to a process, and a
child that inherits an open connection believes that it holds locks which it does not
(https://www.sqlite.org/howtocorrupt.html, section 2.6).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhtdata.errors import StoreError

SCHEMA_VERSION = 3
BUSY_TIMEOUT_S = 30.0
_FORK_WAIT_S = 10.0
_MAX_IDLE = 4
_CACHE_KIB = 512
"""Of each connection; SQLite's 2 MiB show in a long run's memory, and the system caches the file as well."""
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs(digest BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    added_s REAL NOT NULL, used_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE partials(digest BLOB NOT NULL, table_digest BLOB NOT NULL, block_table BLOB NOT NULL,
    held_bytes INTEGER NOT NULL, size INTEGER NOT NULL, used_s REAL NOT NULL,
    PRIMARY KEY(digest, table_digest)) WITHOUT ROWID;
CREATE TABLE manifests(digest BLOB PRIMARY KEY, pinned INTEGER NOT NULL, added_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE names(publisher BLOB NOT NULL, name TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(publisher, name)) WITHOUT ROWID;
CREATE TABLE checked(digest BLOB NOT NULL, schema_digest BLOB NOT NULL,
    PRIMARY KEY(digest, schema_digest)) WITHOUT ROWID;
CREATE TABLE publishers(key BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_PACKED = """
CREATE TABLE packed(digest BLOB PRIMARY KEY, packed_digest BLOB NOT NULL, size INTEGER NOT NULL,
    shard_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, added_s REAL NOT NULL)
    WITHOUT ROWID;
"""
"""New in version 2. A size of 0 marks a shard that is not worth packing."""
_PLACES = """
CREATE TABLE placed(id INTEGER PRIMARY KEY, shard BLOB NOT NULL UNIQUE);
CREATE TABLE places(block INTEGER NOT NULL, shard INTEGER NOT NULL, start INTEGER NOT NULL,
    PRIMARY KEY(block, shard, start)) WITHOUT ROWID;
CREATE INDEX places_of_shard ON places(shard);
"""
"""New in version 3: where blocks are (`dhtdata.store.places`). Shards of an older store are not in it."""
_SINCE = {2: _PACKED, 3: _PLACES}


class Database:
    """Pooled connections to one index file. Threads may share it; a forked child gets connections of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lent = 0
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._fork_pending = False
        _databases.add(self)

    def create(self, new_id: bytes) -> bytes:
        """Make the schema if the file is new; the store's id. StoreError if a newer program made it.

        Callers hold the store's lock.
        """
        with self._lend() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreError(f"{self.path} has format version {version}: upgrade dhtdata, or use another store")
            if 1 <= version < SCHEMA_VERSION:
                added = "".join(schema for since, schema in _SINCE.items() if since > version)
                connection.executescript(f"BEGIN IMMEDIATE; {added} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            if version < 1:
                if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                    raise StoreError(f"{self.path}: this file system cannot hold a store: use a folder on a local disk")
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} {''.join(_SINCE.values())} PRAGMA user_version={SCHEMA_VERSION}; "
                    f"INSERT INTO meta VALUES('id', x'{new_id.hex()}'); COMMIT;"
                )
            return bytes(connection.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0])

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing; each sees the newest committed state."""
        with self._lend() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: committed at the end, rolled back by any exception. Excludes all other writers."""
        with self._lend() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close idle connections and refuse new ones. Lent connections are closed when they come back."""
        with self._changed:
            self._closed = True
            self._close_idle()

    @contextmanager
    def _lend(self) -> Iterator[sqlite3.Connection]:
        with self._changed:
            self._changed.wait_for(lambda: not self._fork_pending, timeout=_FORK_WAIT_S)
            if self._closed:
                raise StoreError(f"{self.path.parent} is closed")
            connection = self._idle.pop() if self._idle else None
            self._lent += 1
        try:
            if connection is None:
                connection = self._connect()
            yield connection
        except sqlite3.Error as failure:
            raise self._translated(failure) from failure
        finally:
            with self._changed:
                self._lent -= 1
                if connection is not None:
                    self._take_back(connection)
                self._changed.notify_all()

    def _take_back(self, connection: sqlite3.Connection) -> None:
        """Roll back what was not committed; keep the connection for the next if it is sound."""
        try:
            connection.rollback()
        except sqlite3.Error:
            connection.close()  # which ends the transaction, too
            return
        if self._closed or len(self._idle) >= _MAX_IDLE:
            connection.close()
        else:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _translated(self, failure: sqlite3.Error) -> StoreError:
        text = str(failure)
        if "full" in text:
            advice = "free some space on this disk, or use another store (--store)"
        elif "locked" in text or "busy" in text:
            advice = f"another process held it for {BUSY_TIMEOUT_S:.0f} s: stop it, then try again"
        elif "malformed" in text or "not a database" in text:
            advice = f"move {self.path.name}* away: a new index finds the blobs again; pins and names are lost"
        else:
            advice = "check that the folder exists and can be written"
        return StoreError(f"{self.path}: {text}: {advice}")

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def before_fork(self) -> None:
        """Wait until no thread uses a connection, then close all. Keeps the pool locked over the fork."""
        self._changed.acquire()
        self._fork_pending = True
        self._changed.wait_for(lambda: self._lent == 0, timeout=_FORK_WAIT_S)
        self._close_idle()

    def after_fork_in_parent(self) -> None:
        self._fork_pending = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._fork_pending = False
        self._lent = 0


class ProcessLock:
    """A lock between the threads of one process: a forked child finds it open, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


_locks: weakref.WeakSet[ProcessLock] = weakref.WeakSet()
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_fork_lock = threading.Lock()
_forking: list[Database] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking[:] = _databases
    for database in _forking:
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in _forking:
        database.after_fork_in_parent()
    _forking.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    for database in _forking:
        database.after_fork_in_child()
    _forking.clear()
    _fork_lock.release()
    for lock in _locks:
        lock.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
