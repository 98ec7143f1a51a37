"""Addresses of this machine: which are ours, which ports are free."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from dhtdata.dht.endpoint import interfaces
from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address

_SIOCGIFADDR = 0x8915
_TRIES = 32
_INET6 = Path("/proc/net/if_inet6")
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def own_addresses(listen: str, port: int) -> tuple[Address, ...]:
    """Where others reach a peer that listens here: that address, or for a wildcard the machine's own.

    Loopback only if the machine has nothing else.
    """
    if not ipaddress.ip_address(listen).is_unspecified:
        return (Address(listen, port),)
    families = [_family(each) for each in interfaces(listen)]
    found = [ip for family in families for ip in _machine_ips(family) if not ipaddress.ip_address(ip).is_loopback]
    chosen = found or [_LOOPBACK[family] for family in families]
    return tuple(Address(ip, port) for ip in dict.fromkeys(chosen))[:MAX_ADDRESSES]


def free_port(listen: str) -> int:
    """A port that is free for UDP and TCP right now. ConfigError if the address is not this machine's."""
    # A wildcard of IPv6 takes the port of IPv4 along.
    listen = interfaces(listen)[-1]
    family = _family(listen)
    for _ in range(_TRIES):
        with socket.socket(family, socket.SOCK_STREAM) as stream, socket.socket(family, socket.SOCK_DGRAM) as datagram:
            try:
                stream.bind((listen, 0))
            except OSError as failure:
                raise ConfigError(
                    f"cannot listen on {listen} ({failure.strerror}): use an address of this machine, or 0.0.0.0"
                ) from failure
            port = int(stream.getsockname()[1])
            try:
                datagram.bind((listen, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no port on {listen} is free for both UDP and TCP: name one with --port")


def _machine_ips(family: socket.AddressFamily) -> list[str]:
    """Addresses of this machine's interfaces, the one towards the rest of the world first."""
    found = []
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing: it only asks the routing table.
            probe.connect((_FAR_AWAY[family], 9))
            found.append(str(probe.getsockname()[0]))
        except OSError:
            found.clear()
    return found + (_interfaces_v6() if family == socket.AF_INET6 else _interfaces_v4())


def _interfaces_v4() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _interfaces_v6() -> list[str]:
    try:
        lines = _INET6.read_text("ascii").splitlines()
    except OSError:
        return []
    addresses = (ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines)
    return [str(address) for address in addresses if not address.is_link_local]


def _family(listen: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(listen).version == 6 else socket.AF_INET


def parse_addresses(texts: Iterable[str]) -> list[Address]:
    """Those of the texts that are addresses."""
    found = []
    for text in texts:
        try:
            found.append(Address.parse(text))
        except FormatError:
            continue
    return found
