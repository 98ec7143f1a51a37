"""Datasets that this seed keeps: pinned in the store, fetched in the background, announced, followed.

What a seed keeps is what the store has pinned, so it survives a restart and needs no list of its own. Pins change while
it runs: what is unpinned or removed is let go, its claim in the DHT withdrawn and its name not followed any more. A
dataset that cannot be fetched now, or that lost a blob since, is tried again for ever; the reason shows in the status.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

from dhtdata.control.protocol import HeldDataset
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, StoreError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord
from dhtdata.peer.announcer import Announced, Announcer
from dhtdata.peer.collect import Collection
from dhtdata.peer.known import Known
from dhtdata.peer.resolve import Resolver
from dhtdata.peer.swarms import Swarms
from dhtdata.peer.tally import Spans, Tally
from dhtdata.store import Store
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.packer import Packer

RETRY_S = 30.0
FOLLOW_S = 600.0
PINS_S = 30.0
LOSS_S = 600.0
_JITTER = 0.2


@dataclass(eq=False)
class _Kept:
    """One dataset being seeded."""

    announced: Announced
    tally: Tally = field(default_factory=Tally)
    state: str = "looking at what is here"
    tasks: tuple[asyncio.Task[None], ...] = ()


class Seeder:
    """The datasets of one seed. Tasks live in the peer's group."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        store: Store,
        fetcher: Fetcher,
        swarms: Swarms,
        resolver: Resolver,
        announcer: Announcer,
        known: Known,
        packer: Packer,
    ) -> None:
        self._group = group
        self._store = store
        self._fetcher = fetcher
        self._swarms = swarms
        self._resolver = resolver
        self._announcer = announcer
        self._known = known
        self._packer = packer
        self._kept: dict[Digest, _Kept] = {}
        self._changing = asyncio.Lock()

    async def keep(self, manifest: Digest) -> None:
        """Pin and seed a dataset whose manifest is in the store. Doing it again nudges it."""
        async with self._changing:
            contents = await self._contents(manifest)
            await asyncio.to_thread(self._store.add_manifest, manifest)
            await asyncio.to_thread(self._store.pin, manifest)
            self._take_up(manifest, contents)

    async def consider(self, manifest: Digest) -> None:
        """Somebody published, pinned, unpinned or removed a dataset: take it up, announce it again, or let it go."""
        async with self._changing:
            if manifest in await asyncio.to_thread(self._pinned):
                self._take_up(manifest, await self._contents(manifest))
            else:
                await self._let_go(manifest)

    async def keep_pinned(self) -> None:
        """Seed what the store has pinned by now and nothing else."""
        async with self._changing:
            pinned = await asyncio.to_thread(self._pinned)
            for manifest in self._kept.keys() - pinned:
                await self._let_go(manifest)
            for manifest in pinned - self._kept.keys():
                try:
                    self._take_up(manifest, await self._contents(manifest))
                except DhtDataError:
                    # Its manifest is gone or damaged: `verify` repairs it, the others are seeded meanwhile.
                    continue

    async def watch_pins(self) -> None:
        """`keep_pinned` now and then, for ever: whoever changed a pin may not have told us."""
        while True:
            await asyncio.sleep(PINS_S)
            try:
                await self.keep_pinned()
            except StoreError:
                # The index cannot be read now; the next round looks again.
                continue

    async def follow(self, name: Name) -> None:
        """Take up new versions of a name from now on; remembered before this returns, if there is room on disk."""
        self._known.follow(name)
        try:
            await asyncio.to_thread(self._known.save)
        except StoreError:
            # The disk is full: it is followed now, and saved with what else is remembered.
            return

    async def _contents(self, manifest: Digest) -> Digest:
        encoded = await asyncio.to_thread(self._store.read, manifest, limit_bytes=MAX_MANIFEST_BYTES)
        return Manifest.decode(encoded).contents

    def _pinned(self) -> set[Digest]:
        return {entry.digest for entry in self._store.manifests() if entry.pinned}

    def _take_up(self, manifest: Digest, contents: Digest) -> None:
        kept = self._kept.get(manifest)
        if kept is not None:
            kept.announced.nudge.set()
            return
        kept = self._kept[manifest] = _Kept(Announced(manifest, contents))
        work = (self._announcer.keep(kept.announced), self._complete(kept))
        kept.tasks = tuple(self._group.create_task(each) for each in work)

    async def _let_go(self, manifest: Digest) -> None:
        kept = self._kept.pop(manifest, None)
        if kept is None:
            return
        for task in kept.tasks:
            task.cancel()
        for record in await asyncio.to_thread(self._names):
            if record.manifest == manifest:
                self._known.unfollow(record.target)
        contents = kept.announced.contents
        if all(other.announced.contents != contents for other in self._kept.values()):
            self._group.create_task(self._announcer.withdraw(contents))

    async def follow_all(self) -> None:
        """Take up new versions of followed names, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_S * random.uniform(1 - _JITTER, 1 + _JITTER))
            for name in self._known.followed():
                try:
                    await self.keep((await self._resolver.resolve(name)).manifest)
                except DhtDataError:
                    # Unreachable now; the next round asks again.
                    continue

    async def describe(self, partials: Spans) -> list[HeldDataset]:
        """For the status. ``partials``: what is here of shards that are being fetched."""
        names = {record.manifest: str(record.target) for record in await asyncio.to_thread(self._names)}
        described = []
        for manifest, kept in self._kept.items():
            tally, announced = kept.tally, kept.announced
            described.append(
                HeldDataset(
                    manifest=manifest,
                    contents=announced.contents,
                    name_uri=names.get(manifest, ""),
                    shards=tally.shards_total,
                    shards_held=tally.shards,
                    bytes=tally.bytes_total,
                    bytes_held=tally.held_bytes(partials),
                    announced=announced.announced,
                    holders=announced.holders,
                    state=kept.state,
                    have=tally.have(partials),
                )
            )
        return described

    async def _complete(self, kept: _Kept) -> None:
        """Fetch what is missing, now and whenever something is lost."""
        announced = kept.announced
        while True:
            swarm = self._swarms.of(announced.contents)
            kept.state = "fetching"
            try:
                if not await asyncio.to_thread(self._store.has, announced.contents):
                    await self._resolver.resolve(announced.manifest)
                await Collection(self._store, self._fetcher, swarm, announced.manifest, tally=kept.tally).run()
            except DhtDataError as failure:
                kept.state = f"waiting: {failure}"
                await asyncio.sleep(RETRY_S * random.uniform(1 - _JITTER, 1 + _JITTER))
                continue
            kept.state = "complete"
            announced.complete = True
            announced.nudge.set()
            self._announcer.shards_changed()
            while announced.complete:
                with suppress(DhtDataError):  # lost again just now: the next look finds out
                    await self._packer.completed(announced.contents)
                await asyncio.sleep(LOSS_S * random.uniform(1 - _JITTER, 1 + _JITTER))
                announced.complete = await self._whole(announced.manifest)

    async def _whole(self, manifest: Digest) -> bool:
        """Whether no blob of a dataset that was whole has been lost (rot, or somebody deleted files)."""
        try:
            return (await asyncio.to_thread(self._store.completeness, manifest)).complete
        except DhtDataError:
            return False

    def _names(self) -> list[NameRecord]:
        return [signed.record for signed in self._store.names() if isinstance(signed.record, NameRecord)]
