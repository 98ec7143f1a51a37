"""Providers for tests with real peers: right in all that is small, and about shards as wrong as a test wants them."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.transfer.answers import VERSION, HaveMap, PeerExchange, ProviderRecord, ProviderRecords
from tests.peer.worlds import World

Answer = Callable[[asyncio.StreamWriter, int, int, bytes], Awaitable[None]]
"""(writer, first, last, true bytes of that range), as in `tests.transfer.evil`."""


@dataclass
class Provider:
    """``spans``: what was asked of shards, half-open; ``exchange``, ``records``: whom it tells others to go to."""

    world: World
    answer: Answer
    address: Address = field(default=Address("127.0.0.1", 1))
    exchange: Sequence[Address] = ()
    records: Sequence[ProviderRecord] = ()
    connections: int = 0
    spans: list[tuple[Digest, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._conversations: set[asyncio.Task[None] | None] = set()

    async def converse(self, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        self.connections += 1
        # Nothing else keeps a conversation alive whose client has said its last word.
        conversation = asyncio.current_task()
        self._conversations.add(conversation)
        shards = {shard.digest: shard.body for shard in self.world.shards}
        small = {Digest.of(blob): blob for blob in self.world.small}
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    path = re.match(rb"GET /v1/(\w+)/([0-9a-f]{64})[ ?]", head)
                    what, digest = (path[1], Digest.parse(path[2].decode())) if path else (b"", Digest.of(b""))
                    span = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)\r\n", head)
                    if what == b"blobs" and digest in shards:
                        first, last = (int(span[1]), int(span[2])) if span else (0, len(shards[digest]) - 1)
                        self.spans.append((digest, first, last + 1))
                        await self.answer(out, first, last, shards[digest][first : last + 1])
                        await out.drain()
                    else:
                        body = self._small(what, digest, small)
                        status = "404 Not Found" if body is None else "200 OK"
                        out.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body or b'')}\r\n\r\n".encode())
                        out.write(body or b"")
                        await out.drain()
        finally:
            self._conversations.discard(conversation)
            out.close()

    def _small(self, what: bytes, digest: Digest, small: dict[Digest, bytes]) -> bytes | None:
        if what == b"blobs":
            return small.get(digest)
        if what == b"have" and digest == self.world.contents:
            return HaveMap(version=VERSION, contents=digest, revision=1, complete=True).encode()
        if what == b"peers" and self.exchange:
            return PeerExchange.of(self.exchange).encode()
        if what == b"providers" and self.records:
            return ProviderRecords.of(self.records).encode()
        return None


async def honest(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(right_head(first, last) + body)


def paced(rate_bytes_s: int) -> Answer:
    """Right, at a bounded speed on each connection."""

    async def answer(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
        out.write(right_head(first, last))
        piece = rate_bytes_s // 50
        for start in range(0, len(body), piece):
            out.write(body[start : start + piece])
            await out.drain()
            await asyncio.sleep(1 / 50)

    return answer


def right_head(first: int, last: int) -> bytes:
    span = f"Content-Range: bytes {first}-{last}/9999999"
    return f"HTTP/1.1 206 Partial Content\r\n{span}\r\nContent-Length: {last + 1 - first}\r\n\r\n".encode()


@contextmanager
def providing(*providers: Provider) -> Iterator[None]:
    """They listen, each on a port of its own, in a thread beside the test, until the block ends."""
    loop = asyncio.new_event_loop()
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in providers]

    async def serve() -> list[asyncio.Server]:
        return [
            await asyncio.start_server(provider.converse, sock=listener)
            for provider, listener in zip(providers, listeners, strict=True)
        ]

    for provider, listener in zip(providers, listeners, strict=True):
        provider.address = Address("127.0.0.1", listener.getsockname()[1])
    thread = threading.Thread(target=loop.run_forever, name="providers")
    thread.start()
    servers = asyncio.run_coroutine_threadsafe(serve(), loop).result(5)

    async def shut() -> None:
        for server in servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # Transports say goodbye in the loop's next rounds.
        for _ in range(3):
            await asyncio.sleep(0)

    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(shut(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
