"""Asking other nodes: calls that teach the routing table, walks that find nodes or records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from dhtdata.dht.holdings import Holdings
from dhtdata.dht.lookup import Answer, Ask, Neighbourhood, Walk
from dhtdata.dht.messages import FindNode, FindRecords, Nodes, Ping, Records, Reply, Request, Store, Stored
from dhtdata.dht.protocol import DhtProtocol
from dhtdata.dht.routing import BUCKET_SIZE, Contact, RoutingTable
from dhtdata.dht.search import Findings, Found
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address

_LOG = logging.getLogger(__name__)

MAX_PAGES = 16
SEARCH_S = 60.0


class Asker:
    """The asking side of a node. ``rejoined`` is set once the contacts of the last run have been tried."""

    def __init__(self, protocol: DhtProtocol, client: bool, now_s: Callable[[], float]) -> None:
        self.id = protocol.own_id
        self.client = client
        self.rejoined = asyncio.Event()
        self._protocol = protocol
        self._table: RoutingTable = protocol.router
        self._holdings: Holdings = protocol.storage
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()

    async def ping(self, contact: Contact, attempt: int = 0) -> None:
        """PeerError if the contact does not answer."""
        await self._ask(contact, Ping(sender=self.id, client=self.client), attempt)

    async def join(self, addresses: Sequence[Address]) -> int:
        """Ping the addresses, then look ourselves up through those that answered: how many did."""
        answered: list[Contact] = []

        async def meet(address: Address) -> None:
            request = Ping(sender=self.id, client=self.client)
            try:
                reply = await _twice(lambda attempt: self._protocol.call(address, request, attempt))
            except PeerError:
                return
            contact = Contact(reply.sender, address)
            answered.append(contact)
            if not reply.client:
                self._table.answered(contact, self._loop.time())

        async with asyncio.TaskGroup() as pings:
            for address in dict.fromkeys(addresses):
                pings.create_task(meet(address))
        if answered:
            known = self._table.closest(self.id, BUCKET_SIZE)
            await Walk(self.id, self.id, self._find_node(self.id)).run([*answered, *known])
        return len(answered)

    async def nearest(self, target: bytes) -> Neighbourhood:
        """The nodes nearest to the target that answer, ourselves left out."""
        await self._known()
        walk = Walk(target, self.id, self._find_node(target))
        return await walk.run(self._table.closest(target, BUCKET_SIZE))

    async def search(self, key: bytes, tell: Callable[[Found], None]) -> Walk:
        """Tell of every record found under the key, our own holdings first, until the walk or 60 s end."""
        findings = Findings(key, self._now_s())

        def take(records: Sequence[bytes]) -> None:
            for found in findings.take(records):
                tell(found)

        take(tuple(self._holdings.stream(key)))
        walk = Walk(key, self.id, self._find_records(key, take))
        try:
            async with asyncio.timeout(SEARCH_S):
                await self._known()
                await walk.run(self._table.closest(key, BUCKET_SIZE))
        except TimeoutError:
            _LOG.debug("search for %s ended after %.0f s", key.hex(), SEARCH_S)
        return walk

    async def store(self, holder: Contact, records: Sequence[bytes]) -> bool:
        """Put records that fit one datagram on a node: whether it keeps them all now."""
        request = Store(sender=self.id, client=self.client, records=tuple(records))
        try:
            reply = await _twice(lambda attempt: self._ask(holder, request, attempt))
        except PeerError:
            return False
        return isinstance(reply, Stored) and reply.kept == len(records)

    async def _known(self) -> None:
        if not len(self._table):
            await self.rejoined.wait()

    async def _ask(self, contact: Contact, request: Request, attempt: int) -> Reply:
        """Call a contact; the table learns how it went. PeerError if it did not answer, or another node did."""
        try:
            reply = await self._protocol.call(contact.address, request, attempt)
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


async def _twice(call: Callable[[int], Awaitable[Reply]]) -> Reply:
    """The call, and once more if it was not answered. PeerError if neither was."""
    try:
        return await call(0)
    except PeerError:
        return await call(1)
