"""What the peer does for programs of this machine, request by request, and what it tells other peers and monitors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from dhtdata.config import LEAST_RATE_BYTES_S, RATES, Settings
from dhtdata.control.client import text_of
from dhtdata.control.dht import AskDht, DhtLookup, DhtPing
from dhtdata.control.foreseeing import Foresee, Learn
from dhtdata.control.protocol import (
    Announce,
    Answer,
    AskProviders,
    AskStatus,
    Done,
    EnsureBlocks,
    FetchBlobs,
    FetchDataset,
    HandOver,
    Hello,
    LimitsNow,
    MakeTicket,
    PeerStatus,
    ProviderList,
    ProviderStatus,
    Request,
    Resolve,
    Seed,
    Seeded,
    SetLimits,
    Stop,
    TicketText,
)
from dhtdata.dht import DhtNode
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, DhtDataError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name
from dhtdata.formats.ticket import LocalName, Target, Ticket, parse_target
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.peer.collect import PARALLEL_BLOBS, Collection
from dhtdata.peer.dht_desk import DhtDesk, gauges
from dhtdata.peer.ensuring import Ensuring
from dhtdata.peer.figures import FetchFigures, Figures
from dhtdata.peer.resolve import Resolver
from dhtdata.peer.seeder import Seeder
from dhtdata.peer.swarms import Swarms
from dhtdata.peer.tally import Tally
from dhtdata.store import Store, meaning_of, version_of
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.members import Member
from dhtdata.transfer.providers import Remotes
from dhtdata.transfer.rates import Limits
from dhtdata.transfer.server import Served
from dhtdata.transfer.uploads import Uploads

LONGEST_S = 7 * 86_400.0
PROGRESS_S = 0.25
PROXY_S = 20.0
_T = TypeVar("_T")


@dataclass
class Desk:
    """Parts of the peer that requests need. ``seeder`` is None in a private peer."""

    release: str
    settings: Settings
    store: Store
    node: DhtNode
    dht: DhtDesk
    resolver: Resolver
    fetcher: Fetcher
    swarms: Swarms
    ensuring: Ensuring
    remotes: Remotes
    seeder: Seeder | None
    served: Served
    uploads: Uploads
    limits: Limits
    figures: Figures
    addresses: Sequence[Address]
    port: int
    clients: Callable[[], int]
    stop: asyncio.Event
    started_s: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        return "private" if self.seeder is None else "seed"

    def greet(self, hello: Hello) -> None:
        """A program has come: its user may have named web seeds. FormatError if one is malformed."""
        if hello.web_seeds:
            self.swarms.name_web_seeds([WebSeed.parse(url, named=True) for url in hello.web_seeds])

    async def handle(self, request: Request, send: Callable[[Answer], Awaitable[None]], stay: ExitStack) -> Answer:
        """The answer that ends the request; progress goes out through ``send`` before.

        What holds as long as the connection is put on ``stay``.
        """
        match request:
            case Resolve():
                target = parse_target(request.target)
                return await _within(request.timeout_s, self.resolver.resolve(target), _search_for(target))
            case FetchBlobs():
                return await _within(request.timeout_s, self._fetch_blobs(request), "fetching blobs")
            case EnsureBlocks():
                return await self.ensuring.ensure(request)
            case Foresee():
                return self.ensuring.foresee(request, stay)
            case Learn():
                return await self.ensuring.learn(request)
            case FetchDataset():
                return await self._fetch_dataset(request, send)
            case Seed():
                target = parse_target(request.target)
                return await _within(request.timeout_s, self.seed(target), _search_for(target))
            case Announce():
                if self.seeder is not None:
                    await self.seeder.consider(request.manifest)
                return Done()
            case MakeTicket():
                return TicketText(ticket=await self._ticket(parse_target(request.target), request.with_secret))
            case AskStatus():
                return await self.status()
            case AskProviders():
                return await self._providers(request.contents)
            case AskDht():
                return self.dht.status()
            case DhtLookup():
                return await self.dht.lookup(request)
            case DhtPing():
                return await self.dht.ping(request)
            case SetLimits():
                return self._limit(request)
            case HandOver():
                if self.seeder is not None:
                    raise ConfigError(
                        f"a seed (pid {os.getpid()}) runs on the store {self.store.path} already: "
                        "dhtdata seed TARGET adds to it, dhtdata stop ends it"
                    )
                self.stop.set()
                return Done()
            case Stop():
                self.stop.set()
                return Done()

    async def seed(self, target: Target) -> Seeded:
        """Find a dataset, keep it, and say where others get it."""
        seeder = self._require_seed()
        resolved = await self.resolver.resolve(target)
        await seeder.keep(resolved.manifest)
        name = resolved.name
        asked = target.target if isinstance(target, Ticket) else target
        if name is not None and not (isinstance(asked, Name) and asked.sequence is not None):
            await seeder.follow(name)
        lasting: Name | Digest = resolved.manifest if name is None else Name(name.publisher, name.name)
        return Seeded(
            manifest=resolved.manifest,
            contents=resolved.contents,
            ticket=str(Ticket(lasting, tuple(self.addresses))),
            name_uri=resolved.name_uri,
        )

    async def status(self) -> PeerStatus:
        dht = self.dht.status()
        partials = self.figures.holdings.begun()
        datasets = await self.seeder.describe(partials) if self.seeder is not None else []
        return PeerStatus(
            version=self.release,
            pid=os.getpid(),
            kind=self.kind,
            store=str(self.store.path),
            listen=self.settings.listen,
            port=self.port,
            network=self.resolver.http.network.fingerprint,
            node=dht.node,
            addresses=tuple(map(str, self.addresses)),
            dht_contacts=dht.contacts,
            dht=dht,
            datasets=tuple(datasets),
            traffic=self.figures.traffic(),
            blocks_verified=self.fetcher.blocks_verified,
            bytes_fetched=self.fetcher.bytes_fetched,
            bytes_served=self.served.bytes,
            requests_served=self.served.requests,
            uptime_s=time.monotonic() - self.started_s,
            clients=self.clients(),
            limits=self._limits_now(),
            uploads=self.uploads.under_way,
            uploads_waiting=self.uploads.queued,
            down_bytes_s=self.fetcher.received.total().bytes_s,
            up_bytes_s=self.served.sent.total().bytes_s,
            fetchers=self.figures.uploads(),
        )

    def _limit(self, request: SetLimits) -> LimitsNow:
        for name, rate in request.changes.items():
            if name not in RATES or (rate is not None and rate < LEAST_RATE_BYTES_S):
                raise ConfigError(
                    f"there is no limit {name[:40]!r} of {rate} bytes per second: see dhtdata limit --help"
                )
        self.limits.rates = replace(self.limits.rates, **request.changes)
        return self._limits_now()

    def _limits_now(self) -> LimitsNow:
        return LimitsNow(**asdict(self.limits.rates))

    async def _fetch_blobs(self, request: FetchBlobs) -> Done:
        swarm = self.swarms.of(request.contents)
        slots = asyncio.Semaphore(PARALLEL_BLOBS)
        failures: list[DhtDataError] = []

        async def fetch(digest: Digest, limit_bytes: int) -> None:
            async with slots:
                try:
                    if not failures:
                        await self.fetcher.blob(swarm, digest, limit_bytes)
                except DhtDataError as failure:
                    failures.append(failure)

        async with asyncio.TaskGroup() as group:
            for blob in request.blobs:
                group.create_task(fetch(*blob))
        if failures:
            raise failures[0]
        return Done()

    async def _fetch_dataset(self, request: FetchDataset, send: Callable[[Answer], Awaitable[None]]) -> Answer:
        resolved = await self.resolver.resolve(request.manifest)
        swarm = self.swarms.of(resolved.contents)
        tally = Tally()
        collection = Collection(
            self.store, self.fetcher, swarm, request.manifest, request.splits, request.columns, tally
        )
        with self.figures.fetching(swarm, tally) as figures:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(_tell(figures, send))
                failure = await group.create_task(collection.settle())
                telling.cancel()
            if failure is not None:
                raise failure
            await send(figures.progress())
        return Done()

    async def _ticket(self, target: Target, with_secret: bool) -> str:
        self._require_seed()
        secret = self.resolver.http.network.secret if with_secret else None
        if with_secret and secret is None:
            raise ConfigError(
                f"the seed (pid {os.getpid()}) is in the public network, which has no secret: leave --with-secret out"
            )
        if isinstance(target, Ticket):
            target = target.target
        if isinstance(target, LocalName):
            target = await asyncio.to_thread(meaning_of, target, self.store)
        manifest = await asyncio.to_thread(version_of, target, self.store)
        if manifest not in {entry.digest for entry in await asyncio.to_thread(self.store.manifests) if entry.pinned}:
            raise NotFoundError(f"{target} is not seeded here, so a ticket would lead nowhere: dhtdata seed {target}")
        return str(Ticket(target, tuple(self.addresses), secret))

    async def _providers(self, contents: Digest) -> ProviderList:
        swarm = self.swarms.of(contents)
        swarm.glance()
        await swarm.look_once()
        others = (member for member in swarm.members if member.provider not in self.addresses)
        members = sorted(others, key=lambda member: (not member.complete, str(member.provider)))
        answered = (member for member in members if member.answered)
        return ProviderList(providers=tuple(map(self._provider, answered)))

    def _provider(self, member: Member) -> ProviderStatus:
        measured = self.fetcher.received.rate(member.provider)
        return ProviderStatus(
            address=str(member.provider),
            seed=member.complete,
            shards=-1 if member.complete else member.shard_count,
            bytes=self.remotes.at(member.provider).bytes,
            source=member.source,
            avoided=self.remotes.avoided(member.provider),
            rate_bytes_s=measured.bytes_s,
            latency_s=measured.latency_s,
        )

    def _require_seed(self) -> Seeder:
        if self.seeder is None:
            raise ConfigError(
                f"the peer (pid {os.getpid()}) is a private one, which serves nobody: dhtdata seed takes its place"
            )
        return self.seeder

    # What the HTTP server asks (`dhtdata.transfer.server.Directory`)

    def peers(self, contents: Digest) -> Sequence[Address]:
        swarm = self.swarms.known(contents)
        if swarm is None:
            return ()
        swarm.glance()
        # Web seeds are not passed on: who wants them asks the manifest.
        return swarm.known()

    def asked(self, contents: Digest, address: Address) -> None:
        if (swarm := self.swarms.known(contents)) is not None:
            swarm.asked_by(address)

    async def lookup(self, digest: Digest) -> list[ProviderRecord]:
        return await _within(PROXY_S, self.resolver.finder.proxied(digest), "a look-up in the DHT")

    async def name(self, name: Name) -> bytes:
        return (await asyncio.to_thread(self.store.name_record, name.publisher, name.name)).data

    async def metrics(self) -> dict[str, float]:
        status = await self.status()
        return {
            "blocks_verified_total": status.blocks_verified,
            "fetched_bytes_total": status.bytes_fetched,
            "served_bytes_total": status.bytes_served,
            "served_requests_total": status.requests_served,
            "refused_connections_total": self.served.refused_connections,
            "refused_strangers_total": self.served.strangers,
            "refused_busy_total": self.uploads.busy,
            "cut_readers_total": self.served.cut_readers,
            "uploads": self.uploads.under_way,
            "uploads_waiting": self.uploads.queued,
            "datasets": len(status.datasets),
            "datasets_complete": sum(held.state == "complete" for held in status.datasets),
            "held_bytes": sum(held.bytes_held for held in status.datasets),
            "uptime_seconds": round(status.uptime_s, 1),
            **gauges(status.dht),
        }

    async def page(self) -> str:
        status = await self.status()
        lines = [f"dhtdata {status.version} {status.kind}, up {status.uptime_s:.0f} s", ""]
        reached = "reached by strangers" if status.dht.reached else "not reached by strangers"
        lines += [f"DHT contacts {status.dht_contacts}, {reached}, served {status.bytes_served} bytes", ""]
        for held in status.datasets:
            lines.append(f"{held.name_uri or held.manifest}")
            lines.append(
                f"  shards {held.shards_held}/{held.shards}, bytes {held.bytes_held}/{held.bytes}, {held.state}"
            )
        return "\n".join(lines) + "\n"


async def _tell(figures: FetchFigures, send: Callable[[Answer], Awaitable[None]]) -> None:
    """Progress, for as long as the fetch lasts: whoever looks sees rates fall when nothing comes any more."""
    while True:
        try:
            await send(figures.progress())
        except (ConnectionError, TimeoutError):
            # The watch on the connection ends the request.
            return
        await asyncio.sleep(PROGRESS_S)


def _search_for(target: Target) -> str:
    """For messages: a ticket is named by what it leads to, it may carry a secret."""
    return f"a search for {target.target if isinstance(target, Ticket) else text_of(target)}"


async def _within(timeout_s: float, waiting: Awaitable[_T], what: str) -> _T:
    """NotFoundError if it takes longer."""
    try:
        async with asyncio.timeout(min(max(timeout_s, 0.0), LONGEST_S)):
            return await waiting
    except TimeoutError as failure:
        raise NotFoundError(
            f"{what} did not end within {timeout_s:.0f} s: try again, or with a fresh ticket"
        ) from failure
