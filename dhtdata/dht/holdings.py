"""What this node keeps for others: signed records under keys, many a key, each until it expires. No I/O.

A record says itself under which keys it belongs (`keys_of`), so nobody can put it elsewhere. It is kept if its
signature is good, it has not expired, it does not claim to live longer than its kind may, it is not older than what
its signer put there before, and there is room (`quotas`). Claims and PeerRecords come from their own signer only, so
nobody can replay what others said; names from anybody, so that they do not die with their publisher.

| kind | one per key and | newer means | kept until |
|---|---|---|---|
| NameRecord | (one) | higher rank, then fresher | 48 h after it was last put: it has no end of its own |
| PeerRecord | signer and IP of its first address | higher sequence | its expiry |
| ProviderClaim, ShardClaims | signer | higher sequence | its expiry |

A PeerRecord names the IP that its sender proved to have and no other, so what is answered here leads to nobody who did
not ask for it; a machine with several IPs puts one from each. A withdrawal (`withdrawn`) takes the place of what it
takes back, and stays until no holder anywhere can have that any more. Clocks may differ by 10 minutes. Repeated records
change nothing (names are kept longer), so nothing outlives its own expiry.

Bounds of a key, beside those of `quotas`: so many records in all, and of one group. A full key gives a newcomer the
place of the newest claim of the group that has most of them there, if the newcomer's own group has at least two fewer.
Ours, names and PeerRecords always get a place from claims, and lose none to them: their key is made from their own
public key, so nobody else can crowd it with those, while claims can be made to any key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from sys import getsizeof

from kademlia.storage import IStorage

from dhtdata.dht.quotas import KEY_BYTES, RECORD_BYTES, Entry, Group, Limits, Origin, Quotas, Source
from dhtdata.dht.rules import (
    CLAIMS,
    NAME,
    NAME_KEPT_S,
    PEER,
    PEER_LIFETIME_S,
    check_addresses,
    check_lifetime,
    kept_until,
    keys_of,
    version_of,
)
from dhtdata.digest import domain_key
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address
from dhtdata.formats.records import HEADER_BYTES, PeerRecord, Signed, decode, node_id

__all__ = [
    "NAME_KEPT_S",
    "PEER_LIFETIME_S",
    "Changes",
    "Holdings",
    "Kept",
    "Limits",
    "Origin",
    "check_lifetime",
    "keys_of",
    "record_id",
    "version_of",
]

_SIGNED_BY_SENDER = (PEER, *CLAIMS)
_SIGNER = slice(2, 34)
_HEAD = slice(0, 34)
_UNSAVED, _SAVED, _OUTDATED = range(3)  # what the archive knows of an entry
_SPARSE_BYTES = 96  # an entry of a dict that has just grown takes 60
_INDEX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Kept:
    """A record as it goes to the archive and comes back. ``origin``: address as text, empty for ourselves."""

    data: bytes
    origin: str
    received_s: float
    kept_until_s: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened since the last time; ``removed`` (see `record_id`) comes before ``added``."""

    added: list[Kept]
    removed: list[bytes]


def record_id(data: bytes) -> bytes:
    """16 bytes that name a record in the archive."""
    return domain_key("dhtdata kept record", data, length=16)


class Holdings(IStorage):  # type: ignore[misc]  # the package has no types
    """The record table. ``now_s`` tells Unix time, ``own_id`` is our identifier: what is near to it stays longest."""

    def __init__(self, now_s: Callable[[], float], own_id: bytes, limits: Limits | None = None) -> None:
        self._now_s = now_s
        self._own = int.from_bytes(own_id, "big")
        self._limits = limits or Limits()
        self._quotas = Quotas(self._limits)
        self._entries: dict[bytes, Entry] = {}
        self._by_key: dict[bytes, tuple[Entry, ...]] = {}
        # Records that the archive has and that are not here any more: at most as many as it has.
        self._gone: list[bytes] = []

    def keep(self, data: bytes, origin: Origin | None = None) -> bool:
        """Keep a record that ``origin`` (None: we ourselves) put here: whether it is here now.

        False if something newer is here or a bound is reached. FormatError if it is no good or no PeerRecord of its
        sender, IntegrityError if it is forged or replayed by another than its signer.
        """
        now_s = self._now_s()
        source = self._quotas.source(origin)
        if origin is not None and self._refused_unread(data, origin, source):
            return False
        known = self._entries.get(data)
        if known is not None:
            if known.kept_until_s > now_s and (origin is not None or known.source is source):
                if known.data[:1] == NAME:
                    known.kept_until_s = now_s + NAME_KEPT_S
                    known.saved = _OUTDATED if known.saved else _UNSAVED
                return True
            self._drop(known)  # it has expired, or becomes ours
        signed = decode(data)
        check_lifetime(signed.record, now_s)
        if origin is not None and isinstance(signed.record, PeerRecord):
            check_addresses(signed.record, origin.address)
        entry = _entry(signed, now_s, kept_until(signed.record, now_s), origin)
        return self._admit(entry, keys_of(signed), source)

    def stream(self, key: bytes) -> Iterator[bytes]:
        """Records under a key, oldest first, each signer's PeerRecords right before its first claim.

        Of PeerRecords the newest 8, newest first. Withdrawals come last: who asks several holders needs them.
        """
        now_s = self._now_s()
        live: list[Entry] = []
        withdrawals: list[Entry] = []
        for entry in self._by_key.get(key, ()):
            if entry.kept_until_s > now_s:
                (withdrawals if _withdraws(entry) else live).append(entry)
        live = _in_turns(live)
        introduced: set[bytes] = set()
        for entry in live:
            kind, signer = entry.data[:1], entry.data[_SIGNER]
            if kind != NAME and signer not in introduced:
                introduced.add(signer)
                yield from self._introductions(signer, now_s)
            if kind != PEER:
                yield entry.data
        for entry in withdrawals:
            yield entry.data

    def forget_expired(self, at_most: int | None = None) -> int:
        """Drop what has expired, not more than so many records: how many those were."""
        now_s = self._now_s()
        past = (entry for entry in self._entries.values() if entry.kept_until_s <= now_s)
        expired = list(islice(past, at_most))
        for entry in expired:
            self._drop(entry)
        return len(expired)

    def changes(self, at_most: int | None = None) -> Changes:
        """What the archive has to add, not more than so many records, and to remove since the last call."""
        unsaved = (entry for entry in self._entries.values() if entry.saved != _SAVED)
        added = list(islice(unsaved, at_most))
        for entry in added:
            entry.saved = _SAVED
        removed, self._gone = self._gone, []
        return Changes([_kept(entry) for entry in added], removed)

    def restore(self, rows: Iterable[Kept]) -> int:
        """Keep what the archive has, oldest first, as if it came from outside: how many records are here again.

        A signature is verified for each: 0.15 ms a row.
        """
        restored = 0
        for row in rows:
            if self._restore(row):
                restored += 1
            else:
                self._gone.append(record_id(row.data))
        return restored

    @property
    def record_count(self) -> int:
        return len(self._entries)

    @property
    def key_count(self) -> int:
        return len(self._by_key)

    @property
    def memory_bytes(self) -> int:
        """Memory in use, estimated from above."""
        return self._quotas.bytes

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Keep a record of ours. FormatError if it does not belong under the key or cannot be kept."""
        if key not in keys_of(decode(value)) or not self.keep(value):
            raise FormatError(f"a record cannot be kept under {key.hex()}")

    def __getitem__(self, key: bytes) -> tuple[bytes, ...]:
        records = tuple(self.stream(key))
        if not records:
            raise KeyError(key)
        return records

    def get(self, key: bytes, default: tuple[bytes, ...] | None = None) -> tuple[bytes, ...] | None:
        return tuple(self.stream(key)) or default

    def __iter__(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        for key in tuple(self._by_key):
            if records := tuple(self.stream(key)):
                yield key, records

    def iter_older_than(self, seconds_old: float) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records that came at least so long ago."""
        latest_s = self._now_s() - seconds_old
        for entry in tuple(self._entries.values()):
            if entry.received_s <= latest_s:
                for key in entry.keys():
                    if entry in self._by_key.get(key, ()):
                        yield key, entry.data

    # Rules

    def _refused_unread(self, data: bytes, origin: Origin, source: Source) -> bool:
        """What can be told before the signature is verified, which costs 0.13 ms."""
        if len(data) <= HEADER_BYTES:
            return False  # `decode` says so
        if data[:1] in _SIGNED_BY_SENDER and data[_SIGNER] != origin.key:
            raise IntegrityError(f"{origin.address} replayed a record of another's", culprit=str(origin.address))
        if not self._quotas.spent(source, RECORD_BYTES + KEY_BYTES + len(data)) or data in self._entries:
            return False
        # A renewal needs no room, but whether this is one is only known later. Who renews is known here by its
        # PeerRecord, which comes along with claims; strangers do not get as far as the signature.
        return node_id(data[_SIGNER]) not in self._by_key

    def _admit(self, entry: Entry, keys: list[bytes], source: Source) -> bool:
        """Place a checked record under those of its keys where it may be. False if nowhere, or if there is no room."""
        entry.source = source
        entry.belongs_under(keys, self._own)
        seats: list[tuple[bytes, Entry | None]] = []
        for key in keys:
            seats += self._seat(key, entry)
        if not seats:
            return False
        losses = _losses([leaver for _, leaver in seats if leaver is not None])
        size = RECORD_BYTES + len(entry.data) + KEY_BYTES * len(seats)
        victims = self._quotas.room(entry, size, losses)
        if victims is None:
            return False
        entry.left = len(seats)
        entry.alone = (entry,)
        self._quotas.enter(entry)
        self._entries[entry.data] = entry
        for victim in victims:
            self._drop(victim)
        for key, leaver in seats:
            if leaver is not None and leaver.left:
                self._remove(key, leaver)
            here = self._by_key.get(key)
            self._by_key[key] = (*here, entry) if here else entry.alone
        while self._quotas.overfull and (last := self._quotas.last()) is not None:
            self._drop(last)
        return True

    def _seat(self, key: bytes, entry: Entry) -> list[tuple[bytes, Entry | None]]:
        """The key, if the entry may be there, and who must leave the key for it."""
        here = self._by_key.get(key)
        if here is None:
            return [(key, None)]
        head = entry.data[:1] if entry.data[:1] == NAME else entry.data[_HEAD]
        variant = entry.variant
        same = next((each for each in here if each.data.startswith(head) and each.variant == variant), None)
        if same is not None and same.version >= entry.version and same.kept_until_s > self._now_s():
            return []
        if len(here) >= self._limits.records_per_key_and_group and not self._group_has_room(entry, here, same):
            return []
        if same is not None or len(here) < self._limits.records_per_key:
            return [(key, same)]
        if expired := [each for each in here if each.kept_until_s <= self._now_s()]:
            for each in expired:
                self._drop(each)
            return self._seat(key, entry)
        leaver = self._crowded_out(entry, here)
        return [] if leaver is None else [(key, leaver)]

    def _group_has_room(self, entry: Entry, here: tuple[Entry, ...], same: Entry | None) -> bool:
        """Claims, and what is no claim, are bounded apart."""
        if entry.source is self._quotas.ours:
            return True
        there = [each for each in here if each.source.group is entry.source.group and each is not same]
        alike = sum(_is_claim(each) == _is_claim(entry) for each in there)
        return alike < self._limits.records_per_key_and_group

    def _crowded_out(self, entry: Entry, here: tuple[Entry, ...]) -> Entry | None:
        """Who gives way at a full key: the newest claim of the group that has most of them there."""
        claims = [each for each in here if _is_claim(each) and each.source is not self._quotas.ours]
        counts = Counter(each.source.group for each in claims)
        most = max(counts.values(), default=0)
        favoured = entry.source is self._quotas.ours or not _is_claim(entry)
        if not most or (not favoured and most < counts[entry.source.group] + 2):
            return None
        return next(each for each in reversed(claims) if counts[each.source.group] == most)

    def _restore(self, row: Kept) -> bool:
        now_s = self._now_s()
        known = self._entries.get(row.data)
        if known is not None:
            known.saved = _OUTDATED
            return True
        try:
            signed = decode(row.data)
            check_lifetime(signed.record, now_s)
            origin = Origin(Address.parse(row.origin), signed.signer) if row.origin else None
        except (FormatError, IntegrityError):
            return False
        kept_until_s = min(kept_until(signed.record, now_s), row.kept_until_s)
        if not kept_until_s > now_s:
            return False
        entry = _entry(signed, min(now_s, row.received_s), kept_until_s, origin)
        entry.saved = _SAVED
        return self._admit(entry, keys_of(signed), self._quotas.source(origin))

    # The index

    def _introductions(self, signer: bytes, now_s: float) -> list[bytes]:
        head = PEER + b"\x01" + signer
        there = self._by_key.get(node_id(signer), ())
        peers = [
            each for each in there if each.data.startswith(head) and each.kept_until_s > now_s and not _withdraws(each)
        ]
        peers.sort(key=lambda each: each.version, reverse=True)
        return [each.data for each in peers[:MAX_ADDRESSES]]

    def _drop(self, entry: Entry) -> None:
        for key in entry.keys():
            if entry in self._by_key.get(key, ()):
                self._remove(key, entry)

    def _remove(self, key: bytes, entry: Entry) -> None:
        here = self._by_key[key]
        if len(here) == 1:
            del self._by_key[key]
            # A dict never gives memory back by itself, and whoever floods us makes it large.
            if getsizeof(self._by_key) > _SPARSE_BYTES * len(self._by_key) + _INDEX_BYTES:
                self._by_key = dict(self._by_key.items())
        else:
            place = here.index(entry)
            left = here[:place] + here[place + 1 :]
            self._by_key[key] = left if len(left) > 1 else left[0].alone
        if entry.left > 1:
            self._quotas.shrink(entry)
            return
        del self._entries[entry.data]
        if entry.saved != _UNSAVED:
            self._gone.append(record_id(entry.data))
        self._quotas.leave(entry)


def _entry(signed: Signed, received_s: float, kept_until_s: float, origin: Origin | None) -> Entry:
    record = signed.record
    variant = record.addresses[0].ip if isinstance(record, PeerRecord) else b""
    version = 0
    for part in version_of(record):
        version = version << 64 | part
    entry = Entry(signed.data, variant, version, received_s, kept_until_s)
    entry.port = origin.address.port if origin is not None else 0
    return entry


def _in_turns(entries: list[Entry]) -> list[Entry]:
    """Oldest first, but one of each network in turn: nobody fills the first pages with claims of their own."""
    turns: Counter[Group] = Counter()
    order: list[tuple[int, int]] = []
    for place, entry in enumerate(entries):
        turns[entry.source.group] += 1
        order.append((turns[entry.source.group], place))
    return [entries[place] for _, place in sorted(order)]


def _losses(leavers: list[Entry]) -> dict[Entry, int]:
    """How many bytes these entries give up if each leaves one key for every time it is named."""
    if not leavers:
        return {}
    counts = Counter(entry for entry in leavers if entry.left)
    return {entry: entry.size if count == entry.left else KEY_BYTES * count for entry, count in counts.items()}


def _kept(entry: Entry) -> Kept:
    origin = str(Address(entry.source.ip, entry.port)) if entry.port else ""
    return Kept(entry.data, origin, entry.received_s, entry.kept_until_s)


def _is_claim(entry: Entry) -> bool:
    return entry.data[:1] in CLAIMS


def _withdraws(entry: Entry) -> bool:
    """Whether a record is a withdrawal: versions of claims and PeerRecords end with the expiry."""
    return entry.data[:1] != NAME and entry.version & ((1 << 64) - 1) == 0
