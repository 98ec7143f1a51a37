from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest, checksum
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address
from dhtdata.formats.codec import encode_msgpack
from dhtdata.formats.names import Name
from dhtdata.formats.ticket import MAX_TICKET_CHARACTERS, PREFIX, LocalName, Ticket, parse_target
from tests.formats.samples import TICKETS, named

ips = st.ip_addresses().map(str).filter(lambda ip: "%" not in ip)
addresses = st.lists(st.builds(Address, ip=ips, port=st.integers(1, 65_535)), max_size=8).map(tuple)
keys = st.binary(min_size=32, max_size=32)
targets = keys.map(Digest) | st.builds(
    Name,
    publisher=keys,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    sequence=st.none() | st.integers(1, 10**18 - 1),
)
tickets = st.builds(Ticket, target=targets, addresses=addresses, secret=st.none() | keys)
TICKET = str(TICKETS["ticket_of_name"])


@given(ticket=tickets)
def test_a_ticket_is_read_back_from_its_text(ticket: Ticket) -> None:
    text = str(ticket)
    assert Ticket.parse(text) == ticket
    assert parse_target(f"  {text}\n") == ticket
    assert len(text) <= MAX_TICKET_CHARACTERS
    assert text.isascii() and text.isalnum() and text == text.lower()


@given(ticket=tickets, seed=st.integers(0, 1 << 32))
def test_a_mistyped_or_cut_ticket_is_recognised(ticket: Ticket, seed: int) -> None:
    source = random.Random(seed)
    text = str(ticket)
    at = source.randrange(len(text))
    other = source.choice([c for c in "abcdefghijklmnopqrstuvwxyz234567" if c != text[at]])
    for bad in (text[:at], text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :], text + other):
        try:
            assert Ticket.parse(bad) == ticket, "only the unused bits at the end may differ"
        except FormatError:
            continue
        assert bad[:-2] == text[: len(bad) - 2]


def test_a_secret_is_not_shown_with_its_ticket() -> None:
    secret = bytes(range(32))
    shown = repr(Ticket(named("m"), (), secret))
    assert "secret" not in shown and repr(secret) not in shown


def enveloped(fields: object) -> str:
    payload = encode_msgpack(fields)
    return PREFIX + base64.b32encode(payload + checksum(payload, 4)).decode().lower().rstrip("=")


MANIFEST = bytes(named("m"))
NAMED = {"version": 1, "addresses": [], "publisher": bytes(32), "name": "wiki"}
MALFORMED = {
    "neither target": {"version": 1, "addresses": []},
    "both targets": NAMED | {"manifest": MANIFEST},
    "a name without a publisher": {"version": 1, "addresses": [], "name": "wiki"},
    "a publisher without a name": {"version": 1, "addresses": [], "publisher": bytes(32)},
    "a sequence with a manifest": {"version": 1, "addresses": [], "manifest": MANIFEST, "sequence": 1},
    "a short publisher": NAMED | {"publisher": bytes(31)},
    "sequence 0": NAMED | {"sequence": 0},
    "an odd name": NAMED | {"name": "A B"},
    "a short secret": NAMED | {"secret": bytes(31)},
    "too many addresses": NAMED | {"addresses": [[bytes(4), 1]] * 9},
    "an address of five bytes": NAMED | {"addresses": [[bytes(5), 1]]},
    "port 0": NAMED | {"addresses": [[bytes(4), 0]]},
    "port 65536": NAMED | {"addresses": [[bytes(4), 65_536]]},
    "an unknown field": NAMED | {"colour": 1},
    "too large an ext": NAMED | {"ext": {str(i): "" for i in range(65)}},
    "another type": [1, 2],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_ticket_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        Ticket.parse(enveloped(MALFORMED[case]))


def test_a_ticket_may_carry_what_this_version_does_not_know() -> None:
    assert Ticket.parse(enveloped(NAMED | {"ext": {"colour": "blue"}})).target == Name(bytes(32), "wiki")


@pytest.mark.parametrize("extra", [{}, {"colour": 1}])
def test_a_ticket_of_a_newer_version_asks_for_an_upgrade(extra: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="ticket has format version 2.*: upgrade dhtdata"):
        Ticket.parse(enveloped(NAMED | extra | {"version": 2}))


@pytest.mark.parametrize(
    "text", ["", "dhtdata", "dhtdata2abc", TICKET.upper(), "x" + TICKET, TICKET + "a" * MAX_TICKET_CHARACTERS]
)
def test_other_text_is_no_ticket(text: str) -> None:
    with pytest.raises(FormatError, match="is not a ticket: it starts with dhtdata1"):
        Ticket.parse(text)


@pytest.mark.parametrize("body", ["", "a", "aaaaaaa", "é" * 16, "1" * 16, "=" * 16, "ſ" * 16, TICKET[8:].upper()])
def test_a_damaged_ticket_says_so(body: str) -> None:
    with pytest.raises(FormatError, match="damaged or cut short"):
        Ticket.parse(PREFIX + body)


def test_a_ticket_holds_at_most_eight_addresses() -> None:
    with pytest.raises(FormatError, match="at most 8 addresses"):
        str(Ticket(named("m"), tuple(Address("192.0.2.1", port) for port in range(1, 10))))


def test_whatever_names_a_dataset_is_understood() -> None:
    digest = named("manifest")
    name = Name(bytes(32), "wiki", 3)
    assert parse_target(str(digest)) == digest
    assert parse_target(f" {name} ") == name
    assert parse_target("wiki") == LocalName("wiki")
    assert parse_target("dhtdata1") == LocalName("dhtdata1"), "a short name may look like the start of a ticket"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TICKET[:-1], "damaged or cut short"),
        (TICKET[:30] + "!", "damaged or cut short"),
        ("dhtdata://nobody/x", "is not a dataset name"),
        ("AB" * 32, "names no dataset"),
        ("no such thing", "names no dataset"),
        ("", "names no dataset"),
        ("../../etc/passwd", "names no dataset"),
    ],
)
def test_what_names_nothing_says_what_was_expected(text: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        parse_target(text)


@given(text=st.text())
def test_any_text_names_something_or_is_refused(text: str) -> None:
    for candidate in (text, PREFIX + text, f"{PREFIX}{text}{'a' * 80}", f"dhtdata://{text}"):
        try:
            parse_target(candidate)
        except FormatError:
            continue
