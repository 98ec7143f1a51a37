"""A process that runs the rest of the network (see `process.worker`)."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.dht_real.node_worker import NEVER_S, look_up
from benchmarks.dht_real.process import Command, costs, obey
from benchmarks.dht_real.swarm import LOOPBACK, Swarm, publish, running, swarm
from dhtdata.dht import DhtNode
from dhtdata.dht.routing import Contact
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address


class NeighboursWorker:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._client: DhtNode | None = None
        self._network: Swarm | None = None

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "start":
                return await self.start(command["nodes"], command["keys"], command["seed"])
            case "look up through":
                return await self.look_up_through(command)
            case "meet":
                return await self.meet(command)
            case "costs":
                return costs()
        raise RuntimeError(f"unknown command {command}")

    async def start(self, nodes: int, keys: int, seed: int) -> Command:
        """A network in which so many keys are announced: the keys and their providers' ports."""
        network = self._network = await self._stack.enter_async_context(swarm(nodes, seed))
        announced = []
        for position in range(keys):
            provider = network.randomness.choice(network.serving())
            announced.append(((await publish(provider, f"contents {position}")).hex(), provider.port))
        self._client = await self._stack.enter_async_context(running(network.randomness, client=True))
        await network.quiet()
        return {"ports": [node.port for node in network.serving()[:3]], "keys": announced}

    async def look_up_through(self, command: Command) -> Command:
        """Look-ups by a client that knows one node only, at equal intervals, one at a time: their seconds."""
        client, randomness = self._client, random.Random(command["seed"])
        if client is None:
            raise RuntimeError("start comes first")
        only = Contact(bytes.fromhex(command["id"]), Address(LOOPBACK, command["port"]))
        table = client.overlays[0].table
        took_s = []
        next_s = time.perf_counter()
        for _ in range(command["count"]):
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            next_s += command["interval_s"]
            for known in list(table):
                table.remove(known)
            table.answered(only, asyncio.get_running_loop().time())
            key, port = randomness.choice(command["keys"])
            took_s.append(await look_up(client, bytes.fromhex(key), port))
        return {"seconds": took_s}

    async def meet(self, command: Command) -> Command:
        """Clients that nobody knows yet say hello to one node, one after the other: seconds until it answers."""
        randomness, took_s = random.Random(command["seed"]), []
        for _ in range(command["count"]):
            async with running(randomness, client=True) as stranger:
                started_s = time.perf_counter()
                try:
                    await stranger.overlays[0].asker.meet(Address(LOOPBACK, command["port"]))
                    took_s.append(time.perf_counter() - started_s)
                except PeerError:
                    took_s.append(NEVER_S)
        return {"seconds": took_s}


async def main() -> None:
    async with AsyncExitStack() as stack:
        await obey(NeighboursWorker(stack).answer)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(main())
