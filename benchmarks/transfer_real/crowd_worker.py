"""The others around one peer, fifty at a time in one process: ``givers`` or ``takers``.

``givers BYTES-S TO...``: forwards every connection to an address of its own (127.0.2.1, 127.0.2.2, ...) to one of the
real seeds ``TO``, from that address, all together no faster than ``BYTES-S``: to the peer that fetches they are fifty
providers. Says their addresses.

``takers AT BYTES-S PATH:SIZE...``: clients at 127.0.3.1, 127.0.3.2, ... that read random ranges of these blobs from the
peer ``AT`` for ever, each at its pace, over a kept connection, and wait a moment when they are told to. Says how much
they have read whenever a line comes in.
"""

from __future__ import annotations

import asyncio
import random
import sys

from benchmarks.mortal import die_with_parent, say
from benchmarks.proxy import Front, Link
from dhtdata.formats.addresses import Address

COUNT = 50
RANGE_BYTES = 1 << 20
_PIECE_BYTES = 64 << 10
_PAUSE_S = 0.2
_SILENCE_S = 60.0


async def give(bytes_s: float, seeds: list[Address]) -> None:
    loop = asyncio.get_running_loop()
    forth, back = Link(0.0, bytes_s), Link(0.0, bytes_s)
    addresses = []
    for number in range(COUNT):
        ip, to = f"127.0.2.{number + 1}", seeds[number % len(seeds)]
        server = await loop.create_server(lambda ip=ip, to=to: Front(forth, back, to, ip), ip, 0)  # type: ignore[misc]
        addresses.append(str(Address(ip, server.sockets[0].getsockname()[1])))
    say(addresses=addresses)
    await asyncio.Event().wait()


class Takers:
    """Fifty clients; ``bytes`` is what they have read."""

    def __init__(self, at: Address, bytes_s: float, blobs: list[tuple[str, int]]) -> None:
        self.bytes = 0
        self.refused = 0
        self._at = at
        self._pause_s = RANGE_BYTES / bytes_s
        self._blobs = blobs

    async def take(self, number: int) -> None:
        chance = random.Random(number)
        await asyncio.sleep(chance.random() * self._pause_s)
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    self._at.ip, self._at.port, local_addr=(f"127.0.3.{number + 1}", 0), limit=_PIECE_BYTES
                )
            except OSError:
                self.refused += 1
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                while await self._range(chance, reader, writer):  # noqa: ASYNC110
                    await asyncio.sleep(self._pause_s * chance.uniform(0.5, 1.5))
            except (OSError, EOFError, TimeoutError, ValueError):
                self.refused += 1
            finally:
                writer.close()
            await asyncio.sleep(_PAUSE_S)

    async def _range(self, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one range; whether the connection can be used again."""
        path, size = chance.choice(self._blobs)
        length = min(RANGE_BYTES, size)
        start = chance.randrange(size - length + 1)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {self._at}\r\nRange: bytes={start}-{start + length - 1}\r\n\r\n".encode()
        )
        async with asyncio.timeout(_SILENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            if not head.startswith("http/1.1 206"):
                self.refused += 1
                return False
            left = int(head.partition("content-length:")[2].partition("\r\n")[0])
            while left:
                piece = await reader.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise EOFError
                left -= len(piece)
                self.bytes += len(piece)
        return True


async def take(takers: Takers) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as group:
        for number in range(COUNT):
            group.create_task(takers.take(number))
        while await lines.readline():
            say(bytes=takers.bytes, refused=takers.refused)
        sys.exit(0)


if __name__ == "__main__":
    die_with_parent()
    kind, *given = sys.argv[1:]
    if kind == "givers":
        asyncio.run(give(float(given[0]), [Address.parse(text) for text in given[1:]]))
    else:
        wanted = [(path, int(size)) for path, _, size in (text.partition(":") for text in given[2:])]
        asyncio.run(take(Takers(Address.parse(given[0]), float(given[1]), wanted)))
