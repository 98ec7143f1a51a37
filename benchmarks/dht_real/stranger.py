"""Does a stranger learn anything from a private network, or get into it?

A stranger, who has no secret, sends every kind of datagram to a member: those of the public network and of another
private one, whole and with good signatures, bare headers, replies and challenges to nothing, garbage, in all 60,000
(quick: 6,000); nodes of the public and of another private network try to join through it. Then the same over HTTP, but
for the pages that a peer shows to people of its own machine. Not one byte may come back, and nobody may enter the
member's table; a member who does the same is answered.

A figure without a bar: bytes that come back for each byte if a stranger repeats, from an address of its own, what it
has overheard of a member. The code is right there, so it is answered with a challenge; over HTTP the very same request
is answered as long as its clock is (`dhtdata.transfer.membership`).
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_real.outsider import Outsider, every_request, heard_out, outsider
from benchmarks.dht_real.swarm import LOOPBACK, OPEN, address, running
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.dht.envelope import CALL_END, KNOCK, MAX_DATAGRAM_BYTES, NO_COOKIE, VERSION, knock
from dhtdata.dht.messages import Ping
from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.network import CODE_BYTES, new_network
from dhtdata.store import Store
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.membership import member_headers
from dhtdata.transfer.server import BlobServer

AT_ONCE = 100
HTTP_S = 5.0


def datagrams(stranger: Outsider, count: int) -> Iterator[bytes]:
    """Everything that a stranger can make."""
    randomness, other = stranger.randomness, new_network()
    while True:
        for request in every_request(randomness).values():
            for network in (OPEN, other):
                cookie = randomness.choice((NO_COOKIE, randomness.randbytes(len(NO_COOKIE))))
                whole = stranger.sealed(request, cookie, network)
                yield whole
                yield whole[:1] + bytes((randomness.randrange(256),)) + whole[2:]
                yield whole[:2] + bytes(CODE_BYTES) + whole[2 + CODE_BYTES :]
                count -= 3
        for version in (VERSION - 1, VERSION, VERSION + 1):
            for kind in range(KNOCK + 2):
                yield bytes((version, kind)) + randomness.randbytes(randomness.choice((CALL_END - 2, 32, 300)))
                yield bytes((version, kind)) + OPEN.code() + randomness.randbytes(40)
                count -= 2
        yield knock(OPEN, randomness.randbytes(8))
        yield knock(other, randomness.randbytes(8))
        count -= 2
        yield randomness.randbytes(randomness.randrange(MAX_DATAGRAM_BYTES + 200))
        count -= 1
        if count <= 0:
            return


async def over_udp(count: int, seed: int) -> dict[str, float]:
    randomness = random.Random(seed)
    secret = new_network()
    async with (
        running(randomness, network=secret) as member,
        running(randomness, network=secret) as friend,
        running(randomness) as public_node,
        running(randomness, network=new_network()) as other_node,
        outsider(randomness) as stranger,
        outsider(randomness) as overhearing,
    ):
        await friend.bootstrap([address(member)])
        for position, datagram in enumerate(datagrams(stranger, count)):
            stranger.send(datagram, (LOOPBACK, member.port))
            if position % AT_ONCE == 0:
                await heard_out(member, friend)  # or the socket's buffer would overflow
        joined = await public_node.bootstrap([address(member)]) + await other_node.bootstrap([address(member)])
        await heard_out(member, friend)
        answered = sum(map(len, stranger.heard)) + joined
        learnt = len({known.id for known in member.nodes()} - {friend.id})
        learnt += len(public_node.nodes()) + len(other_node.nodes())
        if member.status().strangers < 0.8 * count:
            raise RuntimeError(f"only {member.status().strangers} of {count} datagrams arrived as a stranger's")
        async with outsider(randomness) as insider:
            await insider.cookie(member, friend, secret)  # else silence would prove nothing
            overheard = insider.sealed(Ping(), network=secret)
        overhearing.send(overheard, (LOOPBACK, member.port))
        await heard_out(member, friend)
        repeated = sum(map(len, overhearing.heard)) / len(overheard)
        return {"answered": answered, "learnt": learnt, "sent": count, "repeated": repeated}


def http(path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


async def over_http(folder: Path, seed: int) -> float:
    """Bytes that come back to a stranger. RuntimeError if a member gets none either."""
    secret, randomness = new_network(), random.Random(seed)
    store = await asyncio.to_thread(Store.open, folder)
    try:
        async with BlobServer(Holdings(store), secret).running(LOOPBACK, 0) as port:
            at, path = Address(LOOPBACK, port), f"/v1/blobs/{Digest.of(b'nothing')}"
            tries = [
                http(path, {"Host": str(at)}),
                http("/v1/have/x", {"Host": str(at)}),
                http(path, member_headers(new_network(), at, path, time.time())),
                http("/metrics", member_headers(secret, at, path, time.time())),
                http(path, member_headers(secret, at, path, time.time() - 86_400)),
                b"hello\r\n\r\n",
                *(randomness.randbytes(400) + b"\r\n\r\n" for _ in range(20)),
            ]
            answered = sum([len(await everything_back(at, each)) for each in tries])
            member = http(path, member_headers(secret, at, path, time.time()) | {"Connection": "close"})
            if not await everything_back(at, member):
                raise RuntimeError("a member is not answered: silence proves nothing")
            return answered
    finally:
        store.close()


async def everything_back(at: Address, sent: bytes) -> bytes:
    """All that a server sends until it closes the connection, or for 5 s."""
    reader, writer = await asyncio.open_connection(at.ip, at.port)
    back = bytearray()
    try:
        async with asyncio.timeout(HTTP_S):
            writer.write(sent)
            while piece := await reader.read(4_096):
                back += piece
    except (OSError, TimeoutError):
        pass  # cut off, or silence: what came until then counts
    finally:
        writer.close()
    return bytes(back)


def measure(quick: bool, seed: int) -> Result:
    figures = asyncio.run(over_udp(6_000 if quick else 60_000, seed))
    with tempfile.TemporaryDirectory() as folder:
        by_http = asyncio.run(over_http(Path(folder) / "store", seed))
    return Result(
        figures={
            "stranger_datagrams": figures["sent"],
            "stranger_overheard_bytes_out_per_byte_in": figures["repeated"],
        },
        checks=[
            Check("stranger_bytes_answered", figures["answered"], "==", 0),
            Check("stranger_http_bytes_answered", by_http, "==", 0),
            Check("stranger_contacts_learnt", figures["learnt"], "==", 0),
        ],
    )


if __name__ == "__main__":
    alone(measure)
