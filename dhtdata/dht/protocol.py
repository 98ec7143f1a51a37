"""Requests and replies over datagrams (door of ``kademlia`` and ``rpcudp``).

`DhtProtocol` is a `kademlia.protocol.KademliaProtocol` with its own ``rpc_`` methods, `DhtServer` the
`kademlia.network.Server` that makes it. What the packages do here and this module does not:

- every datagram starts tasks nobody holds: here requests are answered at once, and work is bounded by the datagram's
  size (at most a handful of signatures) and by the rates below;
- calls that were cancelled stay in ``_outstanding`` for ever: here they leave with their caller, and are capped;
- any sender may answer a call: here only the address that was asked, with a reply of the kind that was asked for;
- a reply decides what goes to ``sendto``, and odd ports close the socket: here only checked IP addresses get there;
- who sends anything is put into the table and given records: here only who proved its address is, and gets nothing;
- a misspelt attribute becomes a remote call: here it is an AttributeError.

A datagram is judged in the order of `envelope`, the cheapest test first. Rates: `CHALLENGES_A_S` cookies a second are
given to addresses that are not proven, which bounds what a flood from invented addresses costs; `VERIFIED_A_S`
signatures of requests a second are checked in all, and `REQUESTS_A_S` of one network (`network_group`). What comes
beyond a rate is dropped, as the network would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from kademlia.network import Server
from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from dhtdata.dht import envelope, messages
from dhtdata.dht.cookies import Acquaintances, CookieJar
from dhtdata.dht.endpoint import from_socket, open_udp
from dhtdata.dht.envelope import CALL_BYTES, CALL_END, CODED, COOKIE_END, HEADER_BYTES, Letter
from dhtdata.dht.holdings import Holdings, Origin
from dhtdata.dht.identity import Identity, is_proven
from dhtdata.dht.messages import (
    FindNode,
    FindRecords,
    Introduce,
    Introduced,
    Meet,
    Met,
    Nodes,
    Ping,
    Pong,
    Records,
    Reply,
    Request,
    Store,
    Stored,
)
from dhtdata.dht.rates import SourceLimits, TokenBucket
from dhtdata.dht.round_trips import RoundTrips
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable
from dhtdata.digest import random_id
from dhtdata.errors import FormatError, IntegrityError, PeerError
from dhtdata.formats.addresses import Address, AddressWire, network_group, packed
from dhtdata.network import Network

OpenTransport = Callable[[Callable[[], asyncio.DatagramProtocol], str, int], Awaitable[asyncio.DatagramTransport]]
"""Opens a transport on an IP address and port for the protocol that it makes."""

MAX_OUTSTANDING = 512
CHALLENGES_A_S = 10_000
VERIFIED_A_S = 3_000
REQUESTS_A_S = 200
REQUESTS_AT_ONCE = 1_000
NOTICES_A_S = 20
KNOCKS_A_S = 20
MAX_SOURCES = 4_096
UNSOLICITED_S = 5 * 60.0


@dataclass
class Counters:
    """Since the start."""

    calls: int = 0
    unanswered: int = 0
    answered_requests: int = 0
    refused_datagrams: int = 0
    late_answers: int = 0
    strangers: int = 0
    challenges: int = 0
    over_rate: int = 0
    other_versions: int = 0


@dataclass(frozen=True)
class Side:
    """What a protocol needs to know of its node. ``serves`` says whether we answer for others (else: a client).

    ``unsolicited`` is told of requests (True) and some knocks (False) from addresses that we have not called ourselves;
    ``introduce`` asks some contact to call an address (False if we know none), ``meet`` calls it.
    """

    identity: Identity
    network: Network
    storage: Holdings
    router: RoutingTable
    now_s: Callable[[], float]
    serves: Callable[[], bool]
    unsolicited: Callable[[Address, bool], None]
    introduce: Callable[[Address], bool]
    meet: Callable[[Contact, Address], None]


@dataclass(frozen=True)
class Replied:
    """A reply with the identifier of the node that signed it."""

    reply: Reply
    sender: bytes
    client: bool


@dataclass(frozen=True)
class _Outstanding:
    """A call under way. Without a request it is a knock, and the challenge its answer."""

    address: Address
    to: bytes
    request: Request | None
    answer: asyncio.Future[Replied | PeerError | None]
    challenged: list[None]


class DhtProtocol(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    """One node's side of the wire, on one socket."""

    router: RoutingTable
    storage: Holdings
    transport: asyncio.DatagramTransport | None
    _outstanding: dict[bytes, _Outstanding]

    def __init__(self, side: Side) -> None:
        super().__init__(Node(side.identity.id), side.storage, BUCKET_SIZE)
        self.router = side.router
        self.counters = Counters()
        self.round_trips = RoundTrips()
        self.own_id = side.identity.id
        self.acquaintances = Acquaintances()
        self.closed = asyncio.Event()
        self._side = side
        self._network = side.network
        self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        self._cookies = CookieJar(now_s)
        self._challenges = TokenBucket(CHALLENGES_A_S, CHALLENGES_A_S / 10, now_s)
        self._verified = TokenBucket(VERIFIED_A_S, VERIFIED_A_S, now_s)
        self._notices = TokenBucket(NOTICES_A_S, NOTICES_A_S, now_s)
        self._knocks = TokenBucket(KNOCKS_A_S, KNOCKS_A_S, now_s)
        self._sources = SourceLimits(REQUESTS_A_S, REQUESTS_AT_ONCE, MAX_SOURCES)
        self._rpcs: dict[type[Request], Callable[[Contact, bytes, Any], Reply]] = {
            Ping: self.rpc_ping,
            FindNode: self.rpc_find_node,
            FindRecords: self.rpc_find_records,
            Store: self.rpc_store,
            Introduce: self.rpc_introduce,
            Meet: self.rpc_meet,
        }

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in tuple(self._outstanding.values()):
            self._fail(waiting, "our socket closed")
        self.closed.set()

    # What arrives

    def datagram_received(self, data: bytes, addr: Any) -> None:
        size = len(data)
        if size < CALL_END or size > envelope.MAX_DATAGRAM_BYTES:
            self.counters.refused_datagrams += 1
            return
        if not envelope.of_network(self._network, data):
            self.counters.strangers += 1
            return
        if data[0] != envelope.VERSION:
            self._other_version(data, addr)
            return
        kind = data[1]
        if kind == envelope.REQUEST:
            self._requested(data, addr)
        elif kind == envelope.KNOCK:
            self._knocked(data, addr)
        elif kind <= envelope.NOTICE:
            self._answered(data, addr)
        else:
            self.counters.refused_datagrams += 1

    def _requested(self, data: bytes, addr: Any) -> None:
        now_s = self._loop.time()
        if len(data) <= HEADER_BYTES:
            self.counters.refused_datagrams += 1
            return
        cookie = data[CALL_END:COOKIE_END]
        if cookie == envelope.NO_COOKIE or not self._cookies.knows(cookie, addr[0], addr[1], now_s):
            self._challenge(data[CODED:CALL_END], addr, now_s)
            return
        try:
            address = from_socket(addr)
            if not self._sources.take(network_group(address), now_s) or not self._verified.take(now_s):
                self.counters.over_rate += 1
                return
            letter, key, identifier = envelope.unseal(data, self.own_id)
            request = messages.decode_request(letter.body)
        except (FormatError, IntegrityError):
            self.counters.refused_datagrams += 1
            return
        if identifier == self.own_id:
            # Nobody else could have signed it: whoever waits for an answer waits for ourselves.
            if (waiting := self._outstanding.get(letter.call)) is not None:
                self._fail(waiting, "is our own address")
            return
        sender = Contact(identifier, address)
        serving = not letter.client and is_proven(identifier, self._network.difficulty_bits)
        self._came(address, now_s, proven=True)
        reply = self._rpcs[type(request)](sender, key, request)
        cookie = self._cookies.give(addr[0], addr[1], now_s)
        self._send(addr, envelope.REPLY, letter.call, cookie, reply, identifier)
        self.counters.answered_requests += 1
        if serving and letter.to and messages.may_be_named(sender):
            self.welcome_if_new(sender)

    def _knocked(self, data: bytes, addr: Any) -> None:
        if len(data) != COOKIE_END:
            self.counters.refused_datagrams += 1
            return
        now_s = self._loop.time()
        self._challenge(data[CODED:CALL_END], addr, now_s)
        if self._knocks.take(now_s):
            try:
                address = from_socket(addr)
            except FormatError:
                return
            self._came(address, now_s, proven=False)

    def _came(self, address: Address, now_s: float, proven: bool) -> None:
        """Something came that is no answer. What we send back opens a translator for its sender, as a call does."""
        if self.acquaintances.called_within(address, now_s, UNSOLICITED_S):
            self.acquaintances.called(address, now_s)
        else:
            self._side.unsolicited(address, proven)

    def _challenge(self, call: bytes, addr: Any, now_s: float) -> None:
        if not self._challenges.take(now_s):
            self.counters.over_rate += 1
            return
        self.counters.challenges += 1
        self._sendto(envelope.challenge(self._network, call, self._cookies.give(addr[0], addr[1], now_s)), addr)

    def _other_version(self, data: bytes, addr: Any) -> None:
        """A node of another version: tell it which one we speak, and whoever waits here which one it speaks."""
        self.counters.other_versions += 1
        call = data[CODED:CALL_END]
        if data[1] == envelope.NOTICE:
            waiting = self._outstanding.get(call)
            if waiting is not None and _same(waiting.address, addr):
                spoken = f"speaks version {data[0]} of the protocol, this dhtdata {envelope.VERSION}"
                self._fail(waiting, f"{spoken}: upgrade the older of the two")
        elif data[1] in (envelope.REQUEST, envelope.KNOCK) and self._notices.take(self._loop.time()):
            self._sendto(envelope.notice(self._network, call), addr)

    def _answered(self, data: bytes, addr: Any) -> None:
        call = data[CODED:CALL_END]
        waiting = self._outstanding.get(call)
        if waiting is None or waiting.answer.done():
            self.counters.late_answers += 1
            return
        if not _same(waiting.address, addr):
            self.counters.refused_datagrams += 1
            return
        if data[1] == envelope.CHALLENGE:
            self._challenged(waiting, call, data[CALL_END:])
            return
        if waiting.request is None:
            self.counters.refused_datagrams += 1
            return
        try:
            letter, _, identifier = envelope.unseal(data, self.own_id)
            if not letter.to:
                raise FormatError("a reply to nobody")
            reply = messages.decode_reply(letter.body)
        except (FormatError, IntegrityError):
            # Whoever answers with nonsense has not answered: no need to wait for the time-out.
            self.counters.refused_datagrams += 1
            self._fail(waiting, "answered nonsense")
            return
        if identifier == self.own_id:
            self._fail(waiting, "is our own address")
        elif type(reply) is not messages.REPLY_TO[type(waiting.request)]:
            self._fail(waiting, "answered another question")
        else:
            client = letter.client or not is_proven(identifier, self._network.difficulty_bits)
            self.acquaintances.gave(waiting.address, letter.cookie, self._loop.time())
            self.acquaintances.said(waiting.address, reply.you)
            waiting.answer.set_result(Replied(reply, identifier, client))

    def _challenged(self, waiting: _Outstanding, call: bytes, cookie: bytes) -> None:
        """Ask, or ask again, once, with the cookie."""
        if len(cookie) != envelope.COOKIE_BYTES or waiting.challenged:
            self.counters.refused_datagrams += 1
            return
        waiting.challenged.append(None)
        address = waiting.address
        self.acquaintances.gave(address, cookie, self._loop.time())
        if waiting.request is None:
            waiting.answer.set_result(None)
            return
        self._send((address.ip, address.port), envelope.REQUEST, call, cookie, waiting.request, waiting.to)

    # What we ask

    async def call(self, address: Address, request: Request, attempt: int = 0, to: bytes = b"") -> Replied:
        """The reply, of the kind that belongs to the request. PeerError if none came in time.

        ``to`` is the identifier of the node that is meant; empty for a ping to whoever is there.
        """
        answer = await self._call(address, request, attempt, to)
        if answer is None:
            raise RuntimeError("a request is answered by a reply")
        return answer

    async def knock(self, address: Address, attempt: int = 0) -> None:
        """See whether a node of our network is still there: 34 bytes each way and no signature.

        PeerError if there is none. Who it is only a `call` tells.
        """
        await self._call(address, None, attempt, b"")

    async def _call(self, address: Address, request: Request | None, attempt: int, to: bytes) -> Replied | None:
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise PeerError(f"{address} was not asked: {MAX_OUTSTANDING} calls are under way")
        call = random_id(CALL_BYTES)
        waiting = self._outstanding[call] = _Outstanding(address, to, request, self._loop.create_future(), [])
        self.counters.calls += 1
        started_s = self._loop.time()
        self.acquaintances.called(address, started_s)
        try:
            if not self._ask(address, call, request, to):
                raise PeerError(f"{address} cannot be reached from our socket")
            async with asyncio.timeout(self.round_trips.timeout_s(attempt)):
                answer = await waiting.answer
        except TimeoutError as failure:
            self.counters.unanswered += 1
            raise PeerError(f"{address} did not answer") from failure
        finally:
            del self._outstanding[call]
            waiting.answer.cancel()
        if isinstance(answer, PeerError):
            self.counters.unanswered += 1
            raise answer
        # With a challenge there were two trips.
        trips = 2 if waiting.challenged and request is not None else 1
        self.round_trips.measured(max(self._loop.time() - started_s, 1e-6) / trips)
        return answer

    def _ask(self, address: Address, call: bytes, request: Request | None, to: bytes) -> bool:
        cookie = self.acquaintances.cookie(address, self._loop.time())
        if request is None or cookie == envelope.NO_COOKIE:
            return self._sendto(envelope.knock(self._network, call), (address.ip, address.port))
        return self._send((address.ip, address.port), envelope.REQUEST, call, cookie, request, to)

    def time_s(self) -> float:
        """The clock of everything that is not written into a record: it never goes back."""
        return self._loop.time()

    # What we answer

    def rpc_ping(self, sender: Contact, key: bytes, request: Ping) -> Pong:
        return Pong(you=packed(sender.address.ip), time=self._time())

    def rpc_find_node(self, sender: Contact, key: bytes, request: FindNode) -> Nodes:
        near = self.router.closest(request.target, BUCKET_SIZE, without={sender.id})
        return Nodes(you=packed(sender.address.ip), time=self._time(), contacts=messages.nodes_fitting(near))

    def rpc_find_records(self, sender: Contact, key: bytes, request: FindRecords) -> Records:
        near = self.router.closest(request.target, BUCKET_SIZE, without={sender.id}) if request.contacts else []
        waiting = list(
            islice(self.storage.stream(request.key), request.after, request.after + messages.MAX_RECORDS + 1)
        )
        contacts, records = messages.fitting(near, waiting)
        more = len(records) < len(waiting)
        you, time = packed(sender.address.ip), self._time()
        return Records(you=you, time=time, contacts=contacts, records=records, more=more)

    def rpc_store(self, sender: Contact, key: bytes, request: Store) -> Stored:
        origin = Origin(sender.address, key)
        kept = sum(self._keep(record, origin) for record in request.records) if self._side.serves() else 0
        return Stored(you=packed(sender.address.ip), time=self._time(), kept=kept)

    def rpc_introduce(self, sender: Contact, key: bytes, request: Introduce) -> Introduced:
        others = self._side.introduce(sender.address)
        return Introduced(you=packed(sender.address.ip), time=self._time(), others=others)

    def rpc_meet(self, sender: Contact, key: bytes, request: Meet) -> Met:
        self._side.meet(sender, AddressWire(ip=request.ip, port=request.port).address())
        return Met(you=packed(sender.address.ip), time=self._time())

    def welcome_if_new(self, node: Contact) -> None:
        """Whose request brings our cookie back has answered us. The stock method trusts anybody, and sends records."""
        self.router.heard(node, self._loop.time())

    def _keep(self, record: bytes, origin: Origin) -> bool:
        try:
            return self.storage.keep(record, origin)
        except (FormatError, IntegrityError):
            return False

    def _time(self) -> int:
        return int(self._side.now_s())

    def _fail(self, waiting: _Outstanding, reason: str) -> None:
        if not waiting.answer.done():
            waiting.answer.set_result(PeerError(f"{waiting.address} {reason}"))

    def _send(self, addr: Any, kind: int, call: bytes, cookie: bytes, message: Request | Reply, to: bytes) -> bool:
        letter = Letter(kind, call, cookie, not self._side.serves(), messages.encode(message), to)
        return self._sendto(envelope.seal(self._network, self._side.identity, letter), addr)

    def _sendto(self, datagram: bytes, addr: Any) -> bool:
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.sendto(datagram, addr)
        return True


def _same(address: Address, addr: Any) -> bool:
    return bool(address.port == addr[1] and address.ip == addr[0])


class DhtServer(Server):  # type: ignore[misc]  # the package has no types
    """Owner of the socket and its protocol. The stock ``set``, ``get``, loops and pickled state are never used."""

    protocol_class = DhtProtocol
    transport: asyncio.DatagramTransport
    protocol: DhtProtocol

    def __init__(self, side: Side) -> None:
        super().__init__(ksize=BUCKET_SIZE, node_id=side.identity.id, storage=side.storage)
        self._create = partial(self.protocol_class, side)

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
