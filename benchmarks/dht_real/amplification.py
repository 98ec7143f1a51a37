"""How many bytes does somebody get who sends from an address that is not proven: can we be made to flood a third party?

An outsider sends every request, signed and right in all but the cookie (none, a random one, that of another address),
to a node that knows 40 others and holds records; then bare headers of all kinds and versions, from 26 bytes on. What
comes back within two seconds (quick: one) counts, calls back included. The worst ratio of all must be at most 1. The
stock package, 10 servers that all hold 300 values, is asked the same: each request from an address of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random

import msgspec

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.outsider import Outsider, every_request, heard_out, outsider
from benchmarks.dht_real.swarm import LOOPBACK, OPEN, publish, stock_swarm, swarm
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.dht.envelope import CALL_END, COOKIE_BYTES, COOKIE_END, HEADER_BYTES, KNOCK, NO_COOKIE, VERSION

REPEATS = 20
NODES = 40
STOCK_SERVERS = 10
STOCK_VALUES = 300
STOCK_VALUE_BYTES = 180


def bare(kind: int, version: int, size: int) -> bytes:
    """A header and nothing that is signed."""
    start = bytes((version, kind))
    return start + OPEN.code(start) + bytes(size - len(start) - 16)


async def ours(wait_s: float, seed: int) -> dict[str, float]:
    """Bytes out for each byte in, by what was sent."""
    async with swarm(NODES, seed) as network:
        victim, friend, *_ = network.nodes
        key = [await publish(network.randomness.choice(network.serving()), f"contents {each}") for each in range(8)][0]
        requests = every_request(network.randomness)
        requests["find_records"] = type(requests["find_records"])(key=key, target=key, after=0, contacts=True)  # type: ignore[call-arg]
        ratios: dict[str, float] = {}
        async with outsider(network.randomness) as other:
            stolen = await other.cookie(victim, friend)
        cookies = {"no": NO_COOKIE, "wrong": network.randomness.randbytes(COOKIE_BYTES), "stolen": stolen}
        sent: dict[str, list[bytes]] = {}
        async with outsider(network.randomness) as speaker:
            for name, request in requests.items():
                for which, cookie in cookies.items():
                    sent[f"{name}_with_{which}_cookie"] = [speaker.sealed(request, cookie) for _ in range(REPEATS)]
        for kind in range(KNOCK + 2):
            for version in (VERSION, VERSION - 1, VERSION + 1):
                for size in (CALL_END, COOKIE_END - 1, COOKIE_END, HEADER_BYTES, HEADER_BYTES + 1):
                    sent[f"bare_{kind}_of_version_{version}_and_{size}_bytes"] = [bare(kind, version, size)]

        async def one(name: str, datagrams: list[bytes]) -> None:
            async with outsider(network.randomness) as sender:
                for datagram in datagrams:
                    sender.send(datagram, (LOOPBACK, victim.port))
                await heard_out(victim, friend)
                await asyncio.sleep(wait_s)
                ratios[name] = heard_bytes(sender) / sum(map(len, datagrams))

        await asyncio.gather(*(one(name, datagrams) for name, datagrams in sent.items()))
        if not any(ratios.values()):
            raise RuntimeError("nothing was answered at all: nothing was measured")
        return ratios


def heard_bytes(sender: Outsider) -> int:
    return sum(map(len, sender.heard))


async def stock(wait_s: float, seed: int) -> dict[str, float]:
    """The same of the stock package, by request."""
    async with stock_swarm(STOCK_SERVERS, seed) as network:
        randomness = random.Random(seed)
        for position in range(STOCK_VALUES):
            key, value = hashlib.sha1(str(position).encode()).digest(), randomness.randbytes(STOCK_VALUE_BYTES)
            for server in network.servers:
                server.storage[key] = value
        victim = network.servers[0]
        ratios = {}
        requests: dict[str, list[bytes]] = {
            "ping": [],
            "find_node": [randomness.randbytes(20)],
            "find_value": [hashlib.sha1(b"0").digest()],
            "store": [randomness.randbytes(20), b""],
        }
        for name, arguments in requests.items():
            datagram = b"\0" + os.urandom(20) + msgspec.msgpack.encode([name, [randomness.randbytes(20), *arguments]])
            async with outsider(randomness) as sender:
                sender.send(datagram, victim.transport.get_extra_info("sockname"))
                await asyncio.sleep(wait_s)
                ratios[name] = heard_bytes(sender) / len(datagram)
        return ratios


def measure(quick: bool, seed: int) -> Result:
    wait_s = 1.0 if quick else 2.0
    ratios = asyncio.run(ours(wait_s, seed))
    stock_ratios = asyncio.run(stock(wait_s, seed))
    requests = {name: ratio for name, ratio in ratios.items() if "_with_no_cookie" in name}
    worst = max(ratios, key=lambda name: ratios[name])
    return Result(
        figures={
            **{f"amplification_of_{name}": ratio for name, ratio in requests.items()},
            "amplification_worst_case": worst,
            **{f"amplification_of_stock_{name}": ratio for name, ratio in stock_ratios.items()},
        },
        checks=[Check("amplification", ratios[worst], "<=", 1.0)],
    )


if __name__ == "__main__":
    alone(measure)
