"""Connections out: where they may lead, and from which address they start.

The guard stands where sockets are made, not where names are looked up: a literal address in a URL is never looked up,
and a name may mean another address the second time. So `socket_maker` sees the very address that is about to be
dialled, and whatever is not global unicast, on a port that web servers use, gets no socket. Both ways out pass here:
`aiohttp`'s connector (small questions) and `dial` (ranges).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Any

from dhtdata.errors import PeerError
from dhtdata.formats.addresses import scope
from dhtdata.formats.web_seeds import port_allowed

CONNECT_S = 5.0
_MAX_TRIED = 8
_LOOPBACK = "loopback"
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""One answer of ``socket.getaddrinfo``: family, type, protocol, canonical name, socket address."""


def socket_maker(*, trusted: bool, source_ip: str = "::") -> Callable[[AddressInfo], socket.socket]:
    """What makes the socket for an address that is about to be dialled; OSError (EACCES) if that must not be.

    ``trusted``: any address will do. ``source_ip``: the address of this machine to dial from, where that can be.
    """

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not trusted:
            check_global(family, address)
        made = socket.socket(family, kind, protocol)
        try:
            if leads_to(source_ip, str(address[0])):
                if hasattr(socket, "IP_BIND_ADDRESS_NO_PORT"):
                    # Else each connection takes one of the machine's ports away from all others.
                    made.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                made.bind((source_ip, 0))
        except OSError:
            made.close()
            raise
        return made

    return make


def leads_to(source_ip: str, ip: str) -> bool:
    """Whether to connect from one specific address to another: same family, and both on loopback or neither."""
    source, there = ipaddress.ip_address(source_ip), ipaddress.ip_address(ip.partition("%")[0])
    if source.is_unspecified or source.version != there.version:
        return False
    return (scope(source_ip) == _LOOPBACK) == (scope(str(there)) == _LOOPBACK)


def check_global(family: int, address: tuple[Any, ...]) -> None:
    """OSError (EACCES) unless a socket address is one at which strangers' web seeds may be."""
    ip, port = str(address[0]), int(address[1])
    try:
        allowed = family in _FAMILIES and scope(ip) == "global" and port_allowed(port)
    except ValueError:
        allowed = False
    if not allowed:
        raise OSError(
            errno.EACCES, f"{ip} port {port} is not a public web server's: only the user may name such (--web-seed)"
        )


def dial(
    host: str,
    port: int,
    *,
    trusted: bool,
    source_ip: str = "::",
    timeout_s: float = CONNECT_S,
    made: Callable[[socket.socket], None] = lambda _: None,
) -> socket.socket:
    """A connected TCP socket, blocking and without a timeout. Blocks: call it in a thread. ``made`` sees it before.

    Every address that a name leads to is checked unless ``trusted``, and the checked address itself is dialled.
    PeerError if none of them answers within ``timeout_s`` in all; how long a look-up of a name takes is the system's
    matter.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as failure:
        raise PeerError(f"{host}: the name cannot be looked up ({failure})") from failure
    make = socket_maker(trusted=trusted, source_ip=source_ip)
    deadline_s = time.monotonic() + timeout_s
    reason: OSError = TimeoutError(errno.ETIMEDOUT, "timed out")
    for info in found[:_MAX_TRIED]:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        try:
            plain = make(info)
            made(plain)
            return _connected(plain, info[4], left_s)
        except OSError as failure:
            reason = failure
    raise PeerError(f"{host} port {port}: no connection ({reason.strerror or reason})") from reason


def _connected(made: socket.socket, address: tuple[Any, ...], timeout_s: float) -> socket.socket:
    try:
        made.settimeout(timeout_s)
        made.connect(address)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(None)
    except BaseException:
        made.close()
        raise
    return made
