"""What a search has found: records of many holders, verified, deduplicated, the newest of each signer. No I/O.

A signer has a PeerRecord for each of its IPs (`holdings`), and its addresses are those of all of them: first
what most holders told, because a holder that lies about the IP it sees can make a node sign a record for any, then the
newest. A withdrawal is taken as the newest record of its signer and told to nobody, so that an older claim which
another holder still has does not come after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dhtdata.dht.holdings import check_lifetime, keys_of, version_of
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address
from dhtdata.formats.records import NameRecord, PeerRecord, Signed, decode, withdrawn

MAX_RECORDS_READ = 4_096


@dataclass(frozen=True, slots=True)
class Found:
    """A verified record and where its signer can be reached (empty if no holder knew)."""

    record: Signed
    addresses: tuple[Address, ...]


class Findings:
    """Records under one key. Every distinct record is verified once, and no more than 4,096 of them."""

    def __init__(self, key: bytes, now_s: float) -> None:
        self._key = key
        self._now_s = now_s
        self._read: set[bytes] = set()
        self._newest: dict[bytes, Signed] = {}
        self._peers: dict[bytes, dict[str, Signed]] = {}
        self._holders: defaultdict[bytes, set[bytes]] = defaultdict(set)

    def take(self, holder: bytes, records: Iterable[bytes]) -> list[Found]:
        """What a holder's reply adds: a record, a newer one of its signer, or more addresses to one told before."""
        new: list[Found] = []
        for data in records:
            if data in self._read:
                self._holders[data].add(holder)
                continue
            if len(self._read) >= MAX_RECORDS_READ:
                continue
            self._read.add(data)
            try:
                signed = decode(data)
                check_lifetime(signed.record, self._now_s)
            except (FormatError, IntegrityError):
                continue
            self._holders[data].add(holder)
            if isinstance(signed.record, PeerRecord):
                new += self._introduce(signed)
            if self._key in keys_of(signed):
                new += self._place(signed)
        return new

    def _introduce(self, signed: Signed) -> list[Found]:
        peer = signed.record
        if not isinstance(peer, PeerRecord):
            return []
        known = self._peers.setdefault(signed.signer, {})
        before = self._addresses(signed.signer)
        ip = peer.addresses[0].address().ip
        if ip in known and version_of(known[ip].record) >= version_of(peer):
            return []
        known[ip] = signed
        addresses = self._addresses(signed.signer)
        if set(addresses) == set(before):
            return []
        told = (each for each in self._newest.values() if each.signer == signed.signer and each is not signed)
        return [Found(each, addresses) for each in told if not withdrawn(each.record)]

    def _place(self, signed: Signed) -> list[Found]:
        slot = signed.data[:1] + (b"" if isinstance(signed.record, NameRecord) else signed.signer)
        known = self._newest.get(slot)
        if known is not None and version_of(known.record) >= version_of(signed.record):
            return []
        self._newest[slot] = signed
        return [] if withdrawn(signed.record) else [Found(signed, self._addresses(signed.signer))]

    def _addresses(self, signer: bytes) -> tuple[Address, ...]:
        peers = [each for each in self._peers.get(signer, {}).values() if not withdrawn(each.record)]
        peers.sort(key=lambda each: (len(self._holders[each.data]), version_of(each.record)), reverse=True)
        records = (each.record for each in peers)
        wires = (wire for record in records if isinstance(record, PeerRecord) for wire in record.addresses)
        return tuple(dict.fromkeys(wire.address() for wire in wires))[:MAX_ADDRESSES]
