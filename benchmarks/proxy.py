"""A link in a process of its own: whoever connects to it reaches the peer behind it, later and no faster than it lets.

``python -m benchmarks.proxy LISTEN-IP PORT TO-IP:PORT DELAY-S BYTES-S``. TCP and UDP (the DHT's), port 0 takes a free
one. Each direction is one link for all connections: a piece that arrives waits until the link is free, occupies it for
its bytes / rate, and comes out ``DELAY_S`` later (0.1 both ways: a round trip of 200 ms). A connection's first bytes
wait one round trip more, as its handshake would have. ``BYTES_S`` of 0 means no limit.

What is on the way is bounded as in a network: the link queues `QUEUE_S` of its rate before it stops reading, and no
connection may have more than the link's delay times its rate, and that queue, waiting for a slow reader. That is
"tuned buffers": nobody's window is smaller than the link.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

from benchmarks.mortal import die_with_parent, say, worker
from dhtdata.formats.addresses import Address

QUEUE_S = 0.05
FAST_BYTES_S = 4e9
LEAST_QUEUE_BYTES = 1 << 20
MAX_DATAGRAM_SOURCES = 64
_BUFFER_BYTES = 256 << 10


@contextmanager
def link(ip: str, to: Address, *, delay_s: float = 0.0, bytes_s: float = 0.0) -> Iterator[Address]:
    """Where to connect to, until the block ends."""
    with worker("benchmarks.proxy", ip, "0", str(to), str(delay_s), str(bytes_s), what="the proxy") as process:
        yield Address(ip, process.hear()["port"])


class Link:
    """One direction. Pieces leave in the order in which they came, so one timer is enough."""

    def __init__(self, delay_s: float, bytes_s: float) -> None:
        self.delay_s = delay_s
        self._bytes_s = bytes_s or FAST_BYTES_S
        self._loop = asyncio.get_running_loop()
        self._free_s = 0.0
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def window_bytes(self) -> int:
        """What one connection may have waiting behind the link."""
        return max(int(self._bytes_s * (self.delay_s + QUEUE_S)), LEAST_QUEUE_BYTES)

    @property
    def full_s(self) -> float:
        """Seconds until the link reads on, not positive if it reads."""
        return self._free_s - self._loop.time() - max(QUEUE_S, LEAST_QUEUE_BYTES / self._bytes_s)

    def send(self, byte_count: int, deliver: Callable[[], None]) -> None:
        now_s = self._loop.time()
        self._free_s = max(self._free_s, now_s) + byte_count / self._bytes_s
        self._waiting.append((self._free_s + self.delay_s, deliver))
        if self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        self._timer = self._loop.call_at(self._waiting[0][0], self._deliver) if self._waiting else None

    def _deliver(self) -> None:
        now_s = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now_s:
            self._waiting.popleft()[1]()
        self._schedule()


class End(asyncio.BufferedProtocol):
    """One end of a connection; what it receives goes into ``link`` and out of the ``other`` end."""

    def __init__(self, outward: Link) -> None:
        self.link = outward
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._stuck = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self.link.window_bytes)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        piece = bytes(self._buffer[:nbytes])
        self.link.send(nbytes, lambda: self._out(piece))
        self._pace()

    def eof_received(self) -> bool:
        self.link.send(0, self._out_eof)
        return True

    def connection_lost(self, failure: Exception | None) -> None:
        self.closed = True
        self.link.send(0, self._out_close)

    def pause_writing(self) -> None:
        """Whoever should read what comes out of here does not: nothing more is taken in at the other end."""
        if self.other is not None:
            self.other._stuck = True
            self.other._pace()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other._stuck = False
            self.other._pace()

    def _pace(self) -> None:
        if self.closed or self.transport is None or self.transport.is_closing():
            return
        wait_s = self.link.full_s
        if self._stuck:
            self.transport.pause_reading()
        elif wait_s > 0:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(wait_s, self._pace)
        else:
            self.transport.resume_reading()

    def _out(self, piece: bytes) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.closed:
            self.other.transport.write(piece)

    def _out_eof(self) -> None:
        other = self.other
        if other is not None and other.transport is not None and not other.closed and other.transport.can_write_eof():
            with suppress(OSError):  # it is gone already
                other.transport.write_eof()

    def _out_close(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Front(End):
    """The end that was connected to. The other one is made a round trip later, nothing is read until then.

    ``source_ip``: the address to connect from.
    """

    def __init__(self, forth: Link, back: Link, to: Address, source_ip: str = "") -> None:
        super().__init__(forth)
        self._back = back
        self._to = to
        self._source = (source_ip, 0) if source_ip else None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast(asyncio.Transport, transport).pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        await asyncio.sleep(self.link.delay_s + self._back.delay_s)
        loop = asyncio.get_running_loop()
        try:
            _, behind = await loop.create_connection(
                lambda: End(self._back), self._to.ip, self._to.port, local_addr=self._source
            )
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.other, behind.other = behind, self
        if self.closed:
            self._out_close()
        self._pace()


class Datagrams(asyncio.DatagramProtocol):
    """The front for UDP: every source gets a socket of its own towards the peer."""

    def __init__(self, forth: Link, back: Link, to: Address) -> None:
        self.transport: asyncio.DatagramTransport | None = None
        self.back = back
        self._forth = forth
        self._to = to
        self._behind: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        if source in self._behind:
            behind = self._behind[source]
            self._forth.send(len(data), lambda: behind.sendto(data))
        elif len(self._behind) < MAX_DATAGRAM_SOURCES:
            task = asyncio.get_running_loop().create_task(self._open(source, data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, source: tuple[str, int], data: bytes) -> None:
        behind, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Answers(self, source), remote_addr=(self._to.ip, self._to.port)
        )
        self._behind[source] = behind
        self._forth.send(len(data), lambda: behind.sendto(data))


class Answers(asyncio.DatagramProtocol):
    """What the peer says to one source."""

    def __init__(self, front: Datagrams, source: tuple[str, int]) -> None:
        self._front = front
        self._source = source

    def datagram_received(self, data: bytes, _: tuple[str, int]) -> None:
        front = self._front
        if front.transport is not None:
            out = front.transport
            front.back.send(len(data), lambda: out.sendto(data, self._source))

    def error_received(self, failure: Exception) -> None:
        return


async def serve(ip: str, port: int, to: Address, delay_s: float, bytes_s: float) -> None:
    loop = asyncio.get_running_loop()
    forth, back = Link(delay_s, bytes_s), Link(delay_s, bytes_s)
    server = await loop.create_server(lambda: Front(forth, back, to), ip, port, backlog=64)
    chosen = server.sockets[0].getsockname()[1]
    await loop.create_datagram_endpoint(lambda: Datagrams(forth, back, to), local_addr=(ip, chosen))
    say(port=chosen)
    await server.serve_forever()


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(
        serve(sys.argv[1], int(sys.argv[2]), Address.parse(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
    )
