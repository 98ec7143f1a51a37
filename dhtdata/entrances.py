"""Who answers at addresses that the user named: over HTTP and, as a node of the DHT, over UDP. For `doctor`.

All are asked at once, each for at most `ANSWER_S`. The node that asks lives no longer than that: it is a client with a
key and a port of its own, so nobody remembers it.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dhtdata.dht import DhtNode
from dhtdata.errors import ConfigError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.network import Network
from dhtdata.signing import SigningKey
from dhtdata.transfer.membership import member_headers

ANSWER_S = 2.0
AT_ONCE = 32
SILENCE = "does not answer"
SERVER = "dhtdata"
"""How the HTTP server of a peer calls itself."""
_HEALTH = "/healthz"
_LOOPBACK = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}


@dataclass(frozen=True)
class Entrance:
    """An address to enter by, and what it said. ``http`` and ``udp``: why it did not answer well, empty if it did.

    ``node``: identifier of the node there, in hexadecimal, empty if none answered. ``ahead_s``: how far our clock is
    ahead of its own (None if it sent no time).
    """

    address: Address
    http: str
    udp: str
    node: str
    ahead_s: float | None

    @property
    def trouble(self) -> str:
        """What is wrong with it and what that may mean, in words that follow the address; empty if nothing is."""
        if not self.http and not self.udp:
            return ""
        if not self.http:
            why = (
                "not over UDP: a firewall blocks UDP, or it is in another network"
                if self.udp == SILENCE
                else f"as a DHT node it {self.udp}"
            )
            return f"answers over HTTP, but {why}"
        if not self.udp:
            return f"is a node of the DHT, but not over HTTP ({self.http}): nothing can be fetched from it"
        return self.udp if self.udp != SILENCE else SILENCE


def try_all(addresses: Sequence[Address], network: Network, listen: str) -> list[Entrance]:
    """Ask everybody, from a socket that listens on ``listen``. Blocks for about `ANSWER_S`."""
    if not addresses:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(addresses))) as threads:
        answers = [threads.submit(_get, address, network) for address in addresses]
        nodes = asyncio.run(_ping_all(addresses, network, listen))
        told = [answer.result() for answer in answers]
    return [
        Entrance(address, reason, *nodes[address], ahead_s)
        for address, (reason, ahead_s) in zip(addresses, told, strict=True)
    ]


def seed_answers(listen: str, port: int) -> bool:
    """Whether a seed of this machine answers on a port, whatever its network. Blocks for `ANSWER_S`, or twice that."""
    return any(_is_peer(ip, port) for ip in _LOOPBACK.get(listen, (listen,)))


def _is_peer(ip: str, port: int) -> bool:
    connection = http.client.HTTPConnection(ip, port, timeout=ANSWER_S)
    try:
        connection.request("GET", _HEALTH)
        return connection.getresponse().getheader("Server") == SERVER
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def in_use_by_seed(port: int) -> str:
    """What to say, and do, where one answers."""
    return (
        f"TCP and UDP port {port} are in use by another dhtdata seed, of another store or user: "
        "end it with dhtdata stop --store DIR, or choose another port (--port)"
    )


async def _ping_all(addresses: Iterable[Address], network: Network, listen: str) -> dict[Address, tuple[str, str]]:
    """Why no node answered (empty if one did), and its identifier."""
    found: dict[Address, tuple[str, str]] = {}
    slots = asyncio.Semaphore(AT_ONCE)

    async def ping(node: DhtNode, address: Address) -> None:
        try:
            async with slots, asyncio.timeout(ANSWER_S):
                contact, _, _ = await node.ping(address)
        except TimeoutError:
            found[address] = (SILENCE, "")
        except PeerError as failure:
            silent = isinstance(failure.__cause__, TimeoutError)
            found[address] = (SILENCE if silent else str(failure).removeprefix(str(address)).strip(), "")
        else:
            found[address] = ("", contact.id.hex())

    try:
        async with DhtNode.running(
            SigningKey.generate(), listen=listen, port=0, client=True, folder=None, network=network
        ) as node:
            async with asyncio.TaskGroup() as pings:
                for address in dict.fromkeys(addresses):
                    pings.create_task(ping(node, address))
    except ConfigError as failure:
        return dict.fromkeys(addresses, (f"cannot be asked: {failure}", ""))
    return found


def _get(address: Address, network: Network) -> tuple[str, float | None]:
    """Why it did not answer over HTTP (empty if it did), and how far our clock is ahead of its own."""
    begun = time.time()
    headers = member_headers(network, address, _HEALTH, begun)
    connection = http.client.HTTPConnection(address.ip, address.port, timeout=ANSWER_S)
    try:
        connection.request("GET", _HEALTH, headers=headers)
        answer = connection.getresponse()
        answer.read(1_024)
    except (OSError, http.client.HTTPException) as failure:
        return getattr(failure, "strerror", None) or str(failure) or type(failure).__name__, None
    finally:
        connection.close()
    told = answer.getheader("Date")
    try:
        there = email.utils.parsedate_to_datetime(told).timestamp() if told else None
    except ValueError:
        there = None
    ahead_s = None if there is None else (begun + time.time()) / 2 - there
    return "" if answer.status == 200 else f"status {answer.status}", ahead_s
