"""Reading ahead of a loop: blocks of the coming windows are asked for before their rows are.

What the loop is working on (the windows whose rows it deals out now) is asked for whole, because a shuffled window
needs all of its blocks at once. Beyond that at most ``limit_bytes`` are asked for and not yet reached by the loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dhtdata.errors import DhtDataError
from dhtdata.mount.shards import GroupShards
from dhtdata.mount.vault import OpenShard, Vault
from dhtdata.order import Steps

REQUEST_BYTES = 4 << 20


class Readahead:
    """A thread that walks the windows of one rank's steps, as far as `advance` allows."""

    def __init__(self, vault: Vault, groups: Sequence[GroupShards], steps: Steps, limit_bytes: int) -> None:
        self._vault = vault
        self._groups = groups
        self._steps = steps
        self._limit_bytes = limit_bytes
        self._request_bytes = min(REQUEST_BYTES, limit_bytes)
        self._reached = -1
        self._ended = False
        self._moved = threading.Condition()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._walk, name="dhtdata-readahead", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._moved:
                self._ended = True
                self._moved.notify()

    def advance(self, position: int) -> None:
        """The loop needs all rows before this position of the epoch now."""
        with self._moved:
            self._reached = position
            self._moved.notify()

    def _walk(self) -> None:
        ahead: deque[tuple[int, int]] = deque()
        ahead_bytes = 0
        try:
            for position, shard, blocks, size in self._requests():
                with self._moved:
                    while not self._ended:
                        while ahead and ahead[0][0] < self._reached:
                            ahead_bytes -= ahead.popleft()[1]
                        if position < self._reached or ahead_bytes + size <= self._limit_bytes:
                            break
                        self._moved.wait()
                    if self._ended:
                        return
                    if position >= self._reached:
                        ahead.append((position, size))
                        ahead_bytes += size
                self._vault.ask(shard, blocks)
        except DhtDataError:
            # The loop will ask for the same blocks itself, and meet the same failure where it can be raised.
            return

    def _requests(self) -> Iterator[tuple[int, OpenShard, list[int], int]]:
        """(position of first use, shard, blocks, bytes) of what is not here yet, in the order of need."""
        for position, window in self._steps.windows():
            for first, count in window.spans.tolist():
                for group in self._groups:
                    for shard, blocks in self._missing(group, first, first + count):
                        size = sum(shard.table.blocks[block].length for block in blocks)
                        yield position, shard, blocks, size

    def _missing(self, group: GroupShards, first: int, stop: int) -> Iterator[tuple[OpenShard, list[int]]]:
        for number in group.shards_of(first, stop):
            if self._vault.is_complete(group, number):
                continue
            shard = self._vault.shard(group, number)
            offset = int(group.firsts[number])
            chosen: list[int] = []
            size = 0
            for block in shard.missing(shard.blocks_of(max(first - offset, 0), min(stop - offset, shard.entry.rows))):
                if chosen and size + shard.table.blocks[block].length > self._request_bytes:
                    yield shard, chosen
                    chosen, size = [], 0
                chosen.append(block)
                size += shard.table.blocks[block].length
            if chosen:
                yield shard, chosen
