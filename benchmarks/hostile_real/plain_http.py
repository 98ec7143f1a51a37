"""A web server out of plain sockets, for answers that no HTTP library would send."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.transfer.answers import VERSION, HaveMap

_REQUEST = re.compile(rb"(GET|HEAD) /v1/(\w+)/([0-9a-f]{64})(\.zst)?(?:\?\S*)? HTTP/1\.1\r\n")
_SPAN = re.compile(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)\r\n")
_HEAD_BYTES = 16 << 10
_SEND_BUFFER_BYTES = 128 << 10


@dataclass(frozen=True)
class Request:
    """``what``: ``blobs``, ``have``, ``peers``, ...; empty if the path is none of those. ``span`` is half-open."""

    method: str
    what: str
    digest: str
    packed: bool
    span: tuple[int, int] | None


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[bool]]
"""Writes an answer; whether the connection may live on."""


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def partial_head(start: int, length: int, size: int, *headers: str) -> bytes:
    """Of an answer as it should be, to a request for ``length`` bytes from ``start`` on."""
    span = f"Content-Range: bytes {start}-{start + length - 1}/{size}"
    return head("206 Partial Content", span, f"Content-Length: {length}", *headers)


def whole(body: bytes) -> bytes:
    return head("200 OK", f"Content-Length: {len(body)}") + body


NOT_THERE = head("404 Not Found", "Content-Length: 0")


def everything(contents: Digest) -> bytes:
    """The have-map of who has all."""
    return whole(HaveMap(version=VERSION, contents=contents, revision=1, complete=True).encode())


class Doors:
    """Connections to one address: accepted so far, and those open now. `shut` ends all of it at once."""

    def __init__(self) -> None:
        self.accepted = 0
        self.ip, self.port = "", 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    @asynccontextmanager
    async def listening(self, answer: Answer, listener: socket.socket) -> AsyncIterator[Doors]:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted += 1
            # Nothing else keeps a conversation alive whose client has said its last word.
            self._open[writer] = asyncio.current_task()
            try:
                await _converse(reader, writer, answer)
            finally:
                del self._open[writer]
                writer.transport.abort()

        self.ip, self.port = listener.getsockname()[:2]
        self._server = await asyncio.start_server(converse, sock=listener, limit=_HEAD_BYTES)
        try:
            yield self
        finally:
            self.shut()

    def shut(self) -> None:
        """As if the machine had died: who connects is refused, who is connected is cut off."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    carrier = writer.get_extra_info("socket")
    # Little lies in buffers, so that what was sent is nearly what was read.
    carrier.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    writer.transport.set_write_buffer_limits(high=_SEND_BUFFER_BYTES)
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while await answer(_parse(await reader.readuntil(b"\r\n\r\n")), writer):
            await writer.drain()
        await writer.drain()


def _parse(said: bytes) -> Request:
    match, span = _REQUEST.match(said), _SPAN.search(said)
    if match is None:
        return Request("GET", "", "", False, None)
    wanted = (int(span[1]), int(span[2]) + 1) if span is not None else None
    return Request(match[1].decode(), match[2].decode(), match[3].decode(), match[4] is not None, wanted)
