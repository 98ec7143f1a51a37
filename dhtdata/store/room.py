"""Room: what a store holds for whom, and what goes first when there is not enough.

| blobs | leave by |
|---|---|
| packed copies of shards that are here | eviction, before any other; with their shard |
| led to by a pinned manifest | never, until it is unpinned or removed |
| led to by a listed manifest | eviction: shards no loop needs, least recently used first; then those needed last |
| led to by none, written or retained within the grace period | nothing: a publish may be about to refer to them |
| led to by none, older | `gc`, and eviction before any other |

A packed shard whose blob was given up counts as that blob. The cache limit counts everything but what is pinned and
what is in its grace period, and partial shards at their full size, so that bytes which are on their way have their room
already. Leaving is ``unlink`` only: whoever has mapped a shard keeps reading it. For a shard that is to come nothing
leaves that is needed sooner (`foresight`): `NoRoomYet` then.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.store.blobs import Blobs
from dhtdata.store.catalogue import Catalogue, ManifestEntry
from dhtdata.store.filesystem import free_bytes, require_room
from dhtdata.store.foresight import Foresight, NextUse
from dhtdata.store.index import Database, ProcessLock
from dhtdata.store.packed import PackedFile, PackedShards
from dhtdata.store.partial import PartialEntry, Partials
from dhtdata.store.reach import Reach, find_table, walk

GRACE_S = 24 * 3600.0
_BATCH = 32


class NoRoomYet(StoreError):
    """The cache limit is full of what is being fetched or needed sooner: wait until running loops have moved on."""


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
    packed: int
    packed_bytes: int
    cache_bytes: int


class _Loose(NamedTuple):
    """A blob or partial that may go. A tuple, because a store of a terabyte has 60,000 of them."""

    used_s: float
    size: int
    what: bytes | PartialEntry | PackedFile
    added_s: float

    @property
    def shard(self) -> bytes:
        if isinstance(self.what, PartialEntry):
            return self.what.digest
        return self.what.shard if isinstance(self.what, PackedFile) else self.what


@dataclass
class _Census:
    """``cache_bytes`` count against the limit, ``busy_bytes`` of them are partial shards that somebody fills or serves.

    ``copies``, ``garbage`` and ``shards`` may go, longest unused first; ``needed`` shards, too, needed last first.
    """

    listed: frozenset[tuple[bytes, bool]]
    pinned: set[bytes]
    unmapped: Digest | None
    cache_bytes: int
    busy_bytes: int
    copies: list[_Loose]
    garbage: list[_Loose]
    shards: list[_Loose]
    needed: list[tuple[NextUse, _Loose]]

    def evictable(self, later_than: NextUse | None = None) -> list[_Loose]:
        """What may go, in that order; of what is needed only what is ``later_than`` that."""
        needed = [item for use, item in self.needed if later_than is None or use > later_than]
        return self.copies + self.garbage + self.shards + needed


class Room:
    """Completeness, garbage and eviction of one store."""

    def __init__(
        self,
        blobs: Blobs,
        partials: Partials,
        packed: PackedShards,
        catalogue: Catalogue,
        database: Database,
        cache_limit: int | None,
    ) -> None:
        self._blobs = blobs
        self._partials = partials
        self._packed = packed
        self._catalogue = catalogue
        self._database = database
        self.cache_limit = cache_limit
        self.foresight = Foresight()
        self._lock = ProcessLock()
        self._walked: dict[Digest, Reach] = {}
        self._spare_bytes = 0
        self._spare_for: frozenset[tuple[bytes, bool]] = frozenset()

    def reach(self, manifest: Digest) -> Reach:
        """What a manifest leads to. A whole walk is remembered: digests never change their meaning."""
        if (known := self._walked.get(manifest)) is not None:
            return known
        reach = Reach()
        walk(manifest, self._blobs.read, reach)
        if reach.whole:
            self._walked[manifest] = reach
        return reach

    def held(self) -> set[bytes]:
        """Digests of what is here, packed or as it is."""
        return self._blobs.held() | self._packed.held()

    def missing(self, manifest: Digest) -> list[Digest]:
        """Blobs that the manifest is known to lead to and that are not here, ascending."""
        reach = self.reach(manifest)
        held = self.held()
        return [Digest(value) for value in sorted((reach.small | reach.sizes.keys()) - held)]

    def completeness(self, manifest: Digest) -> Completeness:
        reach = self.reach(manifest)
        if not reach.byte_count:
            raise NotFoundError(f"manifest {manifest} or its contents are not in this store: fetch them first")
        held = self.held()
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

    def usage(self) -> Usage:
        """What the store takes."""
        partials = self._partials.entries()
        packed = self._packed.files()
        with self._database.reading() as connection:
            count, size = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM blobs").fetchone()
        return Usage(
            blobs=count,
            bytes=size,
            partials=len(partials),
            partial_bytes=sum(entry.held_bytes for entry in partials),
            packed=len(packed),
            packed_bytes=sum(file.size for file in packed),
            cache_bytes=self._census(GRACE_S).cache_bytes,
        )

    def reserve(self, needed_bytes: int, digest: Digest | None = None, *, now: bool = False) -> None:
        """Make room for bytes that are about to come (for ``digest``, if they are a blob's; ``now``: awaited).

        StoreError says what the limit must be, or how much the disk lacks; `NoRoomYet` if there will be room in time.
        """
        with self._lock:
            self._require_room(needed_bytes)
            if self.cache_limit is None:
                return
            if needed_bytes <= self._spare_bytes and self._spare_for == _listed(self._catalogue.manifests()):
                self._spare_bytes -= needed_bytes
                return
            census = self._census(GRACE_S)
            if digest is None or digest not in census.pinned:
                urgency = self.foresight.urgency(digest or b"", now=now)
                self._reserve_under(self.cache_limit, needed_bytes, census, urgency)

    def kept_bytes(self) -> int:
        """Bytes that count against the cache limit and never go to make room: what says where rows are, mostly."""
        census = self._census(GRACE_S)
        return census.cache_bytes - census.busy_bytes - sum(item.size for item in census.evictable())

    def table_of(self, shard: Digest) -> Digest:
        """Digest of the block table that a listed manifest gives a shard. NotFoundError if none is known to list it."""
        for entry in self._catalogue.manifests():
            if shard in self._reach_so_far(entry.digest).sizes:
                return find_table(entry.digest, shard, self._blobs.read)
        raise NotFoundError(f"no dataset of this store lists a shard {shard}")

    def reserve_copy(self, needed_bytes: int) -> None:
        """Make room for a packed copy, for which nothing goes but other copies. StoreError if that does not suffice."""
        with self._lock:
            require_room(self._database.path.parent, needed_bytes)
            if self.cache_limit is None:
                return
            census = self._census(GRACE_S)
            excess = census.cache_bytes + needed_bytes - self.cache_limit
            if excess > sum(item.size for item in census.copies):
                raise StoreError(f"no room for a packed copy under the cache limit of {self.cache_limit} bytes")
            self._drop(census, _first(census.copies, excess))
            self._spare_bytes = 0

    def evict(self, needed_bytes: int) -> int:
        """Drop unpinned shards, what is needed last first, until ``needed_bytes`` are free; bytes freed."""
        with self._lock:
            census = self._census(GRACE_S)
            return self._drop(census, _first(census.evictable(), needed_bytes))

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
            return self._drop(census, census.garbage)

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

    def _require_room(self, needed_bytes: int) -> None:
        """Room on the disk, for which packed copies go if need be."""
        free, kept = free_bytes(self._database.path.parent)
        if (lacking := needed_bytes + kept - free) > 0:
            census = self._census(GRACE_S)
            if lacking <= sum(item.size for item in census.copies):
                self._drop(census, _first(census.copies, lacking))
        require_room(self._database.path.parent, needed_bytes)

    def _reserve_under(self, limit_bytes: int, needed_bytes: int, census: _Census, urgency: NextUse) -> None:
        excess = census.cache_bytes + needed_bytes - limit_bytes
        if excess > 0:
            evictable = census.evictable(urgency)
            evictable_bytes = sum(item.size for item in evictable)
            if evictable_bytes < excess:
                self._refuse(limit_bytes, needed_bytes, census, evictable_bytes)
            # A census of a large store costs a tenth of a second: drop a little more, so that the next need none.
            excess -= self._drop(census, _first(evictable, max(excess, limit_bytes // 32)))
        self._spare_bytes = max(0, -excess)
        self._spare_for = census.listed

    def _refuse(self, limit_bytes: int, needed_bytes: int, census: _Census, evictable_bytes: int) -> None:
        least = census.cache_bytes - census.busy_bytes - sum(item.size for item in census.evictable()) + needed_bytes
        if least > limit_bytes:
            raise StoreError(
                f"a cache limit of {limit_bytes} bytes is too small: it must be at least {least} bytes "
                "(--cache-limit or DHTDATA_CACHE_LIMIT)"
            )
        raise NoRoomYet(
            f"a cache limit of {limit_bytes} bytes is full of what is being fetched or is needed sooner; with at least "
            f"{census.cache_bytes - evictable_bytes + needed_bytes} bytes (--cache-limit or DHTDATA_CACHE_LIMIT) "
            "there would be room"
        )

    def _adopt_strays(self) -> None:
        held = self._blobs.held()
        for digest in self._blobs.filed():
            if digest not in held:
                with suppress(IntegrityError, NotFoundError):  # quarantined, or gone by now: no garbage of ours
                    self._blobs.verify(digest)
        self._packed.adopt_strays()

    def _census(self, grace_s: float) -> _Census:
        self._blobs.flush_touches()
        entries = self._catalogue.manifests()
        pinned: set[bytes] = set()
        shards: set[bytes] = set()
        small: set[bytes] = set()
        unmapped = None
        for entry in entries:
            reach = self._reach_so_far(entry.digest)
            if entry.pinned:
                pinned.update(reach.sizes, reach.small)
                unmapped = unmapped if reach.mapped else entry.digest
            else:
                shards.update(reach.sizes)
                small.update(reach.small)
        with self._database.reading() as connection:
            rows = connection.execute("SELECT used_s, size, digest, added_s FROM blobs").fetchall()
        oldest_s = self._blobs.now_s() - grace_s
        loose = [row for row in rows if row[2] not in pinned]
        evictable = [_Loose(*row) for row in loose if row[2] in shards]
        busy_bytes = 0
        kept_bytes = sum(row[1] for row in loose if row[2] in small and row[2] not in shards)
        garbage = [_Loose(*row) for row in loose if row[2] not in shards and row[2] not in small and row[3] <= oldest_s]
        for partial in self._partials.entries():
            if partial.digest in pinned:
                continue
            item = _Loose(partial.used_s, partial.size, partial, partial.used_s)
            if self._partials.in_use(partial):
                busy_bytes += partial.size
            elif partial.digest in shards or partial.used_s > oldest_s:
                evictable.append(item)
            else:
                garbage.append(item)
        copies = []
        whole = {row[2] for row in rows}
        for packed in self._packed.files():
            item = _Loose(packed.added_s, packed.size, packed, packed.added_s)
            if packed.shard in whole:
                copies.append(item)
            elif packed.shard in shards:
                evictable.append(item)
            elif packed.shard not in pinned and packed.added_s <= oldest_s:
                garbage.append(item)
        cache_bytes = kept_bytes + busy_bytes + sum(item.size for item in (*copies, *evictable, *garbage))
        copies.sort(key=itemgetter(0))
        evictable.sort(key=itemgetter(0))
        uses = [self.foresight.next_use(item.shard) for item in evictable]
        unneeded = [item for use, item in zip(uses, evictable, strict=True) if use is None]
        needed = [(use, item) for use, item in zip(uses, evictable, strict=True) if use is not None]
        needed.sort(key=itemgetter(0), reverse=True)
        garbage.sort(key=itemgetter(0))
        # Unless all that is pinned is known, what looks like garbage may be pinned.
        garbage = garbage if unmapped is None else []
        return _Census(_listed(entries), pinned, unmapped, cache_bytes, busy_bytes, copies, garbage, unneeded, needed)

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

    def _drop(self, census: _Census, chosen: list[_Loose]) -> int:
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
                    elif isinstance(item.what, PackedFile):
                        freed += self._packed.remove(connection, item.what.shard)
                    elif dropped := self._blobs.remove(connection, Digest(item.what), item.added_s):
                        freed += dropped + self._packed.remove(connection, item.what)
        return freed


def _first(items: list[_Loose], needed_bytes: int) -> list[_Loose]:
    """As many of the first items as it takes."""
    chosen: list[_Loose] = []
    for item in items:
        if needed_bytes <= 0:
            break
        chosen.append(item)
        needed_bytes -= item.size
    return chosen


def _listed(entries: list[ManifestEntry]) -> frozenset[tuple[bytes, bool]]:
    return frozenset((entry.digest, entry.pinned) for entry in entries)
