"""Binary answers of the HTTP interface: canonical msgpack, versioned like every format (`dhtdata.formats.codec`).

| path | answer | at most |
|---|---|---|
| ``/v1/have/<contents>`` | `HaveMap` | 4 MiB |
| ``/v1/peers/<contents>`` | `PeerExchange` | 64 KiB |
| ``/v1/providers/<digest>`` | `ProviderRecords` | 256 KiB |
| ``/v1/names/<publisher>/<name>`` | bytes of one signed NameRecord (`dhtdata.formats.records`) | 1,000 bytes |

A have-map is whole, or says what has changed since a revision that the asker named; who names none, or one that is too
old, gets a whole one. It also says which blocks are on their way to its sender, so that others ask for different ones
first. It speaks of shard ordinals (`dhtdata.formats.contents`) and block positions:
bit i of a bitmap is bit ``i % 8``, counted from the lowest, of byte ``i // 8``. It is a promise, not a proof: who asks
for a block that is not there gets a 404 or 416 and asks somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address, AddressWire
from dhtdata.formats.blocks import MAX_BLOCKS
from dhtdata.formats.codec import Format, check_ext, check_version, decode_msgpack, encode_msgpack
from dhtdata.formats.records import MAX_RECORD_BYTES

VERSION = 2
MAX_HAVE_BYTES = 4 << 20
MAX_PARTIALS = 256
FETCHER_BYTES = 8
MAX_GAINED = MAX_PARTIALS
MAX_EXCHANGE_BYTES = 64 << 10
MAX_EXCHANGED = 64
MAX_PROVIDERS_BYTES = 256 << 10
MAX_PROVIDER_RECORDS = 64
MAX_ORDINALS = 1 << 24


class PartialShard(Format, frozen=True, array_like=True):
    """Verified blocks of a shard that is not whole yet, and blocks that its holder is fetching (``coming``)."""

    ordinal: int
    blocks: bytes
    coming: bytes = b""


class HaveMap(Format, frozen=True):
    """What a peer holds of some contents. ``complete``: every shard, the bitmap is left out.

    ``revision`` grows with every change; ``unchanged`` answers ``?since=<revision>`` when there was none. With
    ``base``, the map adds to the one of that revision: ``gained`` are ordinals of shards that have become whole,
    ``partials`` the partial shards in which anything has changed, as they are now; ``shards`` is left out.
    ``fetcher``: random bytes, the same for as long as its sender runs, by which those who fetch share the work
    (`dhtdata.transfer.members`).
    """

    version: int
    contents: Digest
    revision: int
    complete: bool = False
    unchanged: bool = False
    shards: bytes = b""
    partials: tuple[PartialShard, ...] = ()
    base: int = 0
    gained: tuple[int, ...] = ()
    fetcher: bytes = b""
    ext: dict[str, str] = {}

    def encode(self) -> bytes:
        return encode_msgpack(self)

    @classmethod
    def decode(cls, data: bytes) -> HaveMap:
        what = "have-map"
        have = decode_msgpack(data, cls, limit_bytes=MAX_HAVE_BYTES, what=what)
        check_version(have, VERSION, what)
        check_ext(have.ext, what)
        if len(have.partials) > MAX_PARTIALS or len(have.gained) > MAX_GAINED or 8 * len(have.shards) > MAX_ORDINALS:
            raise FormatError(f"{what}: too large")
        if len(have.fetcher) not in (0, FETCHER_BYTES):
            raise FormatError(f"{what}: its sender's key has {len(have.fetcher)} bytes, not {FETCHER_BYTES}")
        if have.revision < 0 or not 0 <= have.base <= have.revision or (have.base and (have.shards or have.complete)):
            raise FormatError(f"{what}: revisions that make no sense")
        for partial in have.partials:
            longest = max(len(partial.blocks), len(partial.coming))
            if not 0 <= partial.ordinal < MAX_ORDINALS or 8 * longest > MAX_BLOCKS + 7:
                raise FormatError(f"{what}: a partial shard that cannot be")
        if not all(0 <= ordinal < MAX_ORDINALS for ordinal in have.gained):
            raise FormatError(f"{what}: a shard that cannot be")
        return have


class PeerExchange(Format, frozen=True):
    """Addresses that were lately seen to provide some contents."""

    version: int
    addresses: tuple[AddressWire, ...]
    ext: dict[str, str] = {}

    @classmethod
    def of(cls, addresses: Iterable[Address]) -> PeerExchange:
        wires = tuple(AddressWire.of(address) for address in addresses)
        return cls(version=VERSION, addresses=wires[:MAX_EXCHANGED])

    def encode(self) -> bytes:
        return encode_msgpack(self)

    @classmethod
    def decode(cls, data: bytes) -> tuple[Address, ...]:
        what = "peer exchange"
        exchange = decode_msgpack(data, cls, limit_bytes=MAX_EXCHANGE_BYTES, what=what)
        check_version(exchange, VERSION, what)
        check_ext(exchange.ext, what)
        if len(exchange.addresses) > MAX_EXCHANGED:
            raise FormatError(f"{what}: {len(exchange.addresses)} addresses, at most {MAX_EXCHANGED} are allowed")
        return tuple(wire.address() for wire in exchange.addresses)


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """A signed record as it came out of the DHT (not yet verified), and where its signer is said to be."""

    data: bytes
    addresses: tuple[Address, ...]


class _RecordWire(Format, frozen=True, array_like=True):
    record: bytes
    addresses: tuple[AddressWire, ...]


class ProviderRecords(Format, frozen=True):
    """Records found in the DHT on behalf of a peer that cannot ask it. Signed, so the messenger cannot forge them."""

    version: int
    records: tuple[_RecordWire, ...]
    ext: dict[str, str] = {}

    @classmethod
    def of(cls, records: Sequence[ProviderRecord]) -> ProviderRecords:
        wires = (
            _RecordWire(record=record.data, addresses=tuple(map(AddressWire.of, record.addresses[:MAX_ADDRESSES])))
            for record in records[:MAX_PROVIDER_RECORDS]
        )
        return cls(version=VERSION, records=tuple(wires))

    def encode(self) -> bytes:
        return encode_msgpack(self)

    @classmethod
    def decode(cls, data: bytes) -> list[ProviderRecord]:
        what = "provider records"
        answer = decode_msgpack(data, cls, limit_bytes=MAX_PROVIDERS_BYTES, what=what)
        check_version(answer, VERSION, what)
        check_ext(answer.ext, what)
        if len(answer.records) > MAX_PROVIDER_RECORDS:
            raise FormatError(f"{what}: {len(answer.records)} records, at most {MAX_PROVIDER_RECORDS} are allowed")
        found = []
        for wire in answer.records:
            if len(wire.record) > MAX_RECORD_BYTES or len(wire.addresses) > MAX_ADDRESSES:
                raise FormatError(f"{what}: a record that is too large")
            found.append(ProviderRecord(wire.record, tuple(address.address() for address in wire.addresses)))
        return found


def bit(bitmap: bytes | bytearray, position: int) -> bool:
    """Bit ``position``; false past the end."""
    return position >> 3 < len(bitmap) and bool(bitmap[position >> 3] >> (position & 7) & 1)


def pack_bits(positions: Iterable[int], length: int) -> bytes:
    """Bitmap of ``length`` bits with these set."""
    bitmap = bytearray((length + 7) // 8)
    for position in positions:
        bitmap[position >> 3] |= 1 << (position & 7)
    return bytes(bitmap)


def set_bits(bitmap: bytes | bytearray) -> Iterator[int]:
    """Positions of the bits that are set, ascending."""
    for place, byte in enumerate(bitmap):
        while byte:
            yield 8 * place + (byte & -byte).bit_length() - 1
            byte &= byte - 1
