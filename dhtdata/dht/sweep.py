"""Which nodes should hold which of very many keys: explore the key space region by region, not key by key.

Pure but for ``nearest``, which walks to a target. What one walk proves: if it meets fewer nodes than it may return,
these are all there are; else every node within its radius was met, so the largest aligned range around the target
within that distance is *covered*. The region of a key is the range twice as large: it holds a bucketful of nodes, and
once walks have covered all of it, the holders of every key inside are known exactly. A key that is alone in its region
is assigned after the first walk. Dead nodes count for the radius, else a network with some would pass for a tiny one.

Regions are rooted in what was covered, never in a prefix that the nodes happen to share: in a network of four nodes
with a common prefix the latter loses the keys that do not share it (go-libp2p-kad-dht#1263). A region that
cannot be covered within its bound of walks gives up only on being cheap: its keys get walks of their own.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from dhtdata.dht.lookup import Neighbourhood
from dhtdata.dht.routing import BUCKET_SIZE, ID_BITS, Contact, identifier, number

KEYS_AT_ONCE = 210
MAX_WALKS = 48

Nearest = Callable[[bytes], Awaitable[Neighbourhood]]
"""Walk to a target: the ``width`` nodes nearest to it, ourselves left out."""
Assignment = dict[Contact, list[bytes]]
"""Holder → ascending keys it should hold."""


class Sweep:
    """One pass over ``keys``. ``own`` is assigned keys like everybody else."""

    def __init__(self, nearest: Nearest, own: Contact, randomness: random.Random, width: int = BUCKET_SIZE) -> None:
        self._nearest = nearest
        self._own = own
        self._randomness = randomness
        self._width = width
        self._known: dict[bytes, Contact] = {}
        self._covered: set[tuple[int, int]] = set()
        self._walks_left = 0
        self.walks = 0

    async def assignments(self, keys: Sequence[bytes]) -> AsyncIterator[Assignment]:
        """Every key exactly once, in ascending order, at most 210 keys at a time."""
        left = sorted(set(keys))
        position = 0
        while position < len(left):
            first = number(left[position])
            self._known, self._covered, self._walks_left = {self._own.id: self._own}, set(), MAX_WALKS
            bits = max(0, await self._walk(first) - 1)
            end = bisect.bisect_left(left, (first >> (ID_BITS - bits)) + 1, lo=position, key=_prefix_of(bits))
            if end - position > 1 and not await self._explore(bits, first >> (ID_BITS - bits)):
                end = position + 1
            for start in range(position, end, KEYS_AT_ONCE):
                yield self._assign(left[start : min(end, start + KEYS_AT_ONCE)])
            position = end

    def _assign(self, keys: Sequence[bytes]) -> Assignment:
        assignment: Assignment = {}
        for key in keys:
            goal = number(key)
            for contact in heapq.nsmallest(self._width, self._known.values(), key=lambda each: each.long_id ^ goal):
                assignment.setdefault(contact, []).append(key)
        return assignment

    async def _walk(self, target: int) -> int:
        """Learn the nodes around a target: how many leading bits the covered range has."""
        near = await self._nearest(identifier(target))
        self.walks += 1
        self._walks_left -= 1
        self._known.update((contact.id, contact) for contact in near.contacts)
        bits = 0 if near.radius is None else min(ID_BITS, ID_BITS - near.radius.bit_length() + 1)
        self._covered.add((bits, target >> (ID_BITS - bits)))
        return bits

    async def _explore(self, bits: int, prefix: int) -> bool:
        """Learn every node whose leading ``bits`` are ``prefix``. False if that takes too many walks."""
        if any((depth, prefix >> (bits - depth)) in self._covered for depth in range(bits + 1)):
            return True
        inside = [
            reached for reached in self._covered if reached[0] > bits and reached[1] >> (reached[0] - bits) == prefix
        ]
        if inside:
            reached, target = min(inside)
        elif self._walks_left < 1:
            return False
        else:
            free = ID_BITS - bits
            start = (prefix << free) | self._randomness.getrandbits(free)
            reached = await self._walk(start)
            target = start >> (ID_BITS - reached)
        for depth in range(reached, bits, -1):
            if not await self._explore(depth, (target >> (reached - depth)) ^ 1):
                return False
        self._covered.add((bits, prefix))
        return True


def _prefix_of(bits: int) -> Callable[[bytes], int]:
    return lambda key: number(key) >> (ID_BITS - bits)
