"""One shard that is being fetched: who waits for which blocks, and what is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError
from dhtdata.store import Partial
from dhtdata.transfer.picker import BACKGROUND, Wanted
from dhtdata.transfer.swarm import Swarm


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the blocks are. ``complete``: the whole shard, at its final path."""

    path: Path
    complete: bool


@dataclass(eq=False)
class Waiter:
    """Somebody who waits for ``missing`` positions; with ``whole``, for the finished shard."""

    missing: set[int]
    whole: bool
    turn: int
    done: asyncio.Future[Reached]


class Job:
    """Fetch of one shard, shared by all who ask for it. Touched by the event loop's thread only."""

    def __init__(self, shard: Digest) -> None:
        self.shard = shard
        self.opening = asyncio.Lock()
        self.users = 0
        self.in_flight = 0
        self.finishing = False
        self.swarms: set[Swarm] = set()
        self.reached: Reached | None = None
        self.lingering: asyncio.TimerHandle | None = None
        self._partial: Partial | None = None
        self._wanted: Wanted | None = None
        self._waiters: set[Waiter] = set()

    @property
    def partial(self) -> Partial | None:
        return self._partial

    @property
    def wanted(self) -> Wanted | None:
        return self._wanted

    @property
    def idle(self) -> bool:
        """Nobody waits, nothing is on its way, and no shard with all its blocks is still to be made a blob."""
        return not (self.users or self.in_flight or self.finishing or self.unfinished)

    @property
    def unfinished(self) -> bool:
        """Whether all blocks are here and nobody has begun to make the shard a blob."""
        return self._partial is not None and self._partial.complete and not self.finishing and self.reached is None

    def join(self, swarm: Swarm) -> None:
        """Its providers may be asked, too."""
        self.swarms.add(swarm)
        if self._wanted is not None:
            self._wanted.crowds.add(swarm)
            swarm.members.fetch(self.shard, self._wanted.table)

    def opened(self, partial: Partial, wanted: Wanted) -> None:
        self._partial = partial
        self._wanted = wanted
        for swarm in self.swarms:
            self.join(swarm)

    def linger_no_more(self) -> None:
        """The timer refers to this, and would keep the partial file open until the collector comes by."""
        if self.lingering is not None:
            self.lingering.cancel()
            self.lingering = None

    def closed(self) -> None:
        """Nobody fetches it any more."""
        for swarm in self.swarms:
            swarm.members.fetched(self.shard)

    def wait(self, partial: Partial, positions: Iterable[int], turn: int) -> Waiter:
        """Ask for blocks (all if none are named); ``turn`` orders those who wait, `BACKGROUND` waits for everybody."""
        chosen = set(positions)
        whole = not chosen or partial.complete
        missing = {place for place in (chosen or range(len(partial.table.blocks))) if not partial.has(place)}
        waiter = Waiter(missing, whole, turn, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        self.recount()
        self.settle(partial)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self._waiters.discard(waiter)
        if not waiter.done.cancel() and not waiter.done.cancelled():
            # Mark an error as seen: whoever waited may have been cancelled at the same moment.
            waiter.done.exception()
        self.recount()

    def recount(self) -> None:
        """What is wanted now, by the most urgent of those who wait."""
        if self._wanted is None:
            return
        turns: dict[int, int] = {}
        for waiter in self._waiters:
            if not waiter.done.done():
                for position in waiter.missing:
                    turns[position] = min(waiter.turn, turns.get(position, BACKGROUND))
        self._wanted.turns = turns

    def arrived(self, partial: Partial, position: int) -> None:
        """A block was verified and written."""
        for waiter in self._waiters:
            waiter.missing.discard(position)
        self.settle(partial)

    def settle(self, partial: Partial) -> None:
        """Answer those whose blocks are all here; whoever wants the whole shard waits for its end."""
        for waiter in self._waiters:
            if not waiter.missing and not waiter.whole and not waiter.done.done():
                waiter.done.set_result(self.reached or Reached(partial.path, complete=False))

    def finished(self, path: Path) -> None:
        self.reached = Reached(path, complete=True)
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_result(self.reached)

    def failed(self, failure: DhtDataError) -> None:
        """Everybody who waits gets this error; the next who asks starts anew."""
        for waiter in self._waiters:
            if not waiter.done.done():
                waiter.done.set_exception(type(failure)(*failure.args))
        self.recount()
