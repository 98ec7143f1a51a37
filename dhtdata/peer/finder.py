"""Who might have it: the DHT, peers known by address, and the DHT as asked through such a peer.

The DHT is never the only path. Where it knows nobody (UDP blocked, first start) known peers look up for us over HTTP;
the records they pass on are signed, so they can withhold but not forge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from dhtdata.counts import counted
from dhtdata.dht import DhtNode
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.formats import records
from dhtdata.formats.addresses import Address, Believed
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord, ProviderClaim, ShardClaims, Signed, contents_key, shard_key
from dhtdata.formats.web_seeds import Provider
from dhtdata.peer.known import Known
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.search import EXPECTED_FAILURES, Source

NAME_DEADLINE_S = 15.0
NAME_GRACE_S = 2.0
_MAX_PROXIES = 3
_MAX_NAME_PEERS = 16
_PARALLEL = 8


@dataclass
class Finder:
    """Look-ups over every path there is."""

    node: DhtNode
    http: HttpClient
    known: Known
    guard: Believed
    joining: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def dht_size(self) -> int:
        """DHT nodes that this one knows."""
        return len(self.node.nodes())

    async def join(self, addresses: Iterable[Address]) -> None:
        """Enter the DHT through these addresses, trusted by the user."""
        wanted = list(addresses)
        self.known.trust(wanted)
        async with self.joining:
            await self.node.bootstrap(wanted)

    async def providers(self, contents: Digest) -> Source:
        """Addresses of peers that say they provide these contents."""
        for address in self.known.everybody():
            yield address
        async with aclosing(self._claims(contents, contents_key(contents))) as found:
            async for address in found:
                yield address

    async def holders(self, blob: Digest) -> Source:
        """Addresses of peers that say they hold this blob, whatever dataset it belongs to."""
        async with aclosing(self._claims(blob, shard_key(blob))) as found:
            async for address in found:
                yield address

    async def proxied(self, digest: Digest) -> list[ProviderRecord]:
        """What the DHT says about a digest, for a peer that asked us."""
        found: list[ProviderRecord] = []
        for key in (contents_key(digest), shard_key(digest)):
            found.extend([ProviderRecord(one.record.data, one.addresses) async for one in self.node.find(key)])
        return found

    async def _claims(self, digest: Digest, key: bytes) -> Source:
        own = self.node.key.public
        async for found in self.node.find(key):
            if found.record.signer != own and _claims_it(found.record, digest, key):
                for address in filter(self.guard, found.addresses):
                    yield address
        if not self.node.nodes():
            for proxy in self.known.everybody()[:_MAX_PROXIES]:
                for address in await self._ask_proxy(proxy, digest, key):
                    yield address

    async def _ask_proxy(self, proxy: Address, digest: Digest, key: bytes) -> list[Address]:
        addresses: list[Address] = []
        try:
            for record in await self.http.providers(proxy, digest):
                if _claims_it(await asyncio.to_thread(records.decode, record.data), digest, key):
                    addresses.extend(filter(self.guard, record.addresses))
        except EXPECTED_FAILURES:
            return addresses
        return addresses

    def asked(self, peer_count: int, since_s: float) -> str:
        """Who was asked since then, for messages. Entering the DHT, which can take seconds, is part of a search."""
        nodes = f"the DHT ({counted(self.dht_size, 'node')} known)" if self.dht_size else "no DHT node (none was met)"
        return f"asked {nodes} and {counted(peer_count, 'peer')} in {time.monotonic() - since_s:.1f} s"

    async def name(
        self, name: Name, direct: Sequence[Provider], since_s: float
    ) -> tuple[Signed | None, set[Provider], str]:
        """Newest record of a name that anybody knows, who answered over HTTP, and what the search since then was.

        Waits for the DHT and for all peers asked, but once there is a record not much longer.
        """
        peers = list(dict.fromkeys([*direct, *self.known.web_seeds, *self.known.everybody()]))[:_MAX_NAME_PEERS]
        search = _NameSearch(name, self.http, self.node)
        try:
            async with asyncio.timeout(NAME_DEADLINE_S) as deadline:
                search.deadline = deadline
                async with asyncio.TaskGroup() as group:
                    group.create_task(search.ask_dht())
                    for peer in peers:
                        group.create_task(search.ask_peer(peer))
        except TimeoutError:
            # Whoever has not answered by now is left out.
            pass
        said = self.asked(len(peers), since_s)
        if silent := [str(address) for address in direct if address not in search.heard]:
            said += f"; no answer from {', '.join(silent)}"
        return search.best, search.answered, said


class _NameSearch:
    """Collects records of one name; the highest rank wins."""

    def __init__(self, name: Name, http: HttpClient, node: DhtNode) -> None:
        self.best: Signed | None = None
        self.answered: set[Provider] = set()
        self.heard: set[Provider] = set()
        self.deadline: asyncio.Timeout | None = None
        self._name = name
        self._http = http
        self._node = node
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def ask_dht(self) -> None:
        try:
            # Records count as they come: the deadline may end the search before every slow node has answered.
            await self._node.find_name(self._name, self._take)
        except (NotFoundError, FormatError, IntegrityError):
            # The peers may know it; if nobody does, the caller says so.
            return

    async def ask_peer(self, address: Provider) -> None:
        async with self._slots:
            try:
                signed = await self._http.name(address, self._name)
            except NotFoundError:
                self.heard.add(address)
                return
            except EXPECTED_FAILURES:
                return
            self.heard.add(address)
            self.answered.add(address)
            self._take(signed)

    def _take(self, signed: Signed) -> None:
        record, best = signed.record, self.best
        if not isinstance(record, NameRecord):
            return
        if best is None or (isinstance(best.record, NameRecord) and record.rank > best.record.rank):
            self.best = signed
        self._hurry()

    def _hurry(self) -> None:
        """There is an answer: wait for a better one, but not long."""
        deadline = self.deadline
        if deadline is not None and not deadline.expired():
            soon_s = asyncio.get_running_loop().time() + NAME_GRACE_S
            deadline.reschedule(min(deadline.when() or soon_s, soon_s))


def _claims_it(signed: Signed, digest: Digest, key: bytes) -> bool:
    record = signed.record
    if isinstance(record, ProviderClaim):
        return record.contents == digest and record.expires > time.time()
    if isinstance(record, ShardClaims):
        return key in record.unpacked() and record.expires > time.time()
    return False
