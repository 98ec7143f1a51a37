"""How the memory of the record table is shared, and who gives way when it is full. No I/O.

Who puts a record here is charged for it: an *origin*, whose cookie proved that it lives at its address. Origins of one
network (`network_group`) are one *group*, because one owner has many addresses of one network cheaply.

- An IP at its bound gets nothing more; a group at its bound only what is nearer to us than its farthest record.
- A full table makes the group with the most bytes give way (max-min fairness), so a group that stays below its equal
  share loses nothing however many others flood us. If a newcomer's own group would be that group, the newcomer gets in
  only if it is nearer than that group's farthest record.
- Inside a group the farthest record goes first: a record is as near as its nearest key is to our identifier (exclusive
  or), because what is far from us is what others keep, too. Of equally far ones the newest goes.
- What we put ourselves counts, is never pushed out, and pushes out others where it has to.

Cost: O(log n) a store, amortised. Heaps are lazy: a group's heap keeps up to one dead entry to seven live ones, the
heap of groups up to two items a group, corrected when they come up.

Memory is estimated, per record `RECORD_BYTES` and its own bytes, `KEY_BYTES` for every key under which it is found,
`SOURCE_BYTES` per IP, `GROUP_BYTES` per group. Measured with tracemalloc (`test_quotas`), a table takes 0.8 to 0.9 of
that, and up to 1.05 where every record was renewed many times: 720 bytes a claim of 171, 5.8 kB a claim to 42 shards.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dhtdata.formats.addresses import Address, network_group, scope
from dhtdata.formats.records import SHARD_KEY_BYTES

RECORD_BYTES = 720
KEY_BYTES = 128
SOURCE_BYTES = 220
GROUP_BYTES = 500


@dataclass(frozen=True)
class Limits:
    """Bounds of the record table, in records and in bytes of estimated memory.

    ``records_per_key``: more than the providers that anybody asks, and a reply carries a handful.
    ``records_per_key_and_group``: so that 16 networks at least must conspire to fill a key.
    ``bytes_in_all``: some 39,000 claims to contents, or claims to 200,000 shards.
    ``bytes_per_group``, ``bytes_per_ip``: a bound where nobody competes, large because in a small network one seed's
    claims to a dataset of 1 TB (30,000 shards) all land on every node; where others compete, fairness decides.
    """

    records_per_key: int = 128
    records_per_key_and_group: int = 8
    bytes_in_all: int = 32 << 20
    bytes_per_group: int = 24 << 20
    bytes_per_ip: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sent a record: the address that its cookie proved, and the public key that signed its datagram."""

    address: Address
    key: bytes


class Source:
    """What one IP (one process, on loopback) put here."""

    __slots__ = ("bytes", "group", "ip", "name", "records")

    def __init__(self, name: str, ip: str, group: Group) -> None:
        self.name = name
        self.ip = ip
        self.group = group
        self.bytes = 0
        self.records = 0


class Group:
    """What one network put here. ``heap``: its entries, the farthest first, ``dead`` of them gone already."""

    __slots__ = ("bytes", "dead", "heap", "name", "records")

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0
        self.records = 0
        self.heap: list[Entry] = []
        self.dead = 0


class Entry:
    """A kept record without its parsed form: there may be tens of thousands.

    ``variant`` tells apart records of one kind and signer that are kept side by side. ``left``: under how many of its
    keys it is found, where no newer one has replaced it. ``alone``: itself, in the form in which `Holdings` has what is
    found under a key, shared by its keys; only while it is here, so that it goes at once. ``saved``: what the archive
    knows of it. Entries order by who gives way first.
    """

    __slots__ = (
        "alone",
        "count",
        "data",
        "first",
        "kept_until_s",
        "left",
        "nearest",
        "packed",
        "port",
        "ranked",
        "received_s",
        "saved",
        "source",
        "variant",
        "version",
    )

    def __init__(self, data: bytes, variant: bytes, version: int, received_s: float, kept_until_s: float) -> None:
        self.data = data
        self.variant = variant
        self.version = version
        self.received_s = received_s
        self.kept_until_s = kept_until_s
        self.alone: tuple[Entry, ...] = ()
        self.source = _NOBODY
        self.port = 0
        self.nearest = 0
        self.packed = b""
        self.first = 0
        self.count = 0
        self.left = 0
        self.ranked = False
        self.saved = 0

    def belongs_under(self, keys: list[bytes], own: int) -> None:
        """Set its keys; ``own`` is our identifier as a number."""
        self.nearest = min(int.from_bytes(key, "big") ^ own for key in keys)
        self.count = len(keys)
        if len(keys) == 1:
            self.packed = keys[0]
            return
        packed = b"".join(keys)
        # Shard claims have their keys among their bytes, in this order: no need to keep them twice.
        self.first = self.data.find(packed)
        self.packed = packed if self.first < 0 else b""

    def keys(self) -> list[bytes]:
        if self.count == 1:
            return [self.packed]
        packed, first = (self.packed, 0) if self.packed else (self.data, self.first)
        end = first + self.count * SHARD_KEY_BYTES
        return [packed[start : start + SHARD_KEY_BYTES] for start in range(first, end, SHARD_KEY_BYTES)]

    @property
    def size(self) -> int:
        """Bytes of memory that it is charged with."""
        return RECORD_BYTES + len(self.data) + KEY_BYTES * self.left

    def __lt__(self, other: Entry) -> bool:
        if self.nearest != other.nearest:
            return self.nearest > other.nearest
        return self.received_s > other.received_s


_NOBODY = Source("", "", Group(""))


class Quotas:
    """The accounts. `Holdings` asks for `room` first, then lets the newcomer `enter` and others `leave`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sources: dict[str, Source] = {}
        self._groups: dict[str, Group] = {}
        self._by_bytes: list[tuple[int, str]] = []
        self.ours = Source("", "", Group(""))
        self.bytes = 0

    def source(self, origin: Origin | None) -> Source:
        """The account of an origin. A new one counts once something entered, which must be before the next is made."""
        if origin is None:
            return self.ours
        address = origin.address
        known = self._sources.get(address.ip)
        if known is not None:
            return known
        name = str(address) if scope(address.ip) == "loopback" else address.ip
        known = self._sources.get(name)
        if known is not None:
            return known
        group = network_group(address)
        return Source(name, address.ip, self._groups.get(group) or Group(group))

    def spent(self, source: Source, least: int) -> bool:
        """Whether an IP cannot put even ``least`` bytes more."""
        return source is not self.ours and source.bytes + least > self._limits.bytes_per_ip

    def room(self, newcomer: Entry, size: int, losses: Mapping[Entry, int]) -> list[Entry] | None:
        """Who must go so that the newcomer, of this size, has room; None if it has to stay outside.

        ``losses``: bytes that entries will lose anyway, because the newcomer replaces them. Nothing has changed on
        return, except that those who must go have left the heaps: `leave` must follow for each.
        """
        source, group = newcomer.source, newcomer.source.group
        cost = size + (0 if source.records else SOURCE_BYTES) + (0 if group.records else GROUP_BYTES)
        lost_in_all = lost_by_ip = lost_by_group = 0
        for entry, lost in losses.items():
            lost_in_all += lost
            lost_by_ip += lost if entry.source is source else 0
            lost_by_group += lost if entry.source.group is group else 0
        if source is self.ours:
            return [] if source.bytes - lost_by_ip + size <= self._limits.bytes_in_all else None
        over = self.bytes + cost - lost_in_all - self._limits.bytes_in_all
        if source.bytes - lost_by_ip + size > self._limits.bytes_per_ip:
            return None
        group_bytes = group.bytes - lost_by_group + cost
        over_group = group_bytes - self._limits.bytes_per_group
        if over <= 0 and over_group <= 0:
            return []
        fattest = self.fattest()
        if over_group <= 0 and fattest is not None and fattest is not group and fattest.bytes > group_bytes:
            return self._farthest(fattest, over, losses, None)
        return self._farthest(group, max(over, over_group), losses, newcomer)

    def enter(self, entry: Entry) -> None:
        """Charge its source for an entry that is found under ``entry.left`` keys now."""
        source, group = entry.source, entry.source.group
        if source is not self.ours:
            if not group.records:
                self._groups[group.name] = group
                self._change(group, GROUP_BYTES)
            if not source.records:
                self._sources[source.name] = source
                self._change(group, SOURCE_BYTES)
            heapq.heappush(group.heap, entry)
            entry.ranked = True
        source.records += 1
        group.records += 1
        self._charge(entry, entry.size)
        self._list(group)

    def shrink(self, entry: Entry) -> None:
        """The entry is found under one key less."""
        entry.left -= 1
        self._charge(entry, -KEY_BYTES)

    def leave(self, entry: Entry) -> None:
        """The entry is not here any more. Dead ones stay in heaps for a while, without their bytes."""
        source, group = entry.source, entry.source.group
        self._charge(entry, -entry.size)
        source.records -= 1
        group.records -= 1
        entry.source = _NOBODY
        entry.left = 0
        entry.alone = ()
        entry.data = entry.packed = entry.variant = b""
        entry.version = entry.port = 0
        entry.kept_until_s = 0.0
        if source is self.ours:
            return
        if not source.records:
            self._change(group, -SOURCE_BYTES)
            del self._sources[source.name]
        if not group.records:
            self._change(group, -GROUP_BYTES)
            del self._groups[group.name]
        group.dead += entry.ranked
        if group.dead * 8 > len(group.heap):
            group.heap = [each for each in group.heap if each.left]
            heapq.heapify(group.heap)
            group.dead = 0

    def fattest(self) -> Group | None:
        """The group with the most bytes, ourselves apart; of equal ones the first by name."""
        heap = self._by_bytes
        while heap:
            listed, name = heap[0]
            group = self._groups.get(name)
            if group is None:
                heapq.heappop(heap)
            elif -listed != group.bytes:
                heapq.heapreplace(heap, (-group.bytes, name))
            else:
                return group
        return None

    def last(self) -> Entry | None:
        """The farthest entry of the fattest group, off its heap: `leave` must follow."""
        group = self.fattest()
        taken = self._farthest(group, 1, {}, None) if group else None
        return taken[0] if taken else None

    @property
    def overfull(self) -> bool:
        """Only after ours entered: then others have to leave."""
        return self.bytes > self._limits.bytes_in_all

    def _charge(self, entry: Entry, count: int) -> None:
        entry.source.bytes += count
        self._change(entry.source.group, count)

    def _change(self, group: Group, count: int) -> None:
        group.bytes += count
        self.bytes += count

    def _list(self, group: Group) -> None:
        """Every group is listed with at least the bytes that it has; who shrank is corrected by `fattest`."""
        if group is self.ours.group:
            return
        heapq.heappush(self._by_bytes, (-group.bytes, group.name))
        if len(self._by_bytes) > 2 * len(self._groups) + 64:
            self._by_bytes = [(-each.bytes, each.name) for each in self._groups.values()]
            heapq.heapify(self._by_bytes)

    def _farthest(
        self, group: Group, over: int, losses: Mapping[Entry, int], newcomer: Entry | None
    ) -> list[Entry] | None:
        """The group's farthest entries that free ``over`` bytes together. None if one is no farther than the newcomer.

        With the last entry of an IP, and of a group, its account goes, too; the newcomer's own stay.
        """
        taken: list[Entry] = []
        left_of: dict[Source, int] = {}
        heap = group.heap
        while over > 0:
            while heap and not heap[0].left:
                heapq.heappop(heap)
                group.dead -= 1
            if not heap:
                self._put_back(taken)
                return None
            entry = heap[0]
            gain = entry.size - losses.get(entry, 0)
            if gain and newcomer is not None and entry.nearest <= newcomer.nearest:
                self._put_back(taken)
                return None
            heapq.heappop(heap)
            taken.append(entry)
            over -= gain
            source = entry.source
            left_of[source] = left_of.get(source, source.records) - 1
            if newcomer is None:
                over -= (0 if left_of[source] else SOURCE_BYTES) + (GROUP_BYTES if len(taken) == group.records else 0)
        for entry in taken:
            entry.ranked = False
        return taken

    def _put_back(self, taken: Iterable[Entry]) -> None:
        for entry in taken:
            heapq.heappush(entry.source.group.heap, entry)
