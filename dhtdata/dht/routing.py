"""Routing table: who we know, sorted by distance. Pure: no network, and time and randomness are arguments.

Identifiers are 160-bit numbers, the distance of two is their exclusive or. Buckets tile the identifier space with
half-open, aligned ranges. A full bucket splits while fewer than ``bucket_size`` contacts are nearer to us than its
whole range (section 2.4 of the paper; splitting only the bucket that holds our own identifier is not enough). So the
table knows its ``bucket_size`` nearest in full and as many contacts of every farther range: O(log n) in all.

Built on `kademlia.routing.KBucket` and `kademlia.node.Node`. What is changed and why: the stock ranges mix inclusive
and exclusive bounds; the stock bucket drops a contact after one lost datagram and promotes the *newest* replacement,
which whoever floods us controls; the stock search returns neighbours that are not the nearest.

Nobody fills the table with addresses of their own: it holds one contact of a public IP, and a bucket (with its
replacements) two of one /24 or /48, so a thousand identifiers on five addresses are five contacts. Private networks and
loopback have no such limits, there many nodes of one address are normal.

Rules: a contact enters when *it* answered *us*: a call of ours (`RoutingTable.answered`), or our challenge, by a
request to us, signed, with the cookie that we sent to its address (`RoutingTable.heard`). Never because somebody named
it, or because something came from its address. Who is there stays, newcomers wait as replacements, three calls without
an answer in a row evict, whatever the contact asks us meanwhile, and the replacement that waited longest moves up. A
known identifier at a new address replaces the old one only after the old address has missed a call. Another identifier
at a known socket ends the one that was there: one socket is one node.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Container, Iterator
from typing import Any

from kademlia.node import Node
from kademlia.routing import KBucket

from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address, network_group, scope

ID_BYTES = 20
ID_BITS = 8 * ID_BYTES
BUCKET_SIZE = 20
MAX_MISSES = 3
MAX_PER_GROUP = 2
_SPACE = 1 << ID_BITS


def number(identifier: bytes) -> int:
    """The identifier as a number. FormatError unless it has 20 bytes."""
    if len(identifier) != ID_BYTES:
        raise FormatError(f"an identifier in the DHT has {ID_BYTES} bytes, this one has {len(identifier)}")
    return int.from_bytes(identifier, "big")


def identifier(value: int) -> bytes:
    return value.to_bytes(ID_BYTES, "big")


class Contact(Node):  # type: ignore[misc]  # the package has no types
    """A node: identifier and address. A value: equal if both are equal."""

    id: bytes
    long_id: int

    def __init__(self, node_id: bytes, address: Address) -> None:
        number(node_id)
        super().__init__(node_id, address.ip, address.port)
        self.address = address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contact) and self.id == other.id and self.address == other.address

    def __hash__(self) -> int:
        return hash((self.id, self.address))


def _place(address: Address) -> str:
    """What only one contact may have: a public IP; elsewhere a socket."""
    return address.ip if scope(address.ip) == "global" else str(address)


class _Seen:
    """What the table remembers of a contact."""

    __slots__ = ("answered_s", "misses", "seen_s")

    def __init__(self, now_s: float) -> None:
        self.seen_s = now_s
        self.misses = 0
        self.answered_s = -math.inf


class Bucket(KBucket):  # type: ignore[misc]  # the package has no types
    """Contacts of one range ``[first, first + width)``; ``first`` is a multiple of ``width``, a power of two."""

    nodes: dict[bytes, Contact]
    replacement_nodes: dict[bytes, Contact]

    def __init__(self, first: int, width: int, size: int, now_s: float) -> None:
        super().__init__(first, first + width, size, replacementNodeFactor=1)
        self.first = first
        self.width = width
        self.last_updated = now_s

    def touch_last_updated(self) -> None:
        """The stock bucket reads the clock here; ours is told the time by the table."""

    def has_in_range(self, node: Any) -> bool:
        return self.first <= int(node.long_id) < self.first + self.width

    def nearest_distance(self, target: int) -> int:
        """Distance of the nearest identifier this range could hold. Ranges never interleave in distance."""
        return (self.first ^ target) & ~(self.width - 1)

    def split(self) -> tuple[Bucket, Bucket]:
        half = self.width // 2
        lower = Bucket(self.first, half, self.ksize, self.last_updated)
        upper = Bucket(self.first + half, half, self.ksize, self.last_updated)
        for contact in (*self.nodes.values(), *self.replacement_nodes.values()):
            (lower if lower.has_in_range(contact) else upper).add_node(contact)
        return lower, upper

    def remove_node(self, node: Any) -> None:
        self.replacement_nodes.pop(node.id, None)
        if self.nodes.pop(node.id, None) is not None and self.replacement_nodes:
            oldest = next(iter(self.replacement_nodes))
            self.nodes[oldest] = self.replacement_nodes.pop(oldest)


class RoutingTable:
    """Contacts of the node ``own_id``."""

    def __init__(self, own_id: bytes, *, bucket_size: int = BUCKET_SIZE, now_s: float = 0.0) -> None:
        self.own = number(own_id)
        self.bucket_size = bucket_size
        self.buckets = [Bucket(0, _SPACE, bucket_size, now_s)]
        self._seen: dict[bytes, _Seen] = {}
        self._by_place: dict[str, Contact] = {}
        self._woke_s = -math.inf

    def __len__(self) -> int:
        return sum(len(bucket.nodes) for bucket in self.buckets)

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self.buckets:
            yield from bucket.nodes.values()

    def __contains__(self, contact: Contact) -> bool:
        return self._bucket(contact.long_id).nodes.get(contact.id) == contact

    def answered(self, contact: Contact, now_s: float) -> None:
        """The contact answered a call of ours at ``now_s``."""
        self._met(contact, now_s)
        if self._by_place.get(_place(contact.address)) == contact:
            seen = self._seen[contact.id]
            seen.misses, seen.answered_s = 0, now_s

    def heard(self, contact: Contact, now_s: float) -> None:
        """The contact sent us a request that proves its address. Calls of ours that it missed stay missed."""
        self._met(contact, now_s)

    def present(self, contact: Contact, now_s: float) -> None:
        """Somebody is still at the contact's socket, though nothing says who: no need to look again soon."""
        if contact in self:
            self._seen[contact.id].seen_s = now_s

    def _met(self, contact: Contact, now_s: float) -> None:
        if contact.long_id == self.own:
            return
        self._relieve(contact)
        bucket = self._bucket(contact.long_id)
        bucket.last_updated = now_s
        known = bucket.nodes.get(contact.id) or bucket.replacement_nodes.get(contact.id)
        if known is not None and known != contact:
            if not self._seen[contact.id].misses or not self._may_live_at(contact, bucket):
                return
            self._leave_place(known)
            (bucket.nodes if contact.id in bucket.nodes else bucket.replacement_nodes)[contact.id] = contact
        if known is None and not (self._has_room(bucket) and self._may_live_at(contact, bucket)):
            return
        if known == contact:
            self._seen[contact.id].seen_s = now_s
        else:
            self._seen[contact.id] = _Seen(now_s)
        self._by_place[_place(contact.address)] = contact
        if known is None or contact.id in bucket.nodes:
            self._enter(bucket, contact)

    def missed(self, contact: Contact) -> None:
        """A call of ours to the contact was not answered."""
        bucket = self._bucket(contact.long_id)
        known = bucket.nodes.get(contact.id) or bucket.replacement_nodes.get(contact.id)
        if known != contact:
            return
        seen = self._seen[contact.id]
        seen.misses += 1
        if seen.misses >= MAX_MISSES:
            self.remove(contact)

    def remove(self, contact: Contact) -> None:
        """The contact is no participant any more (it became a client), or it missed too many calls."""
        bucket = self._bucket(contact.long_id)
        known = bucket.nodes.get(contact.id) or bucket.replacement_nodes.get(contact.id)
        if known == contact:
            bucket.remove_node(contact)
            del self._seen[contact.id]
            self._leave_place(contact)

    def suspect_all(self, now_s: float) -> None:
        """Nobody is known to be there any more (we slept): all contacts of before count as silent."""
        self._woke_s = now_s

    def closest(self, target: bytes, count: int, without: Container[bytes] = ()) -> list[Contact]:
        """The ``count`` known contacts nearest to the target, nearest first, but for those in ``without``."""
        goal = number(target)
        found: list[Contact] = []
        for bucket in sorted(self.buckets, key=lambda bucket: bucket.nearest_distance(goal)):
            if len(found) >= count:
                break
            usable = (contact for contact in bucket.nodes.values() if contact.id not in without)
            found += heapq.nsmallest(count - len(found), usable, key=lambda contact: contact.long_id ^ goal)
        return found

    def stale(self, now_s: float, age_s: float, randomness: random.Random) -> list[bytes]:
        """A random target in every range from which nobody answered for ``age_s``: looking it up freshens the range."""
        return [
            identifier(bucket.first + randomness.randrange(bucket.width))
            for bucket in self.buckets
            if now_s - bucket.last_updated >= age_s
        ]

    def silent(self, now_s: float, age_s: float, count: int) -> list[Contact]:
        """Up to ``count`` contacts that we heard nothing of for ``age_s``, the longest silent first."""
        before_s, seen = max(now_s - age_s, self._woke_s), self._seen
        waiting = [contact for contact in self if seen[contact.id].seen_s <= before_s]
        return heapq.nsmallest(count, waiting, key=self.seen_s)

    def seen_s(self, contact: Contact) -> float:
        """When the contact, which is in the table, last answered or asked us."""
        return self._seen[contact.id].seen_s

    def answered_s(self, contact: Contact) -> float:
        """When the contact, which is in the table, last answered a call; -inf if it never did."""
        return self._seen[contact.id].answered_s

    def answering(self) -> int:
        """How many contacts have answered a call."""
        return sum(self._seen[contact.id].answered_s > -math.inf for contact in self)

    def estimated_nodes(self) -> int:
        """How many nodes the network has, ourselves included, judged by how dense our neighbourhood is."""
        near = self.closest(identifier(self.own), self.bucket_size)
        if len(near) < self.bucket_size:
            return len(near) + 1
        return max(self.answering(), len(near) * _SPACE // max(1, near[-1].long_id ^ self.own)) + 1

    def _bucket(self, value: int) -> Bucket:
        first, end = 0, len(self.buckets)
        while end - first > 1:
            middle = (first + end) // 2
            first, end = (middle, end) if self.buckets[middle].first <= value else (first, middle)
        return self.buckets[first]

    def _may_live_at(self, contact: Contact, bucket: Bucket) -> bool:
        """Whether its address is not one that others have already used up."""
        occupant = self._by_place.get(_place(contact.address))
        if occupant is not None and occupant.id != contact.id:
            return False
        if scope(contact.address.ip) != "global":
            return True
        group = network_group(contact.address)
        there = (*bucket.nodes.values(), *bucket.replacement_nodes.values())
        same = (each for each in there if each.id != contact.id and scope(each.address.ip) == "global")
        return sum(network_group(each.address) == group for each in same) < MAX_PER_GROUP

    def _relieve(self, contact: Contact) -> None:
        """Whoever else was met at the very socket of the contact is there no more."""
        occupant = self._by_place.get(_place(contact.address))
        if occupant is not None and occupant.address == contact.address and occupant.id != contact.id:
            self.remove(occupant)

    def _leave_place(self, contact: Contact) -> None:
        if self._by_place.get(_place(contact.address)) == contact:
            del self._by_place[_place(contact.address)]

    def _splits(self, bucket: Bucket) -> bool:
        distance = bucket.nearest_distance(self.own)
        nearer = sum(len(each.nodes) for each in self.buckets if each.nearest_distance(self.own) < distance)
        return nearer < self.bucket_size and bucket.width > 1

    def _has_room(self, bucket: Bucket) -> bool:
        """Whether a newcomer would be kept: replacements are bounded and not displaced, or a flood would own them."""
        full = len(bucket.nodes) >= bucket.ksize and len(bucket.replacement_nodes) >= bucket.max_replacement_nodes
        return not full or self._splits(bucket)

    def _enter(self, bucket: Bucket, contact: Contact) -> None:
        # Split before entering: a bucket whose replacements are full too would forget one.
        while len(bucket.nodes) >= bucket.ksize and contact.id not in bucket.nodes and self._splits(bucket):
            position = self.buckets.index(bucket)
            self.buckets[position : position + 1] = bucket.split()
            bucket = self._bucket(contact.long_id)
        bucket.add_node(contact)
