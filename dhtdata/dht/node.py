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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kademlia.node import Node

from dhtdata.dht import remembered
from dhtdata.dht.announcing import Announcer
from dhtdata.dht.asking import Asker
from dhtdata.dht.endpoint import open_udp
from dhtdata.dht.holdings import Holdings
from dhtdata.dht.protocol import DhtServer, OpenTransport
from dhtdata.dht.routing import Contact, RoutingTable
from dhtdata.dht.search import Found
from dhtdata.errors import ConfigError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord, Signed, node_id
from dhtdata.network import PUBLIC, Network
from dhtdata.signing import SigningKey

_LOG = logging.getLogger(__name__)

GREETERS = 4
MAX_NEWCOMERS = 128
MAX_BOOTSTRAP = 64
MAX_FOUND = 1_024
UPKEEP_S = 60.0
STALE_S = 15 * 60.0
SILENT_S = 10 * 60.0
SILENT_AT_ONCE = 8
REMEMBER_S = 5 * 60.0


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
        self._bootstrap: dict[Address, None] = {}
        self._newcomers: asyncio.Queue[Contact] = asyncio.Queue(MAX_NEWCOMERS)
        self._expected: set[Contact] = set()
        self._joined = asyncio.Event()
        self._asker: Asker
        self._announcer: Announcer
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
        network: Network = PUBLIC,
        surroundings: Surroundings | None = None,
    ) -> AsyncIterator[DhtNode]:
        """A node that listens until the block ends. ConfigError if the port is in use. Port 0 takes a free one."""
        node = cls(key, client, state_path, surroundings or Surroundings())
        known = await node._recall()
        await node._server.listen(port, listen, node._outside.open_transport)
        node._asker = Asker(node._server.protocol, client, node._outside.now_s)
        node._announcer = Announcer(key, node._asker, node._holdings, node._outside.now_s)
        node.port = node._server.transport.get_extra_info("sockname")[1]
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                node._tasks = tasks
                node._start_loops(known)
                try:
                    yield node
                except Exception as raised:  # the caller's own: must leave the group unwrapped
                    failure = raised
                finally:
                    node._tasks = None
                    for task in tuple(node._running):
                        task.cancel()
        finally:
            await node._server.close()
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

        ConfigError on a client, which announces nothing. FormatError if a record does not belong under the key
        or has expired.
        """
        self._refuse_client()
        return await self._announcer.announce(key, records)

    async def announce_shards(self, keys: Sequence[bytes]) -> int:
        """Claim these shard keys, signed by the node's key: how many of the keys other nodes hold now.

        One pass over the key space (`sweep`), claims of up to 42 keys a datagram. ConfigError on a client.
        """
        self._refuse_client()
        return await self._announcer.announce_shards(keys, self._outside.randomness)

    async def find(self, key: bytes) -> AsyncGenerator[Found, None]:
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
            await asyncio.wait([task])

    async def find_name(self, name: Name) -> Signed:
        """NameRecord of the highest rank found, whatever sequence was asked. NotFoundError says how many were asked."""
        best: list[Signed] = []
        walk = await self._asker.search(name.dht_key, lambda found: best.append(found.record))
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
        """Where others reach us (up to 8): goes along with every announcement. Without any, claims have no address.

        ConfigError if nobody could reach us there (unspecified, multicast).
        """
        self._announcer.set_addresses(addresses)

    def _refuse_client(self) -> None:
        if self.client:
            raise ConfigError("a private peer announces nothing: start one with dhtdata seed")

    async def _search_into(self, key: bytes, arrived: asyncio.Queue[Found | None]) -> None:
        def tell(found: Found) -> None:
            if arrived.qsize() < MAX_FOUND:
                arrived.put_nowait(found)

        try:
            await self._asker.search(key, tell)
        finally:
            arrived.put_nowait(None)

    async def _join(self, addresses: Sequence[Address]) -> int:
        answered = await self._asker.join(addresses)
        if answered:
            self._joined.set()
        return answered

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
            self._asker.rejoined.set()

    async def _greet(self) -> None:
        while True:
            contact = await self._newcomers.get()
            try:
                await self._asker.ping(contact)
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
                await self._asker.nearest(target)
            for contact in self._table.silent(self._loop.time(), SILENT_S, SILENT_AT_ONCE):
                try:
                    await self._asker.ping(contact, attempt=1)
                except PeerError as failure:
                    _LOG.debug("silent contact: %s", failure)

    async def _tidy(self) -> None:
        self._holdings.forget_expired()

    async def _recall(self) -> list[Contact]:
        if self._state_path is None:
            return []
        return await asyncio.to_thread(remembered.load, self._state_path)

    async def _remember(self) -> None:
        """Save the nearest contacts, if any. A failure costs only bootstrap addresses: it is logged."""
        contacts = self._table.closest(self.id, remembered.MAX_REMEMBERED)
        if self._state_path is None or not contacts:
            return
        try:
            await asyncio.to_thread(remembered.save, self._state_path, contacts)
        except StoreError as failure:
            _LOG.warning("%s", failure)
