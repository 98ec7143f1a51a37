"""What running loops will read, and when: eviction takes what is needed last, or never.

An *order* is one way through a dataset: the rows of a split in the sequence that a seed gives, epoch after epoch on one
axis of positions (rows since the first epoch began). All ranks and workers of a machine that read the same windows
share one order, and each says where it stands. An order is learnt in parts, an epoch each; what an order will read
after its last part is not known.

A shard's *next use*, over all orders and all who read in them: bytes that its reader has still to read before it, 0 for
the windows that somebody is in now. Among these the earlier window comes first, so that of two readers that do not fit
the one behind always goes on, and the other waits: `Room` makes room for a shard only out of what is needed later.

All of this is memory of the one process that fetches, and a reader is forgotten when its connection ends, so nothing
that was killed or lost keeps anything. Without a reader nothing is known, and what was used longest ago goes first.

Why bytes: positions of different datasets cannot be compared, and loops that share a machine share its bandwidth too.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dhtdata.digest import Digest
from dhtdata.store.index import ProcessLock


class NextUse(NamedTuple):
    """Sorts by need: bytes before it is read, then the position at which its window begins."""

    distance_bytes: float
    first: float


NOW = NextUse(0.0, -1.0)
"""Somebody waits for it."""
SOMETIME = NextUse(0.0, float("inf"))
"""What no loop has foreseen gives way to the windows that loops are in, and to nothing else."""

Spans = Mapping[bytes, "array[int]"]
"""By shard, when it is read: positions ``first, stop, first, stop, ...``, ascending."""


@dataclass(frozen=True)
class Part:
    """What an order reads from some position to ``stop``."""

    stop: int
    spans: Spans


@dataclass(frozen=True)
class _Reader:
    order: Digest
    position: int


@dataclass
class _Order:
    row_bytes: float
    parts: dict[int, Part] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)


class Foresight:
    """Orders, and who stands where in them. Threads may share it."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._orders: dict[Digest, _Order] = {}
        self._readers: dict[Hashable, _Reader] = {}

    def stand(self, reader: Hashable, order: Digest, position: int, row_bytes: float) -> list[int]:
        """A reader is at ``position`` of an order now; where the parts of it that are known begin."""
        with self._lock:
            before = self._readers.get(reader)
            self._readers[reader] = _Reader(order, position)
            found = self._orders.setdefault(order, _Order(row_bytes))
            self._count(order)
            if before is not None and before.order != order:
                self._count(before.order)
            return sorted(found.parts)

    def knows(self, reader: Hashable) -> bool:
        """Whether a reader has come and not left."""
        with self._lock:
            return reader in self._readers

    def learn(self, order: Digest, first: int, part: Part) -> None:
        """What an order that somebody reads in does from ``first`` on."""
        with self._lock:
            if (found := self._orders.get(order)) is not None:
                found.parts[first] = part

    def leave(self, reader: Hashable) -> None:
        """Forget a reader, and its order if it was the last one in it."""
        with self._lock:
            if (before := self._readers.pop(reader, None)) is not None:
                self._count(before.order)

    def _count(self, order: Digest) -> None:
        found = self._orders[order]
        found.positions = sorted({reader.position for reader in self._readers.values() if reader.order == order})
        if not found.positions:
            del self._orders[order]
            return
        for first in [first for first, part in found.parts.items() if part.stop <= found.positions[0]]:
            del found.parts[first]

    def next_use(self, shard: bytes) -> NextUse | None:
        """When a shard is needed next; None if no loop is known to need it."""
        with self._lock:
            uses = [use for order in self._orders.values() if (use := _next_in(order, shard)) is not None]
        return min(uses, default=None)

    def urgency(self, shard: bytes, *, now: bool) -> NextUse:
        """What a shard that is to be fetched may displace: all that is needed later. ``now``: somebody waits for it."""
        foreseen = self.next_use(shard)
        if now:
            return foreseen if foreseen is not None and not foreseen.distance_bytes else NOW
        return foreseen if foreseen is not None else SOMETIME


def _next_in(order: _Order, shard: bytes) -> NextUse | None:
    """The least over all spans of the bytes between it and the reader that is nearest before its end."""
    uses = []
    for part in order.parts.values():
        spans = part.spans.get(shard, ())
        for first, stop in zip(spans[::2], spans[1::2], strict=True):
            nearest = bisect_left(order.positions, stop) - 1
            if nearest >= 0:
                uses.append(NextUse(max(first - order.positions[nearest], 0) * order.row_bytes, first))
    return min(uses, default=None)
