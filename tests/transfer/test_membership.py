"""Codes of HTTP requests: what they vouch for, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.formats.addresses import Address
from dhtdata.formats.records import CLOCK_TOLERANCE_S
from dhtdata.network import PUBLIC, Network
from dhtdata.transfer.membership import HEADER, Asked, member_asks, member_headers

NETWORK = Network(bytes(range(32)))
ADDRESS = Address("192.0.2.1", 80)
NOW_S = 1_800_000_000.5
texts = st.text(max_size=6)


def test_the_bytes_of_a_header_are_fixed() -> None:
    assert member_headers(NETWORK, ADDRESS, "/healthz", NOW_S, "bytes=0-9") == {
        "Host": "192.0.2.1:80",
        HEADER: "1800000000-2922930dbaa34b650df33c4c3b500d98",
    }


def test_the_public_network_has_no_such_header() -> None:
    assert member_headers(PUBLIC, ADDRESS, "/healthz", NOW_S) == {}


@given(st.tuples(texts, texts, texts, texts), st.tuples(texts, texts, texts, texts))
def test_no_two_requests_have_the_same_bytes(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """However the parts would read when written one after the other."""
    assert (Asked(*one).canonical(7) == Asked(*other).canonical(7)) == (one == other)


@pytest.mark.parametrize(
    ("late_s", "taken"),
    [
        (0, True),
        (CLOCK_TOLERANCE_S - 1, True),
        (CLOCK_TOLERANCE_S + 1, False),
        (-CLOCK_TOLERANCE_S + 1, True),
        (-CLOCK_TOLERANCE_S - 1, False),
    ],
)
def test_a_request_is_taken_as_long_as_clocks_may_differ(late_s: int, taken: bool) -> None:
    header = member_headers(NETWORK, ADDRESS, "/x", NOW_S)[HEADER]
    assert member_asks(NETWORK, Asked("GET", str(ADDRESS), "/x"), header, NOW_S + late_s) == taken


@given(st.text() | st.from_regex(r"[0-9]{1,13}-[0-9a-f]{31,33}\n?", fullmatch=True))
def test_any_other_header_is_refused(header: str) -> None:
    assert not member_asks(NETWORK, Asked("GET", str(ADDRESS), "/x"), header, NOW_S)
