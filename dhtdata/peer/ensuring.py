"""What running loops ask of the peer: blocks that they need, and to know what they will need.

A loop says which order it reads and where it is (`Foresee`), for as long as its connection lasts; the store then drops
what is needed last. Under a cache limit blocks may have to wait until loops have moved on: who needs them now waits
here, who asks ahead is told so at once.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from dhtdata.control.foreseeing import Foresee, Foreseen, Learn
from dhtdata.control.protocol import Done, EnsureBlocks, Ensured
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.peer.swarms import Swarms
from dhtdata.store import NoRoomYet, Store
from dhtdata.store.foresight import Part
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.jobs import Reached
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.swarm import Swarm

LONGEST_S = 7 * 86_400.0
ROOM_S = 0.25
"""A shard that becomes whole makes room too, of which nobody hears."""


class Ensuring:
    """Blocks for loops of this machine."""

    def __init__(self, store: Store, fetcher: Fetcher, swarms: Swarms) -> None:
        self._store = store
        self._fetcher = fetcher
        self._swarms = swarms
        self._placing = asyncio.Lock()
        self._moved = asyncio.Event()

    async def ensure(self, request: EnsureBlocks) -> Ensured:
        swarm = await self._swarm(request.contents, request.shard)
        lacking: list[NoRoomYet] = []
        try:
            async with asyncio.timeout(min(request.timeout_s, LONGEST_S)):
                reached = await self._reach(swarm, request, lacking)
        except TimeoutError as failure:
            if lacking:
                return Ensured(no_room=str(lacking[-1]))
            raise NotFoundError(
                f"blocks of shard {request.shard} did not come within {request.timeout_s:.0f} s: {_providers_of(swarm)}"
            ) from failure
        except NoRoomYet as failure:
            return Ensured(no_room=str(failure))
        return Ensured(path=os.path.relpath(reached.path, self._store.path), complete=reached.complete)

    async def _reach(self, swarm: Swarm, request: EnsureBlocks, lacking: list[NoRoomYet]) -> Reached:
        """Fetch, and again as often as there may be room; ``lacking`` tells why there was none the last time."""
        while True:
            moved = self._moved
            try:
                return await self._fetcher.ensure(
                    swarm, request.shard, request.table, request.blocks, urgent=True, now=not request.ahead
                )
            except NoRoomYet as failure:
                if request.ahead:
                    raise
                lacking[:] = [failure]
            try:
                async with asyncio.timeout(ROOM_S):
                    await moved.wait()
            except TimeoutError:
                continue

    def foresee(self, request: Foresee, stay: ExitStack) -> Foreseen:
        """A loop has moved, or come: it leaves when its connection ends."""
        foresight = self._store.foresight
        if not foresight.knows(stay):
            stay.callback(self._gone, stay)
        parts = foresight.stand(stay, request.order, request.position, request.row_bytes)
        self._tell()
        return Foreseen(parts=tuple(parts))

    async def learn(self, request: Learn) -> Done:
        spans = await asyncio.to_thread(request.by_shard)
        self._store.foresight.learn(request.order, request.first, Part(request.stop, spans))
        return Done()

    def _gone(self, stay: ExitStack) -> None:
        self._store.foresight.leave(stay)
        self._tell()

    def _tell(self) -> None:
        """Everybody who waits for room looks again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _swarm(self, contents: Digest, shard: Digest) -> Swarm:
        """The swarm of some contents, able to read have-maps as far as the indexes here go."""
        swarm = self._swarms.of(contents)
        # One at a time: a mount asks for blocks of several shards at once, and a terabyte's layout takes a while.
        async with self._placing:
            if swarm.layout is None:
                swarm.layout = await asyncio.to_thread(Layout.load, self._store, contents)
            elif swarm.layout.ordinal(shard) is None:
                await asyncio.to_thread(swarm.layout.place_stored, self._store)
        return swarm


def _providers_of(swarm: Swarm) -> str:
    usable = len(swarm.usable())
    return f"providers known of contents {swarm.contents}: {len(swarm.members)}, {usable} of them usable"
