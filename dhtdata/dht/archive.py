"""The record table on disk, so that a node that restarts still holds what it held (door of ``sqlite3``).

One SQLite file (mode 0600, made in a folder of mode 0700) whose rows mirror `Holdings`: it grows no further than that.
WAL and ``synchronous=NORMAL``: a killed process leaves what was saved last, a power cut may take the last few saves
back, never tear the file. That is enough, since whoever put a record here puts it again before it expires: losing the
file costs others one republication. For the same reason a damaged file is put aside (``….damaged``) and a new one
begun. What is read back is as little trusted as what comes by datagram (`Holdings.restore`).

The file is locked as long as it is open: two processes would delete each other's rows. The lock goes with the process,
however it ends. A process that has an archive open must not fork.

Everything blocks; threads may call it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhtdata.dht.holdings import Changes, Kept, record_id
from dhtdata.errors import StoreError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x64687472
BUSY_TIMEOUT_S = 2.0
_WAL_BYTES = 4 << 20
_DAMAGE = (
    "malformed",
    "not a database",
    "unsupported file format",
    "could not decode",
    "no such column",
    "no such table",
)
_SCHEMA = f"""
CREATE TABLE records(id BLOB PRIMARY KEY, data BLOB NOT NULL, origin TEXT NOT NULL, received_s REAL NOT NULL,
    kept_until_s REAL NOT NULL);
PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};
"""


class Archive:
    """An open file. Use `open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Archive:
        """The archive in a file, which is made if it is not there, and put aside if it is damaged.

        StoreError if another process has it open, it is not an archive of this program, or it cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return cls(path, _connect(path))
            except UnicodeDecodeError:
                # A damaged page of the schema: SQLite hands it over, Python cannot read it.
                pass
            except sqlite3.DatabaseError as failure:
                if not _is_damage(failure):
                    raise
            _put_aside(path)
            return cls(path, _connect(path))
        except (sqlite3.Error, OSError) as failure:
            raise _translated(path, failure) from failure

    def load(self) -> list[Kept]:
        """All rows, the oldest first."""
        with self._using() as connection:
            rows = connection.execute(
                "SELECT data, origin, received_s, kept_until_s FROM records "
                "WHERE typeof(data) = 'blob' AND typeof(origin) = 'text' "
                "AND typeof(received_s) = 'real' AND typeof(kept_until_s) = 'real' ORDER BY received_s, rowid"
            ).fetchall()
        return [Kept(*row) for row in rows]

    def save(self, changes: Changes) -> None:
        """Write them, all or nothing."""
        if not changes.added and not changes.removed:
            return
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM records WHERE id = ?", ((each,) for each in changes.removed))
            connection.executemany(
                "INSERT OR REPLACE INTO records VALUES(?, ?, ?, ?, ?)",
                (
                    (record_id(each.data), each.data, each.origin, each.received_s, each.kept_until_s)
                    for each in changes.added
                ),
            )
            connection.execute("COMMIT")

    def close(self) -> None:
        """Give the file free. Closing twice is fine."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise StoreError(f"{self.path} is closed: open it again")
            try:
                yield self._connection
            except (sqlite3.Error, UnicodeDecodeError) as failure:
                raise _translated(self.path, failure) from failure
            finally:
                if self._connection.in_transaction:
                    self._connection.rollback()


def _connect(path: Path) -> sqlite3.Connection:
    """An exclusive connection to a sound file. sqlite3.DatabaseError, StoreError or OSError."""
    # SQLite gives its other files the mode of this one. A file that is there is not opened here: closing it would give
    # up the locks of whoever has it open in this process.
    if path.exists():
        path.chmod(0o600)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        new = _is_new(path, connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA if new else ''} COMMIT;")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("database disk image is malformed")
        connection.execute("SELECT data, origin, received_s, kept_until_s FROM records LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether nothing was ever written. StoreError if somebody else did, or a newer version of this program."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise StoreError(f"{path} has format version {version}: upgrade dhtdata, or move the file away")
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreError(f"{path} is a database of another program: move it away")
    return bool(application != APPLICATION_ID)


def _is_damage(failure: sqlite3.Error) -> bool:
    return any(word in str(failure).lower() for word in _DAMAGE)


def _put_aside(path: Path) -> None:
    """Keep the damaged file for whoever wants to look, in the place of the one before."""
    path.replace(path.with_name(f"{path.name}.damaged"))
    for ending in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _translated(path: Path, failure: Exception) -> StoreError:
    text = str(failure)
    if "locked" in text or "busy" in text:
        advice = "another process uses it: stop that one first"
    elif "full" in text:
        advice = "free some space on this disk"
    elif isinstance(failure, sqlite3.Error) and _is_damage(failure):
        advice = "it is put aside at the next start"
    else:
        advice = "check that the folder exists and can be written"
    return StoreError(f"records of the DHT in {path}: {text}: {advice}")
