"""Packed shards on disk: ``packed/<first two digits>/<shard>.zst``, as `formats.packed` says.

A packed file is made out of a whole blob whose blocks are digested once more on the way, or not at all: what its sample
or its whole saves too little of is marked in the index and never tried again. Its row has a digest of its own, by which
it is served and checked. Where the blob lies beside it, it is a copy that anybody may drop; where the blob was given up
for it, or lost, it is the shard, and `restore` makes the blob again.

Write order is that of `blobs`: temporary file, fsync, rename, fsync of the folder, row. What a crash can leave:

| left behind | mended |
|---|---|
| temporary file | removed at the next open |
| file without a row | overwritten by the next packing; adopted by `scrub` and `gc` if it unpacks to its shard |
| row without a file | dropped when it is next asked for |
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest, Hasher
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.formats.blocks import Block, BlockTable
from dhtdata.formats.packed import MAX_SEEK_TABLE_BYTES, PackedTable, SeekTable, seek_table_bytes
from dhtdata.packing import pack, unpack_into, worth_packing
from dhtdata.store.blobs import Blobs, ScrubResult, digest_of
from dhtdata.store.filesystem import make_folder, store_errors, sync_folder
from dhtdata.store.index import Database

PACKING_THREADS = 2
_SUFFIX = ".zst"
_BATCH_BLOCKS = 8
_BATCH_BYTES = 16 << 20
_SAMPLES = 4
_SAMPLE_BYTES = 1 << 20


class NotWorthPacking(NotFoundError):
    """A shard that packing does not make noticeably smaller: there is no packed form of it, and never will be."""


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A packed shard on disk. ``digest`` names its own bytes, ``shard_bytes`` are those that it unpacks to."""

    shard: Digest
    path: Path
    digest: Digest
    size: int
    shard_bytes: int
    added_s: float


class PackedShards:
    """The packed shards of one store folder."""

    def __init__(self, folder: Path, blobs: Blobs, database: Database) -> None:
        self._folder = folder / "packed"
        self._blobs = blobs
        self._database = database

    def create(self) -> None:
        """Make the folder. Callers hold the store's lock."""
        make_folder(self._folder)

    def find(self, shard: Digest) -> PackedFile:
        """NotFoundError if there is none (`NotWorthPacking`: ever), IntegrityError if its file has changed."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT packed_digest, size, shard_bytes, added_s, mtime_ns, inode FROM packed WHERE digest = ?",
                (shard,),
            ).fetchone()
        if row is None:
            raise NotFoundError(f"shard {shard} is not packed in this store")
        if not row[1]:
            raise _not_worth(shard)
        found = PackedFile(shard, self._path(shard), Digest(row[0]), row[1], row[2], row[3])
        if _identity(found.path) != (row[1], row[4], row[5]):
            self.verify(found)
        return found

    def files(self) -> list[PackedFile]:
        """Every packed shard that has a row, ascending."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT digest, packed_digest, size, shard_bytes, added_s FROM packed WHERE size > 0 ORDER BY digest"
            ).fetchall()
        return [PackedFile(Digest(row[0]), self._path(row[0]), Digest(row[1]), *row[2:]) for row in rows]

    def pack(self, shard: Digest, table: BlockTable, going: Callable[[], bool] = lambda: True) -> PackedFile:
        """Pack a whole shard with `PACKING_THREADS` threads: some 0.1 s for 32 MiB. One that is packed already stays.

        NotFoundError if the blob is not here or ``going`` said no, `NotWorthPacking` if it saves too little,
        FormatError if the blocks are not those of ``table``.
        """
        if self._blobs.size(shard) != table.shard_bytes:
            raise FormatError(f"shard {shard} has other bytes than its block table says: the manifest is at fault")
        with _opened(self._blobs.path_of(shard)) as descriptor:
            if not _promises(descriptor, table.blocks):
                raise self._refused(shard)
            return self._write(shard, table, descriptor, going)

    def has(self, shard: Digest) -> bool:
        """Whether the shard is here in packed form, as it should be."""
        try:
            self.find(shard)
        except (NotFoundError, IntegrityError):
            return False
        return True

    def held(self) -> set[bytes]:
        """Digests of all shards that have a packed form here."""
        with self._database.reading() as connection:
            return {row[0] for row in connection.execute("SELECT digest FROM packed WHERE size > 0")}

    def unpacked(self, shards: Iterable[Digest], *, alone: bool) -> set[Digest]:
        """Those whose blob is here and that are not packed; ``alone``: or packed beside it. None not worth packing."""
        whole = self._blobs.held()
        with self._database.reading() as connection:
            sizes = dict(connection.execute("SELECT digest, size FROM packed").fetchall())
        return {shard for shard in shards if shard in whole and (shard not in sizes or (alone and sizes[shard] > 0))}

    def restore(self, found: PackedFile) -> Path:
        """Make the blob again. IntegrityError drops a file that does not unpack to it."""
        with self._blobs.new_blob() as writer:
            self._unpack(found, writer.write)
            if writer.digest() != found.shard:
                raise self._spoilt(found)
            return writer.commit()

    def give_up_blob(self, shard: Digest) -> int:
        """Drop the blob of a packed shard, once more unpacked and digested before; bytes freed."""
        found = self.find(shard)
        if not self._blobs.has(shard):
            return 0
        hasher = Hasher()
        self._unpack(found, hasher.update)
        if hasher.digest() != shard:
            raise self._spoilt(found)
        with self._database.writing() as connection:
            row = connection.execute(
                "SELECT blobs.added_s FROM blobs, packed WHERE blobs.digest = ? AND packed.digest = ? "
                "AND packed_digest = ?",
                (shard, shard, found.digest),
            ).fetchone()
            if row is None or _identity(found.path) is None:
                return 0
            # Who was promised grace for the blob has it for what is left of it.
            connection.execute("UPDATE packed SET added_s = max(added_s, ?) WHERE digest = ?", (row[0], shard))
            return self._blobs.remove(connection, shard, row[0])

    def verify(self, found: PackedFile) -> None:
        """Digest the file and renew its row. NotFoundError if it is gone; a changed one is dropped: IntegrityError."""
        seen = digest_of(found.path)
        if seen is None:
            with self._database.writing() as connection:
                if _identity(found.path) is None:
                    self._drop_row(connection, found.shard)
            raise NotFoundError(f"shard {found.shard} is not packed in this store any more")
        if seen.digest != found.digest:
            raise self._spoilt(found)
        with self._database.writing() as connection:
            # Whoever replaced the file meanwhile gave it a row of its own.
            connection.execute(
                "UPDATE packed SET mtime_ns = ?, inode = ? WHERE digest = ? AND packed_digest = ?",
                (seen.status.st_mtime_ns, seen.status.st_ino, found.shard, seen.digest),
            )

    def scrub(self) -> Iterator[ScrubResult]:
        """Digest every packed file again, and adopt or drop those without a row."""
        self.adopt_strays()
        for found in self.files():
            try:
                self.verify(found)
            except IntegrityError:
                yield ScrubResult(found.shard, found.size, "corrupt", packed=True)
            except NotFoundError:
                yield ScrubResult(found.shard, 0, "missing", packed=True)
            else:
                yield ScrubResult(found.shard, found.size, "ok", packed=True)

    def adopt_strays(self) -> None:
        """Give files without a row one, if they unpack to the shard of their name; drop the others."""
        with self._database.reading() as connection:
            known = {row[0] for row in connection.execute("SELECT digest FROM packed WHERE size > 0")}
        with store_errors(self._folder):
            strays = [path for folder in self._folder.iterdir() for path in folder.iterdir()]
        for path in strays:
            with suppress(FormatError, NotFoundError):
                shard = Digest.parse(path.name.removesuffix(_SUFFIX))
                if shard not in known and path == self._path(shard):
                    self._adopt(shard, path)

    def remove(self, connection: sqlite3.Connection, shard: bytes) -> int:
        """Unlink a packed file and forget what is known of it; bytes freed."""
        row = connection.execute("SELECT size FROM packed WHERE digest = ?", (shard,)).fetchone()
        if row is None:
            return 0
        self._unlink(connection, shard)
        return int(row[0])

    def _write(self, shard: Digest, table: BlockTable, descriptor: int, going: Callable[[], bool]) -> PackedFile:
        sizes: list[int] = []
        with (
            self._blobs.new_file(lambda path, digest: self._publish(path, digest, shard, table.shard_bytes)) as writer,
            ThreadPoolExecutor(PACKING_THREADS, "packing") as threads,
        ):
            for batch in _batches(table.blocks):
                if not going():
                    raise NotFoundError(f"shard {shard} is not packed: its packing was broken off")
                frames = list(threads.map(lambda block: self._frame(shard, descriptor, block), batch))
                writer.write(*frames)
                sizes += map(len, frames)
            writer.write(SeekTable(tuple(sizes), tuple(block.length for block in table.blocks)).encode())
            if not worth_packing(table.shard_bytes, writer.written_bytes):
                raise self._refused(shard)
            writer.commit()
        return self.find(shard)

    def _frame(self, shard: Digest, descriptor: int, block: Block) -> bytes:
        content = os.pread(descriptor, block.length, block.offset)
        if Digest.of(content) != block.digest:
            self._blobs.verify(shard)
            raise FormatError(f"shard {shard} has other blocks than its block table says: the manifest is at fault")
        return pack(content)

    def _publish(self, temporary: Path, digest: Digest, shard: Digest, shard_bytes: int) -> Path:
        """Rename a synced file to its place and give it a row. A sound one that is there already stays."""
        path = self._path(shard)
        with store_errors(path, 4_096), self._database.writing() as connection:
            row = connection.execute("SELECT size, mtime_ns, inode FROM packed WHERE digest = ?", (shard,)).fetchone()
            if row is not None and row == _identity(path):
                temporary.unlink(missing_ok=True)
                return path
            make_folder(path.parent)
            temporary.rename(path)
            sync_folder(path.parent)
            self._insert(connection, shard, digest, shard_bytes)
        return path

    def _insert(self, connection: sqlite3.Connection, shard: Digest, digest: Digest, shard_bytes: int) -> None:
        status = self._path(shard).lstat()
        connection.execute(
            "REPLACE INTO packed VALUES(?, ?, ?, ?, ?, ?, ?)",
            (shard, digest, status.st_size, shard_bytes, status.st_mtime_ns, status.st_ino, self._blobs.now_s()),
        )

    def _refused(self, shard: Digest) -> NotWorthPacking:
        """Mark a shard as not worth packing; the error to raise."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO packed VALUES(?, x'', 0, 0, 0, 0, ?) ON CONFLICT DO NOTHING", (shard, self._blobs.now_s())
            )
        return _not_worth(shard)

    def _unpack(self, found: PackedFile, write: Callable[[memoryview], None]) -> None:
        with _opened(found.path) as descriptor:
            table = self._seek_table(found, descriptor)
            frames = PackedTable.of(table.frames)
            for position, length in enumerate(table.blocks):
                write(self._block(found, descriptor, frames.span(position, position + 1), length))

    def _block(self, found: PackedFile, descriptor: int, span: tuple[int, int], length: int) -> memoryview:
        view = memoryview(bytearray(length))
        with store_errors(found.path):
            frame = os.pread(descriptor, span[1] - span[0], span[0])
        try:
            unpack_into(frame, view)
        except FormatError as failure:
            raise self._spoilt(found) from failure
        return view

    def _seek_table(self, found: PackedFile, descriptor: int) -> SeekTable:
        with store_errors(found.path):
            size = os.fstat(descriptor).st_size
            # The count of frames is the first word of the footer.
            end = os.pread(descriptor, 9, max(size - 9, 0))
            length = min(seek_table_bytes(int.from_bytes(end[:4], "little")), MAX_SEEK_TABLE_BYTES)
            encoded = os.pread(descriptor, length, max(size - length, 0))
        try:
            return SeekTable.decode(encoded, size)
        except FormatError as failure:
            raise self._spoilt(found) from failure

    def _spoilt(self, found: PackedFile) -> IntegrityError:
        """Drop a packed file that is not what it was; the error to raise."""
        with self._database.writing() as connection:
            row = connection.execute("SELECT packed_digest FROM packed WHERE digest = ?", (found.shard,)).fetchone()
            if row is None or row[0] == found.digest:  # else a writer has replaced it meanwhile
                self._unlink(connection, found.shard)
        return IntegrityError(
            f"{found.path} is not the packed form of shard {found.shard} any more: it was dropped; "
            "run dhtdata verify to check the others",
            culprit=str(found.path),
        )

    def _adopt(self, shard: Digest, path: Path) -> None:
        with store_errors(path):
            found = PackedFile(shard, path, Digest.of_file(path), path.stat().st_size, 0, 0)
        hasher = Hasher()
        shard_bytes = 0

        def write(block: memoryview) -> None:
            nonlocal shard_bytes
            shard_bytes += len(block)
            hasher.update(block)

        try:
            self._unpack(found, write)
        except IntegrityError:
            return
        if hasher.digest() != shard:
            self._spoilt(found)
            return
        with store_errors(path), self._database.writing() as connection:
            self._insert(connection, shard, found.digest, shard_bytes)

    def _unlink(self, connection: sqlite3.Connection, shard: bytes) -> None:
        with store_errors(path := self._path(shard)):
            path.unlink(missing_ok=True)
        self._drop_row(connection, shard)

    def _drop_row(self, connection: sqlite3.Connection, shard: bytes) -> None:
        connection.execute("DELETE FROM packed WHERE digest = ?", (shard,))

    def _path(self, shard: bytes) -> Path:
        text = shard.hex()
        return self._folder / text[:2] / f"{text}{_SUFFIX}"


def _not_worth(shard: Digest) -> NotWorthPacking:
    return NotWorthPacking(f"shard {shard} has no packed form: packing does not make it smaller")


def _batches(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks in order, a few at a time: what is packed at once is bounded in memory."""
    batch: list[Block] = []
    byte_count = 0
    for block in blocks:
        if batch and (len(batch) == _BATCH_BLOCKS or byte_count + block.length > _BATCH_BYTES):
            yield batch
            batch, byte_count = [], 0
        batch.append(block)
        byte_count += block.length
    yield batch


def _promises(descriptor: int, blocks: Sequence[Block]) -> bool:
    """Whether a sample of a few blocks gets smaller."""
    step = -(-len(blocks) // (_SAMPLES + 1))
    raw = packed = 0
    for block in blocks[step::step]:
        content = os.pread(descriptor, min(block.length, _SAMPLE_BYTES), block.offset)
        raw += len(content)
        packed += len(pack(content))
    return worth_packing(raw, packed)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file's descriptor. NotFoundError if it is gone."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError as failure:
        raise NotFoundError(f"{path.name} was dropped just now: ask again") from failure
    with closing(file), store_errors(path):
        yield file.fileno()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """(size, mtime, inode); None if there is no such file."""
    with store_errors(path):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
    return (status.st_size, status.st_mtime_ns, status.st_ino)
