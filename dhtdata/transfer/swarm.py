"""The providers of one dataset: finds them, follows their have-maps, while somebody fetches.

Addresses come from tickets, DHT claims, other providers (peer exchange) and memory. None is believed more than another:
what a provider has is asked of itself, and what it sends is verified. Whoever is still fetching is asked every
`FOLLOW_S` what has changed, so that a crowd spreads blocks instead of asking one seed for the same ones.

Web seeds come from the user, from tickets and from the manifest, and are told to nobody. They are raced from the start:
until its have-map is here a web seed counts as having everything. Once peers suffice they are left out, for somebody
pays for what they send: when usable peers have it all between them, and deliver well.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.contents import MAX_CONTENTS_BYTES
from dhtdata.formats.web_seeds import MAX_WEB_SEEDS, Provider, WebSeed
from dhtdata.transfer.answers import VERSION, HaveMap
from dhtdata.transfer.availability import Availability
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.members import Member, Members
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.search import EXPECTED_FAILURES, ProviderSource, Source

FOLLOW_S = 0.4
HURRY_S = 0.1
USABLE_S = 0.1
MAX_FOLLOWED = 32
POLL_PARTIAL_S = 3.0
POLL_COMPLETE_S = 60.0
POLL_WEB_SEED_S = 600.0
AMPLE_BYTES_S = 16 << 20
AMPLE_RATIO = 2.0
FIRST_EXCHANGE_S = 0.05
ACQUAINT_S = 0.5
EXCHANGE_S = 20.0
HEARD_S = 120.0
LATER_S = 5.0
LOOKUP_S = 60.0
HUNGRY_LOOKUP_S = 10.0
_PARALLEL_POLLS = 16
_POLL_DEADLINE_S = 10.0
_LOOK_DEADLINE_S = 15.0
_EXCHANGE_PARTNERS = 3
_MAX_MISSES = 5
_ROUNDS_TO_MEET = 3
_MAX_NAMED = 32

Discover = Callable[[Digest], Source]
Guard = Callable[[Address], bool]


@dataclass(frozen=True, slots=True)
class Fetching:
    """What a peer that serves while it fetches says of itself: its `HaveMap.fetcher` and its port."""

    key: bytes = b""
    port: int = 0


NOBODY = Fetching()
"""A peer that serves nobody: others need not know of it."""


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
        own: Fetching = NOBODY,
    ) -> None:
        self.contents = contents
        self.members = Members(own.key)
        self.rounds = 0
        self.blocks_verified = self.bytes_verified = self.bytes_reused = 0
        self._http = http
        self._remotes = remotes
        self._discover = discover
        self._guard = guard
        self._changed = changed
        self._port = own.port
        self._interest = 0
        self._interest_s = 0.0
        self._interest_round = 0
        self._exchange_s = FIRST_EXCHANGE_S
        self._glance = False
        self._looking = False
        self._looked_s = float("-inf")
        self._hurry = asyncio.Event()
        self._hurried = False
        self._usable: list[Provider] | None = None
        self._usable_until_s = 0.0
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._slots = asyncio.Semaphore(_PARALLEL_POLLS)

    @property
    def layout(self) -> Layout | None:
        return self.members.layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        self.members.layout = layout

    @contextmanager
    def interest(self) -> Iterator[None]:
        """Providers are looked for as long as somebody is in here."""
        if not self._interest:
            self._exchange_s = FIRST_EXCHANGE_S
            self._interest_s, self._interest_round = time.monotonic(), self.rounds
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

    async def acquaint(self) -> None:
        """Wait until those who fetch at the same time know one another, if we serve them.

        `ACQUAINT_S` at most, since somebody became interested; less if nobody else is there.

        Who does not know the others asks the seed for what they ask it for, too. Nobody waits who serves nobody.
        """
        if not self._port:
            return
        with self.interest(), suppress(TimeoutError):
            async with asyncio.timeout(max(self._interest_s + ACQUAINT_S - time.monotonic(), 0)):
                while self.rounds < self._interest_round + (_ROUNDS_TO_MEET if len(self.members) > 1 else 2):
                    await self._news.wait()

    def hurry(self) -> None:
        """There is little left to ask for by what is known: look at once who has got more since."""
        self._hurried = True
        self._hurry.set()

    def add(self, addresses: Iterable[Address], source: str, *, trusted: bool = False) -> None:
        """Take up addresses; those from strangers pass the guard first."""
        added = [self.members.add(address, source) for address in addresses if trusted or self._guard(address)]
        if any(added):
            self._tell()

    def asked_by(self, address: Address) -> None:
        """Somebody who serves at this address asked what we have: a provider to others, soon or already."""
        if self._guard(address):
            if self.members.add(address, "asked"):
                self._tell()
            if (member := self.members.get(address)) is not None:
                member.heard_s = time.monotonic()

    def known(self) -> list[Address]:
        """Addresses for others who look for providers: those that answered, and those that asked lately."""
        oldest_s = time.monotonic() - HEARD_S
        return [
            member.provider
            for member in self._reachable()
            if isinstance(member.provider, Address) and (member.answered or member.heard_s > oldest_s)
        ]

    def add_web_seeds(self, seeds: Iterable[WebSeed], source: str) -> None:
        """Take up mirrors, a few of those that strangers name. What the user names is believed from then on."""
        added = False
        for seed in seeds:
            known = self.members.get(seed)
            if known is not None and isinstance(known.provider, WebSeed) and (known.provider.named or not seed.named):
                continue
            if known is None and self._web_seeds(named=seed.named) >= (_MAX_NAMED if seed.named else 2 * MAX_WEB_SEEDS):
                continue
            if known is not None:
                # A key that is equal would stay, and with it what it was refused before.
                self.members.drop(known)
            added |= self.members.add(seed, source)
        if added:
            self._wake.set()
            self._tell()

    def _web_seeds(self, *, named: bool) -> int:
        providers = (member.provider for member in self.members)
        return sum(isinstance(provider, WebSeed) and provider.named == named for provider in providers)

    def usable(self) -> list[Provider]:
        """Providers that may be asked for blocks now, complete ones first.

        Doubtful ones only if there are no others, web seeds only while peers do not suffice. The planner asks for every
        order, so the answer stands for `USABLE_S` or until there is news; who is avoided since it leaves out itself.
        """
        now_s = time.monotonic()
        if self._usable is None or now_s >= self._usable_until_s:
            self._usable, self._usable_until_s = self._reckon_usable(), now_s + USABLE_S
        return self._usable

    def _reckon_usable(self) -> list[Provider]:
        members = self._reachable()
        peers = [member for member in members if not member.web_seed and not member.doubtful]
        seeds = [member for member in members if member.web_seed]
        if not (seeds and self._suffice(peers, seeds)):
            peers = [member for member in members if not member.doubtful] or members
        return [member.provider for member in peers]

    def _suffice(self, peers: list[Member], seeds: list[Member]) -> bool:
        """Whether these peers have every shard between them, and deliver well: plainly, or beside the web seeds."""
        beside = self._rate(seeds)
        ample = min(AMPLE_BYTES_S, AMPLE_RATIO * beside) if beside else AMPLE_BYTES_S
        if self._rate(peers) < ample:
            return False
        if any(peer.complete for peer in peers):
            return True
        if self.layout is None:
            return False
        union = 0
        for peer in peers:
            union |= int.from_bytes(peer.shards, "little")
        everything = (1 << self.layout.shard_count) - 1
        return union & everything == everything

    def _rate(self, members: list[Member]) -> float:
        """Bytes per second of those that were measured."""
        remotes = (self._remotes.at(member.provider) for member in members)
        return sum(remote.rate_bytes_s for remote in remotes if remote.blocks)

    @property
    def have(self) -> Availability:
        """What they hold and are fetching."""
        return self.members.have

    def _reachable(self) -> list[Member]:
        members = [member for member in self.members if self._remotes.usable(member.provider)]
        return sorted(members, key=lambda member: (member.doubtful, not member.complete, member.web_seed))

    async def addresses(self) -> ProviderSource:
        """Members as they become known, until a whole round of searching brought nobody new."""
        seen: set[Provider] = set()
        with self.interest():
            first_round = self.rounds
            while True:
                for member in self._reachable():
                    if member.provider not in seen:
                        seen.add(member.provider)
                        yield member.provider
                if self.rounds >= first_round + 2:
                    return
                news = self._news
                if all(member.provider in seen for member in self._reachable()):
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
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(group))
            while True:
                await self._wanted()
                self._glance = False
                self._wake.clear()
                self._looking = True
                async with asyncio.TaskGroup() as round_:
                    round_.create_task(self._look())
                    round_.create_task(self._poll_all())
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

    async def _wanted(self) -> None:
        """Wait until somebody is interested, or wants a glance."""
        while not (self._interest or self._glance):
            self._wake.clear()
            await self._wake.wait()

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Ask those who are fetching themselves what has changed, often, while we fetch; for ever."""
        pause_s = FOLLOW_S
        while True:
            if not self._interest:
                await self._news.wait()
                continue
            due_s = time.monotonic() - pause_s
            partial = [member for member in self._reachable() if member.revision is not None and not member.complete]
            partial = [member for member in partial if not member.web_seed]
            for member in random.sample(partial, min(MAX_FOLLOWED, len(partial))):
                if member.asked_s <= due_s and not member.asking:
                    group.create_task(self._poll(member, exchange=False))
            hurry = self._hurry
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S / 4):
                    await hurry.wait()
            hurry.clear()
            pause_s = HURRY_S if self._hurried else FOLLOW_S
            self._hurried = False

    def _pause_s(self) -> float:
        now_s = time.monotonic()
        due = [member.asked_s + _poll_every_s(member) - now_s for member in self.members]
        return min(max(min(due, default=POLL_PARTIAL_S), 0.05), POLL_PARTIAL_S, self._exchange_s)

    async def _look(self) -> None:
        every_s = LOOKUP_S if self.usable() else HUNGRY_LOOKUP_S
        if any(member.answered for member in self.members) and time.monotonic() - self._interest_s < LATER_S:
            # Whoever answers knows the others: the DHT is for what they do not know.
            return
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
        now_s = time.monotonic()
        partners = 0
        async with asyncio.TaskGroup() as group:
            for member in self._reachable():
                exchange = not member.web_seed and partners < _EXCHANGE_PARTNERS
                exchange = exchange and now_s - member.exchanged_s >= self._exchange_s
                if (exchange or now_s - member.asked_s >= _poll_every_s(member)) and not member.asking:
                    partners += exchange
                    group.create_task(self._poll(member, exchange=exchange))
        if partners:
            # A crowd that starts together must know one another at once, or all of it asks one seed for everything.
            self._exchange_s = min(2 * self._exchange_s, EXCHANGE_S)

    async def _poll(self, member: Member, *, exchange: bool) -> None:
        member.asking = True
        try:
            async with self._slots, asyncio.timeout(_POLL_DEADLINE_S):
                if isinstance(member.provider, WebSeed):
                    have = await self._have_of_mirror(member.provider)
                else:
                    have = await self._http.have(member.provider, self.contents, member.revision, self._port)
                    if exchange:
                        member.exchanged_s = time.monotonic()
                        self.add(await self._http.peers(member.provider, self.contents), "exchange")
        except NotFoundError:
            self.members.denied(member)
        except (*EXPECTED_FAILURES, TimeoutError) as failure:
            self._missed(member, failure)
            return
        else:
            self.members.learned(member, have)
        finally:
            member.asked_s, member.asking = time.monotonic(), False
        self._tell()

    async def _have_of_mirror(self, seed: WebSeed) -> HaveMap:
        """What a web seed has. One without a have-map may have everything, unless it lacks these contents too."""
        try:
            return await self._http.have(seed, self.contents)
        except NotFoundError:
            await self._http.read_blob(seed, self.contents, MAX_CONTENTS_BYTES)
            return HaveMap(version=VERSION, contents=self.contents, revision=1, complete=True)

    def _missed(self, member: Member, failure: Exception) -> None:
        member.misses += 1
        self._remotes.failed(member.provider, str(failure))
        # A web seed is never found again, so it stays; it is left alone longer each time.
        if member.misses >= _MAX_MISSES and not member.web_seed:
            self.members.drop(member)

    def _tell(self) -> None:
        self._usable = None
        # Whoever waits holds the old event; those who come later wait for the next one.
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._changed()


def _poll_every_s(member: Member) -> float:
    """Complete ones rarely; those that had nothing yet ever more rarely."""
    if member.web_seed and member.answered and not member.misses:
        return POLL_WEB_SEED_S
    if member.denials:
        return min(2.0 ** min(member.denials, 8) / 2, POLL_COMPLETE_S)
    return POLL_COMPLETE_S if member.complete else POLL_PARTIAL_S
