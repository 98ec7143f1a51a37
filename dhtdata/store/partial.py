"""A shard of which some blocks are here: ``partial/<shard>.<block table>``, a sparse file of the shard's full size.

A block is verified before it is written, so every block that `Partial.has` is readable and may be served; the file
keeps its inode when it becomes a blob, so maps of it stay valid. What it holds after a crash is found by digesting its
blocks again, not by trusting what was noted: resuming never depends on when `save` ran last. A process that lets go of
a partial and opens it again believes what it knew itself, as long as nobody has written to the file since.

Two manifests may name one shard with different block tables (one of them lies), so a partial belongs to a shard *and* a
table. If all blocks match and the shard's digest does not, the manifest is at fault: nobody is blamed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary, finalize

from dhtdata.digest import Buffer, Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.formats.blocks import BlockTable
from dhtdata.store import places
from dhtdata.store.blobs import Blobs
from dhtdata.store.filesystem import begin_writing, make_folder, require_room, store_errors, write_at
from dhtdata.store.index import Database, ProcessLock

_READ_ONLY = 0o400
_PROMISED_BYTES = 8 << 20
_REMEMBERED = 256
_DROP_ROW = "DELETE FROM partials WHERE digest = ? AND table_digest = ?"


class Partial:
    """A shard that is being filled. Threads may share it; so may processes, each with an object of its own.

    ``descriptor`` holds a shared ``flock`` on the file for as long as the object lives: eviction leaves it alone.
    """

    def __init__(
        self,
        digest: Digest,
        table: BlockTable,
        path: Path,
        descriptor: int,
        blobs: Blobs,
        database: Database,
        memory: _Memory,
    ) -> None:
        self._descriptor = descriptor
        self._held = bytearray(len(table.blocks))
        # Not __del__: while that lets other threads run, `Partials` would hand out an object with a closed descriptor.
        ending = finalize(self, memory.let_go, path, descriptor, self._held)
        ending.atexit = False  # type: ignore[misc]  # documented, typeshed has no setter
        self._writing = Lock()
        self._promised_bytes = 0
        self.digest = digest
        self.table = table
        self.table_digest = Digest.of(table.encode())
        self.path = path
        self._blobs = blobs
        self._database = database
        with store_errors(path):
            if (known := memory.of(path, descriptor)) is not None:
                self._held[:] = known
            else:
                self._resume()

    @property
    def complete(self) -> bool:
        return all(self._held)

    @property
    def held_bytes(self) -> int:
        return sum(block.length for block, held in zip(self.table.blocks, self._held, strict=True) if held)

    def has(self, position: int) -> bool:
        """Whether this block is here, verified."""
        return bool(self._held[position])

    def missing(self) -> list[int]:
        """Positions of the blocks that are not here, ascending."""
        return [position for position, held in enumerate(self._held) if not held]

    def bitmap(self) -> bytes:
        """One bit a block, the lowest bit of each byte first; set if the block is here."""
        bits = bytearray(-(-len(self._held) // 8))
        for position, held in enumerate(bytes(self._held)):
            bits[position >> 3] |= held << (position & 7)
        return bytes(bits)

    def accept(self, position: int, content: Buffer, culprit: str = "") -> None:
        """Verify a block, then write it. IntegrityError blames ``culprit``; StoreError if the disk is full."""
        block = self.table.blocks[position]
        view = memoryview(content).cast("B")
        if len(view) != block.length or Digest.of(view) != block.digest:
            by = f" from {culprit}" if culprit else ""
            raise IntegrityError(f"wrong bytes{by} for block {position} of shard {self.digest}", culprit=culprit)
        if self._held[position]:
            return
        self._require_room(block.length)
        # Threads that write into one file at once spin on its inode: with four 2.65 s of processor a GiB, not 0.24.
        with self._writing, store_errors(self.path, block.length):
            write_at(self._descriptor, view, block.offset)
            begin_writing(self._descriptor, block.offset, block.length)
        self._held[position] = 1

    def _require_room(self, byte_count: int) -> None:
        """`require_room` for this block and some more, now and then: the system need not be asked for every one."""
        self._promised_bytes -= byte_count
        if self._promised_bytes < 0:
            self._promised_bytes = 0
            require_room(self.path.parent, byte_count)
            self._promised_bytes = _PROMISED_BYTES

    def save(self) -> None:
        """Note in the index how much is here, for `Store.completeness`. NotFoundError if it was dropped meanwhile."""
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE partials SET held_bytes = ?, used_s = max(used_s, ?) WHERE digest = ? AND table_digest = ?",
                (self.held_bytes, self._blobs.now_s(), self.digest, self.table_digest),
            ).rowcount
        if not changed and not self._blobs.has(self.digest):
            raise NotFoundError(f"partial shard {self.digest} was dropped while it was filled: fetch it again")

    def finish(self) -> Path:
        """Make a complete shard a blob. FormatError if its blocks match and its digest does not."""
        if missing := self.missing():
            raise NotFoundError(f"shard {self.digest} still misses {len(missing)} blocks: fetch them first")
        if self._blobs.has(self.digest):
            self.remove()
            return self._blobs.path_of(self.digest)
        if not self._matches():
            with store_errors(self.path):
                self._resume()
            if missing := self.missing():
                raise NotFoundError(f"{self.path}: {len(missing)} blocks changed on disk: fetch them again")
            self.remove()
            raise FormatError(
                f"shard {self.digest}: all blocks match block table {self.table_digest}, the shard does not: "
                "the manifest that names them is at fault"
            )
        try:
            with store_errors(self.path, self.table.shard_bytes):
                os.fchmod(self._descriptor, _READ_ONLY)
                os.fsync(self._descriptor)
        except StoreError:
            # After a failed fsync nobody knows what the disk holds: start anew rather than believe the next one.
            self.remove()
            raise
        return self._blobs.publish_file(self.path, self.digest, self._settle_rows)

    def remove(self) -> None:
        """Drop the file and what the index says of it."""
        with store_errors(self.path), self._database.writing() as connection:
            self.path.unlink(missing_ok=True)
            self._drop_row(connection)

    def _settle_rows(self, connection: sqlite3.Connection) -> None:
        """It is a whole shard from now on."""
        self._drop_row(connection)
        places.note(connection, self.digest, self.table)

    def _drop_row(self, connection: sqlite3.Connection) -> None:
        connection.execute(_DROP_ROW, (self.digest, self.table_digest))

    def _resume(self) -> None:
        """Digest every block of which the file has bytes."""
        if os.fstat(self._descriptor).st_size != self.table.shard_bytes:
            os.ftruncate(self._descriptor, self.table.shard_bytes)
        written = 0
        for position, block in enumerate(self.table.blocks):
            if written < block.offset:
                written = _next_written(self._descriptor, block.offset)
            if written >= block.offset + block.length:
                self._held[position] = 0
                continue
            found = Digest.of(os.pread(self._descriptor, block.length, block.offset))
            self._held[position] = found == block.digest

    def _matches(self) -> bool:
        """Whether the file has the shard's digest.

        Mapped and digested in one call: with one for each block this thread waits as often for others to let go of the
        GIL.
        """
        with store_errors(self.path):
            if os.fstat(self._descriptor).st_size != self.table.shard_bytes:
                return False
            with mmap(self._descriptor, 0, MAP_SHARED, PROT_READ) as pages, memoryview(pages) as content:
                return Digest.of(content) == self.digest


def _next_written(descriptor: int, offset: int) -> int:
    """First offset from ``offset`` on that was written, or beyond the end if none was."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as failure:
        if failure.errno == errno.ENXIO:
            return 1 << 62
        raise


class _Memory:
    """What this process knew of partials that it let go: a mount opens the same one for every few blocks."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[tuple[int, int, int], bytes]] = OrderedDict()

    def let_go(self, path: Path, descriptor: int, held: bytearray) -> None:
        with suppress(OSError):
            self._known[path] = (_state_of(descriptor), bytes(held))
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        os.close(descriptor)

    def of(self, path: Path, descriptor: int) -> bytes | None:
        """Which blocks were held, None if it was never known or somebody wrote since."""
        state, held = self._known.pop(path, (None, b""))
        return held if state == _state_of(descriptor) else None


def _state_of(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class PartialEntry:
    """What the index knows of a partial shard; ``held_bytes`` is as of the last `Partial.save`."""

    digest: Digest
    table_digest: Digest
    held_bytes: int
    size: int
    used_s: float


class Partials:
    """The partial shards of one store folder."""

    def __init__(self, folder: Path, blobs: Blobs, database: Database) -> None:
        self._folder = folder / "partial"
        self._blobs = blobs
        self._database = database
        self._lock = ProcessLock()
        self._memory = _Memory()
        self._open: WeakValueDictionary[tuple[int, Digest, Digest], Partial] = WeakValueDictionary()

    def create(self) -> None:
        """Make the folder, remove files without a row. Callers hold the store's lock."""
        make_folder(self._folder)
        if os.listdir(self._folder):
            # Files appear, move and vanish inside write transactions only, so this sees none that is being made.
            with store_errors(self._folder), self._database.writing() as connection:
                known = {
                    self._path(*row).name for row in connection.execute("SELECT digest, table_digest FROM partials")
                }
                for name in set(os.listdir(self._folder)) - known:
                    (self._folder / name).unlink()

    def known(self, digest: Digest, table: BlockTable) -> bool:
        """Whether this partial has its place already."""
        with self._database.reading() as connection:
            query = "SELECT 1 FROM partials WHERE digest = ? AND table_digest = ?"
            return connection.execute(query, (digest, Digest.of(table.encode()))).fetchone() is not None

    def open(self, digest: Digest, table: BlockTable) -> Partial:
        """The partial of a shard, new or resumed. One object per process while anybody holds it."""
        encoded = table.encode()
        table_digest = Digest.of(encoded)
        key = (os.getpid(), digest, table_digest)
        with self._lock:
            if (partial := self._open.get(key)) is not None and partial.path.exists():
                return partial
            path = self._path(digest, table_digest)
            row = (digest, table_digest, encoded, table.shard_bytes, self._blobs.now_s())
            descriptor = self._create(path, row)
            partial = self._open[key] = Partial(
                digest, table, path, descriptor, self._blobs, self._database, self._memory
            )
            return partial

    def _create(self, path: Path, row: tuple[object, ...]) -> int:
        """Row, file and lock in one transaction: eviction, which needs one of its own, comes before or after."""
        descriptor = -1
        try:
            with store_errors(path, 4_096), self._database.writing() as connection:
                connection.execute("INSERT INTO partials VALUES(?, ?, ?, 0, ?, ?) ON CONFLICT DO NOTHING", row)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return descriptor

    def entries(self) -> list[PartialEntry]:
        """Every partial shard, ascending by digest."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT digest, table_digest, held_bytes, size, used_s FROM partials ORDER BY digest, table_digest"
            ).fetchall()
        return [PartialEntry(Digest(row[0]), Digest(row[1]), row[2], row[3], row[4]) for row in rows]

    def stored(self, digest: Digest) -> Partial:
        """The fullest partial of a shard. NotFoundError if there is none."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT block_table FROM partials WHERE digest = ?", (digest,)).fetchall()
        if not rows:
            raise NotFoundError(f"shard {digest} is not in this store, not even in part")
        opened = [self.open(digest, BlockTable.decode(row[0])) for row in rows]
        return max(opened, key=lambda partial: partial.held_bytes)

    def in_use(self, entry: PartialEntry) -> bool:
        """Whether anybody is filling or serving it now."""
        path = self._path(entry.digest, entry.table_digest)
        with store_errors(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
        return False

    def remove(self, connection: sqlite3.Connection, entry: PartialEntry) -> int:
        """Drop a partial unless somebody uses it; bytes of room given back."""
        if self.in_use(entry):
            return 0
        with store_errors(path := self._path(entry.digest, entry.table_digest)):
            path.unlink(missing_ok=True)
        dropped = connection.execute(_DROP_ROW, (entry.digest, entry.table_digest)).rowcount
        return entry.size * dropped

    def _path(self, digest: bytes, table_digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.{table_digest.hex()[:16]}"
