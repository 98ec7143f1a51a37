"""`DhtNode`: one participant of the DHT (interface; the parts follow)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dhtdata.formats.names import Name
from dhtdata.formats.records import Address, Signed
from dhtdata.signing import SigningKey


@dataclass(frozen=True, slots=True)
class Found:
    """A verified record and where its signer can be reached (empty if no holder knew)."""

    record: Signed
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A contact in the routing table: it answered us ``seen_s_ago`` seconds ago."""

    id: bytes
    address: Address
    seen_s_ago: float


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """For display."""

    id: bytes
    port: int
    client: bool
    contacts: int
    nodes_estimated: int
    records_held: int
    keys_held: int
    requests_answered: int
    datagrams_refused: int
    calls: int
    calls_unanswered: int
    round_trip_s: float


class DhtNode:
    """One node. Use `running`."""

    port: int
    id: bytes
    key: SigningKey

    @classmethod
    @asynccontextmanager
    async def running(
        cls, key: SigningKey, *, listen: str, port: int, client: bool, state_path: Path | None
    ) -> AsyncIterator[DhtNode]:
        """A node that listens until the block ends. ConfigError if the port is in use. Port 0 takes a free one."""
        raise NotImplementedError
        yield

    async def bootstrap(self, addresses: Sequence[Address]) -> int:
        """Join through nodes at these addresses: how many answered. They are asked again while we know nobody."""
        raise NotImplementedError

    async def announce(self, key: bytes, *records: Signed) -> int:
        """Put records of this key on the k nodes nearest to it: how many other nodes hold them now."""
        raise NotImplementedError

    async def announce_shards(self, keys: Sequence[bytes]) -> int:
        """Claim these shard keys, signed by the node's key: how many of the keys other nodes hold now."""
        raise NotImplementedError

    def find(self, key: bytes) -> AsyncIterator[Found]:
        """Verified, unexpired records under a key, as they arrive, until every near node was asked. Use `aclosing`."""
        raise NotImplementedError

    async def find_name(self, name: Name) -> Signed:
        """NameRecord of the highest rank found, whatever sequence was asked. NotFoundError says how many were asked."""
        raise NotImplementedError

    def nodes(self) -> list[KnownNode]:
        raise NotImplementedError

    def status(self) -> NodeStatus:
        raise NotImplementedError

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Where others reach us (1 to 8): goes along with every announcement. Without any, claims have no address."""
        raise NotImplementedError
