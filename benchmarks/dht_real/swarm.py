"""Real nodes in this process, on sockets of 127.0.0.1, and the stock package's beside them.

Both networks grow in the same way: every node joins through two that are there. A dead node's socket is closed without
a word to anybody, as if its machine had lost power.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from kademlia.network import Server

from dhtdata.dht import DhtNode
from dhtdata.dht.node import Surroundings
from dhtdata.dht.protocol import MAX_SOURCES, DhtProtocol
from dhtdata.dht.rates import SourceLimits, TokenBucket
from dhtdata.dht.routing import Contact, number
from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import PROVIDER_LIFETIME_S, ProviderClaim, contents_key, sign
from dhtdata.network import Network
from dhtdata.signing import SigningKey

LOOPBACK = "127.0.0.1"
OPEN = Network()
"""The public network without work for identifiers, so that hundreds of nodes start at once."""
INTRODUCERS = 2
_QUIET_S = 0.3
_QUIET_CALLS = 2
_AT_ONCE = 5
_OPEN = 1e12


def address(node: DhtNode) -> Address:
    return Address(LOOPBACK, node.port)


def contact(node: DhtNode) -> Contact:
    return Contact(node.id, address(node))


def protocol(node: DhtNode) -> DhtProtocol:
    """The one socket's. Only benchmarks look inside a node."""
    return node.overlays[0].protocol


def open_rates(node: DhtNode) -> None:
    """Take all limits on requests away, so that everything gets as deep as it can."""
    side, now_s = protocol(node), asyncio.get_running_loop().time()
    side._verified = TokenBucket(_OPEN, _OPEN, now_s)
    side._challenges = TokenBucket(_OPEN, _OPEN, now_s)
    side._sources = SourceLimits(_OPEN, _OPEN, MAX_SOURCES)


@asynccontextmanager
async def running(
    randomness: random.Random,
    *,
    network: Network = OPEN,
    client: bool = False,
    port: int = 0,
    key: SigningKey | None = None,
    listen: str = LOOPBACK,
) -> AsyncIterator[DhtNode]:
    """A node on loopback, not joined to anything."""
    async with DhtNode.running(
        key or SigningKey(randomness.randbytes(32)),
        listen=listen,
        port=port,
        client=client,
        folder=None,
        network=network,
        surroundings=Surroundings(randomness=random.Random(randomness.getrandbits(32))),
    ) as node:
        yield node


class Swarm:
    """Our nodes; use `swarm`. ``nodes`` are all that were ever started."""

    def __init__(self, seed: int, stack: AsyncExitStack, network: Network) -> None:
        self.randomness = random.Random(seed)
        self.nodes: list[DhtNode] = []
        self._stack = stack
        self._network = network
        self._dead: set[DhtNode] = set()

    async def start(self) -> DhtNode:
        """A node more, not joined to anything."""
        node = await self._stack.enter_async_context(running(self.randomness, network=self._network))
        self.nodes.append(node)
        return node

    async def grow(self, count: int) -> None:
        """Start nodes that join through two that are there, a few at the same time."""
        while len(self.nodes) < count:
            there = list(self.nodes)
            newcomers = [await self.start() for _ in range(min(count - len(there), _AT_ONCE if there else 1))]
            if there:
                if not all(await asyncio.gather(*(self._join(each, there) for each in newcomers))):
                    raise RuntimeError("a node could not join")

    async def _join(self, node: DhtNode, there: Sequence[DhtNode]) -> int:
        through = self.randomness.sample(there, min(INTRODUCERS, len(there)))
        return await node.bootstrap([address(each) for each in through])

    async def quiet(self) -> None:
        """Wait until the nodes have looked around and make hardly any calls (they start to after joining)."""
        before = -1000
        while (now := self.calls()) - before > _QUIET_CALLS:
            before = now
            await asyncio.sleep(_QUIET_S)

    def living(self) -> list[DhtNode]:
        return [node for node in self.nodes if node not in self._dead]

    def kill(self, count: int, spared: set[DhtNode]) -> None:
        """Some of the living at random lose power at once."""
        mortal = [node for node in self.living() if node not in spared]
        for node in self.randomness.sample(mortal, count):
            self._dead.add(node)
            transport = protocol(node).transport
            if transport is not None:
                transport.close()

    def serving(self) -> list[DhtNode]:
        """The living that know that they can be reached: who does not know is a client, and in nobody's table."""
        return [node for node in self.living() if node.serves]

    def calls(self) -> int:
        return sum(node.status().calls for node in self.nodes)

    def nearest(self, key: bytes, count: int) -> list[DhtNode]:
        """Oracle: the true nearest of those that serve."""
        goal = number(key)
        return heapq.nsmallest(count, self.serving(), key=lambda node: number(node.id) ^ goal)

    def holds(self, node: DhtNode, key: bytes) -> bool:
        return node._holdings.get(key) is not None


@asynccontextmanager
async def swarm(count: int, seed: int, network: Network = OPEN) -> AsyncIterator[Swarm]:
    """So many nodes that joined and know each other."""
    async with AsyncExitStack() as stack:
        nodes = Swarm(seed, stack, network)
        await nodes.grow(count)
        await nodes.quiet()
        yield nodes


async def publish(node: DhtNode, label: str) -> bytes:
    """Announce contents of this label: their key. RuntimeError if nobody else keeps the claim."""
    contents, now = Digest.of(label.encode()), int(time.time())
    claim = ProviderClaim(contents=contents, seed=True, sequence=now, expires=now + PROVIDER_LIFETIME_S)
    key = contents_key(contents)
    if not await node.announce(key, sign(claim, node.key)):
        raise RuntimeError(f"nobody keeps the claim to {label}")
    return key


# The stock package


class StockSwarm:
    """Its servers; use `stock_swarm`."""

    def __init__(self, seed: int, kind: type[Server]) -> None:
        self.randomness = random.Random(seed)
        self.servers: list[Server] = []
        self._kind = kind
        self._dead: set[Server] = set()

    async def grow(self, count: int) -> None:
        while len(self.servers) < count:
            server = self._kind(node_id=self.randomness.randbytes(20))
            await server.listen(0, LOOPBACK)
            if self.servers:
                through = self.randomness.sample(self.servers, min(INTRODUCERS, len(self.servers)))
                await server.bootstrap([each.transport.get_extra_info("sockname") for each in through])
            self.servers.append(server)

    def living(self) -> list[Server]:
        return [server for server in self.servers if server not in self._dead]

    def kill(self, count: int) -> None:
        for server in self.randomness.sample(self.living(), count):
            self._dead.add(server)
            server.stop()

    def stop(self) -> None:
        for server in self.living():
            server.stop()


@asynccontextmanager
async def stock_swarm(count: int, seed: int, kind: type[Server] = Server) -> AsyncIterator[StockSwarm]:
    stock = StockSwarm(seed, kind)
    try:
        await stock.grow(count)
        yield stock
    finally:
        stock.stop()
