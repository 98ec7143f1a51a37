"""`DhtNode`: one participant of the DHT, and its loops.

Everything that a node starts lives in one task group inside `DhtNode.running`. Time, randomness and the socket come in
as `Surroundings`, so that hundreds of nodes run in one process on a clock of their own.

| loop | every | does |
|---|---|---|
| greet | newcomer | calls back who asked us something; who answers may enter the table |
| freshen | 1 min | looks up ranges silent for 15 min, pings contacts silent for 10 min, joins anew when alone |
| tidy | 1 min | forgets expired records |
| remember | 5 min, and at the end | writes the nearest contacts to disk |

Intervals vary by a fifth, so that nodes started together do not act together.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kademlia.node import Node

from dhtdata.dht import remembered
from dhtdata.dht.endpoint import open_udp
from dhtdata.dht.holdings import PEER_LIFETIME_S, Holdings, keys_of
from dhtdata.dht.lookup import Answer, Ask, Walk
from dhtdata.dht.messages import (
    FindNode,
    FindRecords,
    Nodes,
    Ping,
    Records,
    Reply,
    Request,
    Store,
    Stored,
    check_reachable,
    parcels,
)
from dhtdata.dht.protocol import DhtServer, OpenTransport
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable, number
from dhtdata.dht.search import Findings, Found
from dhtdata.dht.sweep import Sweep
from dhtdata.errors import ConfigError, FormatError, NotFoundError, PeerError, StoreError
from dhtdata.formats.names import Name
from dhtdata.formats.records import (
    MAX_ADDRESSES,
    MAX_SHARD_KEYS,
    SHARD_LIFETIME_S,
    Address,
    AddressWire,
    NameRecord,
    PeerRecord,
    ShardClaims,
    Signed,
    node_id,
    sign,
)
from dhtdata.signing import SigningKey

_LOG = logging.getLogger(__name__)

GREETERS = 4
MAX_NEWCOMERS = 128
MAX_BOOTSTRAP = 64
MAX_PAGES = 16
MAX_FOUND = 1_024
PARALLEL_STORES = 8
SEARCH_S = 60.0
UPKEEP_S = 60.0
STALE_S = 15 * 60.0
SILENT_S = 10 * 60.0
SILENT_AT_ONCE = 8
REMEMBER_S = 5 * 60.0
PEER_RENEWAL_S = 3_600


@dataclass(frozen=True)
class Surroundings:
    """What a node takes from outside: Unix time, randomness for jitter and targets, and a datagram transport."""

    now_s: Callable[[], float] = time.time
    randomness: random.Random = field(default_factory=random.Random)
    open_transport: OpenTransport = open_udp


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A contact in the routing table: it answered us ``seen_s_ago`` seconds ago."""

    id: bytes
    address: Address
    seen_s_ago: float


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """For display."""

    id: bytes
    port: int
    client: bool
    contacts: int
    nodes_estimated: int
    records_held: int
    keys_held: int
    requests_answered: int
    datagrams_refused: int
    calls: int
    calls_unanswered: int
    round_trip_s: float


class DhtNode:
    """One node. Use `running`."""

    def __init__(self, key: SigningKey, client: bool, state_path: Path | None, surroundings: Surroundings) -> None:
        self.key = key
        self.id = node_id(key.public)
        self.port = 0
        self.client = client
        self._state_path = state_path
        self._outside = surroundings
        self._loop = asyncio.get_running_loop()
        self._table = RoutingTable(self.id, now_s=self._loop.time())
        self._holdings = Holdings(surroundings.now_s)
        self._server = DhtServer(Node(self.id), client, self._holdings, self._table, self._meet)
        self._own = Contact(self.id, Address("127.0.0.1", 1))
        self._addresses: tuple[Address, ...] = ()
        self._peer_record: Signed | None = None
        self._bootstrap: dict[Address, None] = {}
        self._newcomers: asyncio.Queue[Contact] = asyncio.Queue(MAX_NEWCOMERS)
        self._expected: set[Contact] = set()
        self._rejoined = asyncio.Event()
        self._joined = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        key: SigningKey,
        *,
        listen: str,
        port: int,
        client: bool,
        state_path: Path | None,
        surroundings: Surroundings | None = None,
    ) -> AsyncIterator[DhtNode]:
        """A node that listens until the block ends. ConfigError if the port is in use. Port 0 takes a free one."""
        node = cls(key, client, state_path, surroundings or Surroundings())
        known = await node._recall()
        await node._server.listen(port, listen, node._outside.open_transport)
        node.port = node._server.transport.get_extra_info("sockname")[1]
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                node._tasks = tasks
                node._start_loops(known)
                try:
                    yield node
                except Exception as raised:  # noqa: BLE001  # the caller's own: must leave the group unwrapped
                    failure = raised
                finally:
                    node._tasks = None
                    for task in tuple(node._running):
                        task.cancel()
        finally:
            node._server.transport.close()
            await node._remember()
        if failure is not None:
            raise failure

    async def bootstrap(self, addresses: Sequence[Address]) -> int:
        """Join through nodes at these addresses: how many answered. They are asked again while we know nobody."""
        for address in addresses[:MAX_BOOTSTRAP]:
            self._bootstrap[address] = None
        while len(self._bootstrap) > MAX_BOOTSTRAP:
            del self._bootstrap[next(iter(self._bootstrap))]
        return await self._join(addresses[:MAX_BOOTSTRAP])

    async def announce(self, key: bytes, *records: Signed) -> int:
        """Put records of this key on the k nodes nearest to it: how many other nodes hold them now.

        ConfigError on a client, which announces nothing. FormatError if a record does not belong under the key.
        """
        self._refuse_client()
        if any(key not in keys_of(record) for record in records):
            raise FormatError(f"a record does not belong under the key {key.hex()}")
        near = await self._nearest(key)
        holders = sorted([*near, self._own], key=lambda each: each.long_id ^ number(key))[:BUCKET_SIZE]
        datas = [record.data for record in records]
        if any(record.signer == self.key.public for record in records):
            datas = [*self._introduction(), *datas]
        return sum(await self._store_all([(holder, datas) for holder in holders]))

    async def announce_shards(self, keys: Sequence[bytes]) -> int:
        """Claim these shard keys, signed by the node's key: how many of the keys other nodes hold now.

        One pass over the key space (`sweep`), claims of up to 42 keys a datagram. ConfigError on a client.
        """
        self._refuse_client()
        now = int(self._outside.now_s())
        introduced: set[bytes] = set()
        held: set[bytes] = set()
        async for assignment in Sweep(self._nearest, self._own, self._outside.randomness).assignments(keys):
            work: list[tuple[Contact, list[bytes]]] = []
            claimed: list[list[bytes]] = []
            for holder, mine in assignment.items():
                first = [] if holder.id in introduced else self._introduction()
                introduced.add(holder.id)
                for start in range(0, len(mine), MAX_SHARD_KEYS):
                    part = mine[start : start + MAX_SHARD_KEYS]
                    claims = ShardClaims(keys=b"".join(part), sequence=now, expires=now + SHARD_LIFETIME_S)
                    work.append((holder, [*first, sign(claims, self.key).data]))
                    claimed.append(part)
                    first = []
            for part, kept in zip(claimed, await self._store_all(work), strict=True):
                held.update(part if kept else ())
        return len(held)

    async def find(self, key: bytes) -> AsyncIterator[Found]:
        """Verified, unexpired records under a key, as they arrive, until every near node was asked.

        A record comes again if a newer one of the same signer, or addresses that were not known, turn up. Close it
        (`contextlib.aclosing`) to stop asking early.
        """
        arrived: asyncio.Queue[Found | None] = asyncio.Queue(MAX_FOUND + 1)
        task = self._spawn(self._search_into(key, arrived))
        try:
            while (found := await arrived.get()) is not None:
                yield found
        finally:
            task.cancel()

    async def find_name(self, name: Name) -> Signed:
        """NameRecord of the highest rank found, whatever sequence was asked. NotFoundError says how many were asked."""
        best: list[Signed] = []
        walk = await self._search(name.dht_key, lambda found: best.append(found.record))
        records = [(signed.record.rank, signed) for signed in best if isinstance(signed.record, NameRecord)]
        if not records:
            raise NotFoundError(
                f"{name} was not found: {walk.answered} of {walk.asked} nodes asked answered, none knows it. "
                "Check the name, or use a ticket from somebody who seeds it"
            )
        return max(records, key=lambda each: each[0])[1]

    def nodes(self) -> list[KnownNode]:
        """Contacts in the routing table."""
        now_s = self._loop.time()
        return [KnownNode(each.id, each.address, now_s - self._table.answered_s(each)) for each in self._table]

    def status(self) -> NodeStatus:
        protocol = self._server.protocol
        return NodeStatus(
            id=self.id,
            port=self.port,
            client=self.client,
            contacts=len(self._table),
            nodes_estimated=self._table.estimated_nodes(),
            records_held=self._holdings.record_count,
            keys_held=self._holdings.key_count,
            requests_answered=protocol.counters.answered_requests,
            datagrams_refused=protocol.counters.refused_datagrams,
            calls=protocol.counters.calls,
            calls_unanswered=protocol.counters.unanswered,
            round_trip_s=protocol.round_trips.smoothed_s,
        )

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Where others reach us (up to 8): goes along with every announcement. Without any, claims have no address."""
        if len(addresses) > MAX_ADDRESSES:
            raise ConfigError(f"{len(addresses)} own addresses, at most {MAX_ADDRESSES} can be announced")
        for address in addresses:
            try:
                check_reachable(AddressWire.of(address))
            except FormatError as failure:
                raise ConfigError(f"others cannot reach us at {address}: name an address of this machine") from failure
        self._addresses = tuple(addresses)
        self._peer_record = None

    def _refuse_client(self) -> None:
        if self.client:
            raise ConfigError("a private peer announces nothing: start one with dhtdata seed")

    def _introduction(self) -> list[bytes]:
        """Our PeerRecord, signed anew every hour, so that it outlives any claim it goes with."""
        if not self._addresses:
            return []
        now = int(self._outside.now_s())
        old = self._peer_record.record if self._peer_record is not None else None
        if not isinstance(old, PeerRecord) or old.expires - PEER_LIFETIME_S + PEER_RENEWAL_S <= now:
            self._last_sequence = max(now, self._last_sequence + 1)
            wires = tuple(map(AddressWire.of, self._addresses))
            record = PeerRecord(addresses=wires, sequence=self._last_sequence, expires=now + PEER_LIFETIME_S)
            self._peer_record = sign(record, self.key)
        return [self._peer_record.data] if self._peer_record is not None else []

    _last_sequence = 0

    # Asking others

    async def _ask(self, contact: Contact, request: Request, attempt: int) -> Reply:
        """Call a contact; the table learns how it went. PeerError if it did not answer, or another node did."""
        try:
            reply = await self._server.protocol.call(contact.address, request, attempt)
            if reply.sender != contact.id:
                raise PeerError(f"{contact.address} is not node {contact.id.hex()} any more")
        except PeerError:
            if attempt:
                self._table.missed(contact)
            raise
        if not reply.client:
            self._table.answered(contact, self._loop.time())
        return reply

    def _find_node(self, target: bytes) -> Ask:
        request = FindNode(sender=self.id, client=self.client, target=target)

        async def ask(contact: Contact, attempt: int) -> Answer:
            reply = await self._ask(contact, request, attempt)
            wires = reply.contacts if isinstance(reply, Nodes) else ()
            return Answer([wire.contact() for wire in wires], keeps=not reply.client)

        return ask

    async def _nearest(self, target: bytes) -> list[Contact]:
        """The nodes nearest to the target, ourselves left out."""
        if not len(self._table):
            await self._rejoined.wait()
        walk = Walk(target, self.id, self._find_node(target))
        return await walk.run(self._table.closest(target, BUCKET_SIZE))

    def _find_records(self, key: bytes, take: Callable[[Sequence[bytes]], None]) -> Ask:
        async def ask(contact: Contact, attempt: int) -> Answer:
            taken = 0
            contacts: list[Contact] = []
            for page in range(MAX_PAGES):
                request = FindRecords(sender=self.id, client=self.client, key=key, after=taken, contacts=not page)
                try:
                    reply = await self._ask(contact, request, attempt)
                except PeerError:
                    if not page:
                        raise
                    break
                if not isinstance(reply, Records):
                    break
                take(reply.records)
                contacts += [wire.contact() for wire in reply.contacts]
                taken += len(reply.records)
                keeps = not reply.client
                if not reply.more or (page and not reply.records):
                    break
            return Answer(contacts, keeps)

        return ask

    async def _search(self, key: bytes, tell: Callable[[Found], None]) -> Walk:
        """Tell of every record found under the key, our own holdings first, until the walk or 60 s end."""
        findings = Findings(key, self._outside.now_s())

        def take(records: Sequence[bytes]) -> None:
            for found in findings.take(records):
                tell(found)

        take(tuple(self._holdings.stream(key)))
        walk = Walk(key, self.id, self._find_records(key, take))
        try:
            async with asyncio.timeout(SEARCH_S):
                if not len(self._table):
                    await self._rejoined.wait()
                await walk.run(self._table.closest(key, BUCKET_SIZE))
        except TimeoutError:
            _LOG.debug("search for %s ended after %.0f s", key.hex(), SEARCH_S)
        return walk

    async def _search_into(self, key: bytes, arrived: asyncio.Queue[Found | None]) -> None:
        def tell(found: Found) -> None:
            if arrived.qsize() < MAX_FOUND:
                arrived.put_nowait(found)

        try:
            await self._search(key, tell)
        finally:
            arrived.put_nowait(None)

    async def _store_all(self, work: Sequence[tuple[Contact, Sequence[bytes]]]) -> list[bool]:
        """Put records on holders, a few at once: for each piece of work whether another node keeps all of it now."""
        kept = [False] * len(work)
        waiting = iter(enumerate(work))

        async def carry() -> None:
            for position, (holder, datas) in waiting:
                kept[position] = await self._store(holder, datas)

        async with asyncio.TaskGroup() as carriers:
            for _ in range(min(PARALLEL_STORES, len(work))):
                carriers.create_task(carry())
        return kept

    async def _store(self, holder: Contact, datas: Sequence[bytes]) -> bool:
        if holder.id == self.id:
            for data in datas:
                self._holdings.keep(data)
            return False
        for parcel in parcels(datas):
            request = Store(sender=self.id, client=self.client, records=parcel)
            try:
                reply = await _twice(lambda attempt, request=request: self._ask(holder, request, attempt))
            except PeerError:
                return False
            if not isinstance(reply, Stored) or reply.kept < len(parcel):
                return False
        return True

    # Joining

    async def _join(self, addresses: Sequence[Address]) -> int:
        """Ping the addresses, then look ourselves up through those that answered: how many did."""
        answered: list[Contact] = []

        async def ping(address: Address) -> None:
            request = Ping(sender=self.id, client=self.client)
            try:
                reply = await _twice(lambda attempt: self._server.protocol.call(address, request, attempt))
            except PeerError:
                return
            contact = Contact(reply.sender, address)
            answered.append(contact)
            if not reply.client:
                self._table.answered(contact, self._loop.time())

        async with asyncio.TaskGroup() as pings:
            for address in dict.fromkeys(addresses):
                pings.create_task(ping(address))
        if answered:
            known = self._table.closest(self.id, BUCKET_SIZE)
            await Walk(self.id, self.id, self._find_node(self.id)).run([*answered, *known])
            self._joined.set()
        return len(answered)

    def _meet(self, contact: Contact) -> None:
        """Somebody not in the table asked us something: call back, unless too many wait for that."""
        if contact not in self._expected and not self._newcomers.full():
            self._expected.add(contact)
            self._newcomers.put_nowait(contact)

    # Loops

    def _start_loops(self, known: Sequence[Contact]) -> None:
        self._spawn(self._rejoin([contact.address for contact in known]))
        self._spawn(self._freshen())
        self._spawn(self._every(UPKEEP_S, self._tidy))
        self._spawn(self._every(REMEMBER_S, self._remember))
        for _ in range(GREETERS):
            self._spawn(self._greet())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            work.close()
            raise PeerError("this node has stopped")
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _jittered(self, interval_s: float) -> float:
        return interval_s * self._outside.randomness.uniform(0.8, 1.2)

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._jittered(interval_s))
            await work()

    async def _rejoin(self, addresses: Sequence[Address]) -> None:
        try:
            if addresses:
                await self._join(addresses)
        finally:
            self._rejoined.set()

    async def _greet(self) -> None:
        while True:
            contact = await self._newcomers.get()
            try:
                await self._ask(contact, Ping(sender=self.id, client=self.client), 0)
            except PeerError as failure:
                _LOG.debug("newcomer: %s", failure)
            finally:
                self._expected.discard(contact)

    async def _freshen(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._jittered(UPKEEP_S)):
                    await self._joined.wait()
            except TimeoutError:
                age_s = STALE_S
            else:
                self._joined.clear()
                age_s = 1.0  # just joined: look up every range but those that answered this very moment
            if not len(self._table) and self._bootstrap:
                await self._join(tuple(self._bootstrap))
            for target in self._table.stale(self._loop.time(), age_s, self._outside.randomness):
                await self._nearest(target)
            for contact in self._table.silent(self._loop.time(), SILENT_S, SILENT_AT_ONCE):
                try:
                    await self._ask(contact, Ping(sender=self.id, client=self.client), 1)
                except PeerError as failure:
                    _LOG.debug("silent contact: %s", failure)

    async def _tidy(self) -> None:
        self._holdings.forget_expired()

    async def _recall(self) -> list[Contact]:
        if self._state_path is None:
            return []
        return await asyncio.to_thread(remembered.load, self._state_path)

    async def _remember(self) -> None:
        """Save the nearest contacts. A failure costs only bootstrap addresses: it is logged. Nobody known: nothing saved."""
        contacts = self._table.closest(self.id, remembered.MAX_REMEMBERED)
        if self._state_path is None or not contacts:
            return
        try:
            await asyncio.to_thread(remembered.save, self._state_path, contacts)
        except StoreError as failure:
            _LOG.warning("%s", failure)


async def _twice(call: Callable[[int], Awaitable[Reply]]) -> Reply:
    """The call, and once more if it was not answered. PeerError if neither was."""
    try:
        return await call(0)
    except PeerError:
        return await call(1)
