"""The peer's end of the control socket: reads requests, runs them, notices when the asker is gone.

One task per connection, all in the peer's group. While a request runs the connection is watched: at end of file the
request is cancelled, so a killed program leaves no fetch behind. Connections that keep a private peer alive are
counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from dhtdata.control import protocol
from dhtdata.control.protocol import Answer, Failure, Hello, Message, Request, Welcome
from dhtdata.errors import ConfigError, DhtDataError, FormatError, PeerError

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
_HANDSHAKE_S = 10.0
_WRITE_S = 30.0
_BACKLOG = 128

Send = Callable[[Answer], Awaitable[None]]
Handle = Callable[[Request, Send, ExitStack], Awaitable[Answer]]
"""What answers a request. The stack is the connection's: closed, with what was put there, when it ends."""
Greet = Callable[[Hello], None]


class ControlServer:
    """Conversations with programs of this machine. ``network`` is a fingerprint. Use `running`."""

    def __init__(self, store_id: bytes, welcome: Welcome, network: str) -> None:
        self.clients = 0
        self._store_id = store_id
        self._welcome = welcome
        self._network = network
        self._handle: Handle
        self._greet: Greet
        self._group: asyncio.TaskGroup
        self._server: asyncio.Server
        self._connections = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self, path: Path) -> AsyncIterator[None]:
        """Has the socket until the block ends; `serve` starts answering. ConfigError if the path cannot be used.

        The caller holds the peer's lock, so a socket found at the path is a dead one's.
        """
        listener = await asyncio.to_thread(_bind, path)
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener, start_serving=False)
        try:
            yield
        finally:
            self._server.close()
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def serve(self, group: asyncio.TaskGroup, handle: Handle, greet: Greet) -> None:
        """Answer from now on; conversations are tasks of the group. ``greet`` hears how each of them starts."""
        self._group = group
        self._handle = handle
        self._greet = greet
        await self._server.start_serving()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._group.create_task(self._converse(reader, writer))

    async def wait_unused(self, patience_s: float) -> None:
        """Returns once nobody has kept the peer alive for so long."""
        while True:
            self._changed.clear()
            if self.clients:
                await self._changed.wait()
                continue
            try:
                async with asyncio.timeout(patience_s):
                    await self._changed.wait()
            except TimeoutError:
                if not self.clients:
                    return

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        counted = False
        stay = ExitStack()
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                hello = self._checked(await _read(reader))
                self._greet(hello)
                await _send(writer, self._welcome)
            if hello.keeps_alive:
                counted = True
                self._count(1)
            early = b""
            while True:
                early = await self._serve(await _read(reader, early), reader, writer, stay)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            # The program ended, or does not read: there is nobody to tell.
            pass
        except DhtDataError as failure:
            with suppress(ConnectionError, TimeoutError):
                await _send(writer, protocol.to_failure(failure))
        finally:
            stay.close()
            self._connections -= 1
            if counted:
                self._count(-1)
            writer.close()

    async def _serve(
        self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stay: ExitStack
    ) -> bytes:
        """Answer one request; bytes that came early, of the next one. ConnectionError if the asker left."""
        if not isinstance(request, Request):
            raise FormatError(f"a {type(request).__name__} is no request")
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_next_byte(reader))
            work = group.create_task(self._answer(request, writer, stay))
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not watch.cancelled() and watch.result():
                await asyncio.wait({work})
            watch.cancel()
            work.cancel()
        early = b"" if watch.cancelled() else watch.result()
        if work.cancelled() or (watch.done() and not watch.cancelled() and not early):
            raise ConnectionResetError("the program that asked is gone")
        if (failure := work.result()) is not None:
            raise failure
        return early

    async def _answer(self, request: Request, writer: asyncio.StreamWriter, stay: ExitStack) -> Exception | None:
        async def send(answer: Answer) -> None:
            await _send(writer, answer)

        try:
            try:
                answer = await self._handle(request, send, stay)
            except DhtDataError as failure:
                answer = protocol.to_failure(failure)
            except (ConnectionError, TimeoutError):
                raise
            except Exception as failure:
                # A defect of ours: the one who asked hears of it, and a seed that nobody watches serves on.
                _log.exception("a %s met a defect of dhtdata", type(request).__name__)
                defect = PeerError(f"a defect of dhtdata, {failure!r}: report what the peer logged")
                answer = protocol.to_failure(defect)
            await send(answer)
        except (ConnectionError, TimeoutError) as failure:
            return failure
        return None

    def _checked(self, hello: Message) -> Hello:
        if self._connections > MAX_CONNECTIONS:
            raise PeerError(f"more than {MAX_CONNECTIONS} programs talk to this peer")
        if not isinstance(hello, Hello):
            raise FormatError("a conversation starts with hello")
        if hello.protocol != protocol.PROTOCOL:
            raise ConfigError(
                f"the peer (dhtdata {self._welcome.version}) speaks protocol {protocol.PROTOCOL}, this program "
                f"(dhtdata {hello.version}) {hello.protocol}: run dhtdata stop, then try again"
            )
        if hello.uid != os.getuid() or hello.store != self._store_id:
            raise ConfigError("the peer at this socket serves another user or another store: set XDG_RUNTIME_DIR")

        if hello.network not in ("", self._network):
            raise ConfigError(
                f"the running {self._welcome.kind} peer (pid {os.getpid()}) is in network {self._network}, but network "
                f"{hello.network} was asked for: run dhtdata stop, then try again, or use another store (--store)"
            )
        return hello

    def _count(self, step: int) -> None:
        self.clients += step
        self._changed.set()


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {failure}: set XDG_RUNTIME_DIR to a folder of yours") from failure
    return listener


async def _next_byte(reader: asyncio.StreamReader) -> bytes:
    """One byte of the next request, empty at end of file."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def _read(reader: asyncio.StreamReader, early: bytes = b"") -> Message:
    header = early + await reader.readexactly(protocol.HEADER_BYTES - len(early))
    return protocol.unpack(await reader.readexactly(protocol.body_length(header)))


async def _send(writer: asyncio.StreamWriter, message: Answer | Welcome | Failure) -> None:
    writer.write(protocol.pack(message))
    async with asyncio.timeout(_WRITE_S):
        await writer.drain()
