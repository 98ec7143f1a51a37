"""Requests and replies: the body of a datagram (`envelope`). Pure.

Canonical msgpack array: tag, then the fields. Every reply begins with ``you``, the IP address at which the answering
node sees who asked (4 or 16 bytes), and ``time``, its Unix clock in seconds.

| request | reply | meaning |
|---|---|---|
| ``Ping`` | ``Pong`` | are you there, and who are you |
| ``FindNode`` | ``Nodes`` | up to 20 contacts that you know nearest to ``target`` |
| ``FindRecords`` | ``Records`` | records under ``key``, past the first ``after``; contacts near ``target`` if wanted |
| ``Store`` | ``Stored`` | keep these records (each says itself under which keys); how many you keep now |
| ``Introduce`` | ``Introduced`` | have another node call me; whether you know one (`reachability`) |
| ``Meet`` | ``Met`` | call the node at this address |

Records are bytes here: who uses one decodes it, which checks its signature. A ``Records`` reply puts a signer's
PeerRecords right before the first of its claims, so one reply gives providers and their addresses; with ``more`` the
caller asks again with ``after`` raised by what it got. ``key`` and ``target`` differ when a walk explores the region
round a key and not the key itself (`region`).

Rejected, as a `FormatError` and nothing else: a wrong tag, arity, type or form; identifiers not of 20 bytes; more
contacts or records than a reply may hold; addresses that no node can have (IP not of 4 or 16 bytes, wrapped IPv4, a
port under 1,024, unspecified, multicast). A host name cannot be written down in this format.

>>> request = FindNode(target=bytes(20))
>>> decode_request(encode(request)) == request
True
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, cast

from dhtdata.dht.envelope import MAX_BODY_BYTES
from dhtdata.dht.routing import BUCKET_SIZE, ID_BYTES, Contact
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import FIRST_PORT, Address, AddressWire, packed, scope
from dhtdata.formats.codec import Format, decode_msgpack, encode_msgpack
from dhtdata.formats.records import MAX_RECORD_BYTES

MAX_RECORDS = 16
FIRST_CONTACTS = 8
_OVERHEAD_BYTES = 48  # tag, our reader's IP, clock, flags, counts and array heads of any message, rounded up
_RECORD_HEAD_BYTES = 3
_ITEM_BYTES = MAX_BODY_BYTES - _OVERHEAD_BYTES
_MAX_TIME = 1 << 40


class ContactWire(Format, frozen=True, array_like=True):
    """A contact: 20 bytes, 4 or 16 bytes, port."""

    id: bytes
    ip: bytes
    port: int

    @classmethod
    def of(cls, contact: Contact) -> ContactWire:
        return _wire(contact.id, contact.address)

    def contact(self) -> Contact:
        return _contact(self.id, self.ip, self.port)


class Message(Format, frozen=True, array_like=True):
    """Any of them."""


class Answer(Message, frozen=True):
    """What every reply says: the asker's IP as seen here, and the time here."""

    you: bytes
    time: int


class Ping(Message, frozen=True, tag="ping"):
    pass


class Pong(Answer, frozen=True, tag="pong"):
    pass


class FindNode(Message, frozen=True, tag="find_node"):
    target: bytes


class Nodes(Answer, frozen=True, tag="nodes"):
    contacts: tuple[ContactWire, ...]


class FindRecords(Message, frozen=True, tag="find_records"):
    key: bytes
    target: bytes
    after: int
    contacts: bool


class Records(Answer, frozen=True, tag="records"):
    contacts: tuple[ContactWire, ...]
    records: tuple[bytes, ...]
    more: bool


class Store(Message, frozen=True, tag="store"):
    records: tuple[bytes, ...]


class Stored(Answer, frozen=True, tag="stored"):
    kept: int


class Introduce(Message, frozen=True, tag="introduce"):
    pass


class Introduced(Answer, frozen=True, tag="introduced"):
    others: bool


class Meet(Message, frozen=True, tag="meet"):
    ip: bytes
    port: int


class Met(Answer, frozen=True, tag="met"):
    pass


Request = Ping | FindNode | FindRecords | Store | Introduce | Meet
Reply = Pong | Nodes | Records | Stored | Introduced | Met
REPLY_TO: dict[type[Request], type[Reply]] = {
    Ping: Pong,
    FindNode: Nodes,
    FindRecords: Records,
    Store: Stored,
    Introduce: Introduced,
    Meet: Met,
}


def encode(message: Request | Reply) -> bytes:
    """The body: `fitting` and `parcels` see to it that it fits a datagram."""
    return encode_msgpack(message)


def decode_request(body: bytes) -> Request:
    """A request of which every field has been checked. FormatError otherwise."""
    request = decode_msgpack(body, cast(Any, Request), limit_bytes=MAX_BODY_BYTES, what="request")
    if isinstance(request, FindNode):
        _check_id(request.target)
    elif isinstance(request, FindRecords):
        _check_id(request.key)
        _check_id(request.target)
        if not 0 <= request.after < 1 << 16:
            raise FormatError(f"a reply cannot start after record {request.after}")
    elif isinstance(request, Store):
        _check_records(request.records)
    elif isinstance(request, Meet):
        check_reachable(request)
    return cast(Request, request)


def decode_reply(body: bytes) -> Reply:
    """A reply of which every field has been checked. FormatError otherwise."""
    reply = decode_msgpack(body, cast(Any, Reply), limit_bytes=MAX_BODY_BYTES, what="reply")
    if len(reply.you) not in (4, 16) or not 0 <= reply.time < _MAX_TIME:
        raise FormatError("a reply with an impossible address or time")
    if isinstance(reply, Nodes | Records):
        if len(reply.contacts) > BUCKET_SIZE:
            raise FormatError(f"{len(reply.contacts)} contacts in a reply, at most {BUCKET_SIZE} are allowed")
        for wire in reply.contacts:
            _check_id(wire.id)
            check_reachable(wire)
    if isinstance(reply, Records):
        _check_records(reply.records)
    if isinstance(reply, Stored) and not 0 <= reply.kept <= MAX_RECORDS:
        raise FormatError(f"a datagram cannot hold {reply.kept} records")
    return cast(Reply, reply)


def check_reachable(address: AddressWire | ContactWire | Meet) -> None:
    """FormatError unless a node can have the address."""
    if not _reachable(address.ip, address.port):
        raise FormatError(f"no node can have the address {address.ip.hex()[:40]} port {address.port}")


def may_be_named(contact: Contact) -> bool:
    """Whether replies may name the contact: only then it may stand in a table, as one that must not spoils replies."""
    return _reachable(packed(contact.address.ip), contact.address.port)


@lru_cache(maxsize=8_192)
def _reachable(ip: bytes, port: int) -> bool:
    if len(ip) not in (4, 16) or not FIRST_PORT <= port <= 65_535:
        return False
    address = ip_address(ip)
    return getattr(address, "ipv4_mapped", None) is None and scope(str(address)) != "none"


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


# The same few hundred contacts go out and come back in every reply, 20 at a time, and making one costs 5 to 15 µs.
@lru_cache(maxsize=8_192)
def _contact(node_id: bytes, ip: bytes, port: int) -> Contact:
    return Contact(node_id, AddressWire(ip=ip, port=port).address())


@lru_cache(maxsize=8_192)
def _wire(node_id: bytes, address: Address) -> ContactWire:
    return ContactWire(id=node_id, ip=packed(address.ip), port=address.port)


def _size(wire: ContactWire) -> int:
    return 1 + 2 + ID_BYTES + 2 + len(wire.ip) + 3


def _check_records(records: Sequence[bytes]) -> None:
    if len(records) > MAX_RECORDS or any(len(record) > MAX_RECORD_BYTES for record in records):
        raise FormatError(f"more than {MAX_RECORDS} records in a datagram, or one of over {MAX_RECORD_BYTES} bytes")


def _check_id(value: bytes) -> None:
    if len(value) != ID_BYTES:
        raise FormatError(f"an identifier has {ID_BYTES} bytes, this one has {len(value)}")
