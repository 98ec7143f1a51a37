"""Blobs on disk: ``blobs/<first two digits>/<digest>``. A file at its final path is, by construction, verified.

Write order is law: bytes to a temporary file in ``incoming/``, digest compared, fsync, rename, fsync of the folder,
index row. What a crash can leave, and who mends it:

| left behind | mended |
|---|---|
| temporary file | removed at the next open: its owner's ``flock`` is gone |
| blob without a row | digested and adopted when it is next asked for, or by `scrub` and `gc` |
| row without a blob | dropped when it is next asked for |

A row remembers size, mtime and inode. Where the file differs from its row, it is digested again; wrong bytes go to
``quarantine/`` and are an IntegrityError that names the path.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from dhtdata.digest import Buffer, Digest, Hasher, random_id
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.store import places
from dhtdata.store.filesystem import make_folder, store_errors, sync_folder, write_all
from dhtdata.store.index import Database

TOUCH_INTERVAL_S = 30.0
_READ_BYTES = 1 << 20
_READ_ONLY = 0o400


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """What `scrub` found of one blob, or of its packed form. ``missing``: the index had it, the disk has not."""

    digest: Digest
    size: int
    state: Literal["ok", "corrupt", "missing"]
    packed: bool = False


class Blobs:
    """Whole blobs of one store folder."""

    def __init__(self, folder: Path, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._final = folder / "blobs"
        self._incoming = folder / "incoming"
        self._quarantine = folder / "quarantine"
        self._touched: dict[Digest, float] = {}
        self._flushed_s = clock()

    def create(self) -> None:
        """Make the folders, remove temporary files whose owner is gone. Callers hold the store's lock."""
        for folder in (self._final, self._incoming, self._quarantine):
            make_folder(folder)
        for name in os.listdir(self._incoming):
            _remove_if_ownerless(self._incoming / name)

    def now_s(self) -> float:
        return self._clock()

    def final_path(self, digest: Digest) -> Path:
        text = digest.hex()
        return self._final / text[:2] / text

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here and as it should be. To ask is not to use it."""
        try:
            self._sound_path(digest)
        except (NotFoundError, IntegrityError):
            return False
        return True

    def held(self) -> set[bytes]:
        """Digests of all blobs that have a row."""
        with self._database.reading() as connection:
            return {row[0] for row in connection.execute("SELECT digest FROM blobs")}

    def size(self, digest: Digest) -> int:
        with store_errors(path := self._sound_path(digest)):
            return path.stat().st_size

    def path_of(self, digest: Digest) -> Path:
        """Where the blob is. NotFoundError if it is not here, IntegrityError if it was and its bytes have changed."""
        path = self._sound_path(digest)
        self._touch(digest)
        return path

    def _sound_path(self, digest: Digest) -> Path:
        path = self.final_path(digest)
        with self._database.reading() as connection:
            row = connection.execute("SELECT size, mtime_ns, inode FROM blobs WHERE digest = ?", (digest,)).fetchone()
        status = _status(path)
        if status is None:
            if row is not None:
                self._drop_if_gone(digest)
            raise NotFoundError(f"blob {digest} is not in this store")
        if row != _identity(status):
            self.verify(digest)
        return path

    def read(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob's bytes, digested on every read. FormatError if there are more than ``limit_bytes``."""
        path = self.path_of(digest)
        with store_errors(path), path.open("rb") as file:
            # No more than there is: a buffer of the limit, cut down afterwards, leaves the allocator in pieces.
            content = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
        if len(content) > limit_bytes:
            raise FormatError(f"blob {digest} has more than the {limit_bytes} bytes that are allowed here")
        if Digest.of(content) != digest:
            # Rot under an unchanged size, mtime and inode: only digesting the file can tell.
            self.verify(digest)
        return content

    def put(self, content: Buffer) -> Digest:
        """Store bytes; durable on return."""
        digest = Digest.of(content)
        if not self.retain(digest):
            with self.new_blob(digest) as writer:
                writer.write(content)
                writer.commit()
        return digest

    def retain(self, digest: Digest) -> bool:
        """Whether the blob is here; if so, `gc` keeps it as if it were new (a publish is about to refer to it)."""
        if not self.has(digest):
            return False
        with self._database.writing() as connection:
            # Whether it is still here is asked last, where nobody else can drop it.
            update = "UPDATE blobs SET added_s = ? WHERE digest = ?"
            return bool(connection.execute(update, (self._clock(), digest)).rowcount)

    def new_blob(self, digest: Digest | None = None) -> BlobWriter:
        """A blob to be written in pieces. Who gives a ``digest`` has digested these very bytes in memory."""
        return BlobWriter(self.publish_file, self._incoming, digest)

    def new_file(self, publish: Callable[[Path, Digest], Path]) -> BlobWriter:
        """The same for a file with another place: ``publish`` renames the synced file of this digest to it."""
        return BlobWriter(publish, self._incoming, None)

    def verify(self, digest: Digest) -> int:
        """Digest the file and renew its row; its size. NotFoundError if it is gone; a wrong one goes to quarantine."""
        path = self.final_path(digest)
        found = digest_of(path)
        if found is None:
            self._drop_if_gone(digest)
            raise NotFoundError(f"blob {digest} is not in this store")
        if found.digest != digest:
            self._set_aside(digest, found.status)
            raise IntegrityError(
                f"{path} does not hold the bytes of its name any more: it was moved to {self._quarantine}; "
                "run dhtdata verify to check the others and fetch it again",
                culprit=str(path),
            )
        with self._database.writing() as connection:
            # Only what was digested may get a row: a writer may have replaced the file meanwhile.
            if (now := _status(path)) is not None and _identity(now) == _identity(found.status):
                self._insert(connection, digest, found.status, added_s=self._clock())
        return found.status.st_size

    def scrub(self) -> Iterator[ScrubResult]:
        """Digest every blob again, in order of digests; adopts files without a row, drops rows without a file."""
        for digest in self.all_digests():
            path = self.final_path(digest)
            size = status.st_size if (status := _status(path)) is not None else 0
            try:
                yield ScrubResult(digest, self.verify(digest), "ok")
            except IntegrityError:
                yield ScrubResult(digest, size, "corrupt")
            except NotFoundError:
                yield ScrubResult(digest, 0, "missing")

    def all_digests(self) -> list[Digest]:
        """Every blob that has a row or a file, ascending."""
        return [Digest(value) for value in sorted(self.held().union(self.filed()))]

    def filed(self) -> Iterator[Digest]:
        """Digests of all files under a final path, with a row or without."""
        with store_errors(self._final):
            for folder in os.listdir(self._final):
                for name in os.listdir(self._final / folder):
                    try:
                        yield Digest.parse(name)
                    except FormatError:
                        continue

    def remove(self, connection: sqlite3.Connection, digest: Digest, added_s: float) -> int:
        """Unlink a blob unless it was retained or written anew since; bytes freed. Maps of it stay readable."""
        row = connection.execute("SELECT size, added_s FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None or row[1] != added_s:
            return 0
        with store_errors(path := self.final_path(digest)):
            path.unlink(missing_ok=True)
        connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        places.forget(connection, digest)
        return int(row[0])

    def flush_touches(self) -> None:
        """Write down which blobs were used lately: a hint for eviction, lost if the disk is full."""
        touched, self._touched = self._touched, {}
        self._flushed_s = self._clock()
        if touched:
            with suppress(StoreError), self._database.writing() as connection:
                connection.executemany(
                    "UPDATE blobs SET used_s = max(used_s, ?) WHERE digest = ?",
                    [(used_s, digest) for digest, used_s in list(touched.items())],
                )

    def publish_file(
        self, temporary: Path, digest: Digest, also: Callable[[sqlite3.Connection], None] | None = None
    ) -> Path:
        """Rename a verified, synced file to its final path and give it a row, in one transaction with ``also``.

        A blob that is already there and as it should be is kept; the temporary file is dropped. Without ``also`` the
        blob is somebody's who is about to refer to it, and has its grace from now on.
        """
        path = self.final_path(digest)
        with store_errors(path, 4_096), self._database.writing() as connection:
            row = connection.execute("SELECT size, mtime_ns, inode FROM blobs WHERE digest = ?", (digest,)).fetchone()
            present = _status(path)
            if present is not None and row == _identity(present):
                temporary.unlink(missing_ok=True)
            else:
                make_folder(path.parent)
                temporary.rename(path)
                sync_folder(path.parent)
                self._insert(connection, digest, path.stat(), added_s=0)
            if also is None:
                connection.execute("UPDATE blobs SET added_s = ? WHERE digest = ?", (self._clock(), digest))
            else:
                also(connection)
        return path

    def _insert(self, connection: sqlite3.Connection, digest: Digest, status: os.stat_result, added_s: float) -> None:
        connection.execute(
            "INSERT INTO blobs VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(digest) DO UPDATE SET "
            "size = excluded.size, mtime_ns = excluded.mtime_ns, inode = excluded.inode",
            (digest, *_identity(status), added_s, self._clock()),
        )

    def _touch(self, digest: Digest) -> None:
        # No lock: a touch that a flush in another thread overlooks costs nothing, and a forked child finds none held.
        now_s = self._clock()
        self._touched[digest] = now_s
        if now_s - self._flushed_s > TOUCH_INTERVAL_S:
            self.flush_touches()

    def _drop_if_gone(self, digest: Digest) -> None:
        with self._database.writing() as connection:
            if _status(self.final_path(digest)) is None:
                connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def _set_aside(self, digest: Digest, status: os.stat_result) -> None:
        path = self.final_path(digest)
        with store_errors(path), self._database.writing() as connection:
            now = _status(path)
            if now is not None and now.st_ino == status.st_ino:
                path.rename(self._quarantine / f"{digest.hex()}.{random_id(4).hex()}")
                connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))


class BlobWriter:
    """Writes one blob to a temporary file, which is removed unless `commit` makes it durable and visible."""

    def __init__(self, publish: Callable[[Path, Digest], Path], folder: Path, digest: Digest | None) -> None:
        self._publish = publish
        self._hasher = Hasher()
        self._digest = digest
        self._written = 0
        self._path = folder
        with store_errors(folder):
            self._descriptor, self._path = _new_temporary(folder)

    @property
    def written_bytes(self) -> int:
        return self._written

    def digest(self) -> Digest:
        """Digest of what was written so far, or the one that was given."""
        return self._digest if self._digest is not None else self._hasher.digest()

    def write(self, *parts: Buffer) -> None:
        """Append bytes. StoreError if the disk is full."""
        views = [memoryview(part).cast("B") for part in parts]
        count = sum(map(len, views))
        with store_errors(self._path, count):
            write_all(self._descriptor, views)
        self._written += count
        if self._digest is None:
            for view in views:
                self._hasher.update(view)

    def commit(self, digest: Digest | None = None) -> Path:
        """Durable at its final path on return. IntegrityError if the bytes do not have the ``digest`` expected."""
        own = self.digest()
        if digest is not None and own != digest:
            raise IntegrityError(f"blob of {self._written} bytes has digest {own}, expected {digest}")
        with store_errors(self._path, self._written):
            os.fchmod(self._descriptor, _READ_ONLY)
            os.fsync(self._descriptor)
        path = self._publish(self._path, own)
        self.close()
        return path

    def close(self) -> None:
        """Drop what was not committed."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror}") from failure


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at a whole file saw: the digest of its bytes, None if they cannot be read; the file's status."""

    digest: Digest | None
    status: os.stat_result


def digest_of(path: Path) -> Found | None:
    """What a file holds: no digest if it is unreadable where it lies or no file at all, None if nothing is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror}") from failure
    hasher = Hasher()
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Found(None, status)
        while piece := os.read(descriptor, _READ_BYTES):
            hasher.update(piece)
    except OSError as failure:
        if failure.errno != errno.EIO:
            raise StoreError(f"{path}: {failure.strerror}") from failure
        return Found(None, status)
    finally:
        os.close(descriptor)
    return Found(hasher.digest(), status)


def _new_temporary(folder: Path) -> tuple[int, Path]:
    """An empty file that this process owns by ``flock``."""
    while True:
        path = folder / random_id().hex()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, path
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a sweep came between open and flock: take another name


def _remove_if_ownerless(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror}") from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
