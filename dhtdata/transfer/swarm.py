"""The providers of one dataset: finds them, polls their have-maps, while somebody fetches.

Addresses come from tickets, DHT claims, other providers (peer exchange) and memory. None is believed more than another:
what a provider has is asked of itself, and what it sends is verified.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.transfer.answers import HaveMap, bit
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.search import EXPECTED_FAILURES, Source

MAX_MEMBERS = 256
POLL_PARTIAL_S = 3.0
POLL_COMPLETE_S = 60.0
EXCHANGE_S = 20.0
LOOKUP_S = 60.0
HUNGRY_LOOKUP_S = 10.0
_PARALLEL_POLLS = 8
_POLL_DEADLINE_S = 10.0
_LOOK_DEADLINE_S = 15.0
_EXCHANGE_PARTNERS = 3
_MAX_MISSES = 5

Discover = Callable[[Digest], Source]
Guard = Callable[[Address], bool]


@dataclass
class Member:
    """One provider of these contents. ``lacks``: blocks it said no to since its last have-map.

    ``doubtful``: it has no have-map of these contents. A plain web server never has one; a peer that lacks all of it
    has none either.
    """

    address: Address
    source: str
    have: HaveMap | None = None
    asked_s: float = float("-inf")
    exchanged_s: float = float("-inf")
    misses: int = 0
    doubtful: bool = False

    def __post_init__(self) -> None:
        self.lacks: set[tuple[Digest, int]] = set()
        self.blocks: dict[int, bytes] = {}

    @property
    def complete(self) -> bool:
        return self.have is not None and self.have.complete


class Swarm:
    """Who provides one dataset. `run` lives in the peer's task group; it rests while nobody is interested."""

    def __init__(
        self,
        contents: Digest,
        http: HttpClient,
        remotes: Remotes,
        *,
        discover: Discover,
        guard: Guard,
        changed: Callable[[], None],
    ) -> None:
        self.contents = contents
        self.members: dict[Address, Member] = {}
        self.layout: Layout | None = None
        self.rounds = 0
        self.blocks_verified = self.bytes_verified = self.bytes_reused = 0
        self._http = http
        self._remotes = remotes
        self._discover = discover
        self._guard = guard
        self._changed = changed
        self._interest = 0
        self._glance = False
        self._looking = False
        self._looked_s = float("-inf")
        self._wake = asyncio.Event()
        self._news = asyncio.Event()

    @contextmanager
    def interest(self) -> Iterator[None]:
        """Providers are looked for as long as somebody is in here."""
        self._interest += 1
        self._wake.set()
        try:
            yield
        finally:
            self._interest -= 1

    @property
    def interested(self) -> bool:
        return self._interest > 0

    def glance(self) -> None:
        """Look round once, if that was not done lately: for peers that ask us whom we know."""
        if time.monotonic() - self._looked_s > LOOKUP_S:
            self._glance = True
            self._wake.set()

    async def look_once(self) -> None:
        """Wait for a whole round that starts now, or `_LOOK_DEADLINE_S`."""
        with self.interest():
            target = self.rounds + (2 if self._looking else 1)
            try:
                async with asyncio.timeout(_LOOK_DEADLINE_S):
                    while self.rounds < target:
                        await self._news.wait()
            except TimeoutError:
                # What is known by then is the answer.
                return

    def add(self, addresses: Iterable[Address], source: str, *, trusted: bool = False) -> None:
        """Take up addresses; those from strangers pass the guard first."""
        added = False
        for address in addresses:
            if address not in self.members and (trusted or self._guard(address)) and len(self.members) < MAX_MEMBERS:
                self.members[address] = Member(address, source)
                added = True
        if added:
            self._tell()

    def usable(self) -> list[Member]:
        """Members that are not avoided now, complete ones first; doubtful ones only if there are no others."""
        members = self._reachable()
        return [member for member in members if not member.doubtful] or members

    def _reachable(self) -> list[Member]:
        members = [member for member in self.members.values() if self._remotes.usable(member.address)]
        return sorted(members, key=lambda member: (member.doubtful, not member.complete))

    def has(self, member: Member, shard: Digest, position: int) -> bool:
        """Whether this member is worth asking for a block. True while nothing is known of it."""
        if (shard, position) in member.lacks or (shard, -1) in member.lacks:
            return False
        have = member.have
        if have is None or have.complete:
            return True
        ordinal = self.layout.ordinal(shard) if self.layout is not None else None
        if ordinal is None:
            return True
        return bit(have.shards, ordinal) or bit(member.blocks.get(ordinal, b""), position)

    async def addresses(self) -> Source:
        """Members as they become known, until a whole round of searching brought nobody new."""
        seen: set[Address] = set()
        with self.interest():
            first_round = self.rounds
            while True:
                for member in self._reachable():
                    if member.address not in seen:
                        seen.add(member.address)
                        yield member.address
                if self.rounds >= first_round + 2:
                    return
                news = self._news
                if all(member.address in seen for member in self._reachable()):
                    await news.wait()

    def delivered(self, byte_count: int) -> None:
        """A block of this dataset came and was verified."""
        self.blocks_verified += 1
        self.bytes_verified += byte_count

    async def news(self) -> None:
        """Wait until something about the providers has changed."""
        await self._news.wait()

    async def run(self) -> None:
        """Look and poll, for ever."""
        while True:
            while not (self._interest or self._glance):
                self._wake.clear()
                await self._wake.wait()
            self._glance = False
            self._wake.clear()
            self._looking = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look())
                group.create_task(self._poll_all())
            # Those whom the look has found: a round ends when everybody known was asked.
            await self._poll_all()
            self._looking = False
            self.rounds += 1
            self._tell()
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _pause_s(self) -> float:
        now_s = time.monotonic()
        due = [member.asked_s + _poll_every_s(member) - now_s for member in self.members.values()]
        return min(max(min(due, default=POLL_PARTIAL_S), 0.5), POLL_PARTIAL_S)

    async def _look(self) -> None:
        every_s = LOOKUP_S if self.usable() else HUNGRY_LOOKUP_S
        if time.monotonic() - self._looked_s < every_s:
            return
        self._looked_s = time.monotonic()
        try:
            async with asyncio.timeout(_LOOK_DEADLINE_S), aclosing(self._discover(self.contents)) as found:
                async for address in found:
                    self.add([address], "dht")
                    self._wake.set()
        except TimeoutError:
            # Whoever was found in that time is there; the next look goes on.
            return

    async def _poll_all(self) -> None:
        slots = asyncio.Semaphore(_PARALLEL_POLLS)
        now_s = time.monotonic()
        partners = 0
        async with asyncio.TaskGroup() as group:
            for member in self._reachable():
                if now_s - member.asked_s >= _poll_every_s(member):
                    exchange = now_s - member.exchanged_s >= EXCHANGE_S and partners < _EXCHANGE_PARTNERS
                    partners += exchange
                    group.create_task(self._poll(member, slots, exchange=exchange))

    async def _poll(self, member: Member, slots: asyncio.Semaphore, *, exchange: bool) -> None:
        async with slots:
            since = member.have.revision if member.have is not None else None
            try:
                async with asyncio.timeout(_POLL_DEADLINE_S):
                    have = await self._http.have(member.address, self.contents, since)
                    if exchange:
                        member.exchanged_s = time.monotonic()
                        self.add(await self._http.peers(member.address, self.contents), "exchange")
            except NotFoundError:
                member.doubtful, member.have = True, None
                member.lacks.clear()
                self._tell()
                return
            except (*EXPECTED_FAILURES, TimeoutError) as failure:
                self._missed(member, failure)
                return
            finally:
                member.asked_s = time.monotonic()
            member.misses, member.doubtful = 0, False
            if not have.unchanged:
                member.have = have
                member.blocks = {partial.ordinal: partial.blocks for partial in have.partials}
            member.lacks.clear()
            self._tell()

    def _missed(self, member: Member, failure: Exception) -> None:
        member.misses += 1
        self._remotes.failed(member.address, str(failure))
        if member.misses >= _MAX_MISSES:
            self.members.pop(member.address, None)

    def _tell(self) -> None:
        # Whoever waits holds the old event; those who come later wait for the next one.
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._changed()


def _poll_every_s(member: Member) -> float:
    return POLL_COMPLETE_S if member.complete or member.doubtful else POLL_PARTIAL_S
