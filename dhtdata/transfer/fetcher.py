"""Fetch shards block by block from many providers at once, and small blobs whole.

All shards that are being fetched share one dispatcher: whenever something changes (a block is wanted or has come, a
transfer ends, a provider appears) it carries out what the `Planner` orders until that has no more. Threads do the work
(`dhtdata.transfer.threads`). A block is verified before it is written; a wrong one costs its sender the trust in its
address and nobody else anything. A transfer of which nothing is missing any more is cut.

Resuming, and two who ask for the same shard, need nothing special: a `Job` knows what its partial file has.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dhtdata.config import PackedPolicy
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address, scope
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.store import Partial, Store
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.jobs import Job, Reached
from dhtdata.transfer.meters import Meters
from dhtdata.transfer.orders import Order
from dhtdata.transfer.packed import Welcome
from dhtdata.transfer.picker import BACKGROUND
from dhtdata.transfer.planner import Planner
from dhtdata.transfer.providers import Provider, Remotes
from dhtdata.transfer.search import Search
from dhtdata.transfer.swarm import Swarm
from dhtdata.transfer.threads import Cargo, Carrier, piece_bytes
from dhtdata.transfer.wire import Busy

SAVE_EVERY_S = 5.0
TOGETHER_S = 0.004
HURRY_S = 0.2
LINGER_S = 1.0
_MAX_REFUSED = 1_024
_LOOPBACK = "loopback"


@dataclass(eq=False)
class _Transfer:
    """One run on its way. ``arrived_bytes``: blocks of it that were right."""

    order: Order
    job: Job
    cargo: Cargo
    arrived_bytes: int = 0


class Fetcher:
    """Everything this peer fetches. `run` lives in the peer's task group. ``spreads``: others can fetch it from us."""

    def __init__(
        self,
        store: Store,
        http: HttpClient,
        carrier: Carrier,
        remotes: Remotes,
        holdings: Holdings,
        packed: PackedPolicy = "auto",
        spreads: bool = True,
        chance: random.Random | None = None,
    ) -> None:
        self.blocks_verified = 0
        self.bytes_fetched = 0
        self._blob_bytes = 0
        self.bytes_reused = 0
        self.received: Meters[Provider] = Meters()
        self._store = store
        self._http = http
        self._carrier = carrier
        self._remotes = remotes
        self._holdings = holdings
        self._welcome = Welcome(packed)
        self._planner = Planner(remotes, chance or random.Random())
        self._planner.spreads = spreads
        self._jobs: dict[Digest, Job] = {}
        self._blobs: dict[Digest, asyncio.Lock] = {}
        self._refused: dict[tuple[Digest, Digest], str] = {}
        self._transfers: set[_Transfer] = set()
        self._turns = itertools.count()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something changed that may let a transfer start."""
        self._wake.set()

    async def ensure(
        self,
        swarm: Swarm,
        shard: Digest,
        table: Digest,
        positions: Sequence[int] = (),
        *,
        urgent: bool,
        now: bool = False,
    ) -> Reached:
        """Wait until these blocks of a shard (all if empty) are verified on disk. The caller sets the deadline.

        ``urgent``: before all that is not. ``now``: a loop waits, so that room is made for it (`Room`).

        StoreError if the disk is full, `NoRoomYet` if the cache limit is for now, FormatError if the manifest is at
        fault.
        """
        if (shard, table) in self._refused:
            raise FormatError(self._refused[shard, table])
        if (begun := self._jobs.get(shard)) is None or begun.partial is None:
            try:
                return Reached(await asyncio.to_thread(self._store.path_of, shard), complete=True)
            except (NotFoundError, IntegrityError):
                pass
        elif begun.idle and not await asyncio.to_thread(begun.partial.path.exists):
            self._lingered(begun)  # somebody removed its file
        with swarm.interest():
            async with self._using(shard, swarm) as job:
                partial = await self._opened(job, swarm, table, now)
                if partial is None:
                    return Reached(await asyncio.to_thread(self._store.path_of, shard), complete=True)
                if any(not 0 <= position < len(partial.table.blocks) for position in positions):
                    raise NotFoundError(f"shard {shard} has {len(partial.table.blocks)} blocks: none at {positions}")
                waiter = job.wait(partial, positions, next(self._turns) if urgent else BACKGROUND)
                try:
                    self.wake()
                    return await waiter.done
                finally:
                    job.leave(waiter)

    @property
    def bytes_received(self) -> int:
        """So far, verified or not: it grows while a large block is still on its way."""
        return self.received.total().bytes + self._blob_bytes

    async def blob(self, swarm: Swarm, digest: Digest, limit_bytes: int) -> None:
        """A small blob into the store, verified. NotFoundError once every provider of the dataset was asked."""
        lock = self._blobs.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                if await asyncio.to_thread(self._store.has, digest):
                    return
                search = Search(lambda address: self._http.read_blob(address, digest, limit_bytes), self.blame)
                try:
                    body = await search.first([swarm.addresses()])
                except NotFoundError as failure:
                    asked = f"{len(search.asked)} providers of contents {swarm.contents}"
                    raise NotFoundError(f"none of {asked} has blob {digest}: {failure}") from failure
                await asyncio.to_thread(self._store.put, body)
                self.bytes_fetched += len(body)
                self._blob_bytes += len(body)
        finally:
            if not lock.locked():
                self._blobs.pop(digest, None)

    def blame(self, address: Provider, failure: Exception) -> None:
        """What a failed answer means for an address: a lie, a failure, or nothing (it does not have the thing)."""
        if isinstance(failure, IntegrityError):
            self._remotes.lied(address, 0, str(failure))
        elif isinstance(failure, (PeerError, FormatError)):
            self._remotes.failed(address, str(failure))

    async def run(self) -> None:
        """Hand out runs, for ever. Cancelled at the end; partial files keep what they have."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._save_now_and_then())
                while True:
                    self._wake.clear()
                    self._dispatch(group)
                    # What arrives at nearly the same time is reckoned with once.
                    await asyncio.sleep(TOGETHER_S)
                    try:
                        async with asyncio.timeout(self._planner.look_again_s(time.monotonic())):
                            await self._wake.wait()
                    except TimeoutError:
                        # Time alone changes something, too: a transfer is late, a pause is over.
                        continue
        finally:
            for job in self._jobs.values():
                if job.partial is not None:
                    await _note(job.partial)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            for job in list(self._jobs.values()):
                if job.partial is not None and job.in_flight:
                    await _note(job.partial)

    @asynccontextmanager
    async def _using(self, shard: Digest, swarm: Swarm) -> AsyncIterator[Job]:
        job = self._jobs.setdefault(shard, Job(shard))
        job.users += 1
        job.join(swarm)
        try:
            yield job
        finally:
            job.users -= 1
            self._drop_if_idle(job)

    def _drop_if_idle(self, job: Job) -> None:
        """Close it, or in a moment if more of it may soon be asked for: opening takes longer than a few blocks.

        Under a cache limit it is closed at once: what is open takes room that others may need.
        """
        if not (job.idle and self._jobs.get(job.shard) is job):
            return
        if job.partial is None or job.reached is not None or self._store.cache_limit is not None:
            self._close(job)
            return
        job.linger_no_more()
        job.lingering = asyncio.get_running_loop().call_later(LINGER_S, self._lingered, job)

    def _lingered(self, job: Job) -> None:
        if job.idle and self._jobs.get(job.shard) is job:
            self._close(job)

    def _close(self, job: Job) -> None:
        del self._jobs[job.shard]
        job.linger_no_more()
        job.closed()
        self._planner.close(job.shard)
        self._holdings.closed(job.shard)

    async def _opened(self, job: Job, swarm: Swarm, table_digest: Digest, now: bool) -> Partial | None:
        """The job's partial file; None if the shard became whole meanwhile."""
        async with job.opening:
            if job.reached is not None:
                return None
            if job.partial is None:
                await self._table(swarm, table_digest)
                encoded = await asyncio.to_thread(self._store.read, table_digest, limit_bytes=MAX_TABLE_BYTES)
                table = BlockTable.decode(encoded)
                if await asyncio.to_thread(self._store.has, job.shard):
                    return None
                partial = await asyncio.to_thread(self._store.partial, job.shard, table, now=now)
                reused = await asyncio.to_thread(self._store.reuse, partial)
                job.opened(partial, self._planner.open(job.shard, table))
                self._holdings.opened(partial)
                self._reused(job, sum(table.blocks[position].length for position in reused))
                self.wake()
            if job.partial is not None and job.partial.table_digest != table_digest:
                raise FormatError(f"shard {job.shard} is being fetched with another block table: one manifest is wrong")
            return job.partial

    def _reused(self, job: Job, byte_count: int) -> None:
        self.bytes_reused += byte_count
        for swarm in job.swarms:
            swarm.bytes_reused += byte_count

    async def _table(self, swarm: Swarm, table: Digest) -> None:
        """A block table into the store, however long it takes: providers may come back before the caller's deadline."""
        while True:
            try:
                return await self.blob(swarm, table, MAX_TABLE_BYTES)
            except NotFoundError:
                await swarm.news()

    def _dispatch(self, group: asyncio.TaskGroup) -> None:
        for job in list(self._jobs.values()):
            if job.partial is not None and job.unfinished:
                job.finishing = True
                group.create_task(self._finish(job, job.partial))
        now_s = time.monotonic()
        for transfer in self._transfers:
            if received := transfer.cargo.received:
                self._planner.orders.progress(transfer.order, received, now_s)
            if self._planner.orders.redundant(transfer.order):
                transfer.cargo.stop()
        while (order := self._planner.next(now_s)) is not None:
            self._start(order, group)
        if self._planner.orders.lasts_s(now_s) < HURRY_S:
            for swarm in {
                swarm for job in self._jobs.values() if job.wanted and job.wanted.open for swarm in job.swarms
            }:
                swarm.hurry()

    def _start(self, order: Order, group: asyncio.TaskGroup) -> None:
        job = self._jobs[order.run.shard]
        partial, provider = job.partial, order.provider
        if partial is None or not isinstance(provider, Address | WebSeed):
            raise ValueError(f"{provider.url} is no provider, or shard {job.shard} has no partial file")
        cargo = Cargo(
            provider,
            order.run,
            partial,
            heard=self.received.asked(provider),
            on_began=lambda: self._planner.orders.began(order, time.monotonic()),
            on_block=lambda position, new: self._block(transfer, position, new),
            packed=self._packed_is_welcome(provider),
            piece_bytes=piece_bytes(self._remotes.at(provider).rate_bytes_s),
        )
        transfer = _Transfer(order, job, cargo)
        self._transfers.add(transfer)
        job.in_flight += 1
        self._holdings.coming(job.shard, order.run.positions)
        group.create_task(self._carry_out(transfer))

    def _packed_is_welcome(self, provider: Address | WebSeed) -> bool:
        near = isinstance(provider, Address) and scope(provider.ip) == _LOOPBACK
        providers = {provider, *(transfer.order.provider for transfer in self._transfers)}
        remotes = [remote for each in providers if (remote := self._remotes.at(each)).measured]
        rate_bytes_s = sum(remote.rate_bytes_s for remote in remotes)
        return self._welcome.look(rate_bytes_s, self.received.total().bytes_s, near=near)

    async def _carry_out(self, transfer: _Transfer) -> None:
        """One transfer from request to disk; every expected failure is settled here."""
        order, provider = transfer.order, transfer.cargo.provider
        try:
            await self._carrier.carry(transfer.cargo)
        except NotFoundError:
            for swarm in transfer.job.swarms:
                swarm.members.refused(provider, order.run)
        except IntegrityError as failure:
            self._lied(transfer, failure)
        except Busy as failure:
            self._remotes.busy(provider, failure.retry_s)
        except (PeerError, FormatError) as failure:
            self._remotes.at(provider).wasted += transfer.cargo.received - transfer.arrived_bytes
            if not transfer.cargo.stopped:
                self._remotes.failed(provider, str(failure))
        except StoreError as failure:
            transfer.job.failed(failure)
        finally:
            self._ended(transfer)

    def _lied(self, transfer: _Transfer, failure: IntegrityError) -> None:
        """A wrong block: what else its sender is sending is not waited for."""
        provider = transfer.order.provider
        self._remotes.lied(provider, transfer.cargo.received - transfer.arrived_bytes, str(failure))
        for other in self._transfers:
            if other is not transfer and other.order.provider == provider:
                other.cargo.stop()

    def _block(self, transfer: _Transfer, position: int, new: bool) -> None:
        """A block is on disk, or was there already when it came."""
        job, order, partial = transfer.job, transfer.order, transfer.cargo.partial
        length = partial.table.blocks[position].length
        transfer.arrived_bytes += length
        if new:
            self.blocks_verified += 1
            self.bytes_fetched += length
            self._planner.orders.delivered(order, position, time.monotonic())
            self._holdings.changed(job.shard)
            for swarm in job.swarms:
                swarm.delivered(length)
            job.arrived(partial, position)
        else:
            self._remotes.at(order.provider).wasted += length
        self.wake()

    def _ended(self, transfer: _Transfer) -> None:
        self._transfers.discard(transfer)
        transfer.cargo.let_go()
        self._planner.orders.ended(transfer.order, time.monotonic())
        self._holdings.not_coming(transfer.job.shard, transfer.order.run.positions)
        transfer.job.in_flight -= 1
        self._drop_if_idle(transfer.job)
        self.wake()

    async def _finish(self, job: Job, partial: Partial) -> None:
        """Make the shard a blob and tell everybody who waits."""
        try:
            path = await asyncio.to_thread(partial.finish)
        except DhtDataError as failure:
            if isinstance(failure, FormatError):
                self._refuse(job.shard, partial.table_digest, str(failure))
            job.failed(failure)
            if self._jobs.get(job.shard) is job:
                self._close(job)
        else:
            self._holdings.finished(job.shard)
            job.finished(path)
        finally:
            job.finishing = False
            self._drop_if_idle(job)

    def _refuse(self, shard: Digest, table: Digest, reason: str) -> None:
        while len(self._refused) >= _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[shard, table] = reason


async def _note(partial: Partial) -> None:
    """Save a partial's bitmap. Only other processes need it: what is on disk is found again without."""
    try:
        await asyncio.to_thread(partial.save)
    except (StoreError, NotFoundError):
        # A full disk shows at the next block; a dropped partial at its end.
        return
