"""Asking other nodes: calls that teach the routing table, walks that find nodes or records."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from dhtdata.dht.clock import ClockWatch
from dhtdata.dht.lookup import Ask, Neighbourhood, Pace, Told, Walk
from dhtdata.dht.messages import (
    ContactWire,
    FindNode,
    FindRecords,
    Introduce,
    Introduced,
    Meet,
    Nodes,
    Ping,
    Records,
    Request,
    Store,
    Stored,
    may_be_named,
)
from dhtdata.dht.protocol import DhtProtocol, Replied
from dhtdata.dht.region import GROUP_LIMIT, PACE, members, region_bits, region_targets
from dhtdata.dht.routing import BUCKET_SIZE, ID_BITS, Contact, identifier, number
from dhtdata.dht.size import SizeEstimate
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address, AddressWire

MAX_PAGES = 16
PAGES_S = 2.0
VOUCHED_S = 3_600.0
NEAREST = Pace(per_group=GROUP_LIMIT)
GLANCE = Pace(width=10, per_group=GROUP_LIMIT)  # half a bucket: far ranges need some contacts, not all
_FAR = 1 << (ID_BITS - 2)

Take = Callable[[bytes, Sequence[bytes]], None]
"""Hears of the records that a node, told by its identifier, sent."""


class Asker:
    """The asking side of one socket. ``believed`` says which addresses named by others are worth a call."""

    def __init__(
        self,
        protocol: DhtProtocol,
        clock: ClockWatch,
        now_s: Callable[[], float],
        believed: Callable[[Address], bool],
        randomness: random.Random,
    ) -> None:
        self.id = protocol.own_id
        self.size = SizeEstimate()
        self._protocol = protocol
        self._table = protocol.router
        self._clock = clock
        self._now_s = now_s
        self._believed = believed
        self._randomness = randomness

    async def look_after(self, contact: Contact) -> None:
        """See whether the contact, silent for long, is still there. PeerError if not: the table learns of either."""
        if contact not in self._table:
            return
        if self._protocol.time_s() - self._table.answered_s(contact) >= VOUCHED_S:
            # A knock is answered by whoever is there now: now and then ask for the very node.
            await self._ask(contact, Ping(), 1)
            return
        try:
            await self._protocol.knock(contact.address, attempt=1)
        except PeerError:
            self._table.missed(contact)
            raise
        self._table.present(contact, self._protocol.time_s())

    async def meet(self, address: Address, *, twice: bool = True) -> tuple[Contact, bool]:
        """Ping whoever is at an address: its contact, and whether it is a client. PeerError if nobody answers."""
        if twice:
            answer = await _twice(lambda attempt: self._protocol.call(address, Ping(), attempt))
        else:
            answer = await self._protocol.call(address, Ping())
        contact = Contact(answer.sender, address)
        self._learn(contact, answer)
        return contact, answer.client

    async def introduce(self, contact: Contact) -> bool:
        """Have the contact send somebody to call us: whether it knows anybody. PeerError if it does not answer."""
        reply = (await self._ask(contact, Introduce(), 0)).reply
        return isinstance(reply, Introduced) and reply.others

    async def send(self, contact: Contact, address: Address) -> None:
        """Have the contact call whoever is at an address. PeerError if it does not answer."""
        wire = AddressWire.of(address)
        await self._ask(contact, Meet(ip=wire.ip, port=wire.port), 0)

    async def nearest(self, target: bytes) -> Neighbourhood:
        """The nodes nearest to the target that answer, ourselves left out."""
        walk = self._walk([target], self._find_node(), NEAREST)
        return (await walk.run([self._table.closest(target, BUCKET_SIZE)]))[0]

    async def survey(self) -> None:
        """Measure at a random target far from us."""
        await self.measure(identifier(self._table.own ^ self._randomness.randrange(_FAR, 1 << ID_BITS)))

    async def measure(self, target: bytes) -> None:
        """Walk to a random target: freshens its range of the table, and says how large the network is.

        Targets near us say nothing about that: who wants us to think it large crowds round us.
        """
        walk = self._walk([target], self._find_node(), GLANCE)
        (near,) = await walk.run([self._table.closest(target, BUCKET_SIZE)])
        goal, radius = number(target), near.radius
        if goal ^ self._table.own < _FAR:
            return
        within = [each for each in near.contacts if radius is None or each.long_id ^ goal <= radius]
        self.size.met(len(within), radius)

    async def enter(self, through: Sequence[Contact]) -> None:
        """Look ourselves up through contacts that just answered."""
        known = self._table.closest(self.id, BUCKET_SIZE)
        await self._walk([self.id], self._find_node()).run([[*through, *known]])

    async def region(self, key: bytes) -> list[Contact]:
        """The nodes of the key's region that answer, ourselves left out."""
        bits, targets = self._region(key)
        found = await self._walk(targets, self._find_node(), PACE).run(self._seeds(targets))
        return members(key, bits, found)

    def search(self, key: bytes, take: Take) -> tuple[Walk, Coroutine[Any, Any, list[Neighbourhood]]]:
        """A walk through the key's region that hands over every record it meets, and its course, to be awaited."""
        _, targets = self._region(key)
        walk = self._walk(targets, self._find_records(key, take), PACE)
        return walk, walk.run(self._seeds(targets))

    async def store(self, holder: Contact, records: Sequence[bytes]) -> bool:
        """Put records that fit one datagram on a node: whether it keeps them all now."""
        request = Store(records=tuple(records))
        try:
            answer = await _twice(lambda attempt: self._ask(holder, request, attempt))
        except PeerError:
            return False
        return isinstance(answer.reply, Stored) and answer.reply.kept == len(records)

    def estimated_nodes(self) -> int:
        """How many nodes the network has, ourselves included: no fewer than have answered, however it grew since."""
        return max(self._table.answering() + 1, self.size.nodes(fallback=self._table.estimated_nodes()))

    def _walk(self, targets: Sequence[bytes], ask: Ask, pace: Pace | None = None) -> Walk:
        return Walk(targets, self.id, ask, pace, self._protocol.round_trips.patience_s())

    def _region(self, key: bytes) -> tuple[int, list[bytes]]:
        bits = region_bits(self.estimated_nodes())
        return bits, region_targets(key, bits, self._randomness)

    def _seeds(self, targets: Sequence[bytes]) -> list[list[Contact]]:
        return [self._table.closest(target, BUCKET_SIZE) for target in targets]

    async def _ask(self, contact: Contact, request: Request, attempt: int) -> Replied:
        """Call a contact; the table learns how it went. PeerError if it did not answer, or another node did."""
        try:
            answer = await self._protocol.call(contact.address, request, attempt, contact.id)
            if answer.sender != contact.id:
                raise PeerError(f"{contact.address} answered, but not as node {contact.id.hex()}")
        except PeerError:
            if attempt:
                self._table.missed(contact)
            raise
        self._learn(contact, answer)
        return answer

    def _learn(self, contact: Contact, answer: Replied) -> None:
        if answer.client:
            self._table.remove(contact)
        elif may_be_named(contact):
            self._table.answered(contact, self._protocol.time_s())
            self._clock.told(contact.id, answer.reply.time, self._now_s())

    def _find_node(self) -> Ask:
        async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
            answer = await self._ask(contact, FindNode(target=target), attempt)
            wires = answer.reply.contacts if isinstance(answer.reply, Nodes) else ()
            return Told(self._usable(wires), keeps=not answer.client)

        return ask

    def _find_records(self, key: bytes, take: Take) -> Ask:
        async def ask(contact: Contact, target: bytes, attempt: int) -> Told:
            taken = 0
            contacts: list[Contact] = []
            keeps = True
            started_s = self._protocol.time_s()
            for page in range(MAX_PAGES):
                request = FindRecords(key=key, target=target, after=taken, contacts=not page)
                try:
                    answer = await self._ask(contact, request, attempt)
                except PeerError:
                    if not page:
                        raise
                    break
                reply = answer.reply
                if not isinstance(reply, Records):
                    break
                take(contact.id, reply.records)
                contacts += self._usable(reply.contacts)
                taken += len(reply.records)
                keeps = not answer.client
                late = self._protocol.time_s() - started_s > PAGES_S
                if not reply.more or (page and not reply.records) or late:
                    break
            return Told(contacts, keeps, taken)

        return ask

    def _usable(self, wires: Sequence[ContactWire]) -> list[Contact]:
        """Contacts that another node named, as far as its word is worth a call."""
        contacts = [wire.contact() for wire in wires]
        return [each for each in contacts if self._believed(each.address)]


async def _twice(call: Callable[[int], Awaitable[Replied]]) -> Replied:
    """The call, and once more if it was not answered. PeerError if neither was."""
    try:
        return await call(0)
    except PeerError:
        return await call(1)
