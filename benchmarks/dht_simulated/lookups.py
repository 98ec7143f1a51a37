"""Providers that announce and nodes that look them up: what most questions do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from dhtdata.dht import DhtNode
from dhtdata.digest import Digest
from dhtdata.formats.records import PROVIDER_LIFETIME_S, ProviderClaim, contents_key, sign
from tests.simulation.network import EPOCH_S
from tests.simulation.swarm import Swarm

NEVER_S = 60.0
"""Counts as the time of a look-up that found nobody: the longest that one may take."""
NEARBY = 60
_AT_ONCE = 20


@dataclass(frozen=True)
class Published:
    """Contents, their key and the one node that provides them."""

    contents: Digest
    key: bytes
    publisher: DhtNode


@dataclass(frozen=True)
class Lookup:
    """``first_s``: seconds until the provider was found with an address, `NEVER_S` if it was not. ``calls``: remote
    calls that the searching node made meanwhile."""

    found: bool
    first_s: float
    calls: int


def contents(label: str) -> Digest:
    return Digest.of(label.encode())


async def announce(network: Swarm, published: Published) -> int:
    """Announce, or renew: how many nodes hold the claim."""
    now = int(EPOCH_S + network.loop.time())
    claim = ProviderClaim(contents=published.contents, seed=True, sequence=now, expires=now + PROVIDER_LIFETIME_S)
    return await published.publisher.announce(published.key, sign(claim, published.publisher.key))


async def publish(network: Swarm, count: int, label: str = "contents") -> list[Published]:
    """Different contents, each announced by a random node that serves others. RuntimeError if one reaches nobody."""
    serving = [node for node in network.living() if node.status().reached]
    publishers = [network.randomness.choice(serving) for _ in range(count)]
    made = []
    for position, publisher in enumerate(publishers):
        digest = contents(f"{label} {position}")
        made.append(Published(digest, contents_key(digest), publisher))
    for start in range(0, count, _AT_ONCE):
        part = made[start : start + _AT_ONCE]
        held = await asyncio.gather(*(announce(network, each) for each in part))
        if not all(held):
            raise RuntimeError(f"{held.count(0)} of {len(held)} claims reached nobody")
    return made


async def look_up(network: Swarm, searcher: DhtNode, published: Published, whole: bool = False) -> Lookup:
    """Search until the provider and its address are found; ``whole``: on until every near node was asked."""
    started_s, calls = network.loop.time(), searcher.status().calls
    first_s: float | None = None
    async with aclosing(searcher.find(published.key)) as finding:
        async for found in finding:
            if found.record.signer == published.publisher.key.public and found.addresses and first_s is None:
                first_s = network.loop.time() - started_s
                if not whole:
                    break
    found_it = first_s is not None
    return Lookup(found_it, NEVER_S if first_s is None else first_s, searcher.status().calls - calls)


def nearby(network: Swarm, key: bytes) -> set[DhtNode]:
    """The nodes that may hold a record, and would find it with no call at all: the nearest 60.

    In a small network, where all nodes may, the nearest third.
    """
    return set(network.nearest(key, min(NEARBY, len(network.living()) // 3)))


async def look_up_many(
    network: Swarm,
    published: Sequence[Published],
    count: int,
    within_s: float,
    *,
    whole: bool = False,
    among: Sequence[DhtNode] | None = None,
) -> list[Lookup]:
    """Look-ups by random living nodes (or those ``among``) that cannot hold the record, begun at random moments."""
    moment = network.loop.time()
    living = list(among or network.living())
    near = {each.key: nearby(network, each.key) for each in published}

    async def one() -> Lookup:
        wanted = network.randomness.choice(published)
        start_s = moment + network.randomness.random() * within_s
        while True:
            searcher = network.randomness.choice(living)
            if searcher is not wanted.publisher and searcher not in near[wanted.key]:
                break
        await asyncio.sleep(start_s - network.loop.time())
        return await look_up(network, searcher, wanted, whole)

    return list(await asyncio.gather(*(one() for _ in range(count))))


def share_found(lookups: Sequence[Lookup]) -> float:
    return sum(each.found for each in lookups) / len(lookups)
