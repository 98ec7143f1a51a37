"""Tell the DHT what this seed provides: contents first and at once, then every shard by sweep; renew before expiry.

Only a seed announces, and only while strangers can reach it. While nobody in the DHT holds a claim (no contacts yet),
or few do (the network is young and may have grown round the key by the next minute), it is put again soon, with growing
pauses; renewals come with jitter, so that many seeds that started together drift apart. Shard claims of all datasets
share one `SweepSchedule`, whose progress is kept in ``announced.json`` in the store. After a sleep of the machine
everything is put again at once; at a regular end claims are withdrawn.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from dhtdata.dht import DhtNode, SweepSchedule
from dhtdata.dht.schedule import BEHIND_S, load, save
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

_LOG = logging.getLogger(__name__)

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 15.0
THIN_HOLDERS = 8
THIN_RENEWAL_S = 120.0
NAME_RENEWAL_S = SHARD_RENEWAL_S
LOOK_S = 300.0
PARTIAL_S = 5.0
PACE_S = 5.0
WITHDRAW_S = 3.0
_JITTER = 0.1
_PROGRESS = "announced.json"


@dataclass(eq=False)
class Announced:
    """One dataset's standing in the DHT. ``announced``: Unix seconds of the last claim, 0 before the first."""

    manifest: Digest
    contents: Digest
    complete: bool = False
    announced: int = 0
    holders: int = 0
    names_due_s: float = 0.0
    nudge: asyncio.Event = field(default_factory=asyncio.Event)


class Announcer:
    """Keeps datasets announced; `keep` lives in the peer's task group, one per dataset, and `sweep` once."""

    def __init__(self, node: DhtNode, store: Store, chance: random.Random | None = None) -> None:
        self._node = node
        self._store = store
        self._chance = chance or random.Random()
        self._sequences: dict[Digest, int] = {}
        self._kept: set[Announced] = set()
        self._schedule = SweepSchedule(self._chance)
        self._shards_changed = asyncio.Event()
        node.on_wake = self.renew_all

    async def keep(self, dataset: Announced) -> None:
        """Announce now, then before claims expire or when nudged, for ever."""
        # Its shards follow once somebody holds its claim.
        self._kept.add(dataset)
        try:
            await self._keep(dataset)
        finally:
            self._kept.discard(dataset)
            self.shards_changed()

    async def sweep(self) -> None:
        """Keep the shards of all datasets announced, for ever."""
        try:
            await asyncio.to_thread(load, self._store.path / _PROGRESS, self._schedule)
        except StoreError as failure:
            _LOG.warning("every shard is announced anew: %s", failure)
        while True:
            self._shards_changed.clear()
            try:
                self._schedule.want(await asyncio.to_thread(self._keys))
                await self._put_due()
            except StoreError as failure:
                _LOG.warning("shards are not announced now: %s", failure)
            pause_s = max(PACE_S, min(LOOK_S, self._schedule.next_s(time.time())))
            try:
                async with asyncio.timeout(pause_s if self._node.serves else LOOK_S):
                    await self._shards_changed.wait()
            except TimeoutError:
                # Time to look again.
                continue

    def renew_all(self) -> None:
        """Put every claim again now: the machine slept, and they have expired meanwhile."""
        for dataset in self._kept:
            dataset.nudge.set()
        self.shards_changed()

    def shards_changed(self) -> None:
        """There are more shards to announce, or fewer."""
        self._shards_changed.set()

    @property
    def shard_keys(self) -> int:
        """How many shard keys are kept announced."""
        return self._schedule.key_count

    @property
    def behind_s(self) -> float:
        """How long the shard claims that wait longest are overdue."""
        return self._schedule.behind_s(time.time())

    async def withdraw(self, contents: Digest) -> None:
        """Take the claim back. Shard claims run out by themselves, in a day."""
        await self._put(contents, False, 0)

    async def withdraw_all(self) -> None:
        """Take back all claims that others hold, for 3 s at most: what is left runs out in two hours."""
        try:
            async with asyncio.timeout(WITHDRAW_S), asyncio.TaskGroup() as withdrawals:
                for contents in {each.contents for each in self._kept if each.holders}:
                    withdrawals.create_task(self.withdraw(contents))
        except TimeoutError:
            _LOG.info("not every claim could be withdrawn within %.0f s", WITHDRAW_S)

    async def _keep(self, dataset: Announced) -> None:
        retry_s: float = FIRST_RETRY_S
        if not dataset.complete:
            # A moment for what is fetched fast, or here already: else every such dataset were claimed twice.
            with suppress(TimeoutError):
                async with asyncio.timeout(PARTIAL_S):
                    await dataset.nudge.wait()
        while True:
            dataset.nudge.clear()
            held_before = dataset.holders
            try:
                await self._claim(dataset)
            except StoreError:
                # The index cannot be read now: the next round tries again, and whoever asks for bytes is told.
                dataset.holders = 0
            if dataset.holders and not held_before:
                self.shards_changed()
            if dataset.holders >= THIN_HOLDERS:
                retry_s, pause_s = FIRST_RETRY_S, float(PROVIDER_RENEWAL_S)
            else:
                pause_s = min(retry_s, THIN_RENEWAL_S if dataset.holders else LONGEST_RETRY_S)
                retry_s = min(2 * retry_s, THIN_RENEWAL_S)
            pause_s *= self._chance.uniform(1 - _JITTER, 1 + _JITTER)
            try:
                async with asyncio.timeout(pause_s):
                    await dataset.nudge.wait()
                dataset.names_due_s = 0.0
            except TimeoutError:
                # Time to renew.
                continue

    async def _claim(self, dataset: Announced) -> None:
        now = int(time.time())
        dataset.holders = await self._put(dataset.contents, dataset.complete, now + PROVIDER_LIFETIME_S)
        if not dataset.holders:
            return
        dataset.announced = now
        if now < dataset.names_due_s and dataset.holders >= THIN_HOLDERS:
            return
        for signed in await asyncio.to_thread(self._store.names):
            record = signed.record
            if isinstance(record, NameRecord) and record.manifest == dataset.manifest:
                await self._node.announce_name(signed)
        dataset.names_due_s = now + NAME_RENEWAL_S * self._chance.uniform(1 - _JITTER, 1)

    async def _put(self, contents: Digest, seed: bool, expires: int) -> int:
        """Put a claim that replaces those before it: holders reached."""
        self._sequences[contents] = max(int(time.time()), self._sequences.get(contents, 0) + 1)
        claim = ProviderClaim(contents=contents, seed=seed, sequence=self._sequences[contents], expires=expires)
        return await self._node.announce(contents_key(contents), sign(claim, self._node.key))

    async def _put_due(self) -> None:
        """Announce what is due, part by part, until nothing is or nobody keeps it."""
        while self._node.serves and (due := self._schedule.due(time.time(), self._node.nodes_estimated)):
            if (behind_s := self.behind_s) > BEHIND_S:
                _LOG.warning("shard claims are %.1f h behind: they are caught up now", behind_s / 3600)
            held = await self._node.announce_shards(due)
            if not held:
                return
            self._schedule.settle(due, held, time.time())
            await asyncio.to_thread(save, self._store.path / _PROGRESS, self._schedule.encode())

    def _keys(self) -> list[bytes]:
        """Keys of the manifests and of every whole shard here."""
        keys: list[bytes] = []
        for dataset in tuple(self._kept):
            held: Iterable[Digest] = ()
            try:
                held = self._store.held(Layout.load(self._store, dataset.contents).known())
            except (NotFoundError, FormatError, IntegrityError):
                held = ()
            keys += [shard_key(dataset.manifest), *(shard_key(shard) for shard in held)]
        return keys
