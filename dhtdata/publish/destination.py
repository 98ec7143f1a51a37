"""Where a publish puts its blobs: into a store, or nowhere (a dry run, which only counts and digests)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dhtdata.digest import Buffer, Digest, Hasher
from dhtdata.formats.blocks import BlockTable
from dhtdata.store import BlobWriter, Store


@dataclass(frozen=True, slots=True)
class Kept:
    """A blob that is durable now. ``new`` unless it was there before."""

    digest: Digest
    new: bool


class OpenBlob(Protocol):
    """A blob that is being written."""

    def write(self, *parts: Buffer) -> None: ...

    def keep(self) -> Kept:
        """Make it durable; dropped instead if it is there already."""
        ...

    def close(self) -> None:
        """Drop it unless it was kept."""
        ...


class Destination(Protocol):
    def new_blob(self) -> OpenBlob: ...

    def put(self, content: bytes) -> Digest: ...

    def put_table(self, shard: Digest, table: BlockTable) -> Digest:
        """Keep the block table of a shard, and in mind where its blocks are."""
        ...


class StoreDestination:
    """A store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def new_blob(self) -> OpenBlob:
        return _StoreBlob(self._store)

    def put(self, content: bytes) -> Digest:
        return self._store.put(content)

    def put_table(self, shard: Digest, table: BlockTable) -> Digest:
        self._store.note_blocks(shard, table)
        return self._store.put(table.encode())


class _StoreBlob:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: BlobWriter = store.new_blob()

    def write(self, *parts: Buffer) -> None:
        self._writer.write(*parts)

    def keep(self) -> Kept:
        digest = self._writer.digest()
        # A shard that is there already costs no fsync and no rename.
        known = self._store.retain(digest)
        if not known:
            self._writer.commit()
        self._writer.close()
        return Kept(digest, not known)

    def close(self) -> None:
        self._writer.close()


class DryDestination:
    """Nowhere. What a given store holds already does not count as new."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def new_blob(self) -> OpenBlob:
        return _DryBlob(self._store)

    def put(self, content: bytes) -> Digest:
        return Digest.of(content)

    def put_table(self, shard: Digest, table: BlockTable) -> Digest:
        return Digest.of(table.encode())


class _DryBlob:
    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._hasher = Hasher()

    def write(self, *parts: Buffer) -> None:
        for part in parts:
            self._hasher.update(part)

    def keep(self) -> Kept:
        digest = self._hasher.digest()
        return Kept(digest, self._store is None or not self._store.has(digest))

    def close(self) -> None:
        pass
