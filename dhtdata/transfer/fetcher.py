"""Fetch shards block by block from many providers at once, and small blobs whole.

All shards that are being fetched share one dispatcher: whenever something changes (a block is wanted, a transfer ends,
a provider appears) it hands runs of blocks to providers with a free slot, least backlog first, until none can help. A
block is verified before it is written; a wrong one costs its sender the trust in its address and nobody else anything.
A transfer that is late is doubled by another provider, one that breaks off is handed on at once.

Resuming, and two who ask for the same shard, need nothing special: a `Job` knows what its partial file has.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.store import Partial, Store
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.jobs import Job, Reached
from dhtdata.transfer.meters import Meters
from dhtdata.transfer.picker import BACKGROUND, Run, pick
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.search import Search
from dhtdata.transfer.swarm import Member, Swarm

MAX_TRANSFERS = 32
TRANSFERS_PER_ADDRESS = 4
MAX_OUTSTANDING_BYTES = 64 << 20
LATE_S = 2.0
SAVE_EVERY_S = 5.0
_MAX_REFUSED = 1_024


@dataclass(eq=False)
class _Transfer:
    """One run on its way."""

    job: Job
    run: Run
    address: Address
    since_s: float
    accepted_bytes: int = 0
    marked: bool = False


class Fetcher:
    """Everything this peer fetches. `run` lives in the peer's task group."""

    def __init__(
        self,
        store: Store,
        http: HttpClient,
        remotes: Remotes,
        holdings: Holdings,
        chance: random.Random | None = None,
    ) -> None:
        self.blocks_verified = 0
        self.bytes_fetched = 0
        self.received: Meters[Address] = Meters()
        self._store = store
        self._http = http
        self._remotes = remotes
        self._holdings = holdings
        self._chance = chance or random.Random()
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
        self, swarm: Swarm, shard: Digest, table: Digest, positions: Sequence[int] = (), *, urgent: bool
    ) -> Reached:
        """Wait until these blocks of a shard (all if empty) are verified on disk. The caller sets the deadline.

        StoreError if the disk is full, FormatError if the manifest is at fault.
        """
        if (shard, table) in self._refused:
            raise FormatError(self._refused[shard, table])
        try:
            return Reached(await asyncio.to_thread(self._store.path_of, shard), complete=True)
        except (NotFoundError, IntegrityError):
            pass
        with swarm.interest():
            async with self._using(shard, swarm) as job:
                partial = await self._opened(job, swarm, table)
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
        finally:
            if not lock.locked():
                self._blobs.pop(digest, None)

    def blame(self, address: Address, failure: Exception) -> None:
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
                    try:
                        async with asyncio.timeout(self._next_late_s()):
                            await self._wake.wait()
                    except TimeoutError:
                        self._mark_late()
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
        job.swarms.add(swarm)
        try:
            yield job
        finally:
            job.users -= 1
            self._drop_if_idle(job)

    def _drop_if_idle(self, job: Job) -> None:
        if job.idle and self._jobs.get(job.shard) is job:
            del self._jobs[job.shard]
            self._holdings.closed(job.shard)

    async def _opened(self, job: Job, swarm: Swarm, table_digest: Digest) -> Partial | None:
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
                partial = await asyncio.to_thread(self._store.partial, job.shard, table)
                job.opened(partial)
                self._holdings.opened(partial)
                self.wake()
            if job.partial is not None and job.partial.table_digest != table_digest:
                raise FormatError(f"shard {job.shard} is being fetched with another block table: one manifest is wrong")
            return job.partial

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
        while len(self._transfers) < MAX_TRANSFERS:
            outstanding = sum(transfer.run.length for transfer in self._transfers)
            chosen = self._choose()
            if chosen is None or (outstanding and outstanding + chosen.run.length > MAX_OUTSTANDING_BYTES):
                return
            self._start(chosen, group)

    def _choose(self) -> _Transfer | None:
        """The next run and its provider, the least burdened first."""
        swarms = {swarm for job in self._jobs.values() if job.wanted and job.wanted.turns for swarm in job.swarms}
        candidates = [(member, swarm) for swarm in swarms for member in swarm.usable()]
        candidates.sort(key=lambda candidate: self._remotes.at(candidate[0].address).backlog_s)
        for member, swarm in candidates:
            if self._remotes.at(member.address).requests >= TRANSFERS_PER_ADDRESS:
                continue
            jobs = [job for job in self._jobs.values() if swarm in job.swarms and job.wanted is not None]
            run = pick([job.wanted for job in jobs if job.wanted], self._offer(member, swarm), self._chance)
            if run is not None:
                return _Transfer(self._jobs[run.shard], run, member.address, time.monotonic())
        return None

    def _offer(self, member: Member, swarm: Swarm) -> Callable[[Digest, int], bool]:
        """What this member may be asked for: it has the block and is not being asked for it already."""
        busy = {
            (transfer.run.shard, position)
            for transfer in self._transfers
            if transfer.address == member.address
            for position in transfer.run.positions
        }
        return lambda shard, position: (shard, position) not in busy and swarm.has(member, shard, position)

    def _start(self, transfer: _Transfer, group: asyncio.TaskGroup) -> None:
        self._transfers.add(transfer)
        transfer.job.in_flight += 1
        remote = self._remotes.at(transfer.address)
        remote.requests += 1
        remote.outstanding_bytes += transfer.run.length
        if transfer.job.wanted is not None:
            for position in transfer.run.positions:
                transfer.job.wanted.asked[position] = transfer.job.wanted.asked.get(position, 0) + 1
        group.create_task(self._carry_out(transfer))

    async def _carry_out(self, transfer: _Transfer) -> None:
        """One transfer from request to disk; every expected failure is settled here."""
        run, address = transfer.run, transfer.address
        try:
            heard = self.received.asked(address)
            body = await self._http.read_range(address, run.shard, run.offset, run.length, heard)
            self._remotes.timed(address, run.length, time.monotonic() - transfer.since_s)
            await self._accept(transfer, memoryview(body))
        except NotFoundError:
            self._lacks(transfer)
        except IntegrityError as failure:
            self._remotes.lied(address, run.length - transfer.accepted_bytes, str(failure))
        except (PeerError, FormatError) as failure:
            self._remotes.failed(address, str(failure))
        except StoreError as failure:
            transfer.job.failed(failure)
        finally:
            self._ended(transfer)

    async def _accept(self, transfer: _Transfer, body: memoryview) -> None:
        job, run, address = transfer.job, transfer.run, transfer.address
        partial = job.partial
        if partial is None:
            raise StoreError(f"the partial file of shard {run.shard} was closed while blocks were on their way")
        for position in run.positions:
            block = partial.table.blocks[position]
            if partial.has(position):
                self._remotes.at(address).wasted += block.length
                continue
            start = block.offset - run.offset
            await asyncio.to_thread(partial.accept, position, body[start : start + block.length], str(address))
            transfer.accepted_bytes += block.length
            self._remotes.delivered(address, block.length, 1)
            self.blocks_verified += 1
            self.bytes_fetched += block.length
            self._holdings.changed()
            for swarm in job.swarms:
                swarm.delivered(block.length)
            job.arrived(partial, position)

    def _lacks(self, transfer: _Transfer) -> None:
        for swarm in transfer.job.swarms:
            if (member := swarm.members.get(transfer.address)) is not None:
                member.lacks.update((transfer.run.shard, position) for position in transfer.run.positions)

    def _ended(self, transfer: _Transfer) -> None:
        self._transfers.discard(transfer)
        remote = self._remotes.at(transfer.address)
        remote.requests -= 1
        remote.outstanding_bytes -= transfer.run.length
        job = transfer.job
        job.in_flight -= 1
        if job.wanted is not None:
            for position in transfer.run.positions:
                left = job.wanted.asked.get(position, 0) - 1
                if left > 0:
                    job.wanted.asked[position] = left
                else:
                    job.wanted.asked.pop(position, None)
                    job.wanted.late.discard(position)
        self._drop_if_idle(job)
        self.wake()

    async def _finish(self, job: Job, partial: Partial) -> None:
        """Make the shard a blob and tell everybody who waits."""
        try:
            path = await asyncio.to_thread(partial.finish)
        except DhtDataError as failure:
            if isinstance(failure, FormatError):
                self._refuse(job.shard, partial.table_digest, str(failure))
            job.failed(failure)
            self._jobs.pop(job.shard, None)
            self._holdings.closed(job.shard)
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

    def _next_late_s(self) -> float | None:
        waiting = [transfer.since_s for transfer in self._transfers if not transfer.marked]
        return max(min(waiting) + LATE_S - time.monotonic(), 0.01) if waiting else self._retry_s()

    def _retry_s(self) -> float | None:
        # Nothing is on its way although blocks are wanted: avoided addresses come back with time.
        wanting = any(job.wanted is not None and job.wanted.turns for job in self._jobs.values())
        return 1.0 if wanting else None

    def _mark_late(self) -> None:
        now_s = time.monotonic()
        for transfer in self._transfers:
            if now_s - transfer.since_s >= LATE_S and not transfer.marked:
                transfer.marked = True
                if transfer.job.wanted is not None:
                    transfer.job.wanted.late.update(transfer.run.positions)


async def _note(partial: Partial) -> None:
    """Save a partial's bitmap. Only other processes need it: what is on disk is found again without."""
    try:
        await asyncio.to_thread(partial.save)
    except (StoreError, NotFoundError):
        # A full disk shows at the next block; a dropped partial at its end.
        return
