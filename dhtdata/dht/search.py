"""What a search has found: records of many holders, verified, deduplicated, the newest of each signer. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dhtdata.dht.holdings import check_lifetime, keys_of, version_of
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import NameRecord, PeerRecord, Signed, decode

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
        self._peers: dict[bytes, tuple[tuple[int, ...], tuple[Address, ...]]] = {}

    def take(self, records: Iterable[bytes]) -> list[Found]:
        """What a holder's reply adds: a record, a newer one of the same signer, or the addresses to one told before."""
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
        known_version, known_addresses = self._peers.get(signer, ((), ()))
        addresses = tuple(wire.address() for wire in peer.addresses)
        if known_version >= version_of(peer):
            return []
        self._peers[signer] = (version_of(peer), addresses)
        told = [each for each in self._newest.values() if each.signer == signer and each.record is not peer]
        return [Found(each, addresses) for each in told if addresses != known_addresses]

    def _place(self, signed: Signed) -> list[Found]:
        slot = signed.data[:1] + (b"" if isinstance(signed.record, NameRecord) else signed.signer)
        known = self._newest.get(slot)
        if known is not None and version_of(known.record) >= version_of(signed.record):
            return []
        self._newest[slot] = signed
        return [Found(signed, self._peers.get(signed.signer, ((), ()))[1])]
