"""From what a user pasted to a version: manifest and contents in the store, and the swarm that provides them.

The newest NameRecord known wins, wherever it comes from, and is kept on disk: there is no way back. A search ends: with
nobody to ask at once, else when everybody was asked, and the error says how many that were.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from dhtdata.config import Settings
from dhtdata.control.protocol import Resolved
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, DhtDataError, IntegrityError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord, Signed
from dhtdata.formats.ticket import LocalName, Target, Ticket
from dhtdata.formats.web_seeds import Provider, WebSeed
from dhtdata.network import Network
from dhtdata.peer.finder import Finder
from dhtdata.peer.swarms import Swarms
from dhtdata.store import Store, meaning_of
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.fetcher import Fetcher
from dhtdata.transfer.search import ProviderSource, Search, each

JOIN_GRACE_S = 5.0
HEAD_START_S = 0.5


@dataclass
class Resolver:
    """Answers `resolve`. Concurrent searches for the same thing are rare and harmless. ``group`` is the peer's."""

    group: asyncio.TaskGroup
    settings: Settings
    store: Store
    http: HttpClient
    finder: Finder
    fetcher: Fetcher
    swarms: Swarms

    async def resolve(self, target: Target) -> Resolved:
        """Find the version. ConfigError if there is nobody to ask, NotFoundError if nobody has it."""
        direct: Sequence[Provider] = ()
        if isinstance(target, Ticket):
            self._require_network(target)
            self.finder.known.trust(target.addresses)
            direct, target = (*target.addresses, *target.web_seeds), target.target
        if isinstance(target, LocalName):
            target = await asyncio.to_thread(meaning_of, target, self.store)
        if isinstance(target, Digest):
            return await self._version(target, None, direct)
        signed = await self._newest(target, direct)
        record = signed.record
        if not isinstance(record, NameRecord):
            raise IntegrityError(f"the record of {target} is a {type(record).__name__}")
        if target.sequence is not None and record.sequence < target.sequence:
            raise NotFoundError(f"nobody who was asked knows {target}: the newest version is {record.target}")
        if target.sequence is not None and record.sequence != target.sequence:
            raise NotFoundError(
                f"{target} is not the newest version: that is {record.target}; "
                "peers keep the newest name only, ask for an older version by its manifest digest"
            )
        return await self._version(record.manifest, record, direct)

    async def _version(self, manifest: Digest, record: NameRecord | None, direct: Sequence[Provider]) -> Resolved:
        read = await self._manifest(manifest, direct)
        contents = read.contents
        swarm = self.swarms.of(contents)
        swarm.add(_addresses(direct), "ticket", trusted=True)
        swarm.add_web_seeds(_web_seeds(direct), "ticket")
        swarm.add_web_seeds(read.web_seeds, "manifest")
        if not await asyncio.to_thread(self.store.has, contents):
            await self._fetch_contents(contents, [*direct, *read.web_seeds])
        Contents.decode(await asyncio.to_thread(self.store.read, contents, limit_bytes=MAX_CONTENTS_BYTES))
        await asyncio.to_thread(self.store.add_manifest, manifest)
        if record is None:
            return Resolved(manifest=manifest, contents=contents)
        return Resolved(
            manifest=manifest, contents=contents, name_uri=str(record.target), stale=record.stale(time.time())
        )

    async def _manifest(self, manifest: Digest, direct: Sequence[Provider]) -> Manifest:
        if not await asyncio.to_thread(self.store.has, manifest):
            body = await self._search(manifest, MAX_MANIFEST_BYTES, "manifest", direct)
            # Parsed before it is stored: a manifest of a newer format is refused by name.
            Manifest.decode(body)
            await asyncio.to_thread(self.store.put, body)
        encoded = await asyncio.to_thread(self.store.read, manifest, limit_bytes=MAX_MANIFEST_BYTES)
        return Manifest.decode(encoded)

    async def _fetch_contents(self, contents: Digest, direct: Sequence[Provider]) -> None:
        body = await self._search(contents, MAX_CONTENTS_BYTES, "contents", direct, contents=True)
        Contents.decode(body)
        await asyncio.to_thread(self.store.put, body)

    async def _search(
        self, blob: Digest, limit_bytes: int, what: str, direct: Sequence[Provider], *, contents: bool = False
    ) -> bytes:
        started_s = time.monotonic()
        self._require_somebody(direct)
        # Not cut off by the first answer: what is fetched next needs the DHT, too.
        joining = self.group.create_task(self._join(direct))
        answered: list[Provider] = []

        async def attempt(address: Provider) -> bytes:
            body = await self.http.read_blob(address, blob, limit_bytes)
            answered.append(address)
            return body

        search = Search(attempt, self.fetcher.blame)
        known = self.finder.known
        in_vain = asyncio.Event()
        sources: list[ProviderSource] = [
            _asked_first(direct, in_vain),
            each([*known.web_seeds, *known.everybody()]),
            _after(in_vain, joining, self.finder.holders(blob)),
        ]
        if contents:
            sources.append(_after(in_vain, joining, self.finder.providers(blob)))
        try:
            body = await search.first(sources)
        except NotFoundError as failure:
            raise NotFoundError(
                f"nobody has {what} {blob}: {self.finder.asked(len(search.asked), started_s)} ({failure}); "
                "try again later, or ask for a fresh ticket"
            ) from failure
        for address in _addresses(answered):
            known.remember(address)
        if contents:
            self.swarms.of(blob).add(_addresses(answered), "asked", trusted=True)
        return body

    async def _newest(self, name: Name, direct: Sequence[Provider]) -> Signed:
        """The newest record: what the store remembers, unless the network knows a newer one."""
        stored: Signed | None = None
        try:
            stored = await asyncio.to_thread(self.store.name_record, name.publisher, name.name)
        except NotFoundError:
            self._require_somebody(direct)
        if not self._somebody(direct) and stored is not None:
            return stored
        started_s = time.monotonic()
        await self._join(direct)
        found, answered, said = await self.finder.name(name, direct, started_s)
        for address in _addresses(answered):
            self.finder.known.remember(address)
        if found is not None:
            await asyncio.to_thread(self.store.put_name_record, found)
        elif stored is None:
            here = self.http.network
            where = f"the private network {here.fingerprint}"
            if here.secret is None:
                where = "the public network (a private one needs --network)"
            raise NotFoundError(
                f"nobody knows {name} in {where}: {said}; check the name and that a seed of it runs, or ask its "
                "publisher for a ticket"
            )
        return await asyncio.to_thread(self.store.name_record, name.publisher, name.name)

    async def _join(self, direct: Sequence[Provider]) -> None:
        """Enter the DHT, if we know nobody there yet, for at most `JOIN_GRACE_S`: UDP may be blocked."""
        entry = [*_addresses(direct), *self.finder.known.everybody()]
        if entry and not self.finder.dht_size:
            try:
                async with asyncio.timeout(JOIN_GRACE_S):
                    await self.finder.join(entry)
            except (TimeoutError, DhtDataError):
                # The DHT is never the only path: the same addresses are asked over HTTP.
                return

    def _require_network(self, ticket: Ticket) -> None:
        """Addresses of another network are strangers: they would stay silent, and would learn what we look for."""
        here = self.http.network
        if ticket.secret is not None and Network(ticket.secret).fingerprint != here.fingerprint:
            raise ConfigError(
                f"the ticket for {ticket.target} leads into network {Network(ticket.secret).fingerprint}, but the peer "
                f"(pid {os.getpid()}) is in network {here.fingerprint}: run dhtdata stop, then try again, "
                "or use another store (--store)"
            )

    def _somebody(self, direct: Sequence[Provider]) -> bool:
        known = self.finder.known
        return bool(direct or self.finder.dht_size or known.everybody() or known.web_seeds)

    def _require_somebody(self, direct: Sequence[Provider]) -> None:
        if not self._somebody(direct):
            raise ConfigError(
                "this peer knows nobody to ask: use a ticket (dhtdata1...) instead, "
                "or name a peer with --bootstrap IP:PORT or DHTDATA_BOOTSTRAP, or a mirror with --web-seed URL"
            )


async def _asked_first(direct: Sequence[Provider], in_vain: asyncio.Event) -> ProviderSource:
    """Those whom the ticket names; ``in_vain`` is set once the last of them has failed or is late."""
    for provider in direct:
        yield provider
    in_vain.set()


async def _after(in_vain: asyncio.Event, joining: asyncio.Task[None], source: ProviderSource) -> ProviderSource:
    """A source that asks the DHT, once we are in it, unless whoever the ticket names answers before.

    A look-up costs dozens of nodes a signature each, and is of no use to most who have a ticket.
    """
    async with aclosing(source):
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAD_START_S):
                await in_vain.wait()
        await asyncio.wait([joining])
        async for provider in source:
            yield provider


def _addresses(providers: Iterable[Provider]) -> list[Address]:
    return [provider for provider in providers if isinstance(provider, Address)]


def _web_seeds(providers: Iterable[Provider]) -> list[WebSeed]:
    return [provider for provider in providers if isinstance(provider, WebSeed)]
