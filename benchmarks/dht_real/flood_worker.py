"""A process that floods a port, or reads a flood and does nothing with it (see `process.worker`)."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time
from typing import Any

from benchmarks.dht_real.outsider import every_request
from benchmarks.dht_real.process import Command, costs, obey
from benchmarks.dht_real.swarm import LOOPBACK, OPEN
from dhtdata.dht import messages
from dhtdata.dht.endpoint import open_udp
from dhtdata.dht.envelope import CALL_END, COOKIE_BYTES, NO_COOKIE, REPLY, REQUEST, Letter, knock, seal
from dhtdata.dht.identity import Identity
from dhtdata.signing import SigningKey

SOURCES = 1_000
EACH_KIND = 300
TICK_S = 0.002
_LEAST_BUFFER_BYTES = 1


class Deaf(asyncio.DatagramProtocol):
    """Counts."""

    heard = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard += 1


def datagrams(seed: int) -> list[bytes]:
    """As many without a cookie (half are knocks), with a wrong one, that answer nothing, garbage, and too short."""
    randomness = random.Random(seed)
    who = Identity.client(SigningKey(randomness.randbytes(32)))
    bodies = [messages.encode(request) for request in every_request(randomness, [bytes(200)]).values()]

    def sealed(kind: int, cookie: bytes) -> bytes:
        letter = Letter(kind, randomness.randbytes(8), cookie, False, randomness.choice(bodies))
        return seal(OPEN, who, letter)

    made: list[bytes] = []
    for position in range(EACH_KIND):
        made.append(sealed(REQUEST, NO_COOKIE) if position % 2 else knock(OPEN, randomness.randbytes(8)))
        made.append(sealed(REQUEST, randomness.randbytes(COOKIE_BYTES)))
        made.append(sealed(REPLY, randomness.randbytes(COOKIE_BYTES)))
        made.append(randomness.randbytes(randomness.randrange(CALL_END, 600)))
        made.append(sealed(REQUEST, NO_COOKIE)[: randomness.randrange(CALL_END)])
    randomness.shuffle(made)
    return made


def sockets(count: int, randomness: random.Random) -> list[socket.socket]:
    """Each at an address of its own. What they are sent is dropped by the kernel."""
    made: list[socket.socket] = []
    while len(made) < count:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LEAST_BUFFER_BYTES)
        one.setblocking(False)
        host = randomness.randrange(1 << 24)
        one.bind((f"127.{host >> 16}.{host >> 8 & 255}.{host & 255 or 1}", 0))
        made.append(one)
    return made


def flood(port: int, rate: float, seconds: float, seed: int) -> Command:
    """So many datagrams a second at an even pace: how many were sent, and in what time."""
    randomness = random.Random(seed)
    sources = [each.sendto for each in sockets(SOURCES, randomness)]
    sent_by = [randomness.choice(sources) for _ in range(1 << 14)]
    kinds = datagrams(seed)
    pool = [randomness.choice(kinds) for _ in range(1 << 14)]
    to, sent, dropped = (LOOPBACK, port), 0, 0
    started_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < seconds:
        for position in range(sent, int(rate * elapsed_s)):
            try:
                sent_by[position * 7 & 0x3FFF](pool[position & 0x3FFF], to)
            except OSError:
                dropped += 1
        sent = max(sent, int(rate * elapsed_s))
        time.sleep(TICK_S)
    return {"sent": sent - dropped, "seconds": time.perf_counter() - started_s}


class FloodWorker:
    def __init__(self) -> None:
        self._deaf = Deaf()

    async def answer(self, command: Command) -> Command:
        match command["command"]:
            case "listen":
                transport = await open_udp(lambda: self._deaf, LOOPBACK, 0)
                return {"port": transport.get_extra_info("sockname")[1]}
            case "flood":
                given = (command["port"], command["rate"], command["seconds"], command["seed"])
                return await asyncio.to_thread(flood, *given)
            case "costs":
                return {**costs(), "heard": self._deaf.heard}
        raise RuntimeError(f"unknown command {command}")


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    asyncio.run(obey(FloodWorker().answer))
