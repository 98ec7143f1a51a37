"""`DhtNode`: one participant of the DHT, on IPv4, IPv6 or both.

A node has one identity and one record table, and for each address family an `overlay` of its own: an IPv4 node cannot
ask an IPv6 node, so a table that mixed them would be full of contacts of no use (BEP 32 for the same reason has two).
What is announced goes to every overlay, what is looked up is looked up in every one.

Everything that a node starts lives in one task group inside `DhtNode.running`. Time, randomness and the socket come in
as `Surroundings`, so that hundreds of nodes run in one process on a clock of their own.

| loop | every | does |
|---|---|---|
| those of `overlay` | | keep tables true |
| tidy | 1 min | forgets expired records, saves what changed, notices that the machine slept |
| remember | 15 s after the start, 5 min, and at the end | writes the nearest contacts to disk |
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dhtdata.dht import remembered
from dhtdata.dht.announcing import Introductions
from dhtdata.dht.clock import ClockWatch
from dhtdata.dht.endpoint import interfaces, open_udp
from dhtdata.dht.holdings import Holdings
from dhtdata.dht.identity import Identity
from dhtdata.dht.keeping import RecordKeeper
from dhtdata.dht.lookup import Walk
from dhtdata.dht.overlay import CALLERS, MAX_BOOTSTRAP, Member, Overlay
from dhtdata.dht.protocol import OpenTransport
from dhtdata.dht.routing import Contact
from dhtdata.dht.search import Findings, Found
from dhtdata.dht.status import KnownNode, NodeStatus, Trace
from dhtdata.errors import ConfigError, FormatError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address, Believed
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord, Signed
from dhtdata.network import PUBLIC, Network
from dhtdata.signing import SigningKey

_LOG = logging.getLogger(__name__)

MAX_FOUND = 1_024
SEARCH_S = 60.0
TIDY_S = 60.0
REMEMBER_S = 5 * 60.0
FIRST_REMEMBER_S = 15.0
REJOIN_THROUGH = 32
SLEPT_S = 120.0
CONTACTS_FILE = "dht.json"
RECORDS_FILE = "dht.sqlite"


@dataclass(frozen=True)
class Surroundings:
    """What a node takes from outside: Unix time, randomness for jitter and targets, and a datagram transport."""

    now_s: Callable[[], float] = time.time
    randomness: random.Random = field(default_factory=random.Random)
    open_transport: OpenTransport = open_udp


class DhtNode:
    """One node. Use `running`."""

    def __init__(
        self,
        identity: Identity,
        *,
        client: bool,
        listen: Sequence[str],
        port: int,
        folder: Path | None,
        network: Network,
        believed: Believed,
        surroundings: Surroundings,
    ) -> None:
        self.key = identity.key
        self.id = identity.id
        self.port = port
        self.client = client
        self.network = network
        self.on_wake: Callable[[], None] = lambda: None
        self._folder = folder
        self._outside = surroundings
        self._loop = asyncio.get_running_loop()
        self._believed = believed
        self._clock = ClockWatch()
        self._holdings = Holdings(surroundings.now_s, identity.id)
        self._keeper = RecordKeeper(self._holdings, folder / RECORDS_FILE if folder and not client else None)
        self._introductions = Introductions(identity, port, surroundings.now_s)
        member = Member(
            identity=identity,
            network=network,
            client=client,
            holdings=self._holdings,
            introductions=self._introductions,
            believed=believed,
            clock=self._clock,
            now_s=surroundings.now_s,
            randomness=surroundings.randomness,
        )
        self.overlays = [Overlay(member, ip) for ip in listen]
        self._rejoined = asyncio.Event()
        self._wall_s = surroundings.now_s() - self._loop.time()
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
        folder: Path | None,
        network: Network = PUBLIC,
        believed: Believed | None = None,
        surroundings: Surroundings | None = None,
    ) -> AsyncIterator[DhtNode]:
        """A node that listens until the block ends. ConfigError if the port is in use. Port 0 takes a free one.

        ``listen`` is an IP address; ``::`` stands for all of both families (where the machine has no IPv6: of IPv4).
        A ``client`` asks and is never asked. In ``folder`` it keeps what it needs at its next start, None: nothing.
        ``believed`` says which addresses that others name are worth a packet.
        """
        outside = surroundings or Surroundings()
        if client:
            identity = Identity.client(key)
        else:
            identity = await asyncio.to_thread(Identity.proven, key, network.difficulty_bits)
        node = cls(
            identity,
            client=client,
            listen=interfaces(listen),
            port=port,
            folder=folder,
            network=network,
            believed=believed or Believed(),
            surroundings=outside,
        )
        async with node._open():
            yield node

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        known = await self._recall()
        failure: Exception | None = None
        async with AsyncExitStack() as stack:
            await self._keeper.open()
            stack.push_async_callback(self._keeper.close)
            await self._listen(stack)
            stack.push_async_callback(self._end)
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._start_loops(known)
                try:
                    yield
                except Exception as raised:  # the caller's own: must leave the group unwrapped
                    failure = raised
                finally:
                    self._tasks = None
                    for task in tuple(self._running):
                        task.cancel()
        if failure is not None:
            raise failure

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Open the sockets, all on one port."""
        for overlay in self.overlays:
            self.port = await overlay.open(self.port, self._outside.open_transport)
            stack.push_async_callback(overlay.close)
            if not ipaddress.ip_address(overlay.listen).is_unspecified:
                self._believed.live_at([Address(overlay.listen, self.port)])
        self._introductions.port = self.port

    async def _end(self) -> None:
        await self._remember()
        await self._keeper.save()

    # What it is used for

    async def bootstrap(self, addresses: Sequence[Address]) -> int:
        """Join through nodes at these addresses, named by the user: how many answered.

        They are asked again while we know nobody.
        """
        chosen = addresses[:MAX_BOOTSTRAP]
        self._believed.trust(chosen)
        answered = 0
        for overlay in self.overlays:
            if ours := [address for address in chosen if overlay.speaks(address)]:
                answered += await overlay.join(ours)
        return answered

    async def announce(self, key: bytes, *records: Signed) -> int:
        """Put records of this key all over its region: how many other nodes hold them now.

        ConfigError on a client, which announces nothing. FormatError if a record does not belong under the key
        or has expired. 0 while strangers cannot reach us (`NodeStatus.reached`): a claim would lead nowhere.
        """
        self._refuse_client()
        return sum([await each.announcer.announce(key, records) for each in self.overlays if each.serves])

    async def announce_name(self, signed: Signed) -> int:
        """Put a NameRecord under all keys of its name: how many nodes hold it now. Anybody may, not only its signer."""
        record = signed.record
        if not isinstance(record, NameRecord):
            raise FormatError(f"a {type(record).__name__} is no record of a name")
        return sum([await self.announce(key, signed) for key in record.target.dht_keys])

    async def announce_shards(self, keys: Sequence[bytes]) -> set[bytes]:
        """Claim these shard keys, signed by the node's key: those that other nodes hold now.

        One pass over the key space (`sweep`), claims of up to 42 keys a datagram. ConfigError on a client.
        """
        self._refuse_client()
        held: set[bytes] = set()
        for overlay in self.overlays:
            if overlay.serves:
                held |= await overlay.announcer.announce_shards(keys, self._outside.randomness)
        return held

    async def find(self, key: bytes) -> AsyncGenerator[Found, None]:
        """Verified, unexpired records under a key, as they arrive, until every node of its region was asked.

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

    async def find_name(self, name: Name, told: Callable[[Signed], None] = lambda _: None) -> Signed:
        """NameRecord of the highest rank found, whatever sequence was asked. NotFoundError says how many were asked.

        ``told`` hears of every record as it comes: whoever cannot wait for slow nodes has those.
        """
        found: list[Found] = []
        walks: list[Walk] = []

        def tell(one: Found) -> None:
            found.append(one)
            told(one.record)

        async def search(key: bytes) -> None:
            walks.extend(await self._search(key, tell))

        async with asyncio.TaskGroup() as searches:
            for key in name.dht_keys:
                searches.create_task(search(key))
        records = [
            (each.record.record.rank, each.record) for each in found if isinstance(each.record.record, NameRecord)
        ]
        if not records:
            asked, answered = sum(walk.asked for walk in walks), sum(walk.answered for walk in walks)
            raise NotFoundError(
                f"{name} was not found: {answered} of {asked} nodes asked answered, none knows it. "
                "Check the name, or use a ticket from somebody who seeds it"
            )
        return max(records, key=lambda each: each[0])[1]

    async def trace(self, key: bytes) -> Trace:
        """A look-up with everything it did, for people."""
        found: list[Found] = []
        started_s = self._loop.time()
        first_s: list[float] = []

        def tell(one: Found) -> None:
            first_s.append(self._loop.time() - started_s)
            found.append(one)

        walks = await self._search(key, tell)
        steps = tuple(step for walk in walks for step in walk.steps)
        return Trace(key, steps, tuple(found), first_s[0] if first_s else None, self._loop.time() - started_s)

    async def ping(self, address: Address) -> tuple[Contact, bool, float]:
        """Who is at an address, whether it is a client, and after how many seconds it answered.

        PeerError says why nobody answered.
        """
        overlay = next((each for each in self.overlays if each.speaks(address)), None)
        if overlay is None:
            raise PeerError(f"{address} cannot be reached: this node has no IPv{6 if ':' in address.ip else 4} socket")
        started_s = self._loop.time()
        contact, client = await overlay.asker.meet(address)
        return contact, client, self._loop.time() - started_s

    @property
    def serves(self) -> bool:
        """Whether strangers reach us, so that we answer for others, and claims of ours lead somewhere."""
        return any(overlay.serves for overlay in self.overlays)

    @property
    def nodes_estimated(self) -> int:
        """How many nodes the network has, ourselves included."""
        return max((overlay.asker.estimated_nodes() for overlay in self.overlays), default=1)

    def nodes(self) -> list[KnownNode]:
        """Contacts in the routing tables."""
        now_s = self._loop.time()
        return [
            KnownNode(each.id, each.address, now_s - overlay.table.seen_s(each))
            for overlay in self.overlays
            for each in overlay.table
        ]

    def status(self) -> NodeStatus:
        return NodeStatus.of(self.overlays, self._holdings, self._clock, self.id, self.port, self.network, self.client)

    def addresses(self) -> list[Address]:
        """Where others say they see us; empty before anything was announced."""
        return self._introductions.addresses()

    def _refuse_client(self) -> None:
        if self.client:
            raise ConfigError("a private peer announces nothing: start one with dhtdata seed")

    async def _search(self, key: bytes, tell: Callable[[Found], None]) -> list[Walk]:
        """Tell of every record found under the key, our own holdings first, until the walks or 60 s end."""
        findings = Findings(key, self._outside.now_s())

        def take(holder: bytes, records: Sequence[bytes]) -> None:
            for found in findings.take(holder, records):
                tell(found)

        take(self.id, tuple(self._holdings.stream(key)))
        walks: list[Walk] = []
        try:
            async with asyncio.timeout(SEARCH_S):
                if not any(len(overlay.table) for overlay in self.overlays):
                    await self._rejoined.wait()
                async with asyncio.TaskGroup() as searches:
                    for overlay in self.overlays:
                        walk, course = overlay.asker.search(key, take)
                        walks.append(walk)
                        searches.create_task(course)
        except TimeoutError:
            _LOG.debug("search for %s ended after %.0f s", key.hex(), SEARCH_S)
        return walks

    async def _search_into(self, key: bytes, arrived: asyncio.Queue[Found | None]) -> None:
        def tell(found: Found) -> None:
            if arrived.qsize() < MAX_FOUND:
                arrived.put_nowait(found)

        try:
            await self._search(key, tell)
        finally:
            arrived.put_nowait(None)

    # Loops

    def _start_loops(self, known: Sequence[Contact]) -> None:
        self._spawn(self._keeper.restore())
        self._spawn(self._rejoin(known))
        self._spawn(self._every(TIDY_S, self._tidy))
        self._spawn(self._every(REMEMBER_S, self._remember, first_s=FIRST_REMEMBER_S))
        for overlay in self.overlays:
            self._spawn(overlay.freshen())
            for _ in range(CALLERS):
                self._spawn(overlay.call_strangers())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            work.close()
            raise PeerError("this node has stopped")
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]], first_s: float = 0.0) -> None:
        pause_s = first_s or interval_s
        while True:
            await asyncio.sleep(pause_s * self._outside.randomness.uniform(0.8, 1.2))
            await work()
            pause_s = interval_s

    async def _rejoin(self, known: Sequence[Contact]) -> None:
        try:
            for overlay in self.overlays:
                ours = [contact.address for contact in known if overlay.speaks(contact.address)]
                await overlay.rejoin(ours[:REJOIN_THROUGH])
        finally:
            self._rejoined.set()

    async def _tidy(self) -> None:
        await self._keeper.forget_expired()
        await self._keeper.save()
        # The clock of timers stands still while a machine sleeps, Unix time does not.
        drift_s = self._outside.now_s() - self._loop.time() - self._wall_s
        if abs(drift_s) > SLEPT_S:
            _LOG.info("the clock moved by %.0f s: asking all contacts anew", drift_s)
            self._wall_s += drift_s
            self._clock.forget()
            for overlay in self.overlays:
                overlay.woke()
            self.on_wake()

    async def _recall(self) -> list[Contact]:
        if self._folder is None:
            return []
        try:
            return await asyncio.to_thread(remembered.load, self._folder / CONTACTS_FILE)
        except StoreError as failure:
            _LOG.warning("%s", failure)
            return []

    async def _remember(self) -> None:
        """Save the nearest contacts, if any. A failure costs only bootstrap addresses: it is logged."""
        share = remembered.MAX_REMEMBERED // max(1, len(self.overlays))
        contacts = [each for overlay in self.overlays for each in overlay.table.closest(self.id, share)]
        if self._folder is None or not contacts:
            return
        try:
            await asyncio.to_thread(remembered.save, self._folder / CONTACTS_FILE, contacts)
        except StoreError as failure:
            _LOG.warning("%s", failure)
