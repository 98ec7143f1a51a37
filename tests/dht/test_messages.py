"""Datagrams: round trips, the size budget, and every malformed input."""

from __future__ import annotations

import doctest
import random
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht import messages as module
from dhtdata.dht.messages import (
    HEADER_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_RECORDS,
    VERSION,
    ContactWire,
    FindNode,
    FindRecords,
    Message,
    Nodes,
    Ping,
    Pong,
    Records,
    Store,
    Stored,
    decode,
    encode,
    fitting,
    nodes_fitting,
    parcels,
)
from dhtdata.dht.routing import BUCKET_SIZE, Contact
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import MAX_RECORD_BYTES

ID = bytes(range(20))
identifiers = st.binary(min_size=20, max_size=20)
addresses = st.builds(
    Address,
    st.one_of(
        st.binary(min_size=4, max_size=4).filter(lambda ip: 0 < ip[0] < 224),
        st.binary(min_size=16, max_size=16).filter(lambda ip: ip[0] != 0xFF and any(ip[:12])),
    ).map(lambda ip: str(ip_address(ip))),
    st.integers(1, 65_535),
)
contacts = st.builds(Contact, identifiers, addresses)
records = st.lists(st.binary(max_size=MAX_RECORD_BYTES), max_size=40)
heads: dict[str, Any] = {"sender": identifiers, "client": st.booleans()}
messages = st.one_of(
    st.builds(Ping, **heads),
    st.builds(Pong, **heads),
    st.builds(FindNode, **heads, target=identifiers),
    st.builds(FindRecords, **heads, key=identifiers, after=st.integers(0, 65_535), contacts=st.booleans()),
    st.builds(Nodes, **heads, contacts=st.lists(contacts, max_size=20).map(nodes_fitting)),
    st.builds(Stored, **heads, kept=st.integers(0, MAX_RECORDS)),
)


@settings(max_examples=300, deadline=None)
@given(call=identifiers, message=messages)
def test_every_message_comes_back_as_it_was(call: bytes, message: Any) -> None:
    assert decode(encode(call, message)) == (call, message)


@settings(max_examples=150, deadline=None)
@given(near=st.lists(contacts, max_size=30), waiting=records)
def test_a_reply_of_contacts_and_records_always_fits_a_datagram(near: list[Contact], waiting: list[bytes]) -> None:
    chosen_contacts, chosen = fitting(near, waiting)
    reply = Records(sender=ID, client=False, contacts=chosen_contacts, records=chosen, more=True)
    assert decode(encode(ID, reply)) == (ID, reply)
    assert [wire.contact() for wire in chosen_contacts] == near[: len(chosen_contacts)]
    assert len(chosen_contacts) >= min(len(near), 8)
    assert list(chosen) == waiting[: len(chosen)]


@settings(max_examples=150, deadline=None)
@given(waiting=records)
def test_paging_and_parcels_carry_every_record_in_order(waiting: list[bytes]) -> None:
    paged: list[bytes] = []
    while len(paged) < len(waiting):
        _, page = fitting([], waiting[len(paged) :])
        assert page
        paged += page
    assert paged == waiting
    carried = parcels(waiting)
    assert [record for parcel in carried for record in parcel] == waiting
    for parcel in carried:
        request = Store(sender=ID, client=True, records=parcel)
        assert decode(encode(ID, request)) == (ID, request)


def raw(kind: int, body: Any, version: int = VERSION) -> bytes:
    return bytes([kind]) + ID + bytes([version]) + msgspec.msgpack.encode(body)


GOOD = [ID, b"\x0a\x00\x00\x01", 8470]
MALFORMED = {
    "empty": b"",
    "only a header": bytes(HEADER_BYTES),
    "too large": raw(0, ["store", ID, False, [bytes(600), bytes(600)]]),
    "unknown kind": raw(2, ["ping", ID, False]),
    "newer version": raw(0, ["ping", ID, False], version=VERSION + 1),
    "stock ping": raw(0, ["ping", [ID]]),
    "unknown tag": raw(0, ["stun", ID, False]),
    "reply sent as request": raw(0, ["pong", ID, False]),
    "request sent as reply": raw(1, ["ping", ID, False]),
    "an integer": raw(1, 7),
    "a map": raw(1, {"sender": ID}),
    "no body": raw(0, []),
    "one field missing": raw(0, ["find_node", ID, False]),
    "one field too many": raw(0, ["ping", ID, False, 1]),
    "identifier of 21 bytes": raw(0, ["ping", ID + b"x", False]),
    "identifier as text": raw(0, ["ping", "x" * 20, False]),
    "flag as integer": raw(0, ["ping", ID, 1]),
    "target of 19 bytes": raw(0, ["find_node", ID, False, ID[:-1]]),
    "cursor below zero": raw(0, ["find_records", ID, False, ID, -1, True]),
    "cursor of 2^64": raw(0, ["find_records", ID, False, ID, (1 << 64) - 1, True]),
    "port 99999": raw(1, ["nodes", ID, False, [[ID, b"\x0a\x00\x00\x01", 99_999]]]),
    "port 0": raw(1, ["nodes", ID, False, [[ID, b"\x0a\x00\x00\x01", 0]]]),
    "negative port": raw(1, ["nodes", ID, False, [[ID, b"\x0a\x00\x00\x01", -1]]]),
    "host name as IP": raw(1, ["nodes", ID, False, [[ID, "localhost", 8470]]]),
    "host name of 4 bytes as text": raw(1, ["nodes", ID, False, [[ID, "a.io", 8470]]]),
    "integer as IP": raw(1, ["nodes", ID, False, [[ID, 2_130_706_433, 8470]]]),
    "IP of 5 bytes": raw(1, ["nodes", ID, False, [[ID, bytes(5), 8470]]]),
    "unspecified IP": raw(1, ["nodes", ID, False, [[ID, bytes(4), 8470]]]),
    "unspecified IPv6": raw(1, ["nodes", ID, False, [[ID, bytes(16), 8470]]]),
    "multicast": raw(1, ["nodes", ID, False, [[ID, b"\xe0\x00\x00\x01", 8470]]]),
    "multicast IPv6": raw(1, ["nodes", ID, False, [[ID, b"\xff" + bytes(15), 8470]]]),
    "broadcast": raw(1, ["nodes", ID, False, [[ID, b"\xff\xff\xff\xff", 8470]]]),
    "IPv4 in IPv6": raw(1, ["nodes", ID, False, [[ID, bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 8470]]]),
    "contact without port": raw(1, ["nodes", ID, False, [GOOD[:2]]]),
    "contact as map": raw(1, ["nodes", ID, False, [{"id": ID}]]),
    "contact with a short identifier": raw(1, ["nodes", ID, False, [[ID[1:], *GOOD[1:]]]]),
    "21 contacts": raw(1, ["nodes", ID, False, [GOOD] * 21]),
    "17 records": raw(0, ["store", ID, False, [b"x"] * 17]),
    "record of 1001 bytes": raw(0, ["store", ID, False, [bytes(MAX_RECORD_BYTES + 1)]]),
    "record as text": raw(0, ["store", ID, False, ["x"]]),
    "more kept than sent": raw(1, ["stored", ID, False, MAX_RECORDS + 1]),
    "trailing bytes": raw(0, ["ping", ID, False]) + b"\x00",
    "cut short": raw(0, ["ping", ID, False])[:-1],
    "not canonical": bytes([0]) + ID + bytes([VERSION]) + b"\x93\xd9\x04ping\xc4\x14" + ID + b"\xc2",
    "nested a thousand deep": bytes([0]) + ID + bytes([VERSION]) + b"\x91" * 1_100,
    "array of 2^32 items": bytes([0]) + ID + bytes([VERSION]) + b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_datagrams_are_format_errors(case: str) -> None:
    with pytest.raises(FormatError):
        decode(MALFORMED[case])


def test_the_cases_above_fail_for_their_own_reason() -> None:
    assert decode(raw(1, ["nodes", ID, False, [GOOD] * 20]))[0] == ID
    assert decode(raw(0, ["store", ID, False, [bytes(MAX_RECORD_BYTES)]]))[0] == ID
    assert decode(raw(0, ["find_records", ID, False, ID, 0, True]))[0] == ID


def test_thousands_of_mutated_datagrams_decode_or_are_format_errors() -> None:
    randomness = random.Random(1)
    seeds = [data for data in MALFORMED.values() if data] + [raw(1, ["nodes", ID, False, [GOOD] * 5])]
    decoded = 0
    for _ in range(20_000):
        data = bytearray(randomness.choice(seeds))
        for _ in range(randomness.randint(1, 4)):
            data[randomness.randrange(len(data))] = randomness.randrange(256)
        try:
            _, message = decode(bytes(data[: randomness.choice((len(data), len(data), randomness.randint(0, 1_300)))]))
        except FormatError:
            continue
        decoded += 1
        assert isinstance(message, Message)
    assert decoded > 100


def test_20_ipv6_contacts_fit() -> None:
    near = [Contact(bytes([n]) * 20, Address(f"2001:db8::{n + 1:x}", 65_535)) for n in range(30)]
    reply = Nodes(sender=ID, client=False, contacts=nodes_fitting(near))
    assert len(encode(ID, reply)) <= MAX_DATAGRAM_BYTES and len(reply.contacts) == BUCKET_SIZE


def test_what_would_be_too_large_is_not_encoded() -> None:
    wire = ContactWire.of(Contact(ID, Address("2001:db8::1", 65_535)))
    with pytest.raises(FormatError, match="at most 1200"):
        encode(ID, Nodes(sender=ID, client=False, contacts=(wire,) * 40))


def test_the_example_in_the_description_holds() -> None:
    result = doctest.testmod(module)
    assert result.attempted == 3 and result.failed == 0
