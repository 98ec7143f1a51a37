"""Threads that carry runs of blocks from a provider to the disk: read, verify, write, with the GIL let go.

`Carrier.carry` is one run: it waits on the event loop, the work is done by a thread of a pool of its own. Each block is
verified in memory before it is written (`dhtdata.store.Partial.accept`), and told to the event loop at once.
Connections are kept for the next run, a few for each provider and for a short time. A thread never outlives its run by
more than a moment: whoever stops waiting shuts the socket that the thread waits on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from threading import Event

from dhtdata.errors import PeerError, StoreError
from dhtdata.formats.blocks import Block
from dhtdata.formats.web_seeds import Provider, WebSeed
from dhtdata.network import PUBLIC, Network
from dhtdata.store import Partial
from dhtdata.transfer.folders import FolderConnection
from dhtdata.transfer.packed import PackedForm, PackedForms, largest_frame, packed_path, unpack
from dhtdata.transfer.picker import Run
from dhtdata.transfer.rates import Limits
from dhtdata.transfer.wire import Changed, Connection, blob_path

MAX_THREADS = 32
IDLE_S = 10.0
MAX_IDLE = 64
SLOWEST_BYTES_S = 16_000
_SLACK_S = 15.0
_PIECE_BYTES = 256 << 10
_LEAST_PIECE_BYTES = 8 << 10
_LONG_PIECE_S = 0.8
_SHORT_PIECE_S = 0.25
_KEPT_BUFFER_BYTES = 4 << 20
_KEPT_BUFFERS = 32
_USUAL_BUFFER_BYTES = 2 << 20


def deadline_s(length: int) -> float:
    """How long a run may take in all: silence alone would permit a byte every few seconds."""
    return length / SLOWEST_BYTES_S + _SLACK_S


def piece_bytes(rate_bytes_s: float) -> int:
    """How much to read at once from who sends so fast."""
    return int(min(max(rate_bytes_s * _SHORT_PIECE_S, _LEAST_PIECE_BYTES), _PIECE_BYTES))


@dataclass(eq=False)
class Cargo:
    """One run on its way. ``received``: bytes of its blocks so far, verified or not; written by the thread.

    A part of a packed block counts as that part of the block, so that rates are of blocks.
    """

    provider: Provider
    run: Run
    partial: Partial
    heard: Callable[[int], None]
    """Told the length of each piece by the thread."""
    on_began: Callable[[], None]
    on_block: Callable[[int, bool], None]
    """(position, whether it was written: else it was here already). Called on the event loop, like ``on_began``."""
    packed: bool = False
    """Packed blocks are welcome."""
    received: int = 0
    rested_s: float = 0.0
    """How long the limits made it wait."""
    piece_bytes: int = _PIECE_BYTES
    connection: Connection | FolderConnection | None = field(default=None, repr=False)
    _stopped: Event = field(default_factory=Event, repr=False)

    @property
    def blocks(self) -> list[Block]:
        return [self.partial.table.blocks[position] for position in self.run.positions]

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Give up; from any thread."""
        self._stopped.set()
        if self.connection is not None:
            self.connection.abort()

    def let_go(self) -> None:
        """It is over. Whoever was told of it refers to this, and would keep the partial file open in a circle."""
        self.on_began = self.on_block = _tell_nobody

    def pace(self, seconds: float) -> None:
        """The last piece took so long: on a slow way smaller ones, else nobody sees for long that anything comes."""
        if seconds > _LONG_PIECE_S:
            self.piece_bytes = max(self.piece_bytes // 2, _LEAST_PIECE_BYTES)
        elif seconds < _SHORT_PIECE_S:
            self.piece_bytes = min(self.piece_bytes * 2, _PIECE_BYTES)

    def rest(self, seconds: float) -> None:
        """Wait as the limits want it. PeerError once it is given up."""
        if seconds > 0:
            self.rested_s += seconds
            if self._stopped.wait(seconds):
                raise PeerError(f"{self.provider}: given up")


def _tell_nobody(*_: object) -> None: ...


class Carrier:
    """Threads, connections and buffers of one peer's fetches. Use `running`."""

    def __init__(self, network: Network, source_ip: str, limits: Limits, pool: ThreadPoolExecutor) -> None:
        self._network = network
        self._source_ip = source_ip
        self._limits = limits
        self._pool = pool
        self.forms = PackedForms()
        self._idle: deque[tuple[Provider, Connection]] = deque()
        self._buffers: list[mmap] = []

    @classmethod
    @contextmanager
    def running(
        cls, network: Network = PUBLIC, source_ip: str = "::", limits: Limits | None = None
    ) -> Iterator[Carrier]:
        """``source_ip``: where connections start, ``::`` for any; ``limits``: bytes per second."""
        pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="fetch")
        carrier = cls(network, source_ip, limits or Limits(), pool)
        try:
            yield carrier
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for _, connection in carrier._idle:
                connection.close()

    async def carry(self, cargo: Cargo) -> None:
        """Returns when every block of the run is verified on disk.

        NotFoundError, `dhtdata.transfer.wire.Busy` or PeerError if the provider does not deliver, IntegrityError at the
        first wrong block, StoreError if the disk is full.
        """
        cargo.connection = connection = self._connection(cargo.provider)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, self._work, cargo, connection, loop)
        try:
            await self._in_time(cargo, work)
        finally:
            if not work.done():
                cargo.stop()
                await asyncio.wait([work])
            if not work.cancelled():
                # Mark an error as seen: the wait for it may have been given up.
                work.exception()
            self._keep(cargo.provider, connection)

    @staticmethod
    async def _in_time(cargo: Cargo, work: asyncio.Future[None]) -> None:
        """PeerError if it takes too long; what the limits made it wait does not count."""
        until_s = time.monotonic() + deadline_s(cargo.run.length)
        while (left_s := until_s + cargo.rested_s - time.monotonic()) > 0:
            done, _ = await asyncio.wait([work], timeout=left_s)
            if done:
                return work.result()
        raise PeerError(f"{cargo.provider}: {cargo.run.length} bytes took too long")

    def _work(self, cargo: Cargo, connection: Connection | FolderConnection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: from the request to the last block on disk."""
        form = None
        if cargo.packed and isinstance(connection, Connection):
            form = self.forms.at(cargo.provider, cargo.partial, connection)
        if form is not None:
            try:
                return self._work_packed(cargo, connection, loop, form)
            except Changed:
                # It was packed anew since: the shard as it is will do this time.
                self.forms.forget(cargo.provider, cargo.run.shard)
        run, blocks = cargo.run, cargo.blocks
        connection.open(blob_path(run.shard), run.offset, run.length)
        loop.call_soon_threadsafe(cargo.on_began)
        with self._buffer(max(block.length for block in blocks)) as memory:
            for position, block in zip(run.positions, blocks, strict=True):
                view = memory[: block.length]
                self._read(cargo, connection, view, block.length)
                self._settle(cargo, loop, position, view)

    def _work_packed(
        self,
        cargo: Cargo,
        connection: Connection | FolderConnection,
        loop: asyncio.AbstractEventLoop,
        form: PackedForm,
    ) -> None:
        """The same from packed blocks."""
        run, blocks = cargo.run, cargo.blocks
        first, end = form.table.span(run.first, run.first + run.count)
        connection.open(packed_path(run.shard), first, end - first, {"If-Match": form.etag})
        loop.call_soon_threadsafe(cargo.on_began)
        largest = max(block.length for block in blocks)
        with self._buffer(largest) as memory, self._buffer(largest_frame(largest)) as frames:
            for position, block in zip(run.positions, blocks, strict=True):
                start, stop = form.table.span(position, position + 1)
                frame = frames[: stop - start]
                self._read(cargo, connection, frame, block.length)
                view = memory[: block.length]
                unpack(cargo.provider, frame, view)
                self._settle(cargo, loop, position, view)

    def _read(
        self, cargo: Cargo, connection: Connection | FolderConnection, view: memoryview, block_bytes: int
    ) -> None:
        """Fill a view with the body, no faster than the limits allow. It stands for so many bytes of a block."""
        peer = self._limits.peer_down(cargo.provider)
        before, filled = cargo.received, 0
        while filled < len(view):
            started_s = time.monotonic()
            piece = view[filled : filled + min(cargo.piece_bytes, self._limits.piece_down)]
            connection.read_into(piece)
            filled += len(piece)
            cargo.received = before + block_bytes * filled // len(view)
            cargo.heard(len(piece))
            cargo.rest(max(self._limits.down.debit(len(piece)), peer.debit(len(piece))))
            cargo.pace(time.monotonic() - started_s)

    def _settle(self, cargo: Cargo, loop: asyncio.AbstractEventLoop, position: int, view: memoryview) -> None:
        """Verify a block and write it, unless it is here already; tell the event loop."""
        new = not cargo.partial.has(position)
        if new:
            cargo.partial.accept(position, view, str(cargo.provider))
        loop.call_soon_threadsafe(cargo.on_block, position, new)

    @contextmanager
    def _buffer(self, size: int) -> Iterator[memoryview]:
        """Pages straight from the kernel: a bytearray is zeroed first, and nobody else may run meanwhile."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = _memory(max(size, _USUAL_BUFFER_BYTES))
        if len(buffer) < size:
            buffer = _memory(size)
        yield memoryview(buffer)
        if len(buffer) <= _KEPT_BUFFER_BYTES and len(self._buffers) < _KEPT_BUFFERS:
            self._buffers.append(buffer)

    def _connection(self, provider: Provider) -> Connection | FolderConnection:
        """One that is idle, the one used last first; else a new one."""
        if isinstance(provider, WebSeed) and provider.folder is not None:
            return FolderConnection(provider)
        self._drop_old()
        for place in range(len(self._idle) - 1, -1, -1):
            if self._idle[place][0] == provider:
                connection = self._idle[place][1]
                del self._idle[place]
                return connection
        return Connection(provider, self._network, self._source_ip)

    def _keep(self, provider: Provider, connection: Connection | FolderConnection) -> None:
        if isinstance(connection, Connection) and connection.reusable:
            self._idle.append((provider, connection))
        else:
            connection.close()
        self._drop_old()

    def _drop_old(self) -> None:
        # Servers end idle connections after 15 s.
        oldest_s = time.monotonic() - IDLE_S
        while self._idle and (len(self._idle) > MAX_IDLE or self._idle[0][1].used_s < oldest_s):
            self._idle.popleft()[1].close()


def _memory(byte_count: int) -> mmap:
    try:
        return mmap(-1, byte_count, MAP_PRIVATE | MAP_ANONYMOUS)
    except OSError as failure:
        raise StoreError(
            f"no memory for a block of {byte_count} bytes ({failure.strerror}): raise the limit on it (ulimit -v)"
        ) from failure
