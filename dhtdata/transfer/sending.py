"""Bytes of a file to a connection by ``sendfile``: nothing is copied, and neither disk nor reader holds up the loop.

What is not in memory yet is read ahead in a thread before it is sent: a ``sendfile`` of a cold file waits for the disk,
and the event loop with it. A reader that takes less than `SLOWEST_BYTES_S` over `WRITE_S` is given up: it keeps memory
of the kernel and two descriptors busy. What it took is what the kernel has had acknowledged, not what it has been
handed: its buffers hold several megabytes, and a connection counts as writable only when a third of them is free.

The socket is used beside its transport, under a descriptor of its own; the transport has nothing to write meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios

PIECE_BYTES = 1 << 20
LEAST_PIECE_BYTES = 16 << 10
WRITE_S = 15.0
SLOWEST_BYTES_S = 16_000
_AHEAD_BYTES = 4 << 20
_STRIDE_BYTES = 128 << 10
# Unsent bytes that the kernel holds for one connection: without a bound 500 slow readers hold 2 GB.
_UNSENT_BYTES = 1 << 20
# Unacknowledged for so long, a closed connection is forgotten.
_ORPHAN_MS = 30_000
_RESET = struct.pack("ii", 1, 0)


class SlowReader(ConnectionError):
    """The other side takes (next to) nothing."""


class Sending:
    """One span on its way to one connection. Close it afterwards."""

    def __init__(self, transport: asyncio.Transport, file: int) -> None:
        """``file`` is the descriptor of an open file, which stays the caller's. The transport has nothing to write."""
        self._loop = asyncio.get_running_loop()
        self._out = os.dup(transport.get_extra_info("socket").fileno())
        self._file = file
        self._handed = 0
        self._taken = 0
        self._warm = 0
        self._look_s = self._loop.time() + WRITE_S

    def close(self) -> None:
        os.close(self._out)

    def waited(self, seconds: float) -> None:
        """We have let the reader wait: that is not held against it."""
        self._look_s += seconds

    async def send(self, start: int, end: int) -> None:
        """Hand the piece ``[start, end)`` to the kernel; pieces in the order of the file.

        `SlowReader`, or another ConnectionError if the connection is gone or the file has become shorter.
        """
        if end > self._warm and not is_warm(self._file, start, end):
            self._warm = max(end, start + _AHEAD_BYTES)
            await asyncio.to_thread(_read, self._file, start, self._warm)
        while start < end:
            try:
                sent = os.sendfile(self._out, self._file, start, end - start)
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as failure:
                raise ConnectionResetError(str(failure)) from failure
            if not sent:
                raise ConnectionResetError("the file is shorter than it was")
            start += sent
            self._handed += sent

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._out, _settle, ready)
        try:
            while not ready.done():
                await asyncio.wait((ready,), timeout=max(0.0, self._look_s - self._loop.time()))
                if self._loop.time() >= self._look_s:
                    self.judge()
        finally:
            self._loop.remove_writer(self._out)

    def judge(self) -> None:
        """SlowReader if too little was taken since the last look."""
        before, self._taken = self._taken, self._handed - _unacknowledged(self._out)
        self._look_s = self._loop.time() + WRITE_S
        if self._taken - before < SLOWEST_BYTES_S * WRITE_S:
            raise SlowReader("takes next to nothing")


def is_warm(file: int, start: int, end: int) -> bool:
    """Whether a span of a file is in memory, as far as samples tell; False where the system cannot say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    byte = bytearray(1)
    try:
        for offset in (*range(start, end, _STRIDE_BYTES), end - 1):
            os.preadv(file, [byte], offset, os.RWF_NOWAIT)
    except OSError:
        # EAGAIN: it would wait. EOPNOTSUPP: some file systems do not know.
        return False
    return True


def prepare(transport: asyncio.Transport) -> None:
    """Set up a new connection: its buffers are bounded, and it cannot linger for long after it was closed."""
    # Whatever the kernel does not take at once counts as waiting for the reader.
    transport.set_write_buffer_limits(0)
    out = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        out.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ORPHAN_MS)


def cut(transport: asyncio.Transport) -> None:
    """Drop a connection and whatever the kernel still holds for it."""
    out = transport.get_extra_info("socket")
    if out is not None and out.fileno() >= 0:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _unacknowledged(out: int) -> int:
    """Bytes that the kernel holds for a connection; 0 where it does not say."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(out, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0


def _read(file: int, start: int, end: int) -> None:
    """Read a span so that it is in memory. What is wrong with the file shows when it is sent."""
    room = bytearray(_STRIDE_BYTES)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)
    for offset in range(start, end, _STRIDE_BYTES):
        if not os.preadv(file, [room], offset):
            return


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
