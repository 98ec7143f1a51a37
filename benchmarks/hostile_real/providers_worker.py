"""Providers of one dataset, honest and other ones, each at an address of its own (see `process.worker`).

All send at most ``rate`` bytes a second over all their connections, the slow one a hundredth of it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks.dht_real.process import Command, obey
from benchmarks.hostile_real.plain_http import NOT_THERE, Doors, Request, everything, head, partial_head, whole
from benchmarks.hostile_real.worlds import Shape, World, make_world

HONEST, FLIPS, SWAPS, STALLS, DIES, SLOW, ENDLESS = "honest", "flips", "swaps", "stalls", "dies", "slow", "endless"
LIARS = (FLIPS, SWAPS)
SLOWNESS = 100
_PIECE_BYTES = 64 << 10
_SLOW_PIECE_BYTES = 2 << 10


@dataclass
class Stage:
    """What all providers share. ``good_bytes``: of shards, sent by those who send right ones."""

    world: World
    rate: float
    good_bytes: int = 0
    shards: dict[str, bytes] = field(default_factory=dict)


class Pace:
    """So many bytes a second for all who ask."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_s = 0.0

    async def take(self, byte_count: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s) + byte_count / self._rate
        await asyncio.sleep(self._free_s - now_s)


class Provider:
    def __init__(self, role: str, stage: Stage) -> None:
        self.role = role
        self.doors = Doors()
        self.answers = 0
        self.lies = 0
        self.bytes_sent = 0
        self.asked: list[tuple[str, int, int]] = []
        self._stage = stage
        self._slow = role == SLOW
        self._pace = Pace(stage.rate / SLOWNESS if self._slow else stage.rate)

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Small blobs and have-maps are always right: what nobody believes costs a liar its chance to be asked more."""
        stage = self._stage
        if request.what == "have" and request.digest == stage.world.contents.hex():
            writer.write(everything(stage.world.contents))
        elif request.what == "blobs" and not request.packed and request.digest in stage.world.small_by_digest:
            writer.write(whole(stage.world.small_by_digest[request.digest]))
        elif request.what == "blobs" and not request.packed and request.digest in stage.shards:
            body = stage.shards[request.digest]
            start, end = request.span or (0, len(body))
            self.answers += 1
            self.asked.append((request.digest, start, end))
            return await self._shard(body, start, min(end, len(body)), writer)
        else:
            writer.write(NOT_THERE)
        return True

    async def _shard(self, body: bytes, start: int, end: int, writer: asyncio.StreamWriter) -> bool:
        right = body[start:end]
        match self.role:
            case "flips":
                self.lies += 1
                right = bytes([right[0] ^ 1]) + right[1:]
            case "swaps":
                self.lies += 1
                right = (body[end:] + body[:end])[: len(right)]
            case "endless":
                span = f"Content-Range: bytes {start}-{end - 1}/{len(body)}"
                writer.write(head("206 Partial Content", span, "Transfer-Encoding: chunked"))
                while True:
                    await self._send(b"%x\r\n%b\r\n" % (_PIECE_BYTES, bytes(_PIECE_BYTES)), writer)
        writer.write(partial_head(start, end - start, len(body)))
        if self.role == STALLS:
            await self._send(right[: len(right) // 2], writer)
            await writer.wait_closed()
        await self._send(right, writer)
        return True

    async def _send(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        stage = self._stage
        piece_bytes = _SLOW_PIECE_BYTES if self._slow else _PIECE_BYTES
        for first in range(0, len(body), piece_bytes):
            piece = body[first : first + piece_bytes]
            await self._pace.take(len(piece))
            writer.write(piece)
            await writer.drain()
            self.bytes_sent += len(piece)
            if self.role in (HONEST, DIES, SLOW):
                stage.good_bytes += len(piece)
            if self.role == DIES and stage.good_bytes * 2 > stage.world.bytes:
                self.doors.shut()


class ProvidersWorker:
    def __init__(self) -> None:
        self._providers: list[Provider] = []
        self._running = AsyncExitStack()

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "open":
                return await self._open(command)
            case "counts":
                return {
                    "providers": [
                        {
                            "role": each.role,
                            "answers": each.answers,
                            "lies": each.lies,
                            "bytes_sent": each.bytes_sent,
                            "accepted": each.doors.accepted,
                        }
                        for each in self._providers
                    ]
                }
            case "asked":
                # Spans of shards since this was asked last.
                spans = [span for each in self._providers for span in each.asked]
                for each in self._providers:
                    each.asked.clear()
                return {"spans": spans}
        raise RuntimeError(f"unknown command {command}")

    async def _open(self, command: Command) -> Command:
        """Providers in these roles, instead of those there were."""
        await self._running.aclose()
        world = make_world(command["seed"], Shape(*command["shape"]))
        stage = Stage(world, command["rate"])
        stage.shards = {shard.digest.hex(): shard.body() for shard in world.shards}
        self._providers = [Provider(role, stage) for role in command["roles"]]
        for number, provider in enumerate(self._providers):
            listener = socket.create_server((f"127.0.1.{number + 1}", 0))
            await self._running.enter_async_context(provider.doors.listening(provider.answer, listener))
        return {"addresses": [f"{each.doors.ip}:{each.doors.port}" for each in self._providers]}


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(obey(ProvidersWorker().answer))
