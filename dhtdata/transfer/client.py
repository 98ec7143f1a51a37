"""HTTP client: small blobs and answers from one peer at a time (door of ``aiohttp``, with `server`).

Every answer is checked against what was asked before anybody uses it: status, length, no compression, no redirect.
Whatever a server does ends as one of four errors, never as another exception and never as a wait without end:

| error | when |
|---|---|
| NotFoundError | 404: this peer does not have it (now) |
| PeerError | refused, timed out, cut off, over-long, or an answer to another question |
| IntegrityError | a blob whose bytes are not its digest's |
| FormatError | an answer that does not parse |

In a private network every request carries the code that `membership` describes; another network's peer stays silent,
which is a PeerError. Web seeds are no members and get no code. Those that the user named may redirect and be anywhere;
the others are asked over connections of their own, which lead to global addresses only (`dialling`). Folders are read
in a thread (`folders`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self

import aiohttp
from yarl import URL

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, PeerError
from dhtdata.formats import records
from dhtdata.formats.addresses import Address
from dhtdata.formats.names import Name, encode_key
from dhtdata.formats.records import MAX_RECORD_BYTES, NameRecord, Signed
from dhtdata.formats.web_seeds import MAX_REDIRECTS, REDIRECTS, Hop, Provider, WebSeed, first_hop, next_hop
from dhtdata.network import PUBLIC, Network
from dhtdata.transfer import answers, folders
from dhtdata.transfer.answers import HaveMap, PeerExchange, ProviderRecord, ProviderRecords
from dhtdata.transfer.dialling import CONNECT_S, socket_maker
from dhtdata.transfer.membership import member_headers

MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_ADDRESS = 6
SILENCE_S = 10.0
SLOWEST_BYTES_S = 64_000
_SLACK_S = 10.0
_ASK_S = 15.0
LOOKUP_S = 30.0
_PIECE_BYTES = 1 << 18


def transfer_deadline_s(length: int) -> float:
    """How long a transfer may take in all: silence alone would permit a byte every few seconds."""
    return length / SLOWEST_BYTES_S + _SLACK_S


class HttpClient:
    """Connections to other peers of one network. Use `running`."""

    def __init__(self, session: aiohttp.ClientSession, guarded: aiohttp.ClientSession, network: Network) -> None:
        self.network = network
        self._session = session
        self._guarded = guarded

    @classmethod
    @asynccontextmanager
    async def running(cls, network: Network = PUBLIC, source_ip: str = "::") -> AsyncIterator[Self]:
        """Connects from ``source_ip`` where that can be, so that others see one address of this peer; ``::``: any."""
        trusting, guarding = _session(source_ip, trusted=True), _session(source_ip, trusted=False)
        async with trusting as session, guarding as guarded:
            yield cls(session, guarded, network)

    async def read_blob(self, address: Provider, digest: Digest, limit_bytes: int) -> bytes:
        """A whole small blob, verified. IntegrityError if the bytes are not the digest's."""
        body = await self._ask(address, f"/v1/blobs/{digest}", limit_bytes, transfer_deadline_s(limit_bytes))
        if await asyncio.to_thread(Digest.of, body) != digest:
            raise IntegrityError(f"{address} sent wrong bytes for blob {digest}", culprit=str(address))
        return body

    async def have(self, address: Provider, contents: Digest, since: int | None = None, port: int = 0) -> HaveMap:
        """What a peer has of some contents, or what has changed ``since`` a revision.

        ``port``: where we serve while we fetch, so that it knows us as a provider; 0 if we serve nobody.
        """
        asked = {"since": since, "port": port or None}
        query = "&".join(f"{name}={value}" for name, value in asked.items() if value is not None)
        query = f"?{query}" if query else ""
        body = await self._ask(address, f"/v1/have/{contents}{query}", answers.MAX_HAVE_BYTES)
        have = HaveMap.decode(body)
        if have.contents != contents:
            raise FormatError(f"{address}: have-map of other contents than asked")
        return have

    async def peers(self, address: Address, contents: Digest) -> tuple[Address, ...]:
        """Addresses that this peer knows to provide these contents: hints, to be tried and believed later."""
        return PeerExchange.decode(await self._ask(address, f"/v1/peers/{contents}", answers.MAX_EXCHANGE_BYTES))

    async def providers(self, address: Address, digest: Digest) -> list[ProviderRecord]:
        """What the DHT says about a digest, asked through this peer. Records are not verified yet."""
        path = f"/v1/providers/{digest}"
        return ProviderRecords.decode(await self._ask(address, path, answers.MAX_PROVIDERS_BYTES, LOOKUP_S))

    async def name(self, address: Provider, name: Name) -> Signed:
        """The newest NameRecord that this peer knows, verified."""
        path = f"/v1/names/{encode_key(name.publisher)}/{name.name}"
        signed = records.decode(await self._ask(address, path, MAX_RECORD_BYTES))
        found = signed.record
        if not isinstance(found, NameRecord) or found.name != name.name or found.delegation.root != name.publisher:
            raise FormatError(f"{address}: record of another name than asked")
        return signed

    async def _ask(self, address: Provider, path: str, limit_bytes: int, deadline_s: float = _ASK_S) -> bytes:
        if isinstance(address, WebSeed) and address.folder is not None:
            return await asyncio.to_thread(folders.read_whole, address, path, limit_bytes)
        async with self._get(address, path, deadline_s) as response:
            return bytes(await _read_whole(response, limit_bytes))

    @asynccontextmanager
    async def _get(self, address: Provider, path: str, deadline_s: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200 and a plain body. The deadline covers the reading too."""
        url = f"{address.url}{path}"
        try:
            async with asyncio.timeout(deadline_s):
                if isinstance(address, WebSeed):
                    async with self._get_web(address, path) as response:
                        yield response
                else:
                    headers = member_headers(self.network, address, path, time.time())
                    async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                        _check(response, url)
                        yield response
        except TimeoutError as failure:
            raise PeerError(f"{url}: too slow or silent") from failure
        except aiohttp.ClientConnectorError as failure:
            reason = failure.os_error.strerror or str(failure.os_error)
            raise PeerError(f"{address}: no connection ({reason})") from failure
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            raise PeerError(f"{url}: {failure or type(failure).__name__}") from failure

    @asynccontextmanager
    async def _get_web(self, seed: WebSeed, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """From a web seed; redirects are followed as far as `next_hop` lets them."""
        hop = first_hop(seed, path)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._request(hop) as response:
                if response.status not in REDIRECTS:
                    _check(response, hop.url)
                    yield response
                    return
                try:
                    hop = next_hop(seed, hop, response.headers.get("Location", ""))
                except FormatError as failure:
                    raise PeerError(str(failure)) from failure
        raise PeerError(f"{seed.url}{path}: more than {MAX_REDIRECTS} redirects")

    def _request(self, hop: Hop) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        session = self._session if hop.trusted else self._guarded
        # Asked for as it stands: the library's own ideas of escapes would make it another path.
        return session.get(URL(hop.url, encoded=True), allow_redirects=False)


def _session(source_ip: str, *, trusted: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS,
            limit_per_host=MAX_CONNECTIONS_PER_ADDRESS,
            use_dns_cache=False,
            socket_factory=socket_maker(trusted=trusted, source_ip=source_ip),
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        headers={"Accept-Encoding": "identity", "User-Agent": "dhtdata"},
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Buckets send more headers than peers do.
        max_line_size=4_096,
        max_field_size=8_190,
        max_headers=64,
    )


def _check(response: aiohttp.ClientResponse, url: str) -> None:
    if response.status in (404, 416):
        raise NotFoundError(f"{url}: not there")
    if response.status != 200:
        raise PeerError(f"{url}: status {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise PeerError(f"{url}: a compressed body, which was not asked for")
    if response.content_length is None:
        raise PeerError(f"{url}: a body of unstated length")


async def _read_whole(response: aiohttp.ClientResponse, limit_bytes: int) -> bytearray:
    length = response.content_length
    if length is None or length > limit_bytes:
        raise PeerError(f"{response.url}: {length} bytes of at most {limit_bytes}")
    return await _read(response, length)


async def _read(response: aiohttp.ClientResponse, length: int) -> bytearray:
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE_BYTES):
        body += piece
        if len(body) > length:
            raise PeerError(f"{response.url}: sends more than the {length} bytes it announced")
    if len(body) != length:
        raise PeerError(f"{response.url}: ended after {len(body)} of {length} bytes")
    return body
