"""Addresses: IP literals and ports, never host names or URLs; how far they reach, and who shares a network.

`scope` says how far an address reaches. Only what is global unicast counts as ``global``: addresses that wrap another
one (IPv4-mapped, -compatible, NAT64, 6to4, Teredo) would lead a public address check to a private machine, and
`ipaddress` calls several of them global (64:ff9b::7f00:1, ::127.0.0.1 and 2002:7f00:1:: lead to 127.0.0.1).

`Believed` decides which addresses that *strangers* name are worth a packet: those in scopes where this peer lives
itself, with a port that no system service listens on. Else anybody could make peers knock at the services of their own
machines and networks. What a user names is believed, and opens its scope.

`network_group` tells who probably shares an owner: quotas and tables count groups, because one owner has many addresses
of one network cheaply, and addresses of many networks not at all cheaply.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from dhtdata.errors import FormatError
from dhtdata.formats.codec import Format

MAX_ADDRESSES = 8
FIRST_PORT = 1_024
_IPV4_GROUP_BITS = 24
_IPV6_GROUP_BITS = 48
_UNICAST = ipaddress.IPv6Network("2000::/3")
_WRAPPING = tuple(map(ipaddress.IPv6Network, ("2002::/16", "2001::/32", "64:ff9b::/32", "::/96")))
_LOOPBACK, _PRIVATE, _GLOBAL, _NONE = "loopback", "private", "global", "none"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """An IP literal and a port: the same number for UDP (DHT) and TCP (HTTP)."""

    ip: str
    port: int

    def __post_init__(self) -> None:
        if not _canonical(self.ip):
            raise FormatError(f"{self.ip[:64]!r} is not an IP address (host names are not looked up)")
        if not 1 <= self.port <= 65_535:
            raise FormatError(f"{self.ip[:64]!r} port {self.port} is not an address: ports are 1 to 65535")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``127.0.0.1:8470`` or ``[::1]:8470``."""
        host, _, port = text.rpartition(":")
        if not port.isascii() or not port.isdigit() or len(port) > 5:
            raise FormatError(f"{text[:80]!r} is not an address: expected IP:PORT or [IPv6]:PORT")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}"


class AddressWire(Format, frozen=True, array_like=True):
    """Address on the wire: 4 or 16 bytes and a port."""

    ip: bytes
    port: int

    @classmethod
    def of(cls, address: Address) -> AddressWire:
        return cls(ip=packed(address.ip), port=address.port)

    def address(self) -> Address:
        if len(self.ip) not in (4, 16):
            raise FormatError(f"an IP address has 4 or 16 bytes, not {len(self.ip)}")
        return Address(str(ipaddress.ip_address(self.ip)), self.port)


@lru_cache(maxsize=8_192)
def packed(ip: str) -> bytes:
    """4 or 16 bytes of an IP literal."""
    return ipaddress.ip_address(ip).packed


@lru_cache(maxsize=8_192)
def scope(ip: str) -> str:
    """``loopback``, ``private`` or ``global``; ``none`` for what no peer can have or what wraps another address."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return scope(str(address.ipv4_mapped))
        if not address.is_loopback and any(address in network for network in _WRAPPING):
            return _NONE
    if address.is_loopback:
        return _LOOPBACK
    if address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved):
        return _NONE
    if address.version == 6 and address in _UNICAST:
        return _GLOBAL if address.is_global else _PRIVATE
    if address.version == 6:
        return _PRIVATE if address.is_private or address.is_link_local else _NONE
    return _GLOBAL if address.is_global else _PRIVATE


@lru_cache(maxsize=8_192)
def network_group(address: Address) -> str:
    """The network that an address belongs to for quotas: its /24 or /48 if it is global.

    Inside a private network neighbours are not one owner: there it is the machine, and on loopback the process.
    """
    reach = scope(address.ip)
    if reach == _LOOPBACK:
        return str(address)
    if reach != _GLOBAL:
        return address.ip
    bits = _IPV6_GROUP_BITS if ":" in address.ip else _IPV4_GROUP_BITS
    return str(ipaddress.ip_network((address.ip, bits), strict=False))


class Believed:
    """Whether a stranger's word about an address is worth a packet. ``own``: where this peer can be reached."""

    def __init__(self, own: Iterable[Address] = ()) -> None:
        self._own: frozenset[Address] = frozenset()
        self._named: frozenset[Address] = frozenset()
        self._scopes = {_GLOBAL}
        self.live_at(own)

    def live_at(self, own: Iterable[Address]) -> None:
        """This peer is at these addresses (too): their scopes are its own."""
        self._own |= frozenset(own)
        self._scopes |= {scope(address.ip) for address in self._own} - {_NONE}

    def trust(self, addresses: Iterable[Address]) -> None:
        """The user named these; bounding how many is up to the caller."""
        self._named |= frozenset(addresses)
        self._scopes |= {scope(address.ip) for address in self._named} - {_NONE}

    def __call__(self, address: Address) -> bool:
        if address in self._own:
            return False
        return address in self._named or (address.port >= FIRST_PORT and scope(address.ip) in self._scopes)


@lru_cache(maxsize=8_192)
def _canonical(ip: str) -> bool:
    try:
        canonical = str(ipaddress.ip_address(ip))
    except ValueError:
        return False
    return canonical == ip and "%" not in canonical
