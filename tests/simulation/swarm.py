"""Swarms of our nodes in a simulated network.

`swarm(60)` is a network of 60 nodes that joined one after the other and have had two minutes to get to know each other.
`Swarm` is the same without the joining: start nodes where you like, kill them, restart them, hide them behind NATs, let
them come and go (`churning`). Nodes have public addresses, by default each in a /24 of its own.

Every node lives in a task of its own, so whoever starts one need not be who stops it. An error that ends a node's task
is raised by `Swarm.close`.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from bisect import bisect_left
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from dhtdata.dht.node import DhtNode, Surroundings
from dhtdata.dht.routing import BUCKET_SIZE, ID_BITS, Contact, number
from dhtdata.formats.addresses import Address
from dhtdata.network import Network
from dhtdata.signing import SigningKey
from tests.simulation.links import LAN, Distribution, Links, draw
from tests.simulation.network import SimulatedNetwork, public_ip

PORT = 8470
ACQUAINTANCE_S = 120.0
JOIN_TRIES = 5
_NAT_SUBNET = 1 << 23


class Swarm(SimulatedNetwork):
    """Our nodes and their network. ``nodes`` are all that were ever started, in order, dead ones too unless
    `forget` struck them; ``started`` counts them.

    ``per_subnet`` nodes share a /24. ``settings`` go to `DhtNode.running` as they are.
    """

    def __init__(self, seed: int = 1, links: Links = LAN, *, per_subnet: int = 1, **settings: Any) -> None:
        super().__init__(seed, links)
        self.nodes: list[DhtNode] = []
        self.started = 0
        self.per_subnet = per_subnet
        self._settings = settings
        self._placed = 0
        self._behind_nats = 0
        self._address_of: dict[DhtNode, Address] = {}
        self._life_of: dict[DhtNode, _Life] = {}
        self._forgotten_calls = 0
        self._failures: list[BaseException] = []

    # Starting and stopping

    async def start(
        self, *, client: bool = False, key: SigningKey | None = None, ip: str | None = None, **settings: Any
    ) -> DhtNode:
        """A node at an address of its own, or at ``ip``, not joined to anything."""
        return await self._run(ip or self._next_ip(), client, key, settings)

    async def start_behind_nat(self, *, client: bool = False, key: SigningKey | None = None) -> DhtNode:
        """A node with a private address, behind a NAT of its own."""
        self._behind_nats += 1
        private_ip = f"10.{self._behind_nats >> 8 & 255}.{self._behind_nats & 255}.1"
        self.put_behind_nat(private_ip, public_ip(_NAT_SUBNET + self._behind_nats))
        return await self._run(private_ip, client, key, {})

    async def restart(self, node: DhtNode, **settings: Any) -> DhtNode:
        """The machine comes back: a new node with the same key at the same address, not joined to anything."""
        if self.alive(node):
            self.kill(node)
        await asyncio.wait([self._life_of[node].task])
        at = self.address(node)
        return await self.start(client=node.client, key=node.key, ip=at.ip, port=at.port, **settings)

    async def grow(self, count: int, at_once: int = 1) -> list[DhtNode]:
        """Start nodes that join, ``at_once`` at the same time, each through two that are there: all nodes."""
        for first in range(0, count, at_once):
            newcomers = [await self.start() for _ in range(min(at_once, count - first))]
            strangers = set(newcomers) if len(self.nodes) > len(newcomers) else set()
            await asyncio.gather(*(self._join_some(node, strangers) for node in newcomers))
        return self.nodes

    async def _join_some(self, node: DhtNode, strangers: set[DhtNode]) -> None:
        """Where datagrams are lost, all answers may be: then the node tries again, as it would by itself later."""
        for _ in range(JOIN_TRIES):
            if await self.join(node, strangers=strangers) or len(self.nodes) == 1:
                return
        raise RuntimeError(f"node {node.id.hex()} could not join: nobody it asked answered")

    async def join(self, node: DhtNode, through: int = 2, strangers: Collection[DhtNode] = ()) -> int:
        """Join a node through some others that are there (no ``strangers``), if any are: how many of them answered."""
        there = [each for each in self.living() if each is not node and not each.client and each not in strangers]
        introducers = self.randomness.sample(there, min(through, len(there)))
        return await node.bootstrap([self.address(each) for each in introducers])

    def kill(self, node: DhtNode) -> None:
        """As if its machine lost power: nothing is sent, nothing arrives."""
        self.lose_power(self.ip(node), self.address(node).port)
        self._life_of[node].end.set()

    def forget(self, node: DhtNode) -> None:
        """Strike a dead node from the list: those of a day of churn would fill the memory. Its calls stay counted."""
        self.nodes.remove(node)
        self._forgotten_calls += node.status().calls
        del self._address_of[node], self._life_of[node]

    async def close(self) -> None:
        """Stop all nodes. Raises what ended a node before its time."""
        lives = list(self._life_of.values())
        for life in lives:
            life.end.set()
        if lives:
            await asyncio.wait([life.task for life in lives])
        if self._failures:
            raise self._failures[0]

    # Asking about nodes

    def address(self, node: DhtNode) -> Address:
        """Where the node's socket is; behind a NAT others cannot reach it there."""
        return self._address_of[node]

    def ip(self, node: DhtNode) -> str:
        return self._address_of[node].ip

    def alive(self, node: DhtNode) -> bool:
        return self._life_of[node].alive and self.is_open((self._address_of[node].ip, self._address_of[node].port))

    def living(self) -> list[DhtNode]:
        return [node for node in self.nodes if self.alive(node)]

    def nearest(self, key: bytes, count: int = BUCKET_SIZE) -> list[DhtNode]:
        """Oracle: the true nearest of all living nodes that are no clients."""
        goal = number(key)
        living = (node for node in self.nodes if not node.client and self.alive(node))
        return heapq.nsmallest(count, living, key=lambda node: number(node.id) ^ goal)

    def holds(self, node: DhtNode, key: bytes) -> bool:
        """Whether the node has a record under the key. (Reaches into the node: nobody can be asked that.)"""
        return node._holdings.get(key) is not None

    def calls(self) -> int:
        """Remote calls made so far, by all nodes that ever were."""
        return self._forgotten_calls + sum(node.status().calls for node in self.nodes)

    # Links

    @property
    def loss(self) -> float:
        return self.links.lost

    @loss.setter
    def loss(self, share: float) -> None:
        self.links = self.links.losing(share)

    def _next_ip(self) -> str:
        subnet, host = divmod(self._placed, self.per_subnet)
        self._placed += 1
        return public_ip(subnet, host + 1)

    async def _run(self, ip: str, client: bool, key: SigningKey | None, settings: dict[str, Any]) -> DhtNode:
        surroundings = Surroundings(
            now_s=self.clock(ip),
            randomness=random.Random(self.randomness.getrandbits(32)),
            open_transport=self.open_transport,
        )
        options = {
            "listen": ip,
            "port": PORT,
            "client": client,
            "folder": None,
            "network": Network(),
            "surroundings": surroundings,
            **self._settings,
            **settings,
        }
        life = _Life()
        life.task = self.loop.create_task(life.run(key or SigningKey(self.randomness.randbytes(32)), options))
        life.task.add_done_callback(self._ended)
        node = await life.begun
        self.nodes.append(node)
        self.started += 1
        self._address_of[node] = Address(ip, node.port)
        self._life_of[node] = life
        return node

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)


class _Life:
    """One node from start to end, in one task: the task that enters a node's block must be the one that leaves it."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.begun: asyncio.Future[DhtNode] = asyncio.get_running_loop().create_future()
        self.end = asyncio.Event()

    @property
    def alive(self) -> bool:
        return not self.end.is_set() and not self.task.done()

    async def run(self, key: SigningKey, options: dict[str, Any]) -> None:
        try:
            async with DhtNode.running(key, **options) as node:
                self.begun.set_result(node)
                await self.end.wait()
        except Exception as failure:
            if self.begun.done():
                raise
            self.begun.set_exception(failure)


@asynccontextmanager
async def swarm(size: int, seed: int = 1, loss: float = 0.0, links: Links = LAN) -> AsyncIterator[Swarm]:
    """A network of ``size`` joined nodes that have had two minutes to get to know each other."""
    network = Swarm(seed, links.losing(loss) if loss else links)
    try:
        await network.grow(size)
        await asyncio.sleep(ACQUAINTANCE_S)
        yield network
    finally:
        await network.close()


# Churn


@asynccontextmanager
async def churning(network: Swarm, session: Distribution, stay: Collection[DhtNode] = ()) -> AsyncIterator[None]:
    """While the block runs, nodes lose power after sessions of these lengths; for each one a new one joins at once.

    So their number stays the same. ``stay`` never leave. Sessions of the nodes that are there begin now: that is the
    right thing for an `Exponential`, which does not remember.
    """
    async with asyncio.TaskGroup() as joining:
        churn = joining.create_task(_churn(network, session, frozenset(stay), joining))
        try:
            yield
        finally:
            churn.cancel()


async def _churn(network: Swarm, session: Distribution, stay: frozenset[DhtNode], joining: asyncio.TaskGroup) -> None:
    ends: list[tuple[float, int, DhtNode]] = []
    order = count()

    def begin(node: DhtNode) -> None:
        ends_s = network.loop.time() + draw(session, network.randomness)
        heapq.heappush(ends, (ends_s, next(order), node))

    for node in network.living():
        if node not in stay:
            begin(node)
    while ends:
        ends_s, _, node = heapq.heappop(ends)
        await asyncio.sleep(max(0.0, ends_s - network.loop.time()))
        network.kill(node)
        network.forget(node)
        newcomer = await network.start()
        joining.create_task(network.join(newcomer))
        begin(newcomer)


# Tables filled without joining


def fill_tables(network: Swarm) -> None:
    """Give every living node the routing table of a well-joined one, by oracle, without a single datagram.

    Well-joined: it knows its 20 nearest and, of every sibling range farther away, 20 at random (all, where it has
    fewer), each of which has just answered.
    """
    order = sorted((number(node.id), node) for node in network.living() if not node.client)
    numbers = [value for value, _ in order]
    contacts = [Contact(node.id, network.address(node)) for _, node in order]
    for position, (_, node) in enumerate(order):
        known = _well_known(numbers, position, network.randomness)
        _acquaint(node, [contacts[each] for each in known], network.loop.time())


def _well_known(numbers: Sequence[int], position: int, randomness: random.Random) -> list[int]:
    """Whom the node at this position of the sorted identifiers knows once it is well joined, the nearest first."""
    own = numbers[position]
    far: list[list[int]] = []
    low, high, bits = 0, len(numbers), ID_BITS
    near = range(low, high)
    while high - low > BUCKET_SIZE + 1:
        near = range(low, high)
        bits -= 1
        middle = bisect_left(numbers, (own >> bits | 1) << bits, low, high)
        sibling = range(low, middle) if own >> bits & 1 else range(middle, high)
        low, high = (middle, high) if own >> bits & 1 else (low, middle)
        far.append(randomness.sample(sibling, min(BUCKET_SIZE, len(sibling))))
    nearest = heapq.nsmallest(BUCKET_SIZE + 1, near, key=lambda each: numbers[each] ^ own)
    return list(dict.fromkeys([*nearest[1:], *(each for sample in reversed(far) for each in sample)]))


def _acquaint(node: DhtNode, contacts: Sequence[Contact], now_s: float) -> None:
    """The only place that reaches into a node: its table hears that these contacts, nearest first, have answered."""
    (overlay,) = node.overlays
    for contact in contacts:
        overlay.table.answered(contact, now_s)
    overlay.reachability.proven(now_s)
