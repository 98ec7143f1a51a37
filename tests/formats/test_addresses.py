"""How far addresses reach, whose word about them counts, and who shares a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.formats.addresses import Address, Believed, network_group, scope

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
    "ff02::1": "none",
    "64:ff9b::7f00:1": "none",
    "64:ff9b:1::1": "none",
    "::127.0.0.1": "none",
    "2002:7f00:1::": "none",
    "2001:0:1::1": "none",
    "2001:db8::1": "private",
    "192.0.2.1": "private",
    "100.64.0.1": "private",
    "255.255.255.255": "none",
}


@pytest.mark.parametrize(("ip", "expected"), SCOPES.items())
def test_every_address_has_its_scope(ip: str, expected: str) -> None:
    assert scope(ip) == expected


@given(st.ip_addresses().map(str), st.integers(1, 65_535))
def test_a_public_peer_is_led_to_public_addresses_only(ip: str, port: int) -> None:
    believed = Believed([Address("8.8.4.4", 5_000)])
    expected = scope(ip) == "global" and port >= 1_024 and (ip, port) != ("8.8.4.4", 5_000)
    assert believed(Address(ip, port)) == expected


def test_a_peer_on_loopback_believes_loopback_but_not_itself() -> None:
    believed = Believed([Address("127.0.0.1", 8_470)])
    assert believed(Address("127.0.0.1", 2_000))
    assert not believed(Address("127.0.0.1", 8_470)) and not believed(Address("10.0.0.1", 2_000))
    believed.trust([Address("10.0.0.9", 80)])
    assert believed(Address("10.0.0.1", 2_000)) and believed(Address("10.0.0.9", 80))
    assert not believed(Address("10.0.0.1", 80))
    believed.live_at([Address("fd00::1", 2_000)])
    assert believed(Address("fd00::2", 2_000)) and not believed(Address("fd00::1", 2_000))


GROUPS = {
    "8.8.8.8": "8.8.8.0/24",
    "2a00:1450:1:2::1": "2a00:1450:1::/48",
    "10.1.2.3": "10.1.2.3",
    "fd00::1": "fd00::1",
    "127.0.0.1": "127.0.0.1:8470",
}


@pytest.mark.parametrize(("ip", "expected"), GROUPS.items())
def test_owners_are_told_apart_by_network(ip: str, expected: str) -> None:
    assert network_group(Address(ip, 8_470)) == expected
