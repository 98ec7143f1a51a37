"""A process that runs one node and nothing else: the one that is measured (see `process.worker`).

Imports are few on purpose: its memory is a figure of `cost`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack, aclosing

from benchmarks.dht_real.process import Command, costs, obey
from dhtdata.dht import DhtNode
from dhtdata.dht.node import Surroundings
from dhtdata.dht.overlay import SILENT_S, STALE_S
from dhtdata.formats.addresses import Address
from dhtdata.network import Network
from dhtdata.signing import SigningKey

LOOPBACK = "127.0.0.1"
NEVER_S = 60.0


async def look_up(node: DhtNode, key: bytes, port: int) -> float:
    """Seconds to the provider, who serves on this port; `NEVER_S` if it is not found. RuntimeError if it is another."""
    started_s = time.perf_counter()
    async with aclosing(node.find(key)) as finding:
        async for found in finding:
            if found.addresses and found.addresses != (Address(LOOPBACK, port),):
                raise RuntimeError(f"{found.addresses} was found where {port} had announced")
            if found.addresses:
                return time.perf_counter() - started_s
    return NEVER_S


class NodeWorker:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._node: DhtNode | None = None

    @property
    def node(self) -> DhtNode:
        if self._node is None:
            raise RuntimeError("start comes first")
        return self._node

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "start":
                return await self.start(command["seed"])
            case "join":
                await self.node.bootstrap([Address(LOOPBACK, port) for port in command["ports"]])
                return {"serves": self.node.serves}
            case "age":
                return self.age()
            case "look up":
                return await self.look_up(command)
            case "status":
                status = self.node.status()
                fields = (
                    "contacts",
                    "records_held",
                    "requests_answered",
                    "calls",
                    "challenges",
                    "strangers",
                    "over_rate",
                )
                return {**{name: getattr(status, name) for name in fields}, "refused": status.datagrams_refused}
            case "costs":
                return costs()
        raise RuntimeError(f"unknown command {command}")

    async def start(self, seed: int) -> Command:
        randomness = random.Random(seed)
        self._node = await self._stack.enter_async_context(
            DhtNode.running(
                SigningKey(randomness.randbytes(32)),
                listen=LOOPBACK,
                port=0,
                client=False,
                folder=None,
                network=Network(),
                surroundings=Surroundings(randomness=random.Random(seed)),
            )
        )
        return {"port": self._node.port, "id": self._node.id.hex()}

    def age(self) -> Command:
        """As if the node had been there for long: it last heard of its contacts at random moments."""
        table, randomness = self.node.overlays[0].table, random.Random(0)
        for seen in table._seen.values():
            seen.seen_s -= randomness.random() * SILENT_S
        for bucket in table.buckets:
            bucket.last_updated -= randomness.random() * STALE_S
        return {}

    async def look_up(self, command: Command) -> Command:
        """Look-ups at equal intervals, one at a time, of random keys: their seconds."""
        randomness = random.Random(command["seed"])
        took_s = []
        next_s = time.perf_counter()
        for _ in range(command["count"]):
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            next_s += command["interval_s"]
            key, port = randomness.choice(command["keys"])
            took_s.append(await look_up(self.node, bytes.fromhex(key), port))
        return {"seconds": took_s}


async def main() -> None:
    async with AsyncExitStack() as stack:
        await obey(NodeWorker(stack).answer)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(main())
