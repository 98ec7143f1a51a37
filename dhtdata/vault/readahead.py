"""Reading ahead of a loop: blocks of the coming windows are asked for before their rows are.

What the loop is working on (the windows whose rows it deals out now) is asked for whole, because a shuffled window
needs all of its blocks at once. Beyond that at most ``limit_bytes`` are asked for and not yet reached by the loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dhtdata.errors import DhtDataError
from dhtdata.order import Path
from dhtdata.vault.horizon import Horizon
from dhtdata.vault.opened import OpenShard
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.vault import Vault

if TYPE_CHECKING:
    from dhtdata.filters import Selection

REQUEST_BYTES, MOST_REQUEST_BYTES = 4 << 20, 128 << 20
TABLES_AT_ONCE = 64
MIN_AHEAD_BYTES = 64_000_000
_BlocksOf = Callable[[OpenShard], Iterable[int]]


def usual_ahead_bytes(byte_count: int, range_count: int, window: int) -> int:
    """What may be asked for ahead of a loop that names no limit, in a split of ``byte_count`` bytes.

    A window of so many row ranges (0: none, without shuffle): the next one must be here when the loop enters it, or
    the loop waits.
    """
    return max(MIN_AHEAD_BYTES, byte_count * window // range_count)


class Readahead:
    """A thread that walks the windows of what one rank reads, as far as `advance` allows."""

    def __init__(
        self,
        vault: Vault,
        groups: Sequence[GroupShards],
        path: Path,
        limit_bytes: int,
        horizon: Horizon | None = None,
        selection: Selection | None = None,
    ) -> None:
        self._vault = vault
        self._groups = groups
        self._path = path
        self._limit_bytes = limit_bytes
        self._horizon = horizon
        self._selection = selection
        self._ahead: deque[tuple[int, OpenShard, int]] = deque()
        self._coming = self._shards()
        self._expected: set[tuple[int, int]] = set()
        self._reached = -1
        self._ended = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._walk, name="dhtdata-readahead", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            with self._moved:
                self._ended = True
                self._moved.notify()

    def join(self) -> None:
        """Wait for the thread, which may be waiting for blocks."""
        self._thread.join()

    def advance(self, position: int) -> None:
        """The loop needs all rows before this position of the epoch now."""
        if self._horizon is not None:
            self._horizon.advance(position)
        with self._moved:
            self._reached = position
            self._moved.notify()

    def held_bytes(self) -> int:
        """Bytes that are here and that the loop has not reached."""
        with self._moved:
            ahead = [(shard, block) for position, shard, block in self._ahead if position >= self._reached]
        return sum(shard.table.blocks[block].length for shard, block in ahead if not shard.missing([block]))

    def _walk(self) -> None:
        ahead = self._ahead
        ahead_bytes = 0
        batch = _Batch(self._vault)
        try:
            for request in self._requests():
                if request is None:
                    batch.send()
                    continue
                position, shard, block = request
                size = shard.table.blocks[block].length
                # As much again as is on its way: what is needed soon comes in small requests, the rest in few.
                if batch.size + size > min(max(ahead_bytes - batch.size, REQUEST_BYTES), MOST_REQUEST_BYTES):
                    batch.send()
                with self._moved:
                    while not self._ended:
                        while ahead and ahead[0][0] < self._reached:
                            _, passed, done = ahead.popleft()
                            ahead_bytes -= passed.table.blocks[done].length
                        if position < self._reached or ahead_bytes + size <= self._limit_bytes:
                            break
                        batch.send()
                        self._moved.wait()
                    if self._ended:
                        return
                    if position >= self._reached:
                        ahead.append((position, shard, block))
                        ahead_bytes += size
                batch.add(shard, block, size)
        except DhtDataError:
            # The loop will ask for the same blocks itself, and meet the same failure where it can be raised.
            return

    def _requests(self) -> Iterator[tuple[int, OpenShard, int] | None]:
        """(position of first use, shard, block) of what is neither here nor coming, in the order of need.

        None before each new shard, and at the end: what was asked of others should not wait for its block table.
        """
        for position, window in self._path.windows():
            for first, count in window.spans.tolist():
                for group in self._groups:
                    for number, blocks_of in self._needed(group, first, first + count):
                        self._expect(group, number)
                        if not self._vault.is_open(group, number):
                            yield None
                        for shard, block in self._missing(group, number, blocks_of):
                            yield position, shard, block
        yield None

    def _shards(self) -> Iterator[tuple[GroupShards, int]]:
        """In the order of need; some come more than once."""
        for _, window in self._path.windows():
            for first, count in window.spans.tolist():
                for group in self._groups:
                    for number, _ in self._needed(group, first, first + count):
                        yield group, number

    def _expect(self, group: GroupShards, number: int) -> None:
        """Block tables come many at a time: one after another they would hold up what they are needed for."""
        if (id(group), number) in self._expected:
            return
        fresh: list[tuple[GroupShards, int]] = []
        for coming, place in self._coming:
            if (id(coming), place) not in self._expected:
                self._expected.add((id(coming), place))
                fresh.append((coming, place))
            if len(fresh) == TABLES_AT_ONCE:
                break
        self._vault.expect_tables(fresh)

    def _needed(self, group: GroupShards, first: int, stop: int) -> Iterator[tuple[int, _BlocksOf]]:
        """Shards that hold the rows at positions ``[first, stop)``, and which of their blocks do."""
        if self._selection is not None:
            rows = self._selection.rows(np.arange(first, stop, dtype=np.int64))
            for number, local in group.by_shard(rows):
                yield number, partial(OpenShard.blocks_with, rows=local)
            return
        for number in group.shards_of(first, stop):
            offset = int(group.firsts[number])
            begin, end = max(first - offset, 0), min(stop - offset, group.entry(number).rows)
            yield number, partial(OpenShard.blocks_of, first_row=begin, stop_row=end)

    def _missing(self, group: GroupShards, number: int, blocks_of: _BlocksOf) -> Iterator[tuple[OpenShard, int]]:
        if self._vault.is_complete(group, number):
            return
        shard = self._vault.shard(group, number)
        for block in blocks_of(shard):
            if block not in shard.foreseen and shard.missing([block]):
                shard.foreseen.add(block)
                yield shard, block


class _Batch:
    """Blocks to be asked for together: those of one shard travel in one request."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._blocks: dict[int, tuple[OpenShard, list[int]]] = {}
        self.size = 0

    def add(self, shard: OpenShard, block: int, size: int) -> None:
        self._blocks.setdefault(id(shard), (shard, []))[1].append(block)
        self.size += size

    def send(self) -> None:
        for shard, blocks in self._blocks.values():
            self._vault.ask(shard, blocks, ahead=True)
        self._blocks = {}
        self.size = 0
