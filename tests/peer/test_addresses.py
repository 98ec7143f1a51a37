from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.formats.records import Address
from dhtdata.peer.addresses import Guard, free_port, own_addresses, scope

SCOPES = {
    "127.0.0.1": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "10.1.2.3": "private",
    "192.168.0.1": "private",
    "169.254.169.254": "private",
    "fd00::1": "private",
    "fe80::1": "private",
    "8.8.8.8": "global",
    "2a00:1450::1": "global",
    "0.0.0.0": "none",
    "::": "none",
    "224.0.0.1": "none",
    "255.255.255.255": "none",
}


@pytest.mark.parametrize(("ip", "expected"), SCOPES.items())
def test_every_address_has_its_scope(ip: str, expected: str) -> None:
    assert scope(ip) == expected


@given(st.ip_addresses().map(str), st.integers(1, 65_535))
def test_a_public_peer_is_led_to_public_addresses_only(ip: str, port: int) -> None:
    guard = Guard([Address("8.8.4.4", 1)])
    assert guard(Address(ip, port)) == (scope(ip) == "global" and (ip, port) != ("8.8.4.4", 1))


def test_a_peer_on_loopback_believes_loopback_but_not_itself() -> None:
    guard = Guard([Address("127.0.0.1", 1_000)])
    assert guard(Address("127.0.0.1", 2_000))
    assert not guard(Address("127.0.0.1", 1_000))
    assert not guard(Address("10.0.0.1", 1_000))
    guard.trust([Address("10.0.0.9", 5)])
    assert guard(Address("10.0.0.1", 1_000))


def test_a_named_address_is_the_only_one() -> None:
    assert own_addresses("127.0.0.1", 5) == (Address("127.0.0.1", 5),)
    assert own_addresses("::1", 5) == (Address("::1", 5),)


@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
def test_a_wildcard_stands_for_addresses_that_can_be_bound(listen: str) -> None:
    own = own_addresses(listen, 5)
    assert 1 <= len(own) <= 8
    assert len(own) == 1 or all(scope(address.ip) != "loopback" for address in own)
    family = socket.AF_INET6 if listen == "::" else socket.AF_INET
    for address in own:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.ip, 0))


def test_a_free_port_is_free_for_both() -> None:
    port = free_port("127.0.0.1")
    with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        stream.bind(("127.0.0.1", port))
        datagram.bind(("127.0.0.1", port))


def test_a_foreign_address_to_listen_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        free_port("192.0.2.1")
