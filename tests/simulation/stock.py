"""The stock ``kademlia`` package, unmodified, in the simulated network: what our nodes are compared with.

Servers open their sockets through the event loop, as they would outside. Only node identifiers are chosen here, so that
runs repeat. The package reads `time.monotonic` for ages of records and buckets; it sees real time there, so nothing
expires and no bucket is refreshed however long a simulation lasts. For what is measured here, how long ``set`` and
``get`` take within minutes, that makes no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kademlia.network import Server

from tests.simulation.network import SimulatedNetwork, public_ip

PORT = 8468
_ID_BYTES = 20


class StockSwarm:
    """Servers of the stock package. ``servers`` are all that were ever started, dead ones too."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network
        self.servers: list[Server] = []
        self._dead: set[Server] = set()

    async def grow(self, count: int) -> None:
        """Start servers that join one after the other, each through one that is there."""
        for _ in range(count):
            server = Server(node_id=self.network.randomness.randbytes(_ID_BYTES))
            there = self.living()
            await server.listen(PORT, public_ip(len(self.servers)))
            self.servers.append(server)
            if there:
                introducer = self.network.randomness.choice(there)
                await server.bootstrap([self.address(introducer)])

    def address(self, server: Server) -> tuple[str, int]:
        return (public_ip(self.servers.index(server)), PORT)

    def living(self) -> list[Server]:
        return [server for server in self.servers if server not in self._dead]

    def kill(self, count: int) -> None:
        """Some of the living, at random, lose power at once."""
        for server in self.network.randomness.sample(self.living(), count):
            self._dead.add(server)
            self.network.lose_power(self.address(server)[0])
            server.stop()

    async def set(self, key: str, value: str) -> float:
        """Seconds that a random living server takes to set a value."""
        started_s = self.network.loop.time()
        await self.network.randomness.choice(self.living()).set(key, value)
        return self.network.loop.time() - started_s

    async def get(self, key: str) -> tuple[str | None, float]:
        """What a random living server gets (None: nothing), and after how many seconds."""
        asking = self.network.randomness.choice(self.living())
        started_s = self.network.loop.time()
        value = await asking.get(key)
        return value, self.network.loop.time() - started_s

    def close(self) -> None:
        for server in self.living():
            server.stop()


@asynccontextmanager
async def stock_swarm(count: int, network: SimulatedNetwork) -> AsyncIterator[StockSwarm]:
    """This many joined stock servers. Their log is silent; so are the tasks that they leave behind."""
    swarm = StockSwarm(network)
    try:
        await swarm.grow(count)
        yield swarm
    finally:
        swarm.close()
        await asyncio.sleep(60)  # stores on new neighbours, which the package starts and forgets, end or time out
