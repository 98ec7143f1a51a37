"""A socket that speaks the wire format by hand: what a stranger, an attacker or another implementation can send."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Self

from dhtdata.dht import envelope, messages
from dhtdata.dht.envelope import CALL_END, CHALLENGE, CODED, COOKIE_END, NO_COOKIE, REPLY, REQUEST, Letter
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import Ping, Reply, Request
from dhtdata.formats.addresses import Address
from dhtdata.network import Network
from dhtdata.signing import SigningKey

PATIENCE_S = 5.0

Heard = tuple[bytes, tuple[Any, ...]]


class Speaker(asyncio.DatagramProtocol):
    """``heard`` are all datagrams that arrived, with their senders. Works on real and on simulated sockets."""

    def __init__(self, network: Network, identity: Identity, client: bool) -> None:
        self.network = network
        self.identity = identity
        self.client = client
        self.heard: list[Heard] = []
        self.calls = 0
        self._news = asyncio.Event()
        self._transport: Any = None

    @classmethod
    async def open(
        cls, ip: str, port: int = 0, *, network: Network | None = None, number: int = 99, client: bool = True
    ) -> Self:
        identity = Identity.proven(SigningKey(bytes([number]) * 32), 0)
        loop = asyncio.get_running_loop()
        _, speaker = await loop.create_datagram_endpoint(
            lambda: cls(network or Network(), identity, client), local_addr=(ip, port)
        )
        return speaker

    @property
    def address(self) -> Address:
        return Address(*self._transport.get_extra_info("sockname")[:2])

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard.append((data, addr))
        self._news.set()

    def send(self, datagram: bytes, to: Address) -> None:
        self._transport.sendto(datagram, (to.ip, to.port))

    def request(self, message: Request, cookie: bytes = NO_COOKIE, to: bytes = b"") -> bytes:
        """A sealed request, to the node of this identifier if one is given; the number of the call is the next one."""
        self.calls += 1
        call = self.calls.to_bytes(envelope.CALL_BYTES, "big")
        letter = Letter(REQUEST, call, cookie, self.client, messages.encode(message), to)
        return envelope.seal(self.network, self.identity, letter)

    def reply(self, to: bytes, message: Reply, identity: Identity | None = None, asker: bytes = b"") -> bytes:
        """A sealed reply to a datagram, by default to whoever signed it."""
        asker = asker or envelope.unseal(to, self.identity.id)[2]
        letter = Letter(REPLY, to[CODED:CALL_END], bytes(8), self.client, messages.encode(message), asker)
        return envelope.seal(self.network, identity or self.identity, letter)

    async def next(self, after: int = 0, kinds: Collection[int] = range(256)) -> Heard:
        """The first datagram of one of these kinds after this many others. TimeoutError if none comes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for heard in self.heard[after:]:
                    if heard[0][1] in kinds:
                        return heard
                self._news.clear()
                await self._news.wait()

    async def cookie(self, of: Address) -> bytes:
        """The cookie that somebody gives us."""
        count = len(self.heard)
        self.send(self.request(Ping()), of)
        data, _ = await self.next(count, (CHALLENGE,))
        return data[CALL_END:COOKIE_END]

    async def ask(self, of: Address, message: Request, cookie: bytes | None = None) -> Reply:
        """The reply to a request of ours."""
        proof = await self.cookie(of) if cookie is None else cookie
        count = len(self.heard)
        self.send(self.request(message, proof), of)
        data, _ = await self.next(count, (REPLY,))
        letter, _, _ = envelope.unseal(data, self.identity.id)
        return messages.decode_reply(letter.body)
