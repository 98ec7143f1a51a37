"""Fetch a whole dataset, or some splits and columns of it, behind everything that somebody waits for.

Order: indexes, then shards: those that were begun, then the ones that the fewest others have or fetch, so that peers
that fetch the same dataset have different parts soon and serve each other. Statistics and row ranges come beside them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, NotFoundError
from dhtdata.formats.blocks import MAX_TABLE_BYTES
from dhtdata.formats.index import MAX_INDEX_BYTES, MAX_RANGES_BYTES, ShardEntry
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.statistics import MAX_SHARD_STATISTICS_BYTES, MAX_STATISTICS_BYTES, Statistics
from dhtdata.peer.tally import Tally
from dhtdata.store import Store
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.layout import IndexSpan, Layout, entries_of
from dhtdata.transfer.swarm import Swarm

PARALLEL_SHARDS = 8
SAMPLED = 64
PARALLEL_BLOBS = 4
STALL_S = 120.0
_WATCH_S = 5.0
_T = TypeVar("_T")


@dataclass
class Collection:
    """One fetch of (part of) a dataset."""

    store: Store
    fetcher: Fetcher
    swarm: Swarm
    manifest: Digest
    splits: Sequence[str] = ()
    columns: Sequence[str] = ()
    tally: Tally = field(default_factory=Tally)
    failure: DhtDataError | None = None

    async def run(self) -> None:
        """Returns when all is there. StoreError if the disk is full, NotFoundError if nobody delivers any more."""
        with self.swarm.interest():
            layout = await asyncio.to_thread(Layout.load, self.store, self.swarm.contents)
            self.swarm.layout = layout
            spans = layout.select(self.splits, self.columns)
            async with asyncio.TaskGroup() as group:
                # Nothing waits for these, and over a long way each is a round trip or two.
                beside = group.create_task(_settled(self._small(layout)))
                failure = await _settled(self._indexed(layout, spans))
                if failure is None:
                    failure = await beside
                else:
                    beside.cancel()
            if failure is not None:
                raise failure

    async def _indexed(self, layout: Layout, spans: Sequence[IndexSpan]) -> None:
        """Indexes, then the shards that they list."""
        await self._blobs([(span.digest, MAX_INDEX_BYTES) for span in spans])
        await asyncio.to_thread(layout.place_stored, self.store)
        await self._shards(await asyncio.to_thread(_entries, self.store, spans))

    async def settle(self) -> DhtDataError | None:
        """`run`, with its expected failure returned: for a task in a group that must not die of it."""
        return await _settled(self.run())

    async def _small(self, layout: Layout) -> None:
        chosen = [split for split in layout.contents.splits if not self.splits or split.name in self.splits]
        await self._blobs([(split.ranges, MAX_RANGES_BYTES) for split in chosen])
        encoded = await asyncio.to_thread(self.store.read, self.manifest, limit_bytes=MAX_MANIFEST_BYTES)
        root = Manifest.decode(encoded).statistics
        await self._blobs([(root, MAX_STATISTICS_BYTES)])
        encoded = await asyncio.to_thread(self.store.read, root, limit_bytes=MAX_STATISTICS_BYTES)
        statistics = Statistics.decode(encoded)
        leaves = [digest for split in statistics.splits for group in split.shards for digest in group]
        await self._blobs([(digest, MAX_SHARD_STATISTICS_BYTES) for digest in leaves])

    async def _blobs(self, wanted: Sequence[tuple[Digest, int]]) -> None:
        async def fetch(one: tuple[Digest, int]) -> None:
            await self.fetcher.blob(self.swarm, *one)

        await self._each(list(dict.fromkeys(wanted)), fetch, PARALLEL_BLOBS)

    async def _shards(self, entries: Sequence[ShardEntry]) -> None:
        begun = set(await asyncio.to_thread(self.store.partials))
        held = await asyncio.to_thread(lambda: {entry.digest for entry in entries if self.store.has(entry.digest)})
        tables = await asyncio.to_thread(lambda: {entry.table for entry in entries if self.store.has(entry.table)})
        self.tally.begin([(entry.digest, entry.size) for entry in entries], held)
        await self._blobs([(e.table, MAX_TABLE_BYTES) for e in entries if e.digest in held and e.table not in tables])
        missing = [entry for entry in entries if entry.digest not in held]
        if new := [entry for entry in missing if entry.digest not in begun]:
            # Room for all of it or an error with the number now, not in the middle.
            await asyncio.to_thread(self.store.reserve, sum(entry.size for entry in new), new[0].digest)
        missing.sort(key=lambda entry: entry.digest in begun)
        begun_count = sum(entry.digest in begun for entry in missing)

        async def fetch(entry: ShardEntry) -> None:
            await self.fetcher.ensure(self.swarm, entry.digest, entry.table, urgent=False)
            self.tally.whole(entry.digest)

        if missing:
            await self.swarm.acquaint()
        await self._each(self._rarest_first(missing, begun_count), fetch, PARALLEL_SHARDS)

    def _rarest_first(self, entries: list[ShardEntry], begun_count: int) -> Iterator[ShardEntry]:
        """The last ``begun_count`` entries, then always one that few others have or fetch. Takes them off the list.

        The rarest of a sample: to compare 30,000 shards each time would cost more than it brings.
        """
        while entries:
            place = len(entries) - 1
            if begun_count > 0:
                begun_count -= 1
            else:
                sampled = random.sample(range(len(entries)), min(SAMPLED, len(entries)))
                place = min(sampled, key=lambda each: self.swarm.members.shard_copies(entries[each].digest))
            entries[place], entries[-1] = entries[-1], entries[place]
            yield entries.pop()

    async def _each(self, items: Iterable[_T], fetch: Callable[[_T], Awaitable[None]], parallel: int) -> None:
        """Fetch all items, some at a time; the first failure ends it."""
        left = iter(items)

        async def worker() -> None:
            for item in left:
                if self.failure is not None:
                    return
                try:
                    await fetch(item)
                except DhtDataError as failure:
                    self.failure = failure

        workers: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch(workers))
            workers += [group.create_task(worker()) for _ in range(parallel)]
            await asyncio.wait(workers)
            watch.cancel()
        if self.failure is not None:
            raise self.failure

    async def _watch(self, workers: list[asyncio.Task[None]]) -> None:
        """Ends a fetch to which nothing has come for `STALL_S`."""
        seen, since_s = -1, time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_S)
            if self.fetcher.bytes_received != seen:
                seen, since_s = self.fetcher.bytes_received, time.monotonic()
            elif time.monotonic() - since_s > STALL_S:
                self.failure = NotFoundError(
                    f"nobody has delivered anything of contents {self.swarm.contents} for {STALL_S:.0f} s: "
                    f"providers known: {len(self.swarm.members)}; what has come is kept, try again later"
                )
                for worker in workers:
                    worker.cancel()
                return


async def _settled(work: Awaitable[None]) -> DhtDataError | None:
    """The expected failure of some work, returned."""
    try:
        await work
    except DhtDataError as failure:
        return failure
    return None


def _entries(store: Store, spans: Sequence[IndexSpan]) -> list[ShardEntry]:
    """Each shard once, however often its rows occur."""
    return list({entry.digest: entry for entry in entries_of(store, spans)}.values())
