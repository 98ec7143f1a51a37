"""The UDP socket (door to the operating system's), and addresses as sockets write them.

`UdpSocket` reads many datagrams a turn of the event loop, which costs a third of asyncio's own datagram transport under
a flood, and never more than `READS_A_TURN`, so that a flood cannot starve everything else. It outlives whatever a
datagram or the network does: where asyncio's transport closes itself on odd errors, this one goes on.

A socket that listens on all addresses of a machine hears with every datagram which of them it was sent to (IP_PKTINFO,
ip(7); RFC 3542 section 6.2), as the third part of the sender's address, and an answer to that address leaves from
there: else a machine with several addresses would answer from another one than was asked, which nobody believes.
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
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)  # Linux's number; Python 3.11 does not name it
_EXTRA_BYTES = 64
_WITH_OWN = 3
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"


class UdpSocket(asyncio.DatagramTransport):
    """A bound socket and the protocol that hears of its datagrams. What cannot be sent at once is dropped."""

    def __init__(self, bound: socket.socket, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__({"socket": bound, "sockname": bound.getsockname()})
        self._socket = bound
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._six = bound.family == socket.AF_INET6
        self._anywhere = _hear_destinations(bound)
        protocol.connection_made(self)
        self._loop.add_reader(bound.fileno(), self._read)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send, or drop as the network would: a full buffer, no route, a firewall. Nothing is ever raised."""
        try:
            if len(addr) == _WITH_OWN:
                self._socket.sendmsg([data], [self._leave_from(addr[2])], 0, addr[:2])
            else:
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

    def _leave_from(self, own: bytes) -> tuple[int, int, bytes]:
        if self._six:
            return (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, own + bytes(4))
        return (socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + own + bytes(4))

    def _receive_with_own(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
        data, extras, _, address = self._socket.recvmsg(size, _EXTRA_BYTES)
        for level, kind, value in extras:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                return data, (*address[:2], value[:16])
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return data, (*address[:2], value[8:12])
        return data, address

    def _read(self) -> None:
        receive: Callable[[int], tuple[bytes, Any]]
        receive = self._receive_with_own if self._anywhere else self._socket.recvfrom
        received = self._protocol.datagram_received
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


def _hear_destinations(bound: socket.socket) -> bool:
    """Whether the socket, as one that listens on all addresses, will hear which of them a datagram was sent to."""
    if bound.getsockname()[0] not in (ANY_IPV4, ANY_IPV6):
        return False
    try:
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    except OSError:
        return False
    return True


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


def from_socket(name: tuple[Any, ...]) -> Address:
    """Address of a sender; a mapped IPv4 becomes IPv4 again. FormatError if it cannot be answered."""
    ip, port = name[0], name[1]
    if "%" in ip:
        raise FormatError(f"{ip} is a link-local address, which means nothing to others")
    return Address(ip.removeprefix(_MAPPED) if ip.startswith(_MAPPED) and "." in ip else ip, port)
