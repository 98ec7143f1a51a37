"""Records for tests of the DHT, and asking nodes about them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dhtdata.dht import DhtNode, Found
from dhtdata.digest import Digest
from dhtdata.formats.records import (
    PROVIDER_LIFETIME_S,
    Delegation,
    NameRecord,
    ProviderClaim,
    Signed,
    contents_key,
    shard_key,
    sign,
)
from dhtdata.signing import SigningKey
from tests.simulation.network import EPOCH_S

CONTENTS = Digest.of(b"contents")
KEY = contents_key(CONTENTS)


def now_s() -> int:
    """Unix time in the simulation, where nobody's clock was moved."""
    return int(EPOCH_S + asyncio.get_running_loop().time())


def claim(node: DhtNode, sequence: int = 1, contents: Digest = CONTENTS, at_s: int | None = None) -> Signed:
    """The node's claim to provide the contents, signed now (or at ``at_s``) for as long as a claim may live."""
    signed_s = now_s() if at_s is None else at_s
    record = ProviderClaim(contents=contents, seed=True, sequence=sequence, expires=signed_s + PROVIDER_LIFETIME_S)
    return sign(record, node.key)


def withdrawal(node: DhtNode, sequence: int) -> Signed:
    return sign(ProviderClaim(contents=CONTENTS, seed=True, sequence=sequence, expires=0), node.key)


def name_record(sequence: int, root: int = 1) -> Signed:
    publisher, release = SigningKey(bytes([root]) * 32), SigningKey(bytes([root + 1]) * 32)
    delegation = Delegation(root=publisher.public, number=1, release=release.public).signed(publisher)
    manifest = Digest.of(bytes([sequence]))
    record = NameRecord(
        delegation=delegation, name="set", sequence=sequence, manifest=manifest, fresh_until=now_s() + 1
    )
    return sign(record, release)


def shard_keys(label: str, count: int) -> list[bytes]:
    return [shard_key(Digest.of(f"{label} {number}".encode())) for number in range(count)]


async def found_by(node: DhtNode, key: bytes = KEY) -> list[Found]:
    """What a search finds: of every signer what it found last, which has all addresses."""
    return list({found.record.signer: found async for found in node.find(key)}.values())


async def signers_found_by(node: DhtNode, key: bytes = KEY) -> set[bytes]:
    return {found.record.signer for found in await found_by(node, key)}


def holding(nodes: Sequence[DhtNode], key: bytes = KEY) -> list[DhtNode]:
    """Those that have a record under the key. (Reaches into nodes: nobody can be asked that.)"""
    return [node for node in nodes if node._holdings.get(key) is not None]


def knows(node: DhtNode, other: DhtNode) -> bool:
    """Whether the other stands in the node's table."""
    return any(known.id == other.id for known in node.nodes())
