"""Ways to answer wrongly. Whatever the framing says, no block in any body is right: one that gets in is a break-in.

`SWIFT` ones end at once; `ENDLESS` ones never, so each of them costs the reader a connection for as long as it waits.
"""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import Awaitable, Callable
from functools import cache

import zstandard

from benchmarks.hostile_real.plain_http import head, partial_head

BOMB_BYTES = 64 << 20
_FLIPPED = bytes(byte ^ 0x55 for byte in range(256))
_HEADER_BYTES = 256 << 10
_CONTINUES = 500
_DRIP_S = 1.0


class Wanted:
    """Bytes ``[start, end)`` of ``body``, which is all that is there; ``other`` is what a stale copy would have."""

    def __init__(self, body: bytes, start: int, end: int, other: bytes, trap: str) -> None:
        self.body, self.start, self.end, self.other, self.trap = body, start, end, other, trap

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def wrong(self) -> bytes:
        """As long as what is wanted, and wrong in every byte."""
        return self.body[self.start : self.end].translate(_FLIPPED)

    def head(self, *headers: str, length: int | None = None, shift: int = 0) -> bytes:
        size = len(self.body)
        return partial_head(self.start + shift, self.length if length is None else length, size, *headers)

    @property
    def span(self) -> str:
        return f"Content-Range: bytes {self.start}-{self.end - 1}/{len(self.body)}"


def _flipped(wanted: Wanted) -> bytes:
    return wanted.head() + wanted.wrong


def _zeros(wanted: Wanted) -> bytes:
    return wanted.head() + bytes(wanted.length)


def _noise(wanted: Wanted) -> bytes:
    return wanted.head() + random.Random(wanted.start).randbytes(wanted.length)


def _swapped_blocks(wanted: Wanted) -> bytes:
    body = wanted.body
    turned = body[wanted.length // 2 + 1 :] + body[: wanted.length // 2 + 1]
    return wanted.head() + turned[wanted.start : wanted.end]


def _stale(wanted: Wanted) -> bytes:
    """The same place of another version."""
    old = wanted.other[wanted.start : wanted.end]
    return wanted.head() + old + bytes(wanted.length - len(old))


def _cut_off(wanted: Wanted) -> bytes:
    return wanted.head("Connection: close") + wanted.wrong[: wanted.length // 2]


def _shorter(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, f"Content-Length: {wanted.length - 1}") + wanted.wrong[:-1]


def _longer(wanted: Wanted) -> bytes:
    longer = wanted.wrong + b"x" * 999
    return head("206 Partial Content", wanted.span, f"Content-Length: {len(longer)}") + longer


def _over_sends(wanted: Wanted) -> bytes:
    return wanted.head() + wanted.wrong + b"x" * 9_999


def _other_range(wanted: Wanted) -> bytes:
    return wanted.head(shift=7) + wanted.wrong


def _no_range(wanted: Wanted) -> bytes:
    return head("206 Partial Content", f"Content-Length: {wanted.length}") + wanted.wrong


def _whole_for_part(wanted: Wanted) -> bytes:
    return head("200 OK", f"Content-Length: {len(wanted.body)}") + wanted.body.translate(_FLIPPED)


def _part_as_whole(wanted: Wanted) -> bytes:
    return head("200 OK", f"Content-Length: {wanted.length}") + wanted.wrong


def _several_ranges(wanted: Wanted) -> bytes:
    body = b"--x\r\nContent-Type: a/b\r\n" + wanted.span.encode() + b"\r\n\r\n" + wanted.wrong + b"\r\n--x--\r\n"
    kind = "Content-Type: multipart/byteranges; boundary=x"
    return head("206 Partial Content", kind, f"Content-Length: {len(body)}") + body


def _gzip_bomb(wanted: Wanted) -> bytes:
    bomb = _gzip_of_zeros()
    return head("206 Partial Content", wanted.span, f"Content-Length: {len(bomb)}", "Content-Encoding: gzip") + bomb


def _gzip_of_right_length(wanted: Wanted) -> bytes:
    bomb = _gzip_of_zeros()[: wanted.length]
    return wanted.head("Content-Encoding: gzip") + bomb + bytes(wanted.length - len(bomb))


def _zstd_bomb(wanted: Wanted) -> bytes:
    bomb = _zstd_of_zeros()
    return head("206 Partial Content", wanted.span, f"Content-Length: {len(bomb)}", "Content-Encoding: zstd") + bomb


def _packed_bomb(wanted: Wanted) -> bytes:
    """As if the packed form had been asked for."""
    bomb = _zstd_of_zeros()[: wanted.length]
    return wanted.head() + bomb + bytes(wanted.length - len(bomb))


def _redirect(wanted: Wanted) -> bytes:
    return head("302 Found", f"Location: {wanted.trap}", "Content-Length: 0")


def _permanent_redirect(wanted: Wanted) -> bytes:
    return head("308 Permanent Redirect", f"Location: {wanted.trap}", wanted.span, f"Content-Length: {wanted.length}")


def _huge_header(wanted: Wanted) -> bytes:
    return wanted.head("X: " + "x" * _HEADER_BYTES) + wanted.wrong


def _many_headers(wanted: Wanted) -> bytes:
    return wanted.head(*(f"X-{number}: x" for number in range(2_000))) + wanted.wrong


def _two_lengths(wanted: Wanted) -> bytes:
    return wanted.head("Content-Length: 1") + wanted.wrong


def _length_and_chunks(wanted: Wanted) -> bytes:
    return wanted.head("Transfer-Encoding: chunked") + _chunked(wanted.wrong)


def _chunks(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, "Transfer-Encoding: chunked") + _chunked(wanted.wrong)


def _huge_chunk(wanted: Wanted) -> bytes:
    start = head("206 Partial Content", wanted.span, "Transfer-Encoding: chunked")
    return start + b"f" * 16 + b"\r\n" + wanted.wrong


def _negative_length(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, "Content-Length: -1") + wanted.wrong


def _absurd_length(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, f"Content-Length: {1 << 70}") + wanted.wrong


def _length_of_letters(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, "Content-Length: 0x10, _1") + wanted.wrong


def _no_length(wanted: Wanted) -> bytes:
    return head("206 Partial Content", wanted.span, "Connection: close") + wanted.wrong


def _no_http(wanted: Wanted) -> bytes:
    return b"\x00\xff no HTTP at all \r\n\r\n" + wanted.wrong


def _no_head(wanted: Wanted) -> bytes:
    return wanted.wrong


def _status_of_letters(wanted: Wanted) -> bytes:
    return b"HTTP/1.1 2O6 Partial\r\n\r\n" + wanted.wrong


def _flood_of_continues(wanted: Wanted) -> bytes:
    return head("100 Continue") * _CONTINUES + wanted.head() + wanted.wrong


def _early_hints(wanted: Wanted) -> bytes:
    return head("103 Early Hints", "Link: </x>") * 3 + wanted.head() + wanted.wrong


def _unasked(wanted: Wanted) -> bytes:
    """A second answer that may be taken for the one to the next request on this connection."""
    return (wanted.head() + wanted.wrong) * 2


def _error(wanted: Wanted) -> bytes:
    return head("500 Internal Server Error", f"Content-Length: {wanted.length}") + wanted.wrong


def _nothing_new(wanted: Wanted) -> bytes:
    return head("304 Not Modified", wanted.span, f"Content-Length: {wanted.length}") + wanted.wrong


def _come_back_never(wanted: Wanted) -> bytes:
    return head("503 Service Unavailable", f"Retry-After: {10**30}", "Content-Length: 0")


def _hangs_up(wanted: Wanted) -> bytes:
    return b""


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@cache
def _gzip_of_zeros() -> bytes:
    return gzip.compress(bytes(BOMB_BYTES), 9)


@cache
def _zstd_of_zeros() -> bytes:
    return zstandard.ZstdCompressor(19).compress(bytes(BOMB_BYTES))


SWIFT: dict[str, Callable[[Wanted], bytes]] = {
    answer.__name__.strip("_"): answer
    for answer in (
        *(_flipped, _zeros, _noise, _swapped_blocks, _stale, _unasked, _over_sends, _cut_off, _shorter, _longer),
        *(_other_range, _no_range, _whole_for_part, _part_as_whole, _several_ranges),
        *(_gzip_bomb, _gzip_of_right_length, _zstd_bomb, _packed_bomb, _redirect, _permanent_redirect),
        *(_huge_header, _many_headers, _two_lengths, _length_and_chunks, _chunks, _huge_chunk),
        *(_negative_length, _absurd_length, _length_of_letters, _no_length, _no_http, _no_head, _status_of_letters),
        *(_flood_of_continues, _early_hints, _error, _nothing_new, _come_back_never, _hangs_up),
    )
}


async def _drips(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    writer.write(wanted.head())
    for byte in wanted.wrong:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _drips_its_head(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    for byte in wanted.head() * 1_000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _stalls(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    writer.write(wanted.head() + wanted.wrong[: wanted.length // 2])
    await writer.drain()
    await writer.wait_closed()


async def _says_nothing(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


async def _continues_for_ever(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    await _for_ever(head("100 Continue"), writer)


async def _headers_for_ever(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 206 Partial Content\r\n")
    await _for_ever(b"X: y\r\n", writer)


async def _chunks_for_ever(wanted: Wanted, writer: asyncio.StreamWriter) -> None:
    writer.write(head("206 Partial Content", wanted.span, "Transfer-Encoding: chunked"))
    await _for_ever(b"1000\r\n" + bytes(0x1000) + b"\r\n", writer)


async def _for_ever(piece: bytes, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)


ENDLESS: dict[str, Callable[[Wanted, asyncio.StreamWriter], Awaitable[None]]] = {
    "drips": _drips,
    "drips_its_head": _drips_its_head,
    "stalls": _stalls,
    "says_nothing": _says_nothing,
    "continues_for_ever": _continues_for_ever,
    "headers_for_ever": _headers_for_ever,
    "chunks_for_ever": _chunks_for_ever,
}
KINDS = (*SWIFT, *ENDLESS)
