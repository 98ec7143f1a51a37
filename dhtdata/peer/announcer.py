"""Tell the DHT what this seed provides: contents first and at once, then every shard by sweep; renew before expiry.

Only a seed announces. While nobody in the DHT holds a claim (no contacts yet), or few do (the network is young and may
have grown round the key by the next minute), it is put again soon, with growing pauses; renewals come with jitter, so
that many seeds that started together drift apart.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from dhtdata.dht import DhtNode
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.formats.records import (
    PROVIDER_LIFETIME_S,
    PROVIDER_RENEWAL_S,
    SHARD_RENEWAL_S,
    NameRecord,
    ProviderClaim,
    contents_key,
    shard_key,
    sign,
)
from dhtdata.store import Store
from dhtdata.transfer.layout import Layout

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 15.0
THIN_HOLDERS = 8
THIN_RENEWAL_S = 120.0
_JITTER = 0.1


@dataclass(eq=False)
class Announced:
    """One dataset's standing in the DHT. ``announced``: Unix seconds of the last claim, 0 before the first."""

    manifest: Digest
    contents: Digest
    complete: bool = False
    announced: int = 0
    holders: int = 0
    shards_claimed: int = 0
    shards_due_s: float = 0.0
    nudge: asyncio.Event = field(default_factory=asyncio.Event)


class Announcer:
    """Keeps datasets announced; `keep` lives in the peer's task group, one per dataset."""

    def __init__(self, node: DhtNode, store: Store, chance: random.Random | None = None) -> None:
        self._node = node
        self._store = store
        self._chance = chance or random.Random()
        self._sequence = 0

    async def keep(self, dataset: Announced) -> None:
        """Announce now, then before claims expire or when nudged, for ever."""
        retry_s: float = FIRST_RETRY_S
        while True:
            dataset.nudge.clear()
            try:
                await self._claim(dataset)
                if dataset.holders and time.monotonic() >= dataset.shards_due_s:
                    await self._sweep(dataset)
            except StoreError:
                # The index cannot be read now: the next round tries again, and whoever asks for bytes is told.
                dataset.holders = 0
            if dataset.holders >= THIN_HOLDERS:
                retry_s, pause_s = FIRST_RETRY_S, float(PROVIDER_RENEWAL_S)
            else:
                pause_s = min(retry_s, THIN_RENEWAL_S if dataset.holders else LONGEST_RETRY_S)
                retry_s = min(2 * retry_s, THIN_RENEWAL_S)
            pause_s *= self._chance.uniform(1 - _JITTER, 1 + _JITTER)
            try:
                async with asyncio.timeout(pause_s):
                    await dataset.nudge.wait()
            except TimeoutError:
                # Time to renew.
                continue

    async def _claim(self, dataset: Announced) -> None:
        now = int(time.time())
        dataset.holders = await self._put(dataset.contents, dataset.complete, now + PROVIDER_LIFETIME_S)
        if dataset.holders:
            dataset.announced = now
        for signed in await asyncio.to_thread(self._store.names):
            record = signed.record
            if isinstance(record, NameRecord) and record.manifest == dataset.manifest:
                await self._node.announce(record.target.dht_key, signed)

    async def withdraw(self, contents: Digest) -> None:
        """Replace the claim by one that has expired. Shard claims run out by themselves, in a day."""
        await self._put(contents, False, int(time.time()))

    async def _put(self, contents: Digest, seed: bool, expires: int) -> int:
        """Put a claim that replaces those before it: holders reached."""
        self._sequence = max(int(time.time()), self._sequence + 1)
        claim = ProviderClaim(contents=contents, seed=seed, sequence=self._sequence, expires=expires)
        return await self._node.announce(contents_key(contents), sign(claim, self._node.key))

    async def _sweep(self, dataset: Announced) -> None:
        keys = await asyncio.to_thread(self._keys, dataset)
        dataset.shards_claimed = await self._node.announce_shards(keys)
        if dataset.shards_claimed:
            dataset.shards_due_s = time.monotonic() + SHARD_RENEWAL_S * self._chance.uniform(1 - _JITTER, 1)

    def _keys(self, dataset: Announced) -> list[bytes]:
        """Keys of the manifest and of every whole shard here."""
        held: Iterable[Digest] = ()
        try:
            shards = Layout.load(self._store, dataset.contents).known()
            held = self._store.held(shards)
        except (NotFoundError, FormatError, IntegrityError):
            held = ()
        return [shard_key(dataset.manifest), *(shard_key(shard) for shard in held)]
