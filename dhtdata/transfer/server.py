"""The HTTP interface of a peer: read only, static-file compatible (door of ``aiohttp``, with `client`).

::

    GET/HEAD /v1/blobs/<digest>            one Range at most; ETag is the digest, immutable
    GET/HEAD /v1/blobs/<shard>.zst         `formats.packed`, if held; ETag is the digest of these bytes, for If-Match
    GET      /v1/have/<contents>?since=&port=  `answers.HaveMap`; ``port``: where the asker serves while it fetches
    GET      /v1/peers/<contents>          `answers.PeerExchange`
    GET      /v1/providers/<digest>        `answers.ProviderRecords`: a look-up in the DHT on behalf of the asker
    GET      /v1/names/<publisher>/<name>  bytes of the newest NameRecord known
    GET      /healthz  /metrics  /         for monitors and people

A shard that is not whole serves ranges of verified blocks and answers 404 to the rest. No path is ever built from what
a request says: a digest is looked up in the store, which knows the path.

In a private network a request without the code of a member (`membership`) gets silence, and so does what is no
request: the connection is dropped and not one byte is sent. The last three paths are open to this machine itself
without a code, for its monitors and people.

Bounds: connections per address and in all, 15 s for a header or an idle connection, no request body, and a client that
reads next to nothing is cut off. When all connections are taken, the address that has most of them loses its oldest to
a newcomer that has fewer. Large pieces of blobs wait for a slot (`uploads`), and so do smaller ones while a limit is
used up; everything else is answered at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, DhtDataError, FormatError, NotFoundError
from dhtdata.formats.addresses import Address, scope
from dhtdata.formats.names import Name, check_name, decode_key
from dhtdata.network import PUBLIC, Network
from dhtdata.transfer import sending
from dhtdata.transfer.answers import PeerExchange, ProviderRecord, ProviderRecords
from dhtdata.transfer.holdings import Holdings, Servable
from dhtdata.transfer.membership import HEADER, Asked, member_asks
from dhtdata.transfer.meters import Meters
from dhtdata.transfer.rates import Limits
from dhtdata.transfer.sending import LEAST_PIECE_BYTES, PIECE_BYTES, SLOWEST_BYTES_S, Sending, SlowReader, cut
from dhtdata.transfer.uploads import Refused, Upload, Uploads, peer_of

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_ADDRESS = 32
# Several peers of one machine share its address.
MAX_CONNECTIONS_OF_THIS_MACHINE = 128
IDLE_S = 15.0
MAX_LOOKUPS = 4
SMALL_BYTES = 256 << 10
TINY_BYTES = 16 << 10
_SHUTDOWN_S = 1.0
_OTHER_DESCRIPTORS = 512
_BINARY = "application/octet-stream"
_LOOPBACK = "loopback"
_OPEN_PATHS = ("/", "/healthz", "/metrics")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Server": "dhtdata"}


class Directory(Protocol):
    """What the server asks the peer, besides blobs."""

    def peers(self, contents: Digest) -> Sequence[Address]: ...

    def asked(self, contents: Digest, address: Address) -> None: ...

    async def lookup(self, digest: Digest) -> list[ProviderRecord]: ...

    async def name(self, name: Name) -> bytes: ...

    async def metrics(self) -> dict[str, float]: ...

    async def page(self) -> str: ...


@dataclass
class Served:
    """Counters since the start. ``strangers``: requests to a private network that had no code of a member.

    ``cut_readers``: connections that were dropped because they took next to nothing.
    ``sent``: what goes out to which IP address.
    """

    bytes: int = 0
    requests: int = 0
    strangers: int = 0
    refused_connections: int = 0
    cut_readers: int = 0
    sent: Meters[str] = field(default_factory=Meters)


class _Silence(web.Response):
    """The answer to a stranger in a private network: the connection is dropped before a byte is sent."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("a stranger is told nothing")


class _Conversation(web.RequestHandler):
    """One connection. What a stranger sends that is no request is neither logged nor sent back: both were floods."""

    __slots__ = ("_private", "_served", "_unread", "_watch", "_watched")

    def __init__(self, gate: _Gate, served: Served, private: bool, **options: Any) -> None:
        super().__init__(gate, **options)
        self._private = private
        self._served = served
        self._watched: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._watched = transport
            sending.prepare(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._look_away()
        self._watched = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """An answer waits for the reader, other than a span of a file, which `Sending` watches."""
        super().pause_writing()
        self._keep_watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look_away()

    def _keep_watch(self) -> None:
        if self._watched is not None:
            self._unread = self._watched.get_write_buffer_size()
            self._watch = self._loop.call_later(sending.WRITE_S, self._judge)

    def _look_away(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _judge(self) -> None:
        if self._watched is None:
            return
        if self._unread - self._watched.get_write_buffer_size() < SLOWEST_BYTES_S * sending.WRITE_S:
            self._served.cut_readers += 1
            cut(self._watched)
        else:
            self._keep_watch()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status == 500:
            refusal = super().handle_error(request, status, exc, message)
            return _Silence() if self._private else refusal
        if self._private:
            return _Silence()
        refusal = _plain(status, "no request of this interface\n")
        refusal.force_close()
        return refusal


class _Gate(web.Server):
    """Counts connections by address, and drops one too many before a byte of it is read."""

    def __init__(
        self, served: Served, private: bool, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=2.0,
            max_line_size=2_048,
            max_field_size=4_096,
            max_headers=32,
            auto_decompress=False,
        )
        self._served = served
        self._private = private
        self._most = _room_for_connections()
        # Connections by address, oldest first.
        self._by_peer: dict[str, dict[web.RequestHandler, asyncio.Transport]] = {}

    def __call__(self) -> _Conversation:
        return _Conversation(self, self._served, self._private, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        peer = _peer(transport)
        of_peer = self._by_peer.setdefault(peer, {})
        of_peer[handler] = transport
        if len(of_peer) > _most_connections(transport):
            self._refuse(handler)
        elif sum(map(len, self._by_peer.values())) > self._most:
            most = max(self._by_peer.values(), key=len)
            # Its oldest, if it can spare one more than the newcomer's address has.
            self._refuse(next(iter(most)) if len(most) > len(of_peer) else handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._forget(handler)

    def _refuse(self, handler: web.RequestHandler) -> None:
        self._served.refused_connections += 1
        if (transport := self._forget(handler)) is not None:
            cut(transport)

    def _forget(self, handler: web.RequestHandler) -> asyncio.Transport | None:
        """Its transport, if it counted until now."""
        for peer, of_peer in self._by_peer.items():
            if (transport := of_peer.pop(handler, None)) is not None:
                if not of_peer:
                    del self._by_peer[peer]
                return transport
        return None


class BlobServer:
    """The interface over what `Holdings` has. Use `running`; answers 503 until it has a ``directory``."""

    def __init__(self, holdings: Holdings, network: Network = PUBLIC, limits: Limits | None = None) -> None:
        self.served = Served()
        self.uploads = Uploads(limits or Limits())
        self._network = network
        self.directory: Directory | None = None
        self._holdings = holdings
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    @asynccontextmanager
    async def running(self, listen: str, port: int) -> AsyncIterator[int]:
        """Listens until the block ends; yields the port. ConfigError if it is in use."""
        if HttpRequestParser is HttpRequestParserPy:
            # Several request-smuggling bugs were in the pure Python parser alone.
            raise ConfigError("this aiohttp lacks its compiled parser: install a wheel of it, then try again")
        runner = web.ServerRunner(_Gate(self.served, self._private, self._answer), shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            # No host means all addresses of both families, of IPv4 alone where there is no IPv6.
            await web.TCPSite(runner, None if listen == "::" else listen, port, reuse_address=True).start()
        except OSError as failure:
            await runner.cleanup()
            raise ConfigError(
                f"TCP port {port} on {listen} cannot be used ({os.strerror(failure.errno or 0)}): see who has it with: "
                f"ss -lptn 'sport = :{port}'; then stop that, or choose another with --port"
            ) from failure
        try:
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()

    @property
    def _private(self) -> bool:
        return self._network.secret is not None

    def _may_ask(self, request: web.BaseRequest) -> bool:
        """Whether whoever asks is of this network: everybody in the public one, in a private one whoever proves it."""
        if not self._private:
            return True
        codes, hosts, spans = (request.headers.getall(name, []) for name in (HEADER, "Host", "Range"))
        if not codes and request.raw_path in _OPEN_PATHS:
            return _from_this_machine(request.transport)
        if len(codes) != 1 or len(hosts) != 1 or len(spans) > 1:
            return False
        asked = Asked(request.method, hosts[0], request.raw_path, spans[0] if spans else "")
        return member_asks(self._network, asked, codes[0], time.time())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._may_ask(request):
            self.served.strangers += 1
            return _Silence()
        self.served.requests += 1
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "only GET and HEAD\n", {"Allow": "GET, HEAD"})
        if self.directory is None:
            return _plain(503, "starting\n", {"Retry-After": "1"})
        try:
            return await self._route(request, self.directory)
        except NotFoundError as failure:
            return _plain(404, f"{failure}\n")
        except FormatError as failure:
            return _plain(400, f"{failure}\n")
        except Refused as failure:
            headers = {"Retry-After": str(failure.retry_s)}
            return _plain(429 if failure.own_doing else 503, f"{failure}\n", headers)
        except DhtDataError as failure:
            return _plain(503, f"{failure}\n", {"Retry-After": "1"})

    async def _route(self, request: web.BaseRequest, directory: Directory) -> web.StreamResponse:
        parts = request.path.split("/")[1:]
        if parts[:2] == ["v1", "blobs"] and len(parts) == 3:
            name = parts[2].removesuffix(".zst")
            find = self._holdings.find if name == parts[2] else self._holdings.find_packed
            digest = Digest.parse(name)
            return await self._blob(request, digest, await find(digest))
        if parts[:2] == ["v1", "have"] and len(parts) == 3:
            return _binary(await self._have(request, Digest.parse(parts[2]), directory))
        if parts[:2] == ["v1", "peers"] and len(parts) == 3:
            return _binary(PeerExchange.of(directory.peers(Digest.parse(parts[2]))).encode())
        if parts[:2] == ["v1", "providers"] and len(parts) == 3:
            async with self._lookups:
                return _binary(ProviderRecords.of(await directory.lookup(Digest.parse(parts[2]))).encode())
        if parts[:2] == ["v1", "names"] and len(parts) == 4:
            check_name(parts[3])
            return _binary(await directory.name(Name(decode_key(parts[2]), parts[3])))
        if parts == ["healthz"]:
            return _plain(200, "ok\n")
        if parts == ["metrics"]:
            lines = (f"dhtdata_{name} {value}\n" for name, value in sorted((await directory.metrics()).items()))
            return _plain(200, "".join(lines))
        if parts == [""]:
            return _plain(200, await directory.page())
        raise NotFoundError("no such thing here")

    async def _have(self, request: web.BaseRequest, contents: Digest, directory: Directory) -> bytes:
        since, port = request.query.get("since", ""), request.query.get("port", "")
        if (since and not _digits(since)) or (port and not (_digits(port) and 0 < int(port) < 65_536)):
            raise FormatError("since must be a revision, a whole number, and port a port")
        if port and request.transport is not None:
            directory.asked(contents, Address(_plain_ip(request.transport), int(port)))
        have = await self._holdings.have(contents, int(since) if since else None)
        return await asyncio.to_thread(have.encode)

    async def _blob(self, request: web.BaseRequest, digest: Digest, servable: Servable) -> web.StreamResponse:
        headers = {
            "ETag": f'"{servable.etag or digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "public, max-age=31536000, immutable",
        }
        if request.headers.get("If-Match", headers["ETag"]) not in (headers["ETag"], "*"):
            return _plain(412, "these are other bytes than before: start again\n", headers)
        span = _range(request.headers.getall("Range", []), servable.size)
        if span is None:
            return _plain(416, "no such range\n", headers | {"Content-Range": f"bytes */{servable.size}"})
        start, end, ranged = span
        if not servable.covers(start, end):
            raise NotFoundError(f"bytes {start}-{end - 1} of {digest} are not here yet")
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=_HEADERS | headers)
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{servable.size}"
        return await self._send(request, 206 if ranged else 200, headers, servable.path, (start, end))

    async def _send(
        self, request: web.BaseRequest, status: int, headers: dict[str, str], path: Path, span: tuple[int, int]
    ) -> web.StreamResponse:
        """A half-open span of a file as the body of an answer: at once if it is small, else when there is a slot.

        `Refused` or NotFoundError before anything is sent. Later the connection is dropped if anything goes wrong.
        """
        start, end = span
        transport = request.transport
        response = web.StreamResponse(status=status, headers=_HEADERS | headers)
        response.content_type = _BINARY
        response.content_length = end - start
        if request.method == "HEAD" or transport is None:
            # A HEAD's answer states the length of the body that it leaves out.
            await response.prepare(request)
            return response
        peer = _peer(transport)
        self.uploads.check(peer)
        if end - start < (TINY_BYTES if self.uploads.behind(peer) else SMALL_BYTES):
            body = await asyncio.to_thread(_read, path, start, end)
            await self.uploads.pay(peer, len(body))
            self.served.bytes += len(body)
            self.served.sent.add(peer, len(body))
            return web.Response(status=status, body=body, content_type=_BINARY, headers=_HEADERS | headers)
        async with self.uploads.slot(peer) as upload:
            descriptor = await asyncio.to_thread(_open, path)
            try:
                writer = await response.prepare(request)
                if writer is not None:
                    writer.send_headers()
                    await writer.drain()
                    await self._send_pieces(transport, descriptor, span, upload)
                await response.write_eof()
            except ConnectionError as failure:
                # Gone, or takes nothing: nothing can be said to it any more.
                self.served.cut_readers += isinstance(failure, SlowReader)
                cut(transport)
            finally:
                os.close(descriptor)
        return response

    async def _send_pieces(
        self, transport: asyncio.Transport, descriptor: int, span: tuple[int, int], upload: Upload
    ) -> None:
        start, end = span
        with closing(Sending(transport, descriptor)) as out:
            while start < end:
                length = min(self.uploads.piece_bytes(PIECE_BYTES, LEAST_PIECE_BYTES), end - start)
                out.waited(await self.uploads.pay(upload.peer.name, length))
                await out.send(start, start + length)
                self.uploads.sent(upload, length)
                self.served.bytes += length
                self.served.sent.add(upload.peer.name, length)
                start += length
                # Other connections have their turn, however fast this one is read.
                await asyncio.sleep(0)


def _room_for_connections() -> int:
    """`MAX_CONNECTIONS`, or as many as the system grants this process descriptors for.

    Many systems grant 1,024 at first and more to whoever asks. A connection takes up to three: its own, another one and
    a file's while a piece is sent.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * MAX_CONNECTIONS + _OTHER_DESCRIPTORS
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return min(MAX_CONNECTIONS, max(1, (soft - _OTHER_DESCRIPTORS) // 3))
    return MAX_CONNECTIONS


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as failure:
        raise NotFoundError("just gone: ask again") from failure


def _read(path: Path, start: int, end: int) -> bytes:
    descriptor = _open(path)
    try:
        body = os.pread(descriptor, end - start, start)
    finally:
        os.close(descriptor)
    if len(body) < end - start:
        raise NotFoundError("the file is shorter than it was: ask again")
    return body


def _range(headers: Sequence[str], size: int) -> tuple[int, int, bool] | None:
    """Half-open span and whether it was asked for; None if it cannot be satisfied or is not one plain range."""
    if not headers:
        return (0, size, False)
    unit, _, text = headers[0].partition("=")
    first, dash, last = text.strip().partition("-")
    if len(headers) > 1 or unit.strip() != "bytes" or not dash or not _digits(first) or not _digits(last):
        return None
    if not first:
        # The last n bytes.
        length = int(last) if last else 0
        return (max(size - length, 0), size, True) if length and size else None
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    return (start, end, True) if start < end else None


def _digits(text: str) -> bool:
    return len(text) <= 18 and (not text or (text.isascii() and text.isdigit()))


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text, headers=_HEADERS | (headers or {}))


def _binary(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=_BINARY, headers=_HEADERS | {"Cache-Control": "no-store"})


def _peer_ip(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return str(name[0]) if name else ""


def _peer(transport: asyncio.Transport) -> str:
    """What counts as one peer; empty if the connection is gone already."""
    ip = _peer_ip(transport)
    return peer_of(ip) if ip else ""


def _most_connections(transport: asyncio.Transport) -> int:
    """How many connections the peer of this one may have."""
    return MAX_CONNECTIONS_OF_THIS_MACHINE if _from_this_machine(transport) else MAX_CONNECTIONS_PER_ADDRESS


def _plain_ip(transport: asyncio.Transport) -> str:
    """Where the other side is, as an IP literal; an IPv4 address that came through an IPv6 socket is one of IPv4."""
    ip = ipaddress.ip_address(_peer_ip(transport).partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def _from_this_machine(transport: asyncio.Transport | None) -> bool:
    ip = _peer_ip(transport).partition("%")[0] if transport is not None else ""
    return bool(ip) and scope(ip) == _LOOPBACK
