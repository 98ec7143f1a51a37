"""A process that runs the 999 other nodes of a network, and has them use one node as a busy network would.

See `cost` for what is real and what is arranged, and `process.worker` for how it is told.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.dht_real.process import Command, costs, obey
from benchmarks.dht_real.swarm import LOOPBACK, contact, protocol, running
from dhtdata.dht import DhtNode
from dhtdata.dht.messages import FindNode
from dhtdata.dht.overlay import SILENT_S
from dhtdata.dht.routing import Contact
from dhtdata.digest import Digest
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import Address, packed
from dhtdata.formats.records import PROVIDER_LIFETIME_S, ProviderClaim, sign

STORES_AT_ONCE = 8


class Crowd:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._nodes: list[DhtNode] = []
        self._randomness = random.Random(0)
        self._introduced: set[DhtNode] = set()
        self._traffic: asyncio.Task[None] | None = None
        self._sent = 0
        self._unanswered = 0

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "start":
                return await self.start(command["nodes"], command["seed"])
            case "put":
                return await self.put(self._target(command), command["claims"])
            case "use":
                course = self.use(self._target(command), command["stores_a_s"], command["asks_a_s"])
                self._traffic = asyncio.create_task(course)
                return {}
            case "costs":
                calls = sum(node.status().calls for node in self._nodes)
                return {**costs(), "sent": self._sent, "unanswered": self._unanswered, "calls": calls}
        raise RuntimeError(f"unknown command {command}")

    @staticmethod
    def _target(command: Command) -> Contact:
        return Contact(bytes.fromhex(command["id"]), Address(LOOPBACK, command["port"]))

    async def start(self, nodes: int, seed: int) -> Command:
        """Nodes that know each other without having joined; when they last heard of each other is spread out."""
        self._randomness = random.Random(seed)
        for _ in range(nodes):
            self._nodes.append(await self._stack.enter_async_context(running(self._randomness)))
        contacts = [contact(node) for node in self._nodes]
        now_s = asyncio.get_running_loop().time()
        for node in self._nodes:
            (overlay,) = node.overlays
            for known in self._randomness.sample(contacts, len(contacts)):
                overlay.table.answered(known, now_s - self._randomness.random() * SILENT_S)
            overlay.reachability.proven(now_s)
            await asyncio.sleep(0)
        return {"ports": [node.port for node in self._nodes[:3]]}

    async def put(self, target: Contact, claims: int) -> Command:
        """Have random nodes put so many claims on one node: how many it keeps."""
        kept: list[bool] = []
        waiting = iter(range(claims))

        async def carry() -> None:
            kept.extend([await self.store(target) for _ in waiting])

        async with asyncio.TaskGroup() as carriers:
            for _ in range(STORES_AT_ONCE):
                carriers.create_task(carry())
        return {"kept": sum(kept)}

    async def store(self, target: Contact) -> bool:
        """One claim of a random node, with its PeerRecord the first time."""
        node, now = self._randomness.choice(self._nodes), int(time.time())
        contents = Digest.of(self._randomness.randbytes(16))
        records = [sign(ProviderClaim(contents, True, now, now + PROVIDER_LIFETIME_S), node.key).data]
        if node not in self._introduced:
            self._introduced.add(node)
            records.insert(0, node._introductions.seen_at(packed(LOOPBACK)))
        return await node.overlays[0].asker.store(target, records)

    async def use(self, target: Contact, stores_a_s: float, asks_a_s: float) -> None:
        """Stores and questions of random nodes, at random moments, for ever."""
        async with asyncio.TaskGroup() as requests:
            next_s = time.perf_counter()
            while True:
                next_s += self._randomness.expovariate(stores_a_s + asks_a_s)
                await asyncio.sleep(next_s - time.perf_counter())
                self._sent += 1
                if self._randomness.random() < stores_a_s / (stores_a_s + asks_a_s):
                    requests.create_task(self.store(target))
                else:
                    requests.create_task(self.ask(target))

    async def ask(self, target: Contact) -> None:
        node = self._randomness.choice(self._nodes)
        try:
            await protocol(node).call(target.address, FindNode(self._randomness.randbytes(20)))
        except PeerError:
            self._unanswered += 1


async def main() -> None:
    async with AsyncExitStack() as stack:
        await obey(Crowd(stack).answer)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(main())
