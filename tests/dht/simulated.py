"""A network of nodes in one process, on a clock that jumps to the next event: hours pass in seconds, always the same.

Everything above the socket is the real thing: datagrams are encoded, delayed, lost, decoded.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from dhtdata.dht.node import DhtNode, Surroundings
from dhtdata.dht.routing import number
from dhtdata.formats.addresses import Address
from dhtdata.signing import SigningKey

EPOCH_S = 1_800_000_000.0
PORT = 8470
_T = TypeVar("_T")


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is left to happen")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class SimulatedTransport(asyncio.DatagramTransport):
    def __init__(self, network: SimulatedNetwork, address: Address, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__({"sockname": (address.ip, address.port)})
        self.network = network
        self.address = address
        self.protocol = protocol
        self.alive = True

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.network.carry(self, bytes(data), addr)

    def close(self) -> None:
        self.alive = False
        self.network.transports.pop((self.address.ip, self.address.port), None)
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return False


class SimulatedNetwork:
    """Delays of 5 to 40 ms, and ``loss`` as a share of all datagrams. Counts what it carries.

    ``clock_jump_s`` moves everybody's Unix time, without the days of upkeep that sleeping as long would bring.
    """

    def __init__(self, seed: int = 1, loss: float = 0.0) -> None:
        self.randomness = random.Random(seed)
        self.loss = loss
        self.transports: dict[tuple[str, int], SimulatedTransport] = {}
        self.clock_jump_s = 0.0
        self.datagrams = 0
        self.largest = 0
        self.nodes: list[DhtNode] = []
        self._stack = AsyncExitStack()

    async def open_transport(
        self, ip: str, protocol: Callable[[], asyncio.DatagramProtocol], listen: str, port: int
    ) -> asyncio.DatagramTransport:
        del listen
        transport = SimulatedTransport(self, Address(ip, port), protocol())
        self.transports[ip, port] = transport
        transport.protocol.connection_made(transport)
        return transport

    def carry(self, sender: SimulatedTransport, data: bytes, to: tuple[str, int]) -> None:
        self.datagrams += 1
        self.largest = max(self.largest, len(data))
        if sender.alive and self.randomness.random() >= self.loss:
            delay_s = self.randomness.uniform(0.005, 0.04)
            source = (sender.address.ip, sender.address.port)
            asyncio.get_running_loop().call_later(delay_s, self._arrive, data, source, to)

    def _arrive(self, data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        receiver = self.transports.get(to)
        if receiver is not None and receiver.alive:
            receiver.protocol.datagram_received(data, source)

    async def start(self, *, client: bool = False, key: SigningKey | None = None) -> DhtNode:
        """A node at an address of its own, not joined to anything."""
        position = len(self.nodes)
        ip = f"10.{position >> 8}.{position & 255}.1"
        loop = asyncio.get_running_loop()
        surroundings = Surroundings(
            now_s=lambda: EPOCH_S + self.clock_jump_s + loop.time(),
            randomness=random.Random(self.randomness.getrandbits(32)),
            open_transport=partial(self.open_transport, ip),
        )
        key = key or SigningKey(self.randomness.randbytes(32))
        running = DhtNode.running(key, listen=ip, port=PORT, client=client, state_path=None, surroundings=surroundings)
        node = await self._stack.enter_async_context(running)
        node.set_addresses([Address(ip, PORT)])
        self.nodes.append(node)
        return node

    async def grow(self, count: int) -> list[DhtNode]:
        """Start nodes that join one after the other, each through two that are there."""
        for _ in range(count):
            there = [self.address(node) for node in self.nodes if self.alive(node)]
            node = await self.start()
            if there:
                assert await node.bootstrap(self.randomness.sample(there, min(2, len(there)))) >= 1
        return self.nodes

    def address(self, node: DhtNode) -> Address:
        return Address(self.ip(node), PORT)

    def ip(self, node: DhtNode) -> str:
        position = self.nodes.index(node)
        return f"10.{position >> 8}.{position & 255}.1"

    def alive(self, node: DhtNode) -> bool:
        return (self.ip(node), PORT) in self.transports

    def kill(self, node: DhtNode) -> None:
        """As if its machine lost power: nothing is sent, nothing arrives."""
        self.transports.pop((self.ip(node), PORT)).alive = False

    def nearest(self, key: bytes, count: int = 20) -> list[DhtNode]:
        """Oracle: the true nearest of all living nodes."""
        living = [node for node in self.nodes if self.alive(node)]
        return sorted(living, key=lambda node: number(node.id) ^ number(key))[:count]

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def swarm(count: int, seed: int = 1, loss: float = 0.0) -> AsyncIterator[SimulatedNetwork]:
    """A network of ``count`` joined nodes that have had two minutes to get to know each other."""
    network = SimulatedNetwork(seed, loss)
    try:
        await network.grow(count)
        await asyncio.sleep(120)
        yield network
    finally:
        await network.close()
