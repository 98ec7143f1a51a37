from __future__ import annotations

import socket

import pytest

from dhtdata.errors import ConfigError
from dhtdata.formats.addresses import Address, scope
from dhtdata.peer.addresses import free_port, own_addresses


def test_a_named_address_is_the_only_one() -> None:
    assert own_addresses("127.0.0.1", 5) == (Address("127.0.0.1", 5),)
    assert own_addresses("::1", 5) == (Address("::1", 5),)


@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
def test_a_wildcard_stands_for_addresses_that_can_be_bound(listen: str) -> None:
    own = own_addresses(listen, 5)
    assert 1 <= len(own) <= 8
    assert len(own) == 1 or all(scope(address.ip) != "loopback" for address in own)
    assert any("." in address.ip for address in own)
    for address in own:
        family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
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
