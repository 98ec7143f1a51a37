"""Requests and replies over datagrams (door of ``kademlia`` and ``rpcudp``).

`DhtProtocol` is a `kademlia.protocol.KademliaProtocol` with its own ``rpc_`` methods, `DhtServer` the
`kademlia.network.Server` that makes it. What the packages do here and this module does not:

- every datagram starts tasks nobody holds: here requests are answered at once, and work is bounded by the datagram's
  size (at most a handful of signatures);
- calls that were cancelled stay in ``_outstanding`` for ever: here they leave with their caller, and are capped;
- any sender may answer a call: here only the address that was asked, with a reply of the kind that was asked for;
- a reply decides what goes to ``sendto``, and odd ports close the socket: here only checked IP addresses get there;
- who sends anything is put into the table and given records: here it is reported as a newcomer, to be called back;
- a misspelt attribute becomes a remote call: here it is an AttributeError.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from kademlia.network import Server
from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from dhtdata.dht import messages
from dhtdata.dht.endpoint import from_socket, open_udp, to_socket
from dhtdata.dht.holdings import Holdings
from dhtdata.dht.messages import FindNode, FindRecords, Nodes, Ping, Pong, Records, Reply, Request, Store, Stored
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable
from dhtdata.digest import random_id
from dhtdata.errors import FormatError, IntegrityError, PeerError
from dhtdata.formats.addresses import Address

OpenTransport = Callable[[Callable[[], asyncio.DatagramProtocol], str, int], Awaitable[asyncio.DatagramTransport]]
"""Opens a transport on an IP address and port for the protocol that it makes."""

MAX_OUTSTANDING = 512
FIRST_TIMEOUT_S = 1.0
MIN_TIMEOUT_S = 0.3
MAX_TIMEOUT_S = 2.0


class RoundTrips:
    """How long to wait for an answer: smoothed round trip and four deviations (RFC 6298), within bounds."""

    def __init__(self) -> None:
        self.smoothed_s = 0.0
        self._deviation_s = 0.0

    def measured(self, trip_s: float) -> None:
        if not self.smoothed_s:
            self.smoothed_s, self._deviation_s = trip_s, trip_s / 2
            return
        self._deviation_s += (abs(trip_s - self.smoothed_s) - self._deviation_s) / 4
        self.smoothed_s += (trip_s - self.smoothed_s) / 8

    def timeout_s(self, attempt: int) -> float:
        """Later attempts wait longer, so that a network that became slow is noticed at all."""
        if not self.smoothed_s:
            return FIRST_TIMEOUT_S
        patience_s = max(MIN_TIMEOUT_S, self.smoothed_s + 4 * self._deviation_s) * (1 + 2 * attempt)
        return min(MAX_TIMEOUT_S, patience_s)


@dataclass
class Counters:
    """Since the start."""

    calls: int = 0
    unanswered: int = 0
    answered_requests: int = 0
    refused_datagrams: int = 0


@dataclass(frozen=True)
class _Outstanding:
    address: Address
    expected: type[Reply]
    reply: asyncio.Future[Reply | PeerError]


class DhtProtocol(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    """One node's side of the wire. ``newcomer`` is told of non-clients that sent a request and are not in the table."""

    router: RoutingTable
    storage: Holdings
    transport: asyncio.DatagramTransport | None
    _outstanding: dict[bytes, _Outstanding]

    def __init__(
        self, own: Node, client: bool, storage: Holdings, router: RoutingTable, newcomer: Callable[[Contact], None]
    ) -> None:
        super().__init__(own, storage, BUCKET_SIZE)
        self.router = router
        self.counters = Counters()
        self.round_trips = RoundTrips()
        self.own_id: bytes = own.id
        self._newcomer = newcomer
        self._client = client
        self._family = socket.AF_INET
        self._congested = False
        self.closed = asyncio.Event()
        self._answers: dict[type[Request], Callable[[Address, Any], Reply]] = {
            Ping: self.rpc_ping,
            FindNode: self.rpc_find_node,
            FindRecords: self.rpc_find_records,
            Store: self.rpc_store,
        }

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        bound = transport.get_extra_info("socket")
        if bound is not None:
            self._family = bound.family

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in tuple(self._outstanding.values()):
            self._fail(waiting, "our socket closed")
        self.closed.set()

    def pause_writing(self) -> None:
        """The socket does not take more: what would be sent now is dropped, as the network would."""
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            address = from_socket(addr)
            call, message = messages.decode(data)
        except FormatError:
            self.counters.refused_datagrams += 1
            self._blame(data, addr)
            return
        if message.sender == self.own_id:
            if (echo := self._outstanding.get(call)) is not None:
                self._fail(echo, "is our own address")
            return
        if type(message) not in self._answers:
            self._settle(call, address, message)  # type: ignore[arg-type]  # every message that is no request is a reply
            return
        reply = self._answers[type(message)](address, message)  # type: ignore[index]
        self._send(messages.encode(call, reply), address)
        self.counters.answered_requests += 1
        self.welcome_if_new(Contact(message.sender, address) if not message.client else None)

    async def call(self, address: Address, request: Request, attempt: int = 0) -> Reply:
        """The reply, of the kind that belongs to the request. PeerError if none came in time."""
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise PeerError(f"{address} was not asked: {MAX_OUTSTANDING} calls are under way")
        loop = asyncio.get_running_loop()
        number = random_id(messages.CALL_BYTES)
        waiting = _Outstanding(address, messages.REPLY_TO[type(request)], loop.create_future())
        self._outstanding[number] = waiting
        self.counters.calls += 1
        started_s = loop.time()
        try:
            if not self._send(messages.encode(number, request), address):
                raise PeerError(f"{address} cannot be reached from our socket")
            async with asyncio.timeout(self.round_trips.timeout_s(attempt)):
                reply = await waiting.reply
        except TimeoutError as failure:
            self.counters.unanswered += 1
            raise PeerError(f"{address} did not answer") from failure
        finally:
            del self._outstanding[number]
            waiting.reply.cancel()
        if isinstance(reply, PeerError):
            self.counters.unanswered += 1
            raise reply
        self.round_trips.measured(max(loop.time() - started_s, 1e-6))
        return reply

    def rpc_ping(self, sender: Address, request: Ping) -> Pong:
        return Pong(sender=self.own_id, client=self._client)

    def rpc_find_node(self, sender: Address, request: FindNode) -> Nodes:
        near = self.router.closest(request.target, BUCKET_SIZE, without={request.sender})
        return Nodes(sender=self.own_id, client=self._client, contacts=messages.nodes_fitting(near))

    def rpc_find_records(self, sender: Address, request: FindRecords) -> Records:
        near = self.router.closest(request.key, BUCKET_SIZE, without={request.sender}) if request.contacts else []
        waiting = list(
            islice(self.storage.stream(request.key), request.after, request.after + messages.MAX_RECORDS + 1)
        )
        contacts, records = messages.fitting(near, waiting)
        more = len(records) < len(waiting)
        return Records(sender=self.own_id, client=self._client, contacts=contacts, records=records, more=more)

    def rpc_store(self, sender: Address, request: Store) -> Stored:
        kept = 0 if self._client else sum(self._keep(record, sender) for record in request.records)
        return Stored(sender=self.own_id, client=self._client, kept=kept)

    def welcome_if_new(self, node: Contact | None) -> None:
        """The stock method trusts the sender and hands records over; here it must answer a call of ours first."""
        if node is not None and self.router.wants(node):
            self._newcomer(node)

    def _keep(self, record: bytes, sender: Address) -> bool:
        try:
            return self.storage.keep(record, sender.ip)
        except (FormatError, IntegrityError):
            return False

    def _settle(self, call: bytes, address: Address, reply: Reply) -> None:
        waiting = self._outstanding.get(call)
        if waiting is None or waiting.address != address or waiting.reply.done():
            self.counters.refused_datagrams += 1
        elif type(reply) is not waiting.expected:
            self._fail(waiting, "answered another question")
        else:
            waiting.reply.set_result(reply)

    def _blame(self, data: bytes, addr: Any) -> None:
        """Whoever answers a call with nonsense has not answered: no need to wait for the time-out."""
        waiting = self._outstanding.get(data[1 : 1 + messages.CALL_BYTES])
        if waiting is not None and data[0] == 1 and (waiting.address.ip, waiting.address.port) == tuple(addr[:2]):
            self._fail(waiting, "answered nonsense")

    def _fail(self, waiting: _Outstanding, reason: str) -> None:
        if not waiting.reply.done():
            waiting.reply.set_result(PeerError(f"{waiting.address}: {reason}"))

    def _send(self, datagram: bytes, address: Address) -> bool:
        transport = self.transport
        if transport is None or transport.is_closing() or self._congested:
            return False
        try:
            where = to_socket(address, self._family)
        except FormatError:
            return False
        transport.sendto(datagram, where)
        return True


class DhtServer(Server):  # type: ignore[misc]  # the package has no types
    """Owner of the socket and its protocol. The stock ``set``, ``get``, loops and pickled state are never used."""

    protocol_class = DhtProtocol
    transport: asyncio.DatagramTransport
    protocol: DhtProtocol

    def __init__(
        self, own: Node, client: bool, storage: Holdings, router: RoutingTable, newcomer: Callable[[Contact], None]
    ) -> None:
        super().__init__(ksize=BUCKET_SIZE, node_id=own.id, storage=storage)
        self._create = partial(DhtProtocol, own, client, storage, router, newcomer)

    def _create_protocol(self) -> DhtProtocol:
        self.protocol = self._create()
        return self.protocol

    async def listen(self, port: int, interface: str, open_transport: OpenTransport = open_udp) -> None:
        """ConfigError if the port is in use."""
        self.transport = await open_transport(self._create_protocol, interface, port)

    async def close(self) -> None:
        """Close the socket; the port is free on return."""
        self.transport.close()
        await self.protocol.closed.wait()
