"""The UDP socket (door to the operating system's), and addresses as sockets write them.

`UdpSocket` reads many datagrams a turn of the event loop, which costs a third of asyncio's own datagram transport under
a flood, and never more than `READS_A_TURN`, so that a flood cannot starve everything else. It outlives whatever a
datagram or the network does: where asyncio's transport closes itself on odd errors, this one goes on.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from dhtdata.dht.envelope import MAX_DATAGRAM_BYTES
from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.addresses import Address

READS_A_TURN = 64
_BUFFER_BYTES = 1 << 20
_MAPPED = "::ffff:"
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"


class UdpSocket(asyncio.DatagramTransport):
    """A bound socket and the protocol that hears of its datagrams. What cannot be sent at once is dropped."""

    def __init__(self, bound: socket.socket, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__({"socket": bound, "sockname": bound.getsockname()})
        self._socket = bound
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closing = False
        protocol.connection_made(self)
        self._loop.add_reader(bound.fileno(), self._read)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send, or drop as the network would: a full buffer, no route, a firewall. Nothing is ever raised."""
        try:
            self._socket.sendto(data, addr)
        except OSError:
            return

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_soon(self._closed)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def _closed(self) -> None:
        self._socket.close()
        self._protocol.connection_lost(None)

    def _read(self) -> None:
        receive, received = self._socket.recvfrom, self._protocol.datagram_received
        for _ in range(READS_A_TURN):
            try:
                # One byte more than allowed: a longer datagram shows as too long, whatever was cut off.
                data, address = receive(MAX_DATAGRAM_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier datagram; the next one may be fine.
                continue
            received(data, address)
            if self._closing:
                return


def interfaces(listen: str) -> list[str]:
    """One address to listen on for each family: ``::`` means all of both, or of IPv4 where there is no IPv6."""
    if listen != ANY_IPV6:
        return [listen]
    return [ANY_IPV4, ANY_IPV6] if has_ipv6() else [ANY_IPV4]


def has_ipv6() -> bool:
    """Whether this machine lets us open IPv6 sockets."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((ANY_IPV6, 0))
    except OSError:
        return False
    return True


async def open_udp(
    protocol: Callable[[], asyncio.DatagramProtocol], listen: str, port: int
) -> asyncio.DatagramTransport:
    """A bound socket of one family with its protocol. ConfigError names the port if it is in use or not allowed."""
    six = ipaddress.ip_address(listen).version == 6
    bound = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if six:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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
    return UdpSocket(bound, protocol())


def from_socket(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """Address of a sender; a mapped IPv4 becomes IPv4 again. FormatError if it cannot be answered."""
    ip, port = name[0], name[1]
    if "%" in ip:
        raise FormatError(f"{ip} is a link-local address, which means nothing to others")
    return Address(ip.removeprefix(_MAPPED) if ip.startswith(_MAPPED) and "." in ip else ip, port)
