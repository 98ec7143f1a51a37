"""What this node keeps for others: signed records under keys, many a key, each until it expires. No I/O.

A record says itself under which keys it belongs (`keys_of`), so nobody can put it elsewhere. It is kept if its
signature is good, it has not expired, it does not claim to live longer than its kind may, and it is not older than
what its signer put there before. Replayed or repeated records change nothing, so nothing outlives its own expiry:
the stock store resets the age at each republication, and its records never die.

| kind | one per key and | newer means | kept until |
|---|---|---|---|
| NameRecord | (one) | higher rank, then fresher | 48 h after it was last put: it has no end of its own |
| PeerRecord | signer | higher sequence | its expiry |
| ProviderClaim, ShardClaims | signer | higher sequence | its expiry |

Bounded: per key, per source address and in all; a full key refuses newcomers and still accepts renewals. Clocks may
differ by 10 minutes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kademlia.storage import IStorage

from dhtdata.errors import FormatError
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    Record,
    ShardClaims,
    Signed,
    contents_key,
    decode,
    node_id,
)

NAME_KEPT_S = 48 * 3600
PEER_LIFETIME_S = SHARD_LIFETIME_S
_LIFETIME_S: dict[type[Record], int] = {
    PeerRecord: PEER_LIFETIME_S,
    ProviderClaim: PROVIDER_LIFETIME_S,
    ShardClaims: SHARD_LIFETIME_S,
}
_PEER_SLOT = b"\x02"  # kind number of a PeerRecord
_ENTRY_BYTES = 700
_KEY_BYTES = 250


@dataclass(frozen=True)
class Limits:
    """Bounds, in records and in bytes of memory (estimated per record and key)."""

    records_per_key: int = 128
    bytes_per_source: int = 24 << 20
    bytes_in_all: int = 48 << 20


class _Entry:
    """A kept record, without its parsed form; ``keys`` are those under which no newer one has replaced it."""

    __slots__ = ("data", "expires_s", "keys", "received_s", "size", "slot", "source", "version")

    def __init__(self, signed: Signed, now_s: float, source: str) -> None:
        record = signed.record
        self.data = signed.data
        self.keys = set(keys_of(signed))
        self.version = version_of(record)
        self.slot = b"" if isinstance(record, NameRecord) else signed.data[:1] + signed.signer
        self.expires_s = _kept_until(record, now_s)
        self.received_s = now_s
        self.source = source
        self.size = len(self.data) + _ENTRY_BYTES + _KEY_BYTES * len(self.keys)


def keys_of(signed: Signed) -> list[bytes]:
    """The 20-byte keys under which a record belongs in the DHT."""
    record = signed.record
    match record:
        case NameRecord():
            return [record.target.dht_key]
        case PeerRecord():
            return [node_id(signed.signer)]
        case ProviderClaim():
            return [contents_key(record.contents)]
        case ShardClaims():
            return record.unpacked()


def version_of(record: Record) -> tuple[int, ...]:
    """Orders records of one kind, key and signer (any release key, for names): later ones compare higher."""
    if isinstance(record, NameRecord):
        return (*record.rank, max(record.fresh_until, record.voucher.fresh_until if record.voucher else 0))
    return (record.sequence, record.expires)


def check_lifetime(record: Record, now_s: float) -> None:
    """FormatError if the record has expired or claims to live longer than its kind may. Names do neither."""
    if isinstance(record, NameRecord):
        return
    left_s = record.expires - now_s
    if left_s <= -CLOCK_TOLERANCE_S or left_s > _LIFETIME_S[type(record)] + CLOCK_TOLERANCE_S:
        raise FormatError(f"{type(record).__name__} expires in {left_s:.0f} s: too late, or too long ago")


def _kept_until(record: Record, now_s: float) -> float:
    if isinstance(record, NameRecord):
        return now_s + NAME_KEPT_S
    return record.expires + CLOCK_TOLERANCE_S


class Holdings(IStorage):  # type: ignore[misc]  # the package has no types
    """The record table. ``now_s`` tells Unix time."""

    def __init__(self, now_s: Callable[[], float], limits: Limits | None = None) -> None:
        self._now_s = now_s
        self._limits = limits or Limits()
        self._entries: dict[bytes, _Entry] = {}
        self._by_key: dict[bytes, tuple[_Entry, ...]] = {}
        self._ends: list[tuple[float, bytes]] = []
        self._bytes_of: Counter[str] = Counter()
        self._bytes = 0

    def keep(self, data: bytes, source: str = "") -> bool:
        """Keep a record that ``source`` (an IP address, empty for ourselves) put here: whether it is here now.

        False if something newer is here or a bound is reached. FormatError or IntegrityError if it is no good.
        """
        now_s = self._now_s()
        known = self._entries.get(data)
        if known is not None and known.expires_s > now_s:
            if not known.slot:
                known.expires_s = now_s + NAME_KEPT_S
            return True
        signed = decode(data)
        check_lifetime(signed.record, now_s)
        entry = _Entry(signed, now_s, source)
        entry.keys = {key for key in entry.keys if self._admits(key, entry)}
        over = source and self._bytes_of[source] + entry.size > self._limits.bytes_per_source
        if not entry.keys or over or self._bytes + entry.size > self._limits.bytes_in_all:
            return False
        for key in entry.keys:
            self._place(key, entry)
        self._entries[entry.data] = entry
        self._bytes_of[source] += entry.size
        self._bytes += entry.size
        heapq.heappush(self._ends, (entry.expires_s, entry.data))
        return True

    def stream(self, key: bytes) -> Iterator[bytes]:
        """Records under a key, oldest first, each signer's PeerRecord (if it is here) right before its first claim."""
        now_s = self._now_s()
        introduced: set[bytes] = set()
        for entry in self._by_key.get(key, ()):
            if entry.expires_s <= now_s:
                continue
            signer = entry.slot[1:]
            if signer and signer not in introduced:
                introduced.add(signer)
                for peer in self._by_key.get(node_id(signer), ()):
                    if peer is not entry and peer.expires_s > now_s and peer.slot == _PEER_SLOT + signer:
                        yield peer.data
            yield entry.data

    def forget_expired(self) -> int:
        """Drop what has expired: how many records."""
        now_s = self._now_s()
        dropped = 0
        while self._ends and self._ends[0][0] <= now_s:
            _, data = heapq.heappop(self._ends)
            entry = self._entries.get(data)
            if entry is None:
                continue
            if entry.expires_s > now_s:
                heapq.heappush(self._ends, (entry.expires_s, data))
                continue
            for key in tuple(entry.keys):
                self._remove(key, entry)
            dropped += 1
        return dropped

    @property
    def record_count(self) -> int:
        return len(self._entries)

    @property
    def key_count(self) -> int:
        return len(self._by_key)

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
                for key in sorted(entry.keys):
                    yield key, entry.data

    def _admits(self, key: bytes, entry: _Entry) -> bool:
        here = self._by_key.get(key, ())
        same = next((each for each in here if each.slot == entry.slot), None)
        if same is not None:
            return same.version < entry.version
        return len(here) < self._limits.records_per_key

    def _place(self, key: bytes, entry: _Entry) -> None:
        for each in self._by_key.get(key, ()):
            if each.slot == entry.slot:
                self._remove(key, each)
        self._by_key[key] = (*self._by_key.get(key, ()), entry)

    def _remove(self, key: bytes, entry: _Entry) -> None:
        left = tuple(each for each in self._by_key[key] if each is not entry)
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]
        entry.keys.discard(key)
        if not entry.keys:
            del self._entries[entry.data]
            self._bytes_of[entry.source] -= entry.size
            self._bytes -= entry.size
            if self._bytes_of[entry.source] <= 0:
                del self._bytes_of[entry.source]
            self._trim()

    def _trim(self) -> None:
        """Records that were replaced leave their ends behind; they must not pile up."""
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(entry.expires_s, entry.data) for entry in self._entries.values()]
            heapq.heapify(self._ends)
