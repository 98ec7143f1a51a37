"""Servers that answer every request in one wrong way. Plain sockets: an HTTP library would not let them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from dhtdata.formats.addresses import Address

Answer = Callable[[asyncio.StreamWriter, int, int, bytes], Awaitable[None]]
"""(writer, first, last, true bytes of that range)"""


def _head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def _partial(first: int, last: int, length: int) -> bytes:
    return _head("206 Partial Content", f"Content-Range: bytes {first}-{last}/9999999", f"Content-Length: {length}")


async def _flipped(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body)) + bytes([body[0] ^ 1]) + body[1:])


async def _zeros(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body)) + bytes(len(body)))


async def _shifted(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first + 1, last + 1, len(body)) + body)


async def _shorter(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body) - 1) + body[:-1])


async def _longer(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body) + 1) + body + b"x")


async def _cut_off(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body)) + body[: len(body) // 2])


async def _whole(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_head("200 OK", f"Content-Length: {len(body)}") + body)


async def _endless(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(
        _head("206 Partial Content", f"Content-Range: bytes {first}-{last}/9999999", "Transfer-Encoding: chunked")
    )
    while True:
        out.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await out.drain()


async def _compressed(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    head = _partial(first, last, len(body))
    out.write(head[:-2] + b"Content-Encoding: gzip\r\n\r\n" + body)


async def _redirect(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_head("302 Found", "Location: http://127.0.0.1:9/", "Content-Length: 0"))


async def _garbage(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(b"\x00\xff no HTTP at all \r\n\r\n")


async def _error(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_head("500 Internal Server Error", "Content-Length: 0"))


async def _hangs_up(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    return


async def _long_header(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    out.write(_partial(first, last, len(body))[:-2] + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n" + body)


async def _negative_length(out: asyncio.StreamWriter, first: int, last: int, body: bytes) -> None:
    head = _head("206 Partial Content", f"Content-Range: bytes {first}-{last}/9999999", "Content-Length: -1")
    out.write(head + body)


KINDS: dict[str, Answer] = {
    name.strip("_"): answer
    for name, answer in list(globals().items())
    if name.startswith("_") and asyncio.iscoroutinefunction(answer)
}


@asynccontextmanager
async def evil(kind: str, blobs: dict[str, bytes]) -> AsyncIterator[Address]:
    """A server that knows these blobs (by digest in hexadecimal) and answers in this way."""
    answer = KINDS[kind]

    async def converse(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = re.search(rb"/v1/(\w+)/([0-9a-f]{64})", head)
            span = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            body = blobs.get(path[2].decode(), b"") if path and path[1] == b"blobs" else b""
            first, last = (int(span[1]), int(span[2])) if span else (0, max(len(body) - 1, 0))
            await answer(out, first, last, body[first : last + 1] or b"?")
            await out.drain()
        out.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
