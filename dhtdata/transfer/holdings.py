"""What this peer holds and may serve: whole blobs out of the store, verified blocks of shards that are being fetched.

A have-map is made when somebody asks and kept for a while: blocks and shards that arrive here are noted at once, what
others do to the store (publish, eviction) shows after `REFRESH_S`. The last `MAX_EVENTS` changes are remembered, so
that whoever asks again soon gets only what has changed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest, random_id
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.store import Partial, Store
from dhtdata.transfer import answers
from dhtdata.transfer.answers import HaveMap, PartialShard, bit, pack_bits
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.packer import Packer

REFRESH_S = 30.0
MAX_LAYOUTS = 16
MAX_EVENTS = 8_192


@dataclass
class _Known:
    """Have-map of some contents, as of ``made_s``."""

    layout: Layout
    shards: bytearray
    made_s: float

    def ordinal(self, shard: Digest) -> int | None:
        """Of a shard that is here or coming. The index that lists it may have come since: then this is stale."""
        ordinal = self.layout.ordinal(shard)
        if ordinal is None and not self.layout.placed:
            self.made_s = float("-inf")
        return ordinal


@dataclass(frozen=True, slots=True)
class Servable:
    """A file to serve bytes of. ``partial`` is None if all of it may be served.

    ``etag`` names its bytes where the digest that was asked for does not: a packed form is one of many.
    """

    path: Path
    size: int
    partial: Partial | None = None
    etag: Digest | None = None

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte of ``[start, end)`` is verified."""
        if self.partial is None:
            return True
        return all(
            self.partial.has(position)
            for position, block in enumerate(self.partial.table.blocks)
            if block.offset < end and start < block.offset + block.length
        )


class Holdings:
    """Asked by the server, told by the fetcher. Touched by the event loop's thread only."""

    def __init__(self, store: Store, packer: Packer | None = None) -> None:
        self.key = random_id(answers.FETCHER_BYTES)
        self._store = store
        self._packer = packer
        self._partials: dict[Digest, Partial] = {}
        self._coming: dict[Digest, Counter[int]] = {}
        self._known: OrderedDict[Digest, _Known] = OrderedDict()
        self._making: dict[Digest, asyncio.Lock] = {}
        # Starts at the time of day, so that a restarted peer never answers "unchanged" to an older revision.
        self._revision = time.time_ns() >> 10
        self._events: deque[tuple[int, Digest]] = deque(maxlen=MAX_EVENTS)
        self._told_since = self._revision

    def opened(self, partial: Partial) -> None:
        self._partials[partial.digest] = partial
        for known in self._known.values():
            known.ordinal(partial.digest)
        self.changed(partial.digest)

    def closed(self, shard: Digest) -> None:
        """A partial shard is not served any more: nobody fetches it now."""
        self._coming.pop(shard, None)
        if self._partials.pop(shard, None) is not None:
            self._lost()

    def finished(self, shard: Digest) -> None:
        """A shard is whole now."""
        self._partials.pop(shard, None)
        self._coming.pop(shard, None)
        if self._packer is not None:
            self._packer.arrived(shard)
        for known in self._known.values():
            ordinal = known.ordinal(shard)
            if ordinal is not None:
                known.shards[ordinal >> 3] |= 1 << (ordinal & 7)
        self.changed(shard)

    def coming(self, shard: Digest, positions: Iterable[int]) -> None:
        """Blocks have been asked for."""
        self._coming.setdefault(shard, Counter()).update(positions)
        self.changed(shard)

    def not_coming(self, shard: Digest, positions: Iterable[int]) -> None:
        """They have come, or will not come from whoever was asked."""
        if (coming := self._coming.get(shard)) is not None:
            coming.subtract(positions)
            self._coming[shard] = +coming
            self.changed(shard)

    def changed(self, shard: Digest) -> None:
        """Something about a shard is not as it was."""
        self._revision += 1
        if len(self._events) == MAX_EVENTS:
            self._told_since = self._events[0][0]
        self._events.append((self._revision, shard))

    def _lost(self) -> None:
        """Something is gone: changes since earlier revisions cannot be told any more."""
        self._revision += 1
        self._events.clear()
        self._told_since = self._revision

    def begun(self) -> dict[Digest, list[tuple[int, int]]]:
        """Verified blocks, (offset, length), of each shard that is being fetched."""
        return {
            shard: [
                (block.offset, block.length) for place, block in enumerate(partial.table.blocks) if partial.has(place)
            ]
            for shard, partial in self._partials.items()
        }

    async def find(self, digest: Digest) -> Servable:
        """NotFoundError if neither the blob nor any block of it is here."""
        try:
            path = await asyncio.to_thread(self._store.path_of, digest)
            size = await asyncio.to_thread(_size, path)
            if self._packer is not None:
                self._packer.used(digest, size)
            return Servable(path, size)
        except (NotFoundError, IntegrityError):
            partial = self._partials.get(digest)
            if partial is None:
                raise NotFoundError(f"blob {digest} is not here") from None
            return Servable(partial.path, partial.table.shard_bytes, partial)

    async def find_packed(self, shard: Digest) -> Servable:
        """The packed form of a whole shard. NotFoundError if this peer has none."""
        if self._packer is None:
            raise NotFoundError("nothing is packed here")
        found = await self._packer.find(shard)
        return Servable(found.path, found.size, etag=found.digest)

    async def have(self, contents: Digest, since: int | None = None) -> HaveMap:
        """What is held of some contents, or what has changed. NotFoundError if these contents are not here."""
        known = await self._fresh(contents)
        revision = self._revision
        if since == revision:
            return HaveMap(version=answers.VERSION, contents=contents, revision=revision, unchanged=True)
        count = known.layout.shard_count
        if all(bit(known.shards, ordinal) for ordinal in range(count)):
            return HaveMap(version=answers.VERSION, contents=contents, revision=revision, complete=True)
        if since is not None and self._told_since <= since < revision:
            touched = self._touched(since)
            if len(touched) <= answers.MAX_PARTIALS:
                return self._changes(known, since, touched)
        return HaveMap(
            version=answers.VERSION,
            contents=contents,
            revision=revision,
            shards=bytes(known.shards),
            partials=self._partial_shards(known.layout, self._partials),
            fetcher=self.key,
        )

    def _touched(self, since: int) -> set[Digest]:
        """Shards in which something has changed after a revision."""
        touched = set()
        for revision, shard in reversed(self._events):
            if revision <= since:
                break
            touched.add(shard)
        return touched

    def _changes(self, known: _Known, since: int, touched: set[Digest]) -> HaveMap:
        gained = (known.layout.ordinal(shard) for shard in touched if shard not in self._partials)
        whole = (place for place in gained if place is not None and bit(known.shards, place))
        return HaveMap(
            version=answers.VERSION,
            contents=known.layout.digest,
            revision=self._revision,
            base=since,
            gained=tuple(sorted(whole)),
            partials=self._partial_shards(known.layout, (shard for shard in touched if shard in self._partials)),
            fetcher=self.key,
        )

    def _partial_shards(self, layout: Layout, shards: Iterable[Digest]) -> tuple[PartialShard, ...]:
        described = []
        for shard in list(shards)[: answers.MAX_PARTIALS]:
            ordinal = layout.ordinal(shard)
            if ordinal is not None:
                blocks = self._partials[shard].bitmap()
                coming = pack_bits(self._coming.get(shard, ()), 8 * len(blocks))
                described.append(PartialShard(ordinal=ordinal, blocks=blocks, coming=coming))
        return tuple(sorted(described, key=lambda partial: partial.ordinal))

    async def _fresh(self, contents: Digest) -> _Known:
        lock = self._making.setdefault(contents, asyncio.Lock())
        try:
            async with lock:
                known = self._known.get(contents)
                if known is None or time.monotonic() - known.made_s > REFRESH_S:
                    made = await asyncio.to_thread(self._make, contents)
                    if known is None or made.shards != known.shards:
                        self._lost()
                    self._known[contents] = known = made
                    while len(self._known) > MAX_LAYOUTS:
                        self._known.popitem(last=False)
                self._known.move_to_end(contents)
                return known
        finally:
            if not lock.locked():
                self._making.pop(contents, None)

    def _make(self, contents: Digest) -> _Known:
        try:
            layout = Layout.load(self._store, contents)
        except (FormatError, IntegrityError) as failure:
            raise NotFoundError(f"no contents {contents} are here") from failure
        known = layout.known()
        held = (known[shard] for shard in self._store.held(known))
        return _Known(layout, bytearray(pack_bits(held, layout.shard_count)), time.monotonic())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as failure:
        raise NotFoundError(f"{path.name} was evicted just now") from failure
