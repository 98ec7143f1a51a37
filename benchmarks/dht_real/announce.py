"""What does it cost to announce 15,000 shards, and do the right nodes hold the claims afterwards?

200 nodes (quick: 50, and 3,000 shards) on loopback, one of which announces all keys in one sweep. Counted are all calls
that it makes meanwhile, repeated ones and its upkeep, too. The stock package stores a sample of keys one by one; every
request that its nodes receive meanwhile counts. Then, for each key, an oracle names the true 20 nearest nodes (the
announcer itself may be one; clients, as which nodes count until they know that they can be reached, may not), and each
must hold a claim of the announcer to that key with a good signature.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

from kademlia.network import Server
from kademlia.protocol import KademliaProtocol

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.swarm import Swarm, stock_swarm, swarm
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.dht import DhtNode
from dhtdata.dht.routing import BUCKET_SIZE
from dhtdata.formats.records import ShardClaims, decode

STOCK_VALUE_BYTES = 180


async def ours(nodes: int, count: int, seed: int) -> tuple[float, float, float, float]:
    """(calls a key, seconds, share of pairs of a key and a true nearest node that hold, share of nodes that serve)."""
    async with swarm(nodes, seed) as network:
        keys = [network.randomness.randbytes(20) for _ in range(count)]
        announcer = network.randomness.choice(network.serving())
        before, started_s = announcer.status().calls, time.perf_counter()
        held = await announcer.announce_shards(keys)
        took_s = time.perf_counter() - started_s
        calls = announcer.status().calls - before
        if len(held) < 0.99 * count:
            raise RuntimeError(f"the announcer itself knows of {len(held)} keys only, of {count}, that they are held")
        return calls / count, took_s, held_by_the_nearest(network, announcer, keys), len(network.serving()) / nodes


def held_by_the_nearest(network: Swarm, announcer: DhtNode, keys: list[bytes]) -> float:
    claimed: dict[bytes, frozenset[bytes]] = {}

    def claims(data: bytes) -> frozenset[bytes]:
        """Keys of a record that is a good one of the announcer's."""
        if data not in claimed:
            signed = decode(data)
            good = isinstance(signed.record, ShardClaims) and signed.signer == announcer.key.public
            claimed[data] = frozenset(signed.record.unpacked()) if good else frozenset()  # type: ignore[union-attr]
        return claimed[data]

    holding = 0
    for key in keys:
        for node in network.nearest(key, BUCKET_SIZE):
            holding += any(key in claims(data) for data in node._holdings.stream(key) if data[:1] == b"\x04")
    return holding / (len(keys) * min(BUCKET_SIZE, len(network.serving())))


class Counted(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    """Counts the requests that all servers receive."""

    requests: Counter[str] = Counter()

    def rpc_ping(self, *given: Any) -> Any:
        self.requests["ping"] += 1
        return super().rpc_ping(*given)

    def rpc_find_node(self, *given: Any) -> Any:
        self.requests["find_node"] += 1
        return super().rpc_find_node(*given)

    def rpc_store(self, *given: Any) -> Any:
        self.requests["store"] += 1
        return super().rpc_store(*given)


class CountedServer(Server):  # type: ignore[misc]  # the package has no types
    protocol_class = Counted


async def stock(nodes: int, count: int, seed: int) -> float:
    """Requests a key."""
    async with stock_swarm(nodes, seed, CountedServer) as network:
        randomness = random.Random(seed)
        announcer = randomness.choice(network.servers)
        Counted.requests.clear()
        for position in range(count):
            await announcer.set(f"shard {position}", randomness.randbytes(STOCK_VALUE_BYTES))
        return Counted.requests.total() / count


def measure(quick: bool, seed: int) -> Result:
    nodes, keys, sample = (50, 3_000, 30) if quick else (200, 15_000, 150)
    calls, took_s, held, serving = asyncio.run(ours(nodes, keys, seed))
    stock_calls = asyncio.run(stock(nodes, sample, seed))
    return Result(
        figures={
            "announce_nodes": nodes,
            "announce_nodes_that_serve_share": serving,
            "announce_keys": keys,
            "announce_s": took_s,
            "announce_ms_a_key": 1e3 * took_s / keys,
            "announce_stock_calls_a_key": stock_calls,
        },
        checks=[
            Check("announce_calls_a_key", calls, "<=", 0.7),
            Check("announce_held_by_the_nearest", held, ">=", 0.99),
        ],
    )


if __name__ == "__main__":
    alone(measure)
