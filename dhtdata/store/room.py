"""Room: what a store holds for whom, and what goes first when there is not enough.

| blobs | leave by |
|---|---|
| led to by a pinned manifest | never, until it is unpinned or removed |
| led to by a listed manifest | eviction: shards, least recently used first |
| led to by none, written or retained within the grace period | nothing: a publish may be about to refer to them |
| led to by none, older | `gc`, and eviction before any other |

The cache limit counts everything but the first and third kind, and partial shards at their full size, so that bytes
which are on their way have their room already. Leaving is ``unlink`` only: whoever has mapped a shard keeps reading it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.store.blobs import Blobs
from dhtdata.store.catalogue import Catalogue, ManifestEntry
from dhtdata.store.filesystem import store_errors
from dhtdata.store.index import Database, ProcessLock
from dhtdata.store.partial import PartialEntry, Partials
from dhtdata.store.reach import Reach, walk

GRACE_S = 24 * 3600.0
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Completeness:
    """How much of a dataset is here. Bytes are those of shards, whole or in part."""

    shards_held: int
    shards: int
    bytes_held: int
    bytes: int
    complete: bool
    """Every blob that the manifest leads to is here, small ones too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store takes on disk, and how much of it counts against the cache limit."""

    blobs: int
    bytes: int
    partials: int
    partial_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class _Evictable:
    """A blob or partial that may go. ``garbage``: no listed manifest leads to it."""

    garbage: bool
    used_s: float
    size: int
    what: Digest | PartialEntry
    added_s: float


@dataclass
class _Census:
    """``cache_bytes`` count against the limit; ``evictable`` of them may go, first come first."""

    listed: frozenset[tuple[bytes, bool]]
    pinned: list[Reach] = field(default_factory=list)
    unmapped: Digest | None = None
    cache_bytes: int = 0
    evictable: list[_Evictable] = field(default_factory=list)

    def pins(self, digest: bytes) -> bool:
        return any(digest in reach for reach in self.pinned)

    @property
    def evictable_bytes(self) -> int:
        return sum(item.size for item in self.evictable)


class Room:
    """Completeness, garbage and eviction of one store."""

    def __init__(
        self, blobs: Blobs, partials: Partials, catalogue: Catalogue, database: Database, cache_limit: int | None
    ) -> None:
        self._blobs = blobs
        self._partials = partials
        self._catalogue = catalogue
        self._database = database
        self._cache_limit = cache_limit
        self._lock = ProcessLock()
        self._walked: dict[Digest, Reach] = {}

    def reach(self, manifest: Digest) -> Reach:
        """What a manifest leads to. A whole walk is remembered: digests never change their meaning."""
        if (known := self._walked.get(manifest)) is not None:
            return known
        reach = Reach()
        walk(manifest, self._blobs.read, reach)
        if reach.whole:
            self._walked[manifest] = reach
        return reach

    def missing(self, manifest: Digest) -> list[Digest]:
        """Blobs that the manifest is known to lead to and that are not here, ascending."""
        reach = self.reach(manifest)
        held = self._held()
        return [Digest(value) for value in sorted((reach.small | reach.sizes.keys()) - held)]

    def completeness(self, manifest: Digest) -> Completeness:
        reach = self.reach(manifest)
        if not reach.byte_count:
            raise NotFoundError(f"manifest {manifest} or its contents are not in this store: fetch them first")
        held = self._held()
        here = [digest for digest in reach.sequence if digest in held]
        begun: dict[bytes, int] = {}
        for entry in self._partials.entries():
            if entry.digest in reach.sizes and entry.digest not in held:
                begun[entry.digest] = max(begun.get(entry.digest, 0), entry.held_bytes)
        return Completeness(
            shards_held=len(here),
            shards=reach.shard_count,
            bytes_held=sum(map(reach.sizes.__getitem__, here)) + sum(begun.values()),
            bytes=reach.byte_count,
            complete=reach.whole and len(here) == len(reach.sequence) and reach.small <= held,
        )

    def shard_bits(self, manifest: Digest) -> bytes:
        """One bit a shard by ordinal, the lowest bit of each byte first; set if the whole shard is here.

        NotFoundError unless every index is here: without them ordinals mean nothing.
        """
        reach = self.reach(manifest)
        if not reach.mapped:
            raise NotFoundError(f"indexes of manifest {manifest} are not in this store: fetch them first")
        held = self._held()
        bits = bytearray(-(-len(reach.sequence) // 8))
        for ordinal, digest in enumerate(reach.sequence):
            bits[ordinal >> 3] |= (digest in held) << (ordinal & 7)
        return bytes(bits)

    def usage(self) -> Usage:
        """What the store takes."""
        partials = self._partials.entries()
        with self._database.reading() as connection:
            count, size = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM blobs").fetchone()
        return Usage(
            blobs=count,
            bytes=size,
            partials=len(partials),
            partial_bytes=sum(entry.held_bytes for entry in partials),
            cache_bytes=self._census(GRACE_S).cache_bytes,
        )

    def reserve(self, needed_bytes: int, digest: Digest | None = None) -> None:
        """Make room for bytes that are about to come (for ``digest``, if they are a blob's).

        StoreError says what the limit must be, or how much the disk lacks.
        """
        with self._lock:
            self._reserve_on_disk(needed_bytes)
            if self._cache_limit is None:
                return
            census = self._census(GRACE_S)
            if digest is not None and census.pins(digest):
                return
            excess = census.cache_bytes + needed_bytes - self._cache_limit
            if excess > 0 and census.evictable_bytes < excess:
                least = census.cache_bytes - census.evictable_bytes + needed_bytes
                raise StoreError(
                    f"a cache limit of {self._cache_limit} bytes is too small: it must be at least {least} bytes "
                    "(--cache-limit or DHTDATA_CACHE_LIMIT)"
                )
            self._evict(census, excess)

    def evict(self, needed_bytes: int) -> int:
        """Drop unpinned shards, least recently used first, until ``needed_bytes`` are free; bytes freed."""
        with self._lock:
            return self._evict(self._census(GRACE_S), needed_bytes)

    def gc(self, grace_s: float = GRACE_S) -> int:
        """Drop what no listed manifest leads to, but nothing younger than ``grace_s``; bytes freed.

        StoreError if a pinned dataset lacks the blobs that say what belongs to it: all of it might be dropped.
        """
        with self._lock:
            self._adopt_strays()
            census = self._census(grace_s)
            if census.unmapped is not None:
                raise StoreError(
                    f"pinned manifest {census.unmapped} lacks its contents or an index, so nobody knows what "
                    f"belongs to it: fetch it (dhtdata get {census.unmapped}) or unpin it first"
                )
            garbage = [item for item in census.evictable if item.garbage]
            return self._drop(census, garbage)

    def forget_grace(self, manifest: Digest, listed_s: float) -> None:
        """Let `gc` drop a removed manifest's blobs at once, but for those that were retained after it was listed."""
        try:
            reach = self.reach(manifest)
        except FormatError:
            return
        self._walked.pop(manifest, None)
        with self._database.writing() as connection:
            connection.executemany(
                "UPDATE blobs SET added_s = 0 WHERE digest = ? AND added_s <= ?",
                [(digest, listed_s) for digest in (*reach.small, *reach.sizes)],
            )

    def _reserve_on_disk(self, needed_bytes: int) -> None:
        folder = self._database.path.parent
        with store_errors(folder):
            status = os.statvfs(folder)
        if (free := status.f_bavail * status.f_frsize) < needed_bytes:
            raise StoreError(
                f"{folder}: no room for {needed_bytes} more bytes ({free} are free): free some space, "
                "run dhtdata gc, or use another store (--store)"
            )

    def _held(self) -> set[bytes]:
        with self._database.reading() as connection:
            return {row[0] for row in connection.execute("SELECT digest FROM blobs")}

    def _adopt_strays(self) -> None:
        held = self._held()
        for digest in self._blobs.filed():
            if digest not in held:
                with suppress(IntegrityError, NotFoundError):  # quarantined, or gone by now: no garbage of ours
                    self._blobs.verify(digest)

    def _census(self, grace_s: float) -> _Census:
        self._blobs.flush_touches()
        entries = self._catalogue.manifests()
        census = _Census(listed=_listed(entries))
        shards: set[bytes] = set()
        small: set[bytes] = set()
        for entry in entries:
            reach = self._reach_so_far(entry.digest)
            if entry.pinned:
                census.pinned.append(reach)
                if not reach.mapped:
                    census.unmapped = entry.digest
            else:
                shards.update(reach.sizes)
                small.update(reach.small)
        with self._database.reading() as connection:
            rows = connection.execute("SELECT digest, size, used_s, added_s FROM blobs").fetchall()
        oldest_s = self._blobs.now_s() - grace_s
        for digest, size, used_s, added_s in rows:
            if census.pins(digest):
                continue
            garbage = digest not in shards and digest not in small
            if garbage and added_s > oldest_s:
                continue
            census.cache_bytes += size
            if digest in shards or (garbage and census.unmapped is None):
                census.evictable.append(_Evictable(garbage, used_s, size, Digest(digest), added_s))
        for partial in self._partials.entries():
            if not census.pins(partial.digest):
                census.cache_bytes += partial.size
                if not self._partials.in_use(partial):
                    garbage = partial.digest not in shards and partial.used_s <= oldest_s
                    census.evictable.append(_Evictable(garbage, partial.used_s, partial.size, partial, partial.used_s))
        census.evictable.sort(key=lambda item: (not item.garbage, item.used_s))
        return census

    def _reach_so_far(self, manifest: Digest) -> Reach:
        if (known := self._walked.get(manifest)) is not None:
            return known
        reach = Reach()
        try:
            walk(manifest, self._blobs.read, reach)
        except FormatError:
            # A listed manifest that is not well-formed keeps what was read of it, and leads nowhere else.
            return reach
        return reach

    def _evict(self, census: _Census, needed_bytes: int) -> int:
        chosen: list[_Evictable] = []
        for item in census.evictable:
            if needed_bytes <= 0:
                break
            chosen.append(item)
            needed_bytes -= item.size
        return self._drop(census, chosen)

    def _drop(self, census: _Census, chosen: list[_Evictable]) -> int:
        """Drop in batches, so that others get the write lock in between; stops if datasets were added or pinned."""
        freed = 0
        for first in range(0, len(chosen), _BATCH):
            batch = chosen[first : first + _BATCH]
            with self._database.writing() as connection:
                if _listed(self._catalogue.read_manifests(connection)) != census.listed:
                    break
                for item in batch:
                    if isinstance(item.what, PartialEntry):
                        freed += self._partials.remove(connection, item.what)
                    else:
                        freed += self._blobs.remove(connection, item.what, item.added_s)
        return freed


def _listed(entries: list[ManifestEntry]) -> frozenset[tuple[bytes, bool]]:
    return frozenset((entry.digest, entry.pinned) for entry in entries)
