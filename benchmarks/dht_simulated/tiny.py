"""Does a network of 1 to 50 nodes drop a shard key?

Small networks are where sweeps lose keys: a walk that meets everybody looks like one that was cut short, and a prefix
that all nodes share (go-libp2p-kad-dht#1263) looks like a region. At every size a node announces shard keys, some of
them at the ends of the key space; each must then lie on all of its true k nearest nodes. First with identifiers as they
come, the network growing by one; then with networks of their own whose identifiers all share 4 or 7 leading bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from benchmarks.dht_simulated.result import Result, simulate
from benchmarks.harness import Check
from dhtdata.digest import Digest
from dhtdata.formats.records import shard_key
from dhtdata.signing import KEY_BYTES, SigningKey
from tests.simulation.hostile import identifier_of
from tests.simulation.swarm import Swarm

SETTLE_S = 120.0
PREFIX = 0b1011011
ENDS = (bytes(20), bytes([255]) * 20)


def shard_keys(label: str, count: int) -> list[bytes]:
    return [*ENDS, *(shard_key(Digest.of(f"{label} {number}".encode())) for number in range(count))]


def prefixed(network: Swarm, bits: int) -> SigningKey:
    """A key whose node's identifier starts with these many bits of the common prefix."""
    while True:
        key = SigningKey(network.randomness.randbytes(KEY_BYTES))
        if identifier_of(key)[0] >> (8 - bits) == PREFIX >> (7 - bits):
            return key


async def dropped(network: Swarm, label: str, count: int) -> int:
    """Announce from a random node: how many keys are missing at one of their true nearest, or reported as unheld.

    Who is alone announces to nobody, and loses nothing.
    """
    publisher = network.randomness.choice(network.nodes)
    keys = shard_keys(label, count)
    held = await publisher.announce_shards(keys)
    if len(network.nodes) == 1:
        return len(held)
    return sum(key not in held or not all(network.holds(node, key) for node in network.nearest(key)) for key in keys)


async def growing(nodes: int, keys: int, seed: int) -> tuple[int, int]:
    """(keys announced, keys dropped) while one network grows from 1 node on."""
    network = Swarm(seed)
    lost = 0
    try:
        for size in range(1, nodes + 1):
            await network.grow(1)
            await asyncio.sleep(SETTLE_S)
            lost += await dropped(network, f"growing {size}", keys)
        return nodes * (keys + len(ENDS)), lost
    finally:
        await network.close()


async def sharing(sizes: Iterable[int], bits: int, keys: int, seed: int) -> tuple[int, int]:
    """The same for networks whose identifiers share leading bits."""
    announced = lost = 0
    for size in sizes:
        network = Swarm(seed + size)
        try:
            for _ in range(size):
                await network.join(await network.start(key=prefixed(network, bits)))
            await asyncio.sleep(SETTLE_S)
            lost += await dropped(network, f"sharing {bits} {size}", keys)
            announced += keys + len(ENDS)
        finally:
            await network.close()
    return announced, lost


def measure(quick: bool, seed: int) -> Result:
    keys = 40 if quick else 200
    sizes = (2, 4, 21, 30) if quick else range(1, 51)
    announced, lost = simulate(growing(50, keys, seed))
    shared = [simulate(sharing(sizes, bits, keys, seed)) for bits in (4, 7)]
    return Result(
        figures={
            "tiny_nodes": "1 to 50",
            "tiny_keys_announced": announced,
            "tiny_keys_announced_among_shared_prefixes": sum(each for each, _ in shared),
        },
        checks=[
            Check("tiny_keys_dropped", lost, "==", 0),
            Check("tiny_keys_dropped_among_shared_prefixes", sum(each for _, each in shared), "==", 0),
        ],
    )
