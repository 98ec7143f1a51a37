"""What a seed packs, and when: on demand, or everything it holds in the background (``packed`` of the settings).

| policy | what the server answers to a wish for a packed shard |
|---|---|
| never | 404: the asker takes the shard as it is |
| auto | packs it when it is first asked for, and keeps it while there is room |
| always | the same, and datasets are packed in the background once they are complete |
| only | the same as soon as a shard is whole, and its blob is given up: the store keeps the packed form alone |

One shard is packed at a time, far faster than a slow link carries it, so whoever asks for one that is not packed yet
waits for it. A bounded number of shards is waited for, a bounded time; beyond either the answer is 404 again, and the
work goes on for whoever asks later.

With ``only``, a shard that is asked for as it is gets restored whole (a reader of one block reads the others next) and
is kept among the last `MAX_RESTORED_BYTES` that were used; what programs of this machine restored for themselves is
given up again when the datasets are next looked at.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from contextlib import suppress

from dhtdata.config import PackedPolicy
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, IntegrityError, NotFoundError
from dhtdata.store import NotWorthPacking, PackedFile, Store
from dhtdata.transfer.layout import Layout

MAX_WANTED = 16
WAIT_S = 5.0
MAX_RESTORED_BYTES = 1 << 30
MAX_RESTORED = 4_096


class Packer:
    """Packed forms of the shards of a store. Touched by the event loop's thread only; `run` lives in a task group."""

    def __init__(self, store: Store, policy: PackedPolicy) -> None:
        self._store = store
        self._policy = policy
        self._wanted: dict[Digest, asyncio.Event] = {}
        self._backlog: dict[Digest, None] = {}
        self._news = asyncio.Event()
        self._used: OrderedDict[Digest, int] = OrderedDict()
        self._used_bytes = 0

    async def find(self, shard: Digest) -> PackedFile:
        """The packed form of a shard, made now if need be. NotFoundError if there is none, or none soon."""
        if self._policy == "never":
            raise NotFoundError("nothing is packed here")
        try:
            return await asyncio.to_thread(self._store.packed, shard)
        except NotWorthPacking:
            raise
        except (NotFoundError, IntegrityError):
            await asyncio.to_thread(self._store.size, shard)
        if shard not in self._wanted and len(self._wanted) >= MAX_WANTED:
            raise NotFoundError(f"{MAX_WANTED} other shards are to be packed first: take {shard} as it is")
        packed = self._wanted.setdefault(shard, asyncio.Event())
        self._news.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await packed.wait()
        return await asyncio.to_thread(self._store.packed, shard)

    async def completed(self, contents: Digest) -> None:
        """A dataset is whole, or still is. NotFoundError if its contents are not in the store."""
        if self._policy in ("always", "only"):
            layout = await asyncio.to_thread(Layout.load, self._store, contents)
            wanted = layout.known().keys() - self._used.keys()
            left = await asyncio.to_thread(self._store.unpacked, wanted, alone=self._policy == "only")
            self._backlog |= dict.fromkeys(left)
            self._news.set()

    def arrived(self, shard: Digest) -> None:
        """A shard is whole now."""
        if self._policy == "only":
            self._backlog[shard] = None
            self._news.set()

    def used(self, blob: Digest, size: int) -> None:
        """Somebody was given a blob as it is."""
        if self._policy != "only":
            return
        self._used_bytes += size - self._used.pop(blob, 0)
        self._used[blob] = size
        while len(self._used) > 1 and (self._used_bytes > MAX_RESTORED_BYTES or len(self._used) > MAX_RESTORED):
            oldest, size = self._used.popitem(last=False)
            self._used_bytes -= size
            self._backlog[oldest] = None
            self._news.set()

    async def run(self) -> None:
        """Pack, for ever: what somebody waits for first."""
        stopped = threading.Event()
        try:
            while True:
                self._news.clear()
                shard = next(iter(self._wanted), None) or next(iter(self._backlog), None)
                if shard is None:
                    await self._news.wait()
                    continue
                # What goes wrong shows in the store: the packed form is not there.
                with suppress(DhtDataError):
                    await asyncio.to_thread(self._store.pack, shard, lambda: not stopped.is_set())
                    if self._policy == "only" and shard not in self._used:
                        await asyncio.to_thread(self._store.give_up, shard)
                self._backlog.pop(shard, None)
                if (packed := self._wanted.pop(shard, None)) is not None:
                    packed.set()
        finally:
            stopped.set()
