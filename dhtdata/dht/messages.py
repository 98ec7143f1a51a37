"""Requests and replies as bytes. Pure.

A datagram has at most 1,200 bytes (it crosses any path unfragmented)::

    offset  size  field
    0       1     0 request, 1 reply
    1       20    number of the call, chosen at random by the caller, repeated in the reply
    21      1     version of this format (1)
    22      …     canonical msgpack array: tag, identifier of the sender, whether it is a client, then the fields

| request | reply | meaning |
|---|---|---|
| ``Ping`` | ``Pong`` | are you there, and who are you |
| ``FindNode`` | ``Nodes`` | up to 20 contacts that you know nearest to a target |
| ``FindRecords`` | ``Records`` | records that you keep under a key, after the first ``after``; contacts too if wanted |
| ``Store`` | ``Stored`` | keep these records (each says itself under which keys); how many you keep now |

A *client* looks up and is never put into a table. Records are bytes here: who uses one decodes it, which checks its
signature. A ``Records`` reply puts a signer's PeerRecord right before the first of its claims, so one reply gives
providers and their addresses; with ``more`` the caller asks again with ``after`` raised by what it got.

Rejected, as a `FormatError` and nothing else: a wrong size, tag, arity, type or version; identifiers not of 20 bytes;
more contacts or records than a reply may hold; addresses that no node can have (IP not of 4 or 16 bytes, port 0 or past
65,535, unspecified, multicast). A host name cannot be written down in this format.

>>> request = Ping(sender=bytes(20), client=False)
>>> call, message = decode(encode(bytes(range(20)), request))
>>> (call == bytes(range(20)), message == request)
(True, True)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, cast

from dhtdata.dht.routing import BUCKET_SIZE, ID_BYTES, Contact
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.codec import Format, decode_msgpack, encode_msgpack
from dhtdata.formats.records import MAX_RECORD_BYTES

VERSION = 1
MAX_DATAGRAM_BYTES = 1_200
CALL_BYTES = 20
HEADER_BYTES = 1 + CALL_BYTES + 1
MAX_RECORDS = 16
FIRST_CONTACTS = 8
_BODY_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES
_OVERHEAD_BYTES = 48  # tag, sender, flags, counts and array heads of any message, rounded up
_RECORD_HEAD_BYTES = 3
_MAPPED_IPV4 = bytes(10) + b"\xff\xff"
_ITEM_BYTES = _BODY_BYTES - _OVERHEAD_BYTES


class ContactWire(Format, frozen=True, array_like=True):
    """A contact: 20 bytes, 4 or 16 bytes, port."""

    id: bytes
    ip: bytes
    port: int

    @classmethod
    def of(cls, contact: Contact) -> ContactWire:
        wire = AddressWire.of(contact.address)
        return cls(id=contact.id, ip=wire.ip, port=wire.port)

    def contact(self) -> Contact:
        return Contact(self.id, _address(self.ip, self.port))


class Message(Format, frozen=True, array_like=True):
    """What every message says: who sends it, and whether that is a client."""

    sender: bytes
    client: bool


class Ping(Message, frozen=True, tag="ping"):
    pass


class Pong(Message, frozen=True, tag="pong"):
    pass


class FindNode(Message, frozen=True, tag="find_node"):
    target: bytes


class Nodes(Message, frozen=True, tag="nodes"):
    contacts: tuple[ContactWire, ...]


class FindRecords(Message, frozen=True, tag="find_records"):
    key: bytes
    after: int
    contacts: bool


class Records(Message, frozen=True, tag="records"):
    contacts: tuple[ContactWire, ...]
    records: tuple[bytes, ...]
    more: bool


class Store(Message, frozen=True, tag="store"):
    records: tuple[bytes, ...]


class Stored(Message, frozen=True, tag="stored"):
    kept: int


Request = Ping | FindNode | FindRecords | Store
Reply = Pong | Nodes | Records | Stored
REPLY_TO: dict[type[Request], type[Reply]] = {Ping: Pong, FindNode: Nodes, FindRecords: Records, Store: Stored}


def encode(call: bytes, message: Request | Reply) -> bytes:
    """The datagram. FormatError if it would be too large: `fitting` and `parcels` see to it that it is not."""
    kind = 0 if type(message) in REPLY_TO else 1
    datagram = bytes([kind]) + call + bytes([VERSION]) + encode_msgpack(message)
    if len(datagram) > MAX_DATAGRAM_BYTES:
        raise FormatError(f"datagram of {len(datagram)} bytes, at most {MAX_DATAGRAM_BYTES} are sent")
    return datagram


def decode(datagram: bytes) -> tuple[bytes, Request | Reply]:
    """Number of the call, and a message of which every field has been checked. FormatError otherwise."""
    if not HEADER_BYTES < len(datagram) <= MAX_DATAGRAM_BYTES:
        raise FormatError(f"datagram of {len(datagram)} bytes, expected {HEADER_BYTES + 1} to {MAX_DATAGRAM_BYTES}")
    kind, version = datagram[0], datagram[HEADER_BYTES - 1]
    if kind > 1 or version != VERSION:
        raise FormatError(f"datagram of kind {kind} and version {version}: unknown")
    expected = cast(Any, Reply if kind else Request)
    message = decode_msgpack(datagram[HEADER_BYTES:], expected, limit_bytes=MAX_DATAGRAM_BYTES, what="datagram")
    _check(message)
    return datagram[1 : 1 + CALL_BYTES], cast(Request | Reply, message)


def check_reachable(address: AddressWire | ContactWire) -> None:
    """FormatError unless a node can have the address: not unspecified, multicast, reserved or an IPv4 in disguise."""
    ip, port = address.ip, address.port
    usable = (
        0 < ip[0] < 224
        if len(ip) == 4
        else len(ip) == 16 and ip[0] != 0xFF and any(ip) and not ip.startswith(_MAPPED_IPV4)
    )
    if not usable or not 1 <= port <= 65_535:
        raise FormatError(f"no node can have the address {ip.hex()[:40]} port {port}")


def fitting(contacts: Sequence[Contact], records: Iterable[bytes]) -> tuple[tuple[ContactWire, ...], tuple[bytes, ...]]:
    """As much of a ``Records`` reply as one datagram holds: 8 contacts first, then records, then more contacts.

    Without contacts at least one record fits, as records have at most 1,000 bytes.
    """
    wires = [ContactWire.of(contact) for contact in contacts]
    room = _ITEM_BYTES - sum(map(_size, wires[:FIRST_CONTACTS]))
    chosen: list[bytes] = []
    for record in records:
        room -= len(record) + _RECORD_HEAD_BYTES
        if room < 0 or len(chosen) == MAX_RECORDS:
            room += len(record) + _RECORD_HEAD_BYTES
            break
        chosen.append(record)
    kept = wires[:FIRST_CONTACTS]
    for wire in wires[FIRST_CONTACTS:BUCKET_SIZE]:
        room -= _size(wire)
        if room < 0:
            break
        kept.append(wire)
    return tuple(kept), tuple(chosen)


def nodes_fitting(contacts: Sequence[Contact]) -> tuple[ContactWire, ...]:
    """As many contacts, nearest first, as one datagram holds: 20 fit, also with IPv6."""
    return tuple(map(ContactWire.of, contacts[:BUCKET_SIZE]))


def parcels(records: Iterable[bytes]) -> list[tuple[bytes, ...]]:
    """Records cut into lists that each fit one ``Store`` request, in order."""
    filled: list[list[bytes]] = []
    room = 0
    for record in records:
        room -= len(record) + _RECORD_HEAD_BYTES
        if room < 0 or len(filled[-1]) == MAX_RECORDS:
            filled.append([])
            room = _ITEM_BYTES - len(record) - _RECORD_HEAD_BYTES
        filled[-1].append(record)
    return [tuple(each) for each in filled]


@lru_cache(maxsize=4_096)
def _address(ip: bytes, port: int) -> Address:
    # The same few hundred contacts come back in every reply, and parsing an address costs 10 µs.
    return AddressWire(ip=ip, port=port).address()


def _size(wire: ContactWire) -> int:
    return 1 + 2 + ID_BYTES + 2 + len(wire.ip) + 3


def _check(message: Message) -> None:
    _check_id(message.sender)
    if isinstance(message, Nodes | Records):
        if len(message.contacts) > BUCKET_SIZE:
            raise FormatError(f"{len(message.contacts)} contacts in a reply, at most {BUCKET_SIZE} are allowed")
        for wire in message.contacts:
            _check_id(wire.id)
            check_reachable(wire)
    if isinstance(message, Records | Store):
        if len(message.records) > MAX_RECORDS or any(len(record) > MAX_RECORD_BYTES for record in message.records):
            raise FormatError(f"more than {MAX_RECORDS} records in a datagram, or one of over {MAX_RECORD_BYTES} bytes")
    if isinstance(message, FindNode):
        _check_id(message.target)
    if isinstance(message, FindRecords):
        _check_id(message.key)
        if not 0 <= message.after < 1 << 16:
            raise FormatError(f"a reply cannot start after record {message.after}")
    if isinstance(message, Stored) and not 0 <= message.kept <= MAX_RECORDS:
        raise FormatError(f"a datagram cannot hold {message.kept} records")


def _check_id(value: bytes) -> None:
    if len(value) != ID_BYTES:
        raise FormatError(f"an identifier has {ID_BYTES} bytes, this one has {len(value)}")
