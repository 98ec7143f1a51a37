"""The UDP socket, and addresses as sockets write them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable

from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.addresses import Address

_BUFFER_BYTES = 1 << 20
_MAPPED = "::ffff:"


async def open_udp(
    protocol: Callable[[], asyncio.DatagramProtocol], listen: str, port: int
) -> asyncio.DatagramTransport:
    """A bound socket with its protocol. ConfigError names the port if it is in use or not allowed."""
    version = ipaddress.ip_address(listen).version
    bound = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if version == 6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        bound.setblocking(False)
        bound.bind((listen, port))
    except OSError as failure:
        bound.close()
        if failure.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"UDP port {port} on {listen} is in use: stop what uses it, or choose another with --port"
            ) from failure
        raise ConfigError(f"cannot listen on UDP {listen} port {port}: {failure.strerror}") from failure
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(protocol, sock=bound)
    return transport


def from_socket(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """Address of a sender; IPv4 on an IPv6 socket becomes IPv4 again. FormatError if it cannot be answered."""
    ip, port = name[0], name[1]
    if "%" in ip:
        raise FormatError(f"{ip} is a link-local address, which means nothing to others")
    return Address(ip.removeprefix(_MAPPED) if ip.startswith(_MAPPED) and "." in ip else ip, port)


def to_socket(address: Address, family: int) -> tuple[str, int]:
    """What ``sendto`` takes on a socket of this family. FormatError if the socket cannot reach the address.

    Never a host name: resolving one would block the loop, and odd ports or types make asyncio close the socket.
    """
    if ":" in address.ip:
        if family != socket.AF_INET6:
            raise FormatError(f"{address} cannot be reached from an IPv4 socket")
        return (address.ip, address.port)
    return (_MAPPED + address.ip if family == socket.AF_INET6 else address.ip, address.port)
