"""A simulated network: addresses, datagrams that travel, partitions, dead machines, NATs, clocks.

Everything above the socket is the real thing. Whoever would open a UDP socket opens a transport here instead:
`SimulatedNetwork.open_transport` for our nodes, ``loop.create_datagram_endpoint`` for programs that know nothing of all
this (the network puts itself behind it). Every random choice comes from the seed, so a run repeats exactly; a pair of
addresses has the same base delay whoever else is there.

NAT (`SimulatedNetwork.put_behind_nat`): what most homes have, and hard enough. A host with a private address reaches
everybody; others see the NAT's public address and a port of its choice, the same whomever the host writes to
(endpoint-independent mapping). In comes only what is sent from an address and port that the host wrote to within the
last 60 s (port-restricted filter). A host that sends nothing for 120 s loses its port and gets another next time.
Private addresses can be reached only from behind the same NAT.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tests.simulation.clock import VirtualLoop
from tests.simulation.links import LAN, Links

EPOCH_S = 1_800_000_000.0
"""Unix time at virtual time 0."""
NAT_PERMISSION_S = 60.0
NAT_IDLE_S = 120.0
_FIRST_SUBNET = 11 << 16
_FIRST_MAPPED_PORT = 20_000
_FIRST_FREE_PORT = 49_152
_LAST_PORT = 65_535

Endpoint = tuple[str, int]
Tap = Callable[[Endpoint, Endpoint, bytes], None]
"""Told of every datagram that is sent: source and destination as the receiver sees them, and the bytes."""


def public_ip(subnet: int, host: int = 1) -> str:
    """An address that looks public: host 1 to 254 in the ``subnet``-th /24 from 11.0.0.0 on."""
    value = _FIRST_SUBNET + subnet
    return f"{value >> 16}.{value >> 8 & 255}.{value & 255}.{host}"


class SimulatedTransport(asyncio.DatagramTransport):
    """A socket. ``alive`` is False once it is closed, or its machine has lost power."""

    def __init__(self, network: SimulatedNetwork, at: Endpoint, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__({"sockname": at})
        self.at = at
        self.protocol = protocol
        self.alive = True
        self.closing = False
        self._network = network

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self.alive:
            self._network.carry(self.at, bytes(data), addr)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._network.unplug(self)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closing


class _Mapping:
    """The public port of one private socket, and to whom it has written when."""

    __slots__ = ("permitted", "port", "sent_s")

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent_s = 0.0
        self.permitted: dict[Endpoint, float] = {}


class Nat:
    """One NAT device with one public address."""

    def __init__(self, public_ip: str) -> None:
        self.public_ip = public_ip
        self._of_socket: dict[Endpoint, _Mapping] = {}
        self._of_port: dict[int, Endpoint] = {}
        self._next_port = _FIRST_MAPPED_PORT

    def outgoing(self, source: Endpoint, to: Endpoint, now_s: float) -> Endpoint:
        """Where a datagram seems to come from."""
        mapping = self._of_socket.get(source)
        if mapping is None or now_s - mapping.sent_s > NAT_IDLE_S:
            if mapping is not None:
                del self._of_port[mapping.port]
            mapping = self._of_socket[source] = _Mapping(self._next_port)
            self._of_port[self._next_port] = source
            self._next_port += 1
        mapping.sent_s = now_s
        mapping.permitted[to] = now_s
        return self.public_ip, mapping.port

    def incoming(self, source: Endpoint, port: int, now_s: float) -> Endpoint | None:
        """The private socket that a datagram from ``source`` to this public port reaches, if any."""
        socket = self._of_port.get(port)
        if socket is None:
            return None
        mapping = self._of_socket[socket]
        if now_s - mapping.sent_s > NAT_IDLE_S or now_s - mapping.permitted.get(source, -1e9) > NAT_PERMISSION_S:
            return None
        return socket


class SimulatedNetwork:
    """The network of one simulation. Make it while a `VirtualLoop` runs.

    ``links`` may be exchanged at any time, for what is sent from then on. ``clock_jump_s`` is how wrong everybody's
    clock is: add to it, and Unix time moves for all without the days of upkeep that sleeping as long would bring.
    ``datagrams`` and ``carried_bytes`` count what was sent, ``largest`` is the longest datagram so far, ``received``
    counts by socket what arrived. ``tap``, if set, is told of everything.
    """

    def __init__(self, seed: int = 1, links: Links = LAN) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise TypeError("a simulated network needs virtual time: tests.simulation.clock.run")
        self.loop = loop
        loop.datagrams = self.open_transport
        self.seed = seed
        self.randomness = random.Random(seed)
        self.links = links
        self.clock_jump_s = 0.0
        self.datagrams = 0
        self.carried_bytes = 0
        self.largest = 0
        self.received: Counter[Endpoint] = Counter()
        self.tap: Tap | None = None
        self._fates = random.Random(f"fates {seed}")
        self._transports: dict[Endpoint, SimulatedTransport] = {}
        self._nats: dict[str, Nat] = {}
        self._nat_of: dict[str, Nat] = {}
        self._side: dict[str, int] = {}
        self._clock_of: dict[str, float] = {}
        self._numbers: dict[str, int] = {}

    # Sockets

    async def open_transport(
        self, protocol: Callable[[], asyncio.DatagramProtocol], listen: str, port: int
    ) -> asyncio.DatagramTransport:
        """A socket on the host ``listen``; port 0 takes a free one. OSError if the port is in use."""
        while port == 0 or (listen, port) in self._transports:
            if port:
                raise OSError(f"{listen}:{port} is in use")
            port = next(each for each in range(_FIRST_FREE_PORT, _LAST_PORT) if (listen, each) not in self._transports)
        transport = SimulatedTransport(self, (listen, port), protocol())
        self._know(listen)
        self._transports[transport.at] = transport
        transport.protocol.connection_made(transport)
        return transport

    def unplug(self, transport: SimulatedTransport) -> None:
        """Nothing is sent or arrives any more. The socket's owner is not told."""
        transport.alive = False
        if self._transports.get(transport.at) is transport:
            del self._transports[transport.at]

    def lose_power(self, ip: str, port: int | None = None) -> None:
        """Kill the machine: all its sockets, or the one on this port, fall silent, and nobody is told."""
        if port is None:
            doomed = [each for each in self._transports.values() if each.at[0] == ip]
        else:
            doomed = [each for each in (self._transports.get((ip, port)),) if each is not None]
        for transport in doomed:
            self.unplug(transport)

    def is_open(self, at: Endpoint) -> bool:
        return at in self._transports

    # Topology and clocks

    def put_behind_nat(self, private_ip: str, public_ip: str) -> None:
        """From now on the host has only this private address; hosts with one public address share the NAT."""
        self._know(public_ip)
        self._nat_of[private_ip] = self._nats.setdefault(public_ip, Nat(public_ip))

    def partition(self, *groups: Iterable[str]) -> None:
        """Hosts (by the IP address that others see) reach only those of their own group; whom no group lists are one
        more. What is under way still arrives. Replaces an earlier partition."""
        self._side = {ip: number for number, group in enumerate(groups, start=1) for ip in group}

    def heal(self) -> None:
        self._side = {}

    def clock(self, ip: str) -> Callable[[], float]:
        """The clock of one host: tells Unix time."""
        return lambda: EPOCH_S + self.loop.time() + self.clock_jump_s + self._clock_of.get(ip, 0.0)

    def jump_clock(self, ip: str, by_s: float) -> None:
        """Move one host's clock, forwards or backwards."""
        self._clock_of[ip] = self._clock_of.get(ip, 0.0) + by_s

    # Datagrams

    def carry(self, source: Endpoint, data: bytes, to: Endpoint) -> None:
        """Send a datagram on its way."""
        size = len(data)
        self.datagrams += 1
        self.carried_bytes += size
        if size > self.largest:
            self.largest = size
        if self._nat_of:
            ours, theirs = self._nat_of.get(source[0]), self._nat_of.get(to[0])
            if theirs is not None:
                if theirs is not ours:
                    return
            elif ours is not None:
                source = ours.outgoing(source, to, self.loop.time())
        if self.tap is not None:
            self.tap(source, to, data)
        if self._side and self._side.get(source[0], 0) != self._side.get(to[0], 0):
            return
        theirs_number = self._numbers.get(to[0])
        if theirs_number is None:
            return  # an address that no machine ever had: attackers invent millions of them
        pair = self._numbers[source[0]] * theirs_number >> 40
        for delay_s in self.links.arrivals(pair, self._fates):
            self.loop.deliver(delay_s, self._arrive, data, source, to)

    def _arrive(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        receiver = self._transports.get(to)
        if receiver is None:
            if (nat := self._nats.get(to[0])) is None:
                return
            inside = nat.incoming(source, to[1], self.loop.time())
            if inside is None or (receiver := self._transports.get(inside)) is None:
                return
            to = inside
        self.received[to] += 1
        receiver.protocol.datagram_received(data, source)

    def _know(self, ip: str) -> None:
        """Give the address a number of 32 bits, well mixed: products of two choose the base delay of the pair."""
        if ip not in self._numbers:
            self._numbers[ip] = random.Random(f"{self.seed} {ip}").getrandbits(32) | 1
