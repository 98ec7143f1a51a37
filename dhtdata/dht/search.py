"""What a search has found: records of many holders, verified, deduplicated, the newest of each signer. No I/O.

A signer has a PeerRecord for each of its IPs (`holdings`), and its addresses are those of all of them, the newest
first. A withdrawal is taken as the newest record of its signer and told to nobody, so that an older claim which another
holder still has does not come after it.
"""

from __future__ import annotations

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
        self._peers: dict[bytes, dict[str, PeerRecord]] = {}

    def take(self, records: Iterable[bytes]) -> list[Found]:
        """What a holder's reply adds: a record, a newer one of its signer, or more addresses to one told before."""
        new: list[Found] = []
        for data in records:
            if data in self._read or len(self._read) >= MAX_RECORDS_READ:
                continue
            self._read.add(data)
            try:
                signed = decode(data)
                check_lifetime(signed.record, self._now_s)
            except (FormatError, IntegrityError):
                continue
            if isinstance(signed.record, PeerRecord):
                new += self._introduce(signed.signer, signed.record)
            if self._key in keys_of(signed):
                new += self._place(signed)
        return new

    def _introduce(self, signer: bytes, peer: PeerRecord) -> list[Found]:
        known = self._peers.setdefault(signer, {})
        before = self._addresses(signer)
        ip = peer.addresses[0].address().ip
        if ip in known and version_of(known[ip]) >= version_of(peer):
            return []
        known[ip] = peer
        addresses = self._addresses(signer)
        if addresses == before:
            return []
        told = (each for each in self._newest.values() if each.signer == signer and each.record is not peer)
        return [Found(each, addresses) for each in told if not withdrawn(each.record)]

    def _place(self, signed: Signed) -> list[Found]:
        slot = signed.data[:1] + (b"" if isinstance(signed.record, NameRecord) else signed.signer)
        known = self._newest.get(slot)
        if known is not None and version_of(known.record) >= version_of(signed.record):
            return []
        self._newest[slot] = signed
        return [] if withdrawn(signed.record) else [Found(signed, self._addresses(signed.signer))]

    def _addresses(self, signer: bytes) -> tuple[Address, ...]:
        peers = (each for each in self._peers.get(signer, {}).values() if not withdrawn(each))
        newest_first = sorted(peers, key=version_of, reverse=True)
        addresses = (wire.address() for peer in newest_first for wire in peer.addresses)
        return tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]
