"""Messages: round trips, the size budget, and every malformed input."""

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
from dhtdata.dht.envelope import MAX_BODY_BYTES
from dhtdata.dht.messages import (
    MAX_RECORDS,
    Answer,
    ContactWire,
    FindNode,
    FindRecords,
    Introduce,
    Introduced,
    Meet,
    Met,
    Nodes,
    Ping,
    Pong,
    Records,
    Store,
    Stored,
    decode_reply,
    decode_request,
    encode,
    fitting,
    nodes_fitting,
    parcels,
)
from dhtdata.dht.routing import BUCKET_SIZE, Contact
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import FIRST_PORT, Address, scope
from dhtdata.formats.records import MAX_RECORD_BYTES

ID = bytes(range(20))
YOU = bytes([10, 0, 0, 7])
TIME = 1_800_000_000
identifiers = st.binary(min_size=20, max_size=20)
ips = st.ip_addresses().map(str).filter(lambda ip: scope(ip) != "none" and not ip.startswith("::ffff:"))
addresses = st.builds(Address, ips, st.integers(FIRST_PORT, 65_535))
contacts = st.builds(Contact, identifiers, addresses)
records = st.lists(st.binary(max_size=MAX_RECORD_BYTES), max_size=40)
heads: dict[str, Any] = {
    "you": st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    "time": st.integers(0, (1 << 40) - 1),
}
requests = st.one_of(
    st.builds(Ping),
    st.builds(Introduce),
    st.builds(FindNode, target=identifiers),
    st.builds(FindRecords, key=identifiers, target=identifiers, after=st.integers(0, 65_535), contacts=st.booleans()),
    addresses.map(lambda address: Meet(ip=ip_address(address.ip).packed, port=address.port)),
)
replies = st.one_of(
    st.builds(Pong, **heads),
    st.builds(Met, **heads),
    st.builds(Introduced, **heads, others=st.booleans()),
    st.builds(Nodes, **heads, contacts=st.lists(contacts, max_size=20).map(nodes_fitting)),
    st.builds(Stored, **heads, kept=st.integers(0, MAX_RECORDS)),
)


@settings(max_examples=200, deadline=None)
@given(request=requests)
def test_every_request_comes_back_as_it_was(request: Any) -> None:
    assert decode_request(encode(request)) == request
    with pytest.raises(FormatError):
        decode_reply(encode(request))


@settings(max_examples=200, deadline=None)
@given(reply=replies)
def test_every_reply_comes_back_as_it_was(reply: Any) -> None:
    assert decode_reply(encode(reply)) == reply
    with pytest.raises(FormatError):
        decode_request(encode(reply))


@settings(max_examples=150, deadline=None)
@given(near=st.lists(contacts, max_size=30), waiting=records)
def test_a_reply_of_contacts_and_records_always_fits_a_datagram(near: list[Contact], waiting: list[bytes]) -> None:
    chosen_contacts, chosen = fitting(near, waiting)
    reply = Records(you=bytes(16), time=(1 << 40) - 1, contacts=chosen_contacts, records=chosen, more=True)
    assert decode_reply(encode(reply)) == reply and len(encode(reply)) <= MAX_BODY_BYTES
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
        request = Store(records=parcel)
        assert decode_request(encode(request)) == request and len(encode(request)) <= MAX_BODY_BYTES


raw = msgspec.msgpack.encode
GOOD = [ID, b"\x0a\x00\x00\x01", 8470]


def nodes(*contacts: Any) -> bytes:
    return raw(["nodes", YOU, TIME, list(contacts)])


MALFORMED_REQUESTS = {
    "empty": b"",
    "stock ping": raw(["ping", [ID]]),
    "unknown tag": raw(["stun", ID]),
    "an integer": raw(7),
    "no body": raw([]),
    "one field missing": raw(["find_node"]),
    "one field too many": raw(["ping", 1]),
    "target of 19 bytes": raw(["find_node", ID[:-1]]),
    "target as text": raw(["find_node", "x" * 20]),
    "key of 21 bytes": raw(["find_records", ID + b"x", ID, 0, True]),
    "cursor below zero": raw(["find_records", ID, ID, -1, True]),
    "cursor of 2^64": raw(["find_records", ID, ID, (1 << 64) - 1, True]),
    "flag as integer": raw(["find_records", ID, ID, 0, 1]),
    "17 records": raw(["store", [b"x"] * 17]),
    "record of 1001 bytes": raw(["store", [bytes(MAX_RECORD_BYTES + 1)]]),
    "record as text": raw(["store", ["x"]]),
    "meet a system service": raw(["meet", b"\x08\x08\x08\x08", 53]),
    "meet nobody": raw(["meet", bytes(4), 8470]),
    "trailing bytes": raw(["ping"]) + b"\x00",
    "cut short": raw(["find_node", ID])[:-1],
    "not canonical": b"\x91\xd9\x04ping",
    "nested a thousand deep": b"\x91" * 1_000,
    "array of 2^32 items": b"\xdd\xff\xff\xff\xff",
    "a request sent as reply": raw(["pong", YOU, TIME]),
}
MALFORMED_REPLIES = {
    "a map": raw({"you": YOU}),
    "without time": raw(["pong", YOU]),
    "our address as text": raw(["pong", "10.0.0.7", TIME]),
    "our address of 5 bytes": raw(["pong", bytes(5), TIME]),
    "time before 1970": raw(["pong", YOU, -1]),
    "time past 2^40": raw(["pong", YOU, 1 << 40]),
    "port 99999": nodes([ID, b"\x0a\x00\x00\x01", 99_999]),
    "port 0": nodes([ID, b"\x0a\x00\x00\x01", 0]),
    "port of a system service": nodes([ID, b"\x0a\x00\x00\x01", 53]),
    "negative port": nodes([ID, b"\x0a\x00\x00\x01", -1]),
    "host name as IP": nodes([ID, "localhost", 8470]),
    "host name of 4 bytes as text": nodes([ID, "a.io", 8470]),
    "integer as IP": nodes([ID, 2_130_706_433, 8470]),
    "IP of 5 bytes": nodes([ID, bytes(5), 8470]),
    "unspecified IP": nodes([ID, bytes(4), 8470]),
    "unspecified IPv6": nodes([ID, bytes(16), 8470]),
    "multicast": nodes([ID, b"\xe0\x00\x00\x01", 8470]),
    "multicast IPv6": nodes([ID, b"\xff" + bytes(15), 8470]),
    "broadcast": nodes([ID, b"\xff\xff\xff\xff", 8470]),
    "IPv4 in IPv6": nodes([ID, bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 8470]),
    "loopback behind NAT64": nodes([ID, bytes.fromhex("0064ff9b0000000000000000") + b"\x7f\x00\x00\x01", 8470]),
    "loopback in 6to4": nodes([ID, bytes.fromhex("20027f000001") + bytes(10), 8470]),
    "contact without port": nodes(GOOD[:2]),
    "contact as map": nodes({"id": ID}),
    "contact with a short identifier": nodes([ID[1:], *GOOD[1:]]),
    "21 contacts": nodes(*[GOOD] * 21),
    "17 records": raw(["records", YOU, TIME, [], [b"x"] * 17, False]),
    "more kept than sent": raw(["stored", YOU, TIME, MAX_RECORDS + 1]),
    "a reply sent as request": raw(["ping"]),
}


@pytest.mark.parametrize("case", MALFORMED_REQUESTS)
def test_malformed_requests_are_format_errors(case: str) -> None:
    with pytest.raises(FormatError):
        decode_request(MALFORMED_REQUESTS[case])


@pytest.mark.parametrize("case", MALFORMED_REPLIES)
def test_malformed_replies_are_format_errors(case: str) -> None:
    with pytest.raises(FormatError):
        decode_reply(MALFORMED_REPLIES[case])


def test_the_cases_above_fail_for_their_own_reason() -> None:
    decode_reply(nodes(*[GOOD] * 20))
    decode_reply(raw(["stored", YOU, TIME, MAX_RECORDS]))
    decode_request(raw(["store", [bytes(MAX_RECORD_BYTES)]]))
    decode_request(raw(["find_records", ID, ID, 0, True]))
    decode_request(raw(["meet", b"\x08\x08\x08\x08", 8470]))


def test_thousands_of_mutated_bodies_decode_or_are_format_errors() -> None:
    randomness = random.Random(1)
    seeds = [*MALFORMED_REQUESTS.values(), *MALFORMED_REPLIES.values(), nodes(*[GOOD] * 5)]
    decoded = 0
    for _ in range(20_000):
        data = bytearray(randomness.choice(seeds) or b"x")
        for _ in range(randomness.randint(1, 4)):
            data[randomness.randrange(len(data))] = randomness.randrange(256)
        body = bytes(data[: randomness.choice((len(data), len(data), randomness.randint(0, 1_300)))])
        for decode in (decode_request, decode_reply):
            try:
                message: Any = decode(body)
            except FormatError:
                continue
            decoded += 1
            assert isinstance(message, Answer) == (decode is decode_reply)
    assert decoded > 100


def test_20_ipv6_contacts_fit() -> None:
    near = [Contact(bytes([n]) * 20, Address(f"2a00:1450::{n + 1:x}", 65_535)) for n in range(30)]
    reply = Nodes(you=bytes(16), time=TIME, contacts=nodes_fitting(near))
    assert len(encode(reply)) <= MAX_BODY_BYTES and len(reply.contacts) == BUCKET_SIZE
    assert isinstance(reply.contacts[0], ContactWire)


def test_the_example_in_the_description_holds() -> None:
    result = doctest.testmod(module)
    assert result.attempted == 2 and result.failed == 0
