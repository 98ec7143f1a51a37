"""The store: one folder that holds blobs, and everything this machine knows about datasets.

The trainer and the peer meet here and nowhere else. Threads may share a `Store`; processes open one each. Goals: a file
at a final path is verified; nothing that was acknowledged is lost to a crash, a full disk or another process. Not
goals: network file systems (refused), several users (the folder is 0700), bad memory.

::

    <store>/
      index.sqlite      rows of blobs, partials, datasets, names (WAL)
      store.lock        held while a process opens the store
      blobs/ab/<digest>   final, read-only
      packed/ab/<digest>.zst  packed forms of shards
      partial/          shards of which some blocks are here
      incoming/         temporary files, each locked by its writer
      quarantine/       blobs whose bytes changed on disk
      filters/          which rows mounts with a filter keep (``dhtdata.filters.kept``); no blobs
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from dhtdata.digest import Buffer, Digest, random_id
from dhtdata.errors import IntegrityError, NotFoundError
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.records import Signed
from dhtdata.store.blobs import Blobs, BlobWriter, ScrubResult
from dhtdata.store.catalogue import Catalogue, ManifestEntry
from dhtdata.store.filesystem import make_folder, refuse_network, store_errors
from dhtdata.store.foresight import Foresight
from dhtdata.store.index import Database, ProcessLock
from dhtdata.store.packed import NotWorthPacking, PackedFile, PackedShards
from dhtdata.store.partial import Partial, Partials
from dhtdata.store.places import Place, Places
from dhtdata.store.room import GRACE_S, Completeness, Room, Usage


@dataclass(frozen=True, slots=True)
class Located:
    """Where bytes of a blob can be read: all of it, or the blocks that ``partial`` has."""

    path: Path
    size: int
    partial: Partial | None

    @property
    def complete(self) -> bool:
        return self.partial is None


class Store:
    """One store folder. Make it with `Store.open`."""

    def __init__(self, path: Path, database: Database, cache_limit: int | None, clock: Callable[[], float]) -> None:
        self.path = path
        self._database = database
        self._blobs = Blobs(path, database, clock)
        self._partials = Partials(path, self._blobs, database)
        self._packed = PackedShards(path, self._blobs, database)
        self._places = Places(database)
        self._catalogue = Catalogue(database, clock)
        self._restoring = ProcessLock()
        self._beginning = ProcessLock()
        self._room = Room(self._blobs, self._partials, self._packed, self._catalogue, database, cache_limit)
        self.id = b""

    @classmethod
    def open(cls, path: Path, *, cache_limit: int | None = None, clock: Callable[[], float] = time.time) -> Store:
        """Open a store, made first if it is not there. StoreError if the folder cannot hold one."""
        path = path.absolute()
        with store_errors(path, 4_096):
            make_folder(path)
            refuse_network(path)
            os.chmod(path, 0o700)
        store = cls(path, Database(path / "index.sqlite"), cache_limit, clock)
        try:
            with store_errors(path, 4_096), _locked(path / "store.lock"):
                store.id = store._database.create(random_id())
                store._blobs.create()
                store._partials.create()
                store._packed.create()
        except BaseException:
            store._database.close()
            raise
        return store

    def close(self) -> None:
        """Write down what was used lately and close the index."""
        self._blobs.flush_touches()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Blobs

    def has(self, digest: Digest) -> bool:
        """Whether the whole blob is here, as it should be, or a shard's packed form, of which `path_of` makes it."""
        return self._blobs.has(digest) or self._packed.has(digest)

    def held(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those of many blobs that are here, by the index alone: milliseconds for 30,000, where `has` takes seconds."""
        held = self._room.held()
        return {digest for digest in digests if digest in held}

    def retain(self, digest: Digest) -> bool:
        """`has`, for who is about to publish something that refers to it: `gc` keeps it for another grace period."""
        return self._blobs.retain(digest)

    def size(self, digest: Digest) -> int:
        """Bytes of a blob. NotFoundError if it is not here."""
        try:
            return self._blobs.size(digest)
        except NotFoundError:
            if not self._packed.has(digest):
                raise
            return self._packed.find(digest).shard_bytes

    def path_of(self, digest: Digest) -> Path:
        """A verified blob's file. NotFoundError if it is not here; IntegrityError names a file that has changed.

        A shard of which only the packed form is here is unpacked first: StoreError if there is no room for it.
        Eviction may unlink it at any time: open or map it at once; FileNotFoundError then means ask again.
        """
        try:
            return self._blobs.path_of(digest)
        except NotFoundError:
            if not self._packed.has(digest):
                raise
        with self._restoring:  # others who ask for the same shard find it restored
            if self._blobs.has(digest):
                return self._blobs.path_of(digest)
            found = self._packed.find(digest)
            self._room.reserve(found.shard_bytes, digest, now=True)
            return self._packed.restore(found)

    def place_of(self, digest: Digest) -> Path:
        """Where a blob's file is, if it is here."""
        return self._blobs.final_path(digest)

    def read(self, digest: Digest, *, limit_bytes: int) -> bytes:
        """A small blob, digested on every read. FormatError if it is larger than ``limit_bytes``."""
        return self._blobs.read(digest, limit_bytes)

    def put(self, content: Buffer) -> Digest:
        """Store bytes; durable on return. Storing them again does nothing."""
        return self._blobs.put(content)

    def new_blob(self, digest: Digest | None = None) -> BlobWriter:
        """A blob to be written in pieces; it digests what it writes, unless ``digest`` says that this was done.

        ``with store.new_blob() as writer: writer.write(first, second); path = writer.commit()``
        """
        return self._blobs.new_blob(digest)

    def locate(self, digest: Digest) -> Located:
        """A blob or the fullest partial of it, for a server. NotFoundError if no byte is here.

        The first look at a partial in a process digests what it holds: call it off the event loop.
        """
        try:
            path = self.path_of(digest)
        except NotFoundError:
            partial = self._partials.stored(digest)
            return Located(partial.path, partial.table.shard_bytes, partial)
        with store_errors(path):
            return Located(path, path.stat().st_size, None)

    def scrub(self) -> Iterator[ScrubResult]:
        """Digest every blob and packed file again, one result each; `usage` says how many there will be.

        Bad blobs go to quarantine, bad packed files are dropped.
        """
        yield from self._blobs.scrub()
        yield from self._packed.scrub()

    # Partial shards

    def partial(self, digest: Digest, table: BlockTable, *, now: bool = False) -> Partial:
        """A shard to be filled block by block, new or resumed; ``now``: somebody waits for it.

        StoreError if there is no room for a new one, `NoRoomYet` if it takes until loops that run have moved on.
        """
        if self._partials.known(digest, table):
            return self._partials.open(digest, table)
        with self._beginning:  # what was reserved does not count before it has its place
            if not self._partials.known(digest, table):
                self._room.reserve(table.shard_bytes, digest, now=now)
            return self._partials.open(digest, table)

    def reuse(self, partial: Partial) -> list[int]:
        """Copy missing blocks that whole shards hold, verified; their positions."""
        missing = partial.missing()
        found = self._places.find([partial.table.blocks[position] for position in missing])
        copied = []
        for shard, held in groupby(found, key=lambda place: place.shard):
            try:
                with self._blobs.path_of(shard).open("rb", buffering=0) as file:
                    copied += [missing[place.wanted] for place in held if _copy(file.fileno(), place, partial, missing)]
            except (NotFoundError, IntegrityError, FileNotFoundError):
                # Evicted or spoilt: what is not copied will be fetched.
                continue
        return copied

    def note_blocks(self, shard: Digest, table: BlockTable) -> None:
        """Remember where the blocks of a whole shard are, for `reuse`. Shards made of partial ones are remembered."""
        self._places.note(shard, table)

    def partials(self) -> list[Digest]:
        """Shards of which some blocks may be here, ascending."""
        return sorted({entry.digest for entry in self._partials.entries()})

    # Packed shards

    def packed(self, shard: Digest) -> PackedFile:
        """The packed form of a shard. NotFoundError if there is none, `NotWorthPacking` if there never will be one."""
        return self._packed.find(shard)

    def pack(self, shard: Digest, going: Callable[[], bool] = lambda: True) -> PackedFile:
        """Pack a whole shard of a listed dataset, unless that was done; ends early once ``going`` says no.

        NotFoundError if shard or block table is not here, `NotWorthPacking` if that saves too little, StoreError if
        there is no room beside what is not packed.
        """
        try:
            return self._packed.find(shard)
        except NotWorthPacking:
            raise
        except (NotFoundError, IntegrityError):
            pass  # not yet, or its file had changed and was dropped
        table = self.block_table(shard)
        self._room.reserve_copy(table.shard_bytes)
        return self._packed.pack(shard, table, going)

    def unpacked(self, shards: Iterable[Digest], *, alone: bool) -> set[Digest]:
        """Those of many shards that `pack` has something to do for; with ``alone`` those, too, that `give_up` has."""
        return self._packed.unpacked(shards, alone=alone)

    def give_up(self, shard: Digest) -> int:
        """Drop a packed shard's blob after a look at whether it can be had again; bytes freed. `path_of` restores it.

        NotFoundError if it is not packed.
        """
        return self._packed.give_up_blob(shard)

    def block_table(self, shard: Digest) -> BlockTable:
        """The block table that some listed dataset gives a shard. NotFoundError if none lists it, or it is not here."""
        return BlockTable.decode(self.read(self._room.table_of(shard), limit_bytes=MAX_TABLE_BYTES))

    # Datasets

    def add_manifest(self, manifest: Digest) -> None:
        """List a dataset version: `gc` keeps what it leads to. Not pinned yet."""
        self._catalogue.add_manifest(manifest)

    def manifests(self) -> list[ManifestEntry]:
        """Dataset versions listed, in the order in which they were added."""
        return self._catalogue.manifests()

    def remove_manifest(self, manifest: Digest) -> None:
        """Unlist and unpin; the next `gc` drops what nothing else leads to. NotFoundError if it is not listed."""
        listed_s = self._catalogue.remove_manifest(manifest)
        self._room.forget_grace(manifest, listed_s)

    def pin(self, manifest: Digest) -> None:
        """Never evict what it leads to. NotFoundError if it is not listed."""
        self._catalogue.pin(manifest, True)

    def unpin(self, manifest: Digest) -> None:
        self._catalogue.pin(manifest, False)

    def missing_blobs(self, manifest: Digest) -> list[Digest]:
        """Blobs that the manifest is known to lead to and that are not here. A missing index hides its shards."""
        return self._room.missing(manifest)

    def completeness(self, manifest: Digest) -> Completeness:
        """How much of a dataset is here. NotFoundError if not even its contents are."""
        return self._room.completeness(manifest)

    def gc(self, *, grace_s: float = GRACE_S) -> int:
        """Drop what no listed manifest leads to and is older than ``grace_s``; bytes freed."""
        return self._room.gc(grace_s)

    def evict(self, needed_bytes: int) -> int:
        """Drop unpinned shards, what is needed last first; bytes freed."""
        return self._room.evict(needed_bytes)

    @property
    def foresight(self) -> Foresight:
        """What loops will read, as far as this process knows: `reserve` and `evict` go by it."""
        return self._room.foresight

    @property
    def cache_limit(self) -> int | None:
        """Bytes that unpinned blobs may take, by this process's setting."""
        return self._room.cache_limit

    def kept_bytes(self) -> int:
        """Bytes that count against the cache limit and never make room: what says where rows are, mostly."""
        return self._room.kept_bytes()

    def reserve(self, needed_bytes: int, digest: Digest | None = None) -> None:
        """Make room under the cache limit and check the disk. StoreError names the limit that it takes."""
        self._room.reserve(needed_bytes, digest)

    def usage(self) -> Usage:
        """What the store takes on disk."""
        return self._room.usage()

    # Names and memory

    def put_name_record(self, signed: Signed) -> bool:
        """Keep a verified name record if none as new is known; whether it was. Never goes back."""
        return self._catalogue.put_name_record(signed)

    def name_record(self, publisher: bytes, name: str) -> Signed:
        """The newest record seen. NotFoundError if none was."""
        return self._catalogue.name_record(publisher, name)

    def names(self) -> list[Signed]:
        return self._catalogue.names()

    def mark_checked(self, digest: Digest, schema_digest: Digest) -> None:
        """Remember that the table side found a shard sound under a schema."""
        self._catalogue.mark_checked(digest, schema_digest)

    def is_checked(self, digest: Digest, schema_digest: Digest) -> bool:
        return self._catalogue.is_checked(digest, schema_digest)

    def trust_publisher(self, key: bytes) -> None:
        """Remember that this publisher's shards need no child process any more."""
        self._catalogue.trust_publisher(key)

    def trusts(self, key: bytes) -> bool:
        return self._catalogue.trusts(key)


def _copy(descriptor: int, place: Place, partial: Partial, missing: Sequence[int]) -> bool:
    position = missing[place.wanted]
    block = partial.table.blocks[position]
    if partial.has(position):
        return False
    try:
        partial.accept(position, os.pread(descriptor, block.length, place.offset))
    except (IntegrityError, OSError):
        # A stale hint, or rot.
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
