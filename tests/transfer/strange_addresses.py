"""Ways to write addresses at which no stranger's web seed may be, as hosts of a URL."""

from __future__ import annotations

import socket
from typing import Any

import pytest

IPV4 = """
127.0.0.1 127.0.0.2 127.255.255.255 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255
192.168.0.1 192.168.255.255 169.254.169.254 169.254.0.1 100.64.0.1 100.127.255.255 192.0.0.1 192.0.2.1
198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
""".split()
"""Loopback, this network, private, link-local (cloud metadata), carrier's NAT, documentation, benchmarks, multicast,
reserved, broadcast."""

ODD_IPV4 = """
2130706433 0x7f000001 017700000001 0177.0.0.1 0x7f.0.0.1 127.1 127.0.1 0 0xa9fea9fe 127.0.0.1. １２７.0.0.1 127。0。0。1
""".split()
"""Decimal, hexadecimal, octal, short and wide forms: `getaddrinfo` takes most of them."""

NAMES = "localhost LOCALHOST localhost. nas".split()

IPV6 = """
::1 :: ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::7f00:1 ::ffff:0:7f00:1
64:ff9b::7f00:1 64:ff9b::127.0.0.1 64:ff9b:1::7f00:1 2002:7f00:1:: 2002:7f00:1::1 2002:a00:1:: 2001:0:7f00:1::
fe80::1 fec0::1 fc00::1 fd00::1 ff02::1 ff05::2 2001:db8::1 100::1 2001:10::1 0:0:0:0:0:0:0:1 5f00::1
""".split()
"""Loopback, unspecified, mapped, compatible, translated, NAT64, 6to4, Teredo, link- and site-local, unique local,
multicast, documentation, discard, ORCHID, segment routing."""

SCOPED = "fe80::1%lo fe80::1%25lo ::1%lo".split()

HOSTS = [*IPV4, *ODD_IPV4, *NAMES, *(f"[{ip}]" for ip in (*IPV6, *SCOPED))]
IPS = [*IPV4, *IPV6]


def resolve_to(monkeypatch: pytest.MonkeyPatch, ip: str) -> None:
    """A name server of a stranger: names below example.org are at this address."""
    real = socket.getaddrinfo

    def answer(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        if isinstance(host, str) and host.endswith(".example.org"):
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            address = (ip, int(port or 0), 0, 0) if ":" in ip else (ip, int(port or 0))
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]
        return real(host, port, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
