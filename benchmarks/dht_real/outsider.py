"""Somebody on the other side of a socket who speaks the protocol by hand, well or badly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.dht_real.swarm import LOOPBACK, OPEN, address
from dhtdata.dht import DhtNode, messages
from dhtdata.dht.endpoint import open_udp
from dhtdata.dht.envelope import CALL_BYTES, CALL_END, COOKIE_END, NO_COOKIE, REQUEST, Letter, seal
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import FindNode, FindRecords, Introduce, Meet, Ping, Request, Store
from dhtdata.network import Network
from dhtdata.signing import SigningKey


class Outsider(asyncio.DatagramProtocol):
    """A socket that keeps what it hears. ``identity`` signs; no node runs here."""

    def __init__(self, randomness: random.Random) -> None:
        self.randomness = randomness
        self.identity = Identity.client(SigningKey(randomness.randbytes(32)))
        self.heard: list[bytes] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard.append(data)

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self._transport.sendto(data, to)

    def sealed(self, request: Request, cookie: bytes = NO_COOKIE, network: Network = OPEN) -> bytes:
        """A datagram that is right in every respect but perhaps its cookie and network."""
        call = self.randomness.randbytes(CALL_BYTES)
        return seal(network, self.identity, Letter(REQUEST, call, cookie, False, messages.encode(request)))

    async def cookie(self, of: DhtNode, friend: DhtNode, network: Network = OPEN) -> bytes:
        """A cookie that the node takes from our address. RuntimeError if it gives none."""
        self.heard.clear()
        self.send(self.sealed(Ping(), network=network), (LOOPBACK, of.port))
        await heard_out(of, friend)
        if not self.heard:
            raise RuntimeError("no cookie was given")
        return self.heard.pop()[CALL_END:COOKIE_END]


@asynccontextmanager
async def outsider(randomness: random.Random, ip: str = LOOPBACK) -> AsyncIterator[Outsider]:
    made = Outsider(randomness)
    transport = await open_udp(lambda: made, ip, 0)
    try:
        yield made
    finally:
        transport.close()


async def heard_out(node: DhtNode, friend: DhtNode) -> None:
    """Wait until the node has read everything that was sent to it so far, and its answers have arrived.

    Sockets keep the order: a call of a friend is answered after what was sent before it.
    """
    for _ in range(2):
        await friend.ping(address(node))


def every_request(randomness: random.Random, records: Sequence[bytes] = ()) -> dict[str, Request]:
    """One of each kind, small: what answers most for the bytes that it costs."""
    key = randomness.randbytes(20)
    return {
        "ping": Ping(),
        "find_node": FindNode(target=key),
        "find_records": FindRecords(key=key, target=key, after=0, contacts=True),
        "store": Store(records=tuple(records)),
        "introduce": Introduce(),
        "meet": Meet(ip=bytes((127, 0, 0, 1)), port=40_000),
    }
