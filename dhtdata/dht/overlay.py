"""One address family's part of a node: its socket, table, look-ups, and the loops that keep the table true.

| loop | every | does |
|---|---|---|
| call | stranger | calls an address that a contact asked us to call, so that its node learns that it can be reached |
| freshen | 1 min | looks up ranges silent for 1 h, looks after contacts silent for 15 min, joins anew when alone |
| reunite | 15 min | joins through a bootstrap address that is not in the table: only that ends a partition |

Intervals vary by a fifth, so that nodes started together do not act together.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dhtdata.dht.announcing import Announcer, Introductions
from dhtdata.dht.asking import Asker
from dhtdata.dht.clock import ClockWatch
from dhtdata.dht.holdings import Holdings
from dhtdata.dht.identity import Identity
from dhtdata.dht.protocol import DhtProtocol, DhtServer, OpenTransport, Side
from dhtdata.dht.rates import TokenBucket
from dhtdata.dht.reachability import INTRODUCERS, MET_BY, PROBE_S, Reachability
from dhtdata.dht.routing import Contact, RoutingTable
from dhtdata.dht.size import SizeEstimate
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address, Believed, network_group, scope
from dhtdata.network import Network

_LOG = logging.getLogger(__name__)

MAX_STRANGERS = 32
CALLERS = 4
MAX_BOOTSTRAP = 64
UPKEEP_S = 60.0
REUNITE_S = 15 * 60.0
STALE_S = 3_600.0  # a range is refreshed hourly, as in the paper; its contacts are looked after meanwhile
SILENT_S = 15 * 60.0
SILENT_AT_ONCE = 8
ENOUGH_CONTACTS = 4
_INTRODUCTIONS_A_S = 20.0
_REACHES = ("none", "loopback", "private", "global")
_FARTHEST = len(_REACHES) - 1


@dataclass(frozen=True)
class Member:
    """What all overlays of one node share. ``client``: it never serves others, whoever could reach it."""

    identity: Identity
    network: Network
    client: bool
    holdings: Holdings
    introductions: Introductions
    believed: Believed
    clock: ClockWatch
    now_s: Callable[[], float]
    randomness: random.Random


class Overlay:
    """The node's part in the network of one address family: `open` it, then spawn its `loops`."""

    def __init__(self, member: Member, listen: str) -> None:
        self.listen = listen
        self.version = ipaddress.ip_address(listen).version
        self._member = member
        self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        self.table = RoutingTable(member.identity.id, now_s=now_s)
        self.reachability = Reachability()
        side = Side(
            identity=member.identity,
            network=member.network,
            storage=member.holdings,
            router=self.table,
            now_s=member.now_s,
            serves=lambda: self.serves,
            unsolicited=self._stranger_came,
            introduce=self._introduce,
            meet=self._call_later,
        )
        self._server = DhtServer(side)
        self._bootstrap: OrderedDict[Address, str] = OrderedDict()
        self._strangers: asyncio.Queue[tuple[Contact | None, Address]] = asyncio.Queue(MAX_STRANGERS)
        self._introductions = TokenBucket(_INTRODUCTIONS_A_S, _INTRODUCTIONS_A_S, now_s)
        self._wake = asyncio.Event()
        self._everywhere = False
        self._known_to_serve = False
        self._proof_reach = 0
        self._reunited_s = now_s
        self._surveyed_with = 0
        self.asker: Asker
        self.announcer: Announcer

    async def open(self, port: int, open_transport: OpenTransport) -> int:
        """Listen; the port. ConfigError if it is in use."""
        await self._server.listen(port, self.listen, open_transport)
        member, protocol = self._member, self._server.protocol
        self.asker = Asker(protocol, member.clock, member.now_s, self._usable, member.randomness)
        self.announcer = Announcer(
            member.introductions,
            member.identity,
            self.asker,
            protocol.acquaintances,
            member.holdings,
            member.now_s,
        )
        return int(self._server.transport.get_extra_info("sockname")[1])

    async def close(self) -> None:
        await self._server.close()

    @property
    def serves(self) -> bool:
        """Whether we answer for others, and may stand in their tables."""
        return self.reachability.reached and not self._member.client

    @property
    def protocol(self) -> DhtProtocol:
        return self._server.protocol

    def speaks(self, address: Address) -> bool:
        """Whether the address is of our family."""
        return (":" in address.ip) == (self.version == 6)

    async def join(self, addresses: Sequence[Address]) -> int:
        """Join through nodes at these addresses: how many answered. They are asked again while we know nobody."""
        for address in addresses:
            self._bootstrap[address] = "not asked yet"
            self._bootstrap.move_to_end(address)
        while len(self._bootstrap) > MAX_BOOTSTRAP:
            self._bootstrap.popitem(last=False)
        return await self._enter(addresses[-MAX_BOOTSTRAP:])

    async def rejoin(self, addresses: Sequence[Address]) -> None:
        """Come back through contacts of the last run."""
        if addresses:
            await self._enter(addresses)

    def bootstrap_failures(self) -> dict[Address, str]:
        """Why nobody was met at bootstrap addresses; nothing of those that have answered."""
        there = {contact.address for contact in self.table}
        return {address: reason for address, reason in self._bootstrap.items() if reason and address not in there}

    def woke(self) -> None:
        """We slept, or the clock was set: nobody is known to be there any more."""
        self.table.suspect_all(self._loop.time())
        self._look_everywhere()

    async def _enter(self, addresses: Sequence[Address]) -> int:
        """Come in through these addresses: how many answered."""
        left = list(dict.fromkeys(addresses))
        met: list[Contact] = []
        at_once = INTRODUCERS
        # A few first: whom we called cannot prove any more that strangers reach us.
        while left and not met:
            met += await self._meet(left[:at_once])
            del left[:at_once]
            at_once *= 4
        if not met:
            return 0
        if self.reachability.reached and self._proof_reach < max(_reach(each.address) for each in met):
            self.reachability.doubt()
        await self._probe(met)
        met += await self._meet(left)
        await self.asker.enter(met)
        self._known_to_serve = self.serves
        if not self.reachability.reached and len(self.table) < ENOUGH_CONTACTS and set(met).issuperset(self.table):
            # We called all there are: nobody is left who could prove it.
            self._prove(max(_reach(each.address) for each in met))
        self._look_everywhere()
        return len(met)

    def _look_everywhere(self) -> None:
        """Have every range looked up once: else far ones would hold only whom we met by chance."""
        self._everywhere = True
        self._wake.set()

    async def _meet(self, addresses: Sequence[Address]) -> list[Contact]:
        """Who answers at these addresses."""
        met: list[Contact] = []

        async def meet(address: Address) -> None:
            reason = ""
            try:
                contact, _ = await self.asker.meet(address)
                met.append(contact)
            except PeerError as failure:
                reason = str(failure)
            if address in self._bootstrap:
                self._bootstrap[address] = reason

        async with asyncio.TaskGroup() as pings:
            for address in addresses:
                pings.create_task(meet(address))
        return met

    async def _reunite(self) -> None:
        """Call one of the addresses we were told whose node we do not know (any more)."""
        there = {contact.address for contact in self.table}
        if missing := [address for address in self._bootstrap if address not in there]:
            if met := await self._meet([self._member.randomness.choice(missing)]):
                await self.asker.enter(met)

    async def _survey(self) -> None:
        """Measure the network; anew, if it has clearly outgrown what was measured before."""
        if len(self.table) >= 2 * self._surveyed_with:
            self.asker.size = SizeEstimate()
        self._surveyed_with = len(self.table)
        await self.asker.survey()

    async def _probe(self, known: Iterable[Contact]) -> None:
        """Find out whether strangers reach us, unless we know or never serve anyway."""
        now_s = self._loop.time()
        if self._member.client or not self.reachability.due(now_s):
            return
        self.reachability.probing(now_s)
        through = list(known)
        introducers = self._member.randomness.sample(through, min(INTRODUCERS, len(through)))
        others: list[bool] = []

        async def introduce(contact: Contact) -> None:
            try:
                others.append(await self.asker.introduce(contact))
            except PeerError as failure:
                _LOG.debug("no introduction: %s", failure)

        async with asyncio.TaskGroup() as asking:
            for contact in introducers:
                asking.create_task(introduce(contact))
        if others and not any(others):
            self._prove(max(_reach(each.address) for each in through))
            return
        try:
            async with asyncio.timeout(PROBE_S):
                await self.reachability.told.wait()
        except TimeoutError:
            self.reachability.unproven()

    # What the protocol tells us

    def _stranger_came(self, address: Address, proven: bool) -> None:
        """A request from an address that we did not call proves that we can be reached, if it came from far enough.

        A neighbour reaches us past the translator that keeps everybody else out. A knock, whose sender may be made up,
        only says that nothing has changed.
        """
        if not proven and not self.reachability.reached:
            return
        reach = _reach(address)
        if reach <= self._proof_reach and self.reachability.proven_lately(self._loop.time()):
            return
        if reach == _FARTHEST or all(_reach(contact.address) <= reach for contact in self.table):
            if not self.reachability.reached:
                self._wake.set()
            self._prove(reach)

    def _prove(self, reach: int) -> None:
        """We are reached from that far, until we know somebody farther away."""
        self._proof_reach = reach
        self.reachability.proven(self._loop.time())

    def _introduce(self, address: Address) -> bool:
        """Have contacts of other networks call the address, if we know some and not too many ask for that.

        Four of them: one may be whom the asker has called already, which proves nothing, another may not know us.
        """
        group = network_group(address)
        others = [each for each in self.table if network_group(each.address) != group]
        if others and self._introductions.take(self._loop.time()):
            for other in self._member.randomness.sample(others, min(MET_BY, len(others))):
                if not self._strangers.full():
                    self._strangers.put_nowait((other, address))
        return bool(others)

    def _call_later(self, asker: Contact, address: Address) -> None:
        """A contact asks us to call an address. Others are not heard: they would keep us from those who need it."""
        known = asker in self.table and self._usable(address)
        usable = known and self._introductions.take(self._loop.time())
        if usable and not self._strangers.full():
            self._strangers.put_nowait((None, address))

    def _usable(self, address: Address) -> bool:
        return self.speaks(address) and self._member.believed(address)

    # Loops

    async def call_strangers(self) -> None:
        while True:
            contact, address = await self._strangers.get()
            try:
                if contact is not None:
                    await self.asker.send(contact, address)
                else:
                    await self.asker.meet(address, twice=False)
            except PeerError as failure:
                _LOG.debug("stranger: %s", failure)

    async def freshen(self) -> None:
        while True:
            try:
                async with asyncio.timeout(UPKEEP_S * self._member.randomness.uniform(0.8, 1.2)):
                    await self._wake.wait()
            except TimeoutError:
                # Time to look after the table.
                pass
            self._wake.clear()
            # First of all: whom we have called cannot prove any more that strangers reach us.
            if len(self.table) >= ENOUGH_CONTACTS or not self.reachability.reached:
                await self._probe(self.table)
            if not len(self.table) and self._bootstrap:
                await self._enter(tuple(self._bootstrap))
            elif self._loop.time() - self._reunited_s >= REUNITE_S:
                self._reunited_s = self._loop.time()
                await self._reunite()
                await self._survey()
            elif self._everywhere or len(self.table) >= 2 * self._surveyed_with:
                await self._survey()
            if self.serves and not self._known_to_serve:
                # Our neighbours took us for a client until now.
                await self.asker.enter([])
            self._known_to_serve = self.serves
            age_s, self._everywhere = (0.0 if self._everywhere else STALE_S), False
            for target in self.table.stale(self._loop.time(), age_s, self._member.randomness):
                await self.asker.measure(target)
            for contact in self.table.silent(self._loop.time(), SILENT_S, SILENT_AT_ONCE):
                try:
                    await self.asker.look_after(contact)
                except PeerError as failure:
                    _LOG.debug("silent contact: %s", failure)


def _reach(address: Address) -> int:
    """How far away somebody with such an address may be."""
    return _REACHES.index(scope(address.ip))
