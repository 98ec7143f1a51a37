"""What the machine itself can do: bytes from a process to verified, fsynced files by raw sockets, nothing in between.

The server sends whole files with ``sendfile``. The receiver (this process, one thread per connection) reads blocks of
1 MiB into one preallocated buffer, digests each, writes it, and fsyncs each file before it reads the next, which is
asked for by then, so that a connection never waits for a round trip. It is told in advance what every block's digest
must be, and compares: the bytes are verified as ours are, once, per block.

``python -m benchmarks.ceiling IP FILE...`` is the server.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mortal import die_with_parent, say, worker
from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address

BLOCK_BYTES = 1 << 20
_REQUEST_BYTES = 4
_SILENCE_S = 60.0


@contextmanager
def raw_server(ip: str, files: Sequence[Path]) -> Iterator[Address]:
    """A process that sends these files, by number, to whoever connects."""
    with worker("benchmarks.ceiling", ip, *map(str, files), what="the raw server") as process:
        yield Address(ip, process.hear()["port"])


def digests_of(files: Sequence[Path]) -> list[list[Digest]]:
    """Of every block of every file."""
    found = []
    for path in files:
        content = memoryview(path.read_bytes())
        found.append([Digest.of(content[start : start + BLOCK_BYTES]) for start in range(0, len(content), BLOCK_BYTES)])
    return found


def receive_raw(
    at: Address, sizes: Sequence[int], digests: Sequence[Sequence[Digest]], folder: Path, connections: int
) -> float:
    """Seconds until all files are verified and fsynced in ``folder``, one connection per thread."""
    folder.mkdir()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(sizes)):
        waiting.put(number)

    def receive() -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        with socket.create_connection((at.ip, at.port), _SILENCE_S) as connection:

            def ask() -> int | None:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return None
                connection.sendall(number.to_bytes(_REQUEST_BYTES, "big"))
                return number

            number = ask()
            while number is not None:
                following = ask()
                _receive_file(connection, folder / str(number), sizes[number], digests[number], block)
                number = following

    started = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        for done in [threads.submit(receive) for _ in range(connections)]:
            done.result()
    return time.perf_counter() - started


def _receive_file(
    connection: socket.socket, path: Path, size: int, digests: Sequence[Digest], block: memoryview
) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(descriptor, size)
        for number, digest in enumerate(digests):
            offset = number * BLOCK_BYTES
            part = block[: min(BLOCK_BYTES, size - offset)]
            got = 0
            while got < len(part):
                count = connection.recv_into(part[got:])
                if not count:
                    raise RuntimeError("the raw server ended")
                got += count
            if Digest.of(part) != digest:
                raise RuntimeError("wrong bytes from the raw server")
            os.pwrite(descriptor, part, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _serve(ip: str, files: Sequence[str]) -> None:
    listener = socket.create_server((ip, 0), backlog=64)
    say(port=listener.getsockname()[1])

    def answer(connection: socket.socket) -> None:
        with connection:
            while len(asked := connection.recv(_REQUEST_BYTES, socket.MSG_WAITALL)) == _REQUEST_BYTES:
                with open(files[int.from_bytes(asked, "big")], "rb") as file:
                    connection.sendfile(file)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    die_with_parent()
    _serve(sys.argv[1], sys.argv[2:])
