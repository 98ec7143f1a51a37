"""Thousands of hostile providers behind one port: the address that is asked says in which way it lies.

127.k.x.y answers in the k-th way of `wrong_answers.KINDS` (counted from `FIRST_NET`), whatever blob it is asked for;
have-maps, exchanges of peers and, while a dataset is being found, its small blobs are right, else nobody would go on to
ask for shards (see `process.worker`).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

from benchmarks.dht_real.process import Command, obey
from benchmarks.hostile_real.plain_http import NOT_THERE, Doors, Request, everything, whole
from benchmarks.hostile_real.worlds import Shape, World, make_world
from benchmarks.hostile_real.wrong_answers import ENDLESS, KINDS, SWIFT, Wanted
from dhtdata.formats.addresses import Address
from dhtdata.transfer.answers import MAX_EXCHANGED, PeerExchange

FIRST_NET = 10
BLOB_BYTES = 4_000
_SHARD, _BLOB = "shard", "blob"


def address_of(kind: str, number: int, port: int) -> Address:
    """The number-th address that answers in this way."""
    return Address(f"127.{FIRST_NET + KINDS.index(kind)}.{number // 250}.{number % 250 + 1}", port)


class AnswersWorker:
    def __init__(self) -> None:
        self._running = AsyncExitStack()
        self._doors = Doors()
        self._trap = Doors()
        self._worlds: dict[str, World] = {}
        self._addresses: dict[str, list[Address]] = {}
        self._small: dict[str, bytes] = {}
        self._shards: dict[str, bytes] = {}
        self._begun: Counter[tuple[str, str]] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "open":
                return await self._open()
            case "world":
                return self._world(command)
            case "counts":
                return {
                    "begun": [[*key, count] for key, count in self._begun.items()],
                    "ended": [[*key, count] for key, count in self._ended.items()],
                    "trapped": self._trap.accepted,
                }
        raise RuntimeError(f"unknown command {command}")

    async def _open(self) -> Command:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            # All of 127.0.0.0/8, and nobody from outside where the system lets us say so.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("0.0.0.0", 0))
        listener.listen(1_024)
        await self._running.enter_async_context(self._doors.listening(self._answer, listener))
        trap = socket.create_server(("127.0.0.1", 0))
        await self._running.enter_async_context(self._trap.listening(_nothing, trap))
        return {"port": self._doors.port}

    def _world(self, command: Command) -> Command:
        """Provide this dataset, too; ``addresses`` tell of each other."""
        world = make_world(command["seed"], Shape(*command["shape"]))
        contents = world.contents.hex()
        self._worlds[contents] = world
        self._addresses[contents] = [Address.parse(text) for text in command["addresses"]]
        self._small.update(world.small_by_digest)
        self._shards.update({shard.digest.hex(): shard.body() for shard in world.shards})
        return {}

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        own = writer.get_extra_info("sockname")[0]
        if request.what == "have" and request.digest in self._worlds:
            writer.write(everything(self._worlds[request.digest].contents))
        elif request.what == "peers" and request.digest in self._addresses:
            writer.write(whole(PeerExchange.of(self._others(request.digest, own)).encode()))
        elif request.what == "blobs" and request.digest in self._small and not request.packed:
            writer.write(whole(self._small[request.digest]))
        elif request.what == "blobs":
            return await self._lie(request, KINDS[int(own.split(".")[1]) - FIRST_NET], writer)
        else:
            writer.write(NOT_THERE)
        return True

    def _others(self, contents: str, own: str) -> Iterator[Address]:
        addresses = self._addresses[contents]
        place = next((place for place, each in enumerate(addresses) if each.ip == own), 0)
        first = place * MAX_EXCHANGED % len(addresses)
        yield from (addresses[first:] + addresses[:first])[:MAX_EXCHANGED]

    async def _lie(self, request: Request, kind: str, writer: asyncio.StreamWriter) -> bool:
        body = self._shards.get(request.digest)
        key = (kind, _BLOB if body is None else _SHARD)
        if body is None:
            # Nobody here knows its true bytes, or how many there are.
            size = max(BLOB_BYTES, request.span[1] if request.span else 0)
            body = (bytes.fromhex(request.digest) * (size // 32 + 1))[:size]
        start, end = request.span or (0, len(body))
        other = next((each for digest, each in self._shards.items() if digest != request.digest), b"")
        wanted = Wanted(body, start, min(end, len(body)), other, f"http://127.0.0.1:{self._trap.port}/v1/blobs/x")
        self._begun[key] += 1
        if kind in ENDLESS:
            await ENDLESS[kind](wanted, writer)
            return False
        said = SWIFT[kind](wanted)
        if request.span is None:
            # The same lie about a whole blob.
            said = said.replace(b"206 Partial Content", b"200 OK", 1)
        writer.write(said)
        await writer.drain()
        self._ended[key] += 1
        return kind not in ("cut_off", "no_length", "hangs_up", "no_head", "no_http")


async def _nothing(request: Request, writer: asyncio.StreamWriter) -> bool:
    return False


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(obey(AnswersWorker().answer))
