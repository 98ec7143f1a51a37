"""What this peer holds and may serve: whole blobs out of the store, verified blocks of shards that are being fetched.

A have-map is made when somebody asks and kept for a while: blocks and shards that arrive here are noted at once, what
others do to the store (publish, eviction) shows after `REFRESH_S`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.store import Partial, Store
from dhtdata.transfer import answers
from dhtdata.transfer.answers import HaveMap, PartialShard, bit, pack_bits
from dhtdata.transfer.layout import Layout

REFRESH_S = 30.0
MAX_LAYOUTS = 16


@dataclass
class _Known:
    """Have-map of some contents, as of ``made_s``."""

    layout: Layout
    shards: bytearray
    made_s: float
    spans_stored: int = 0


@dataclass(frozen=True, slots=True)
class Servable:
    """A file to serve bytes of. ``partial`` is None if all of it may be served."""

    path: Path
    size: int
    partial: Partial | None = None

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

    def __init__(self, store: Store) -> None:
        self._store = store
        self._partials: dict[Digest, Partial] = {}
        self._known: OrderedDict[Digest, _Known] = OrderedDict()
        self._making: dict[Digest, asyncio.Lock] = {}
        # Starts at the time of day, so that a restarted peer never answers "unchanged" to an older revision.
        self._revision = time.time_ns() >> 10

    def opened(self, partial: Partial) -> None:
        self._partials[partial.digest] = partial
        self.changed()

    def closed(self, shard: Digest) -> None:
        self._partials.pop(shard, None)
        self.changed()

    def finished(self, shard: Digest) -> None:
        """A shard is whole now."""
        self._partials.pop(shard, None)
        for known in self._known.values():
            ordinal = known.layout.ordinal(shard)
            if ordinal is not None:
                known.shards[ordinal >> 3] |= 1 << (ordinal & 7)
            elif not known.layout.complete:
                # Made before the indexes came: without them no shard has a place in it.
                known.made_s = float("-inf")
        self.changed()

    def changed(self) -> None:
        self._revision += 1

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
            return Servable(path, await asyncio.to_thread(_size, path))
        except (NotFoundError, IntegrityError):
            partial = self._partials.get(digest)
            if partial is None:
                raise NotFoundError(f"blob {digest} is not here") from None
            return Servable(partial.path, partial.table.shard_bytes, partial)

    async def have(self, contents: Digest, since: int | None = None) -> HaveMap:
        """What is held of some contents. NotFoundError if these contents are not here."""
        known = await self._fresh(contents)
        revision = self._revision
        if since == revision:
            return HaveMap(version=answers.VERSION, contents=contents, revision=revision, unchanged=True)
        count = known.layout.shard_count
        if all(bit(known.shards, ordinal) for ordinal in range(count)):
            return HaveMap(version=answers.VERSION, contents=contents, revision=revision, complete=True)
        partials = []
        for shard, partial in list(self._partials.items())[: answers.MAX_PARTIALS]:
            ordinal = known.layout.ordinal(shard)
            if ordinal is not None:
                partials.append(PartialShard(ordinal=ordinal, blocks=partial.bitmap()))
        return HaveMap(
            version=answers.VERSION,
            contents=contents,
            revision=revision,
            shards=bytes(known.shards),
            partials=tuple(sorted(partials, key=lambda partial: partial.ordinal)),
        )

    async def _fresh(self, contents: Digest) -> _Known:
        lock = self._making.setdefault(contents, asyncio.Lock())
        try:
            async with lock:
                known = self._known.get(contents)
                if known is None or time.monotonic() - known.made_s > REFRESH_S:
                    made = await asyncio.to_thread(self._make, contents)
                    if known is None or made.shards != known.shards:
                        self.changed()
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
