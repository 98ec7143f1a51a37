"""Datasets that this seed keeps: pinned in the store, fetched in the background, announced, followed.

What a seed keeps is what the store has pinned, so it survives a restart and needs no list of its own. A dataset that
cannot be fetched now is tried again for ever; the reason shows in the status.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from dhtdata.control.protocol import HeldDataset
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord
from dhtdata.peer.announcer import Announced, Announcer
from dhtdata.peer.collect import Collection, Tally
from dhtdata.peer.known import Known
from dhtdata.peer.resolve import Resolver
from dhtdata.peer.swarms import Swarms
from dhtdata.store import Store
from dhtdata.transfer.fetcher import Fetcher

RETRY_S = 30.0
FOLLOW_S = 600.0
_JITTER = 0.2


@dataclass(eq=False)
class _Kept:
    """One dataset being seeded."""

    announced: Announced
    tally: Tally = field(default_factory=Tally)
    state: str = "looking at what is here"


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
    ) -> None:
        self._group = group
        self._store = store
        self._fetcher = fetcher
        self._swarms = swarms
        self._resolver = resolver
        self._announcer = announcer
        self._known = known
        self._kept: dict[Digest, _Kept] = {}

    async def keep_pinned(self) -> None:
        """Take up every dataset that the store has pinned."""
        for entry in await asyncio.to_thread(self._store.manifests):
            if entry.pinned:
                try:
                    await self.keep(entry.digest)
                except DhtDataError:
                    # Its manifest is gone or damaged: `verify` repairs it, the others are seeded meanwhile.
                    continue

    async def keep(self, manifest: Digest) -> Digest:
        """Pin and seed a dataset whose manifest is in the store; its contents digest. Doing it again nudges it."""
        encoded = await asyncio.to_thread(self._store.read, manifest, limit_bytes=MAX_MANIFEST_BYTES)
        contents = Manifest.decode(encoded).contents
        await asyncio.to_thread(self._store.add_manifest, manifest)
        await asyncio.to_thread(self._store.pin, manifest)
        kept = self._kept.get(manifest)
        if kept is not None:
            kept.announced.nudge.set()
            return contents
        kept = self._kept[manifest] = _Kept(Announced(manifest, contents))
        self._group.create_task(self._announcer.keep(kept.announced))
        self._group.create_task(self._complete(kept))
        return contents

    def follow(self, name: Name) -> None:
        self._known.follow(name)

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

    async def describe(self) -> list[HeldDataset]:
        """For the status."""
        names = await asyncio.to_thread(self._names)
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
                    bytes_held=tally.bytes,
                    announced=announced.announced,
                    holders=announced.holders,
                    state=kept.state,
                )
            )
        return described

    async def _complete(self, kept: _Kept) -> None:
        """Fetch what is missing; ends when all is there."""
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
            announced.shards_due_s = 0.0
            announced.nudge.set()
            return

    def _names(self) -> dict[Digest, str]:
        found = {}
        for signed in self._store.names():
            if isinstance(signed.record, NameRecord):
                found[signed.record.manifest] = str(signed.record.target)
        return found
