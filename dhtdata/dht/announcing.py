"""Announcing: our records on the nodes nearest to their keys, with our addresses along, once per holder."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from dhtdata.dht.asking import Asker
from dhtdata.dht.holdings import PEER_LIFETIME_S, Holdings, check_lifetime, keys_of
from dhtdata.dht.messages import check_reachable, parcels
from dhtdata.dht.routing import BUCKET_SIZE, Contact, number
from dhtdata.dht.sweep import Sweep
from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.addresses import MAX_ADDRESSES, Address, AddressWire
from dhtdata.formats.records import MAX_SHARD_KEYS, SHARD_LIFETIME_S, PeerRecord, ShardClaims, Signed, sign
from dhtdata.signing import SigningKey

PARALLEL_STORES = 8
PEER_RENEWAL_S = 3_600


class Announcer:
    """The announcing side of a node. We hold records ourselves where we are among the nearest."""

    def __init__(self, key: SigningKey, asker: Asker, holdings: Holdings, now_s: Callable[[], float]) -> None:
        self._key = key
        self._asker = asker
        self._holdings = holdings
        self._now_s = now_s
        # Stands for ourselves among contacts; nothing is ever sent to its address.
        self._own = Contact(asker.id, Address("127.0.0.1", 1))
        self._addresses: tuple[AddressWire, ...] = ()
        self._peer: Signed | None = None
        self._peer_sequence = 0
        self._peer_signed_s = 0

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """ConfigError if others cannot reach one of them, or they are too many."""
        if len(addresses) > MAX_ADDRESSES:
            raise ConfigError(f"{len(addresses)} own addresses, at most {MAX_ADDRESSES} can be announced")
        wires = tuple(map(AddressWire.of, addresses))
        for address, wire in zip(addresses, wires, strict=True):
            try:
                check_reachable(wire)
            except FormatError as failure:
                raise ConfigError(f"others cannot reach us at {address}: name an address of this machine") from failure
        self._addresses = wires
        self._peer = None

    async def announce(self, key: bytes, records: Sequence[Signed]) -> int:
        """Put records of one key on the nearest nodes: how many others keep them all now.

        FormatError if a record belongs under another key, or has expired or lives longer than its kind may.
        """
        if any(key not in keys_of(record) for record in records):
            raise FormatError(f"a record does not belong under the key {key.hex()}")
        for record in records:
            check_lifetime(record.record, self._now_s())
        near = await self._asker.nearest(key)
        holders = sorted([*near.contacts, self._own], key=lambda each: each.long_id ^ number(key))[:BUCKET_SIZE]
        ours = any(record.signer == self._key.public for record in records)
        datas = [*(self._introduction() if ours else ()), *(record.data for record in records)]
        return sum(await self._store_all([(holder, datas) for holder in holders]))

    async def announce_shards(self, keys: Sequence[bytes], randomness: random.Random) -> int:
        """One sweep over the keys: how many of them other nodes hold now."""
        now = int(self._now_s())
        introduced: set[bytes] = set()
        held: set[bytes] = set()
        async for assignment in Sweep(self._asker.nearest, self._own, randomness).assignments(keys):
            work: list[tuple[Contact, list[bytes]]] = []
            parts: list[list[bytes]] = []
            for holder, mine in assignment.items():
                first = [] if holder.id in introduced else self._introduction()
                introduced.add(holder.id)
                for start in range(0, len(mine), MAX_SHARD_KEYS):
                    parts.append(mine[start : start + MAX_SHARD_KEYS])
                    claims = ShardClaims(keys=b"".join(parts[-1]), sequence=now, expires=now + SHARD_LIFETIME_S)
                    work.append((holder, [*first, sign(claims, self._key).data]))
                    first = []
            for part, kept in zip(parts, await self._store_all(work), strict=True):
                held.update(part if kept else ())
        return len(held)

    def _introduction(self) -> list[bytes]:
        """Our PeerRecord, signed anew every hour; empty if we have no address."""
        now = int(self._now_s())
        if not self._addresses:
            return []
        if self._peer is None or not 0 <= now - self._peer_signed_s < PEER_RENEWAL_S:
            self._peer_sequence = max(now, self._peer_sequence + 1)
            self._peer_signed_s = now
            record = PeerRecord(addresses=self._addresses, sequence=self._peer_sequence, expires=now + PEER_LIFETIME_S)
            self._peer = sign(record, self._key)
        return [self._peer.data]

    async def _store_all(self, work: Sequence[tuple[Contact, Sequence[bytes]]]) -> list[bool]:
        """Put records on holders, 8 at once: for each piece of work whether another node keeps all of it now."""
        kept = [False] * len(work)
        waiting = iter(enumerate(work))

        async def carry() -> None:
            for position, (holder, records) in waiting:
                kept[position] = await self._store(holder, records)

        async with asyncio.TaskGroup() as carriers:
            for _ in range(min(PARALLEL_STORES, len(work))):
                carriers.create_task(carry())
        return kept

    async def _store(self, holder: Contact, records: Sequence[bytes]) -> bool:
        if holder.id == self._own.id:
            for record in records:
                self._holdings.keep(record)
            return False
        for parcel in parcels(records):
            if not await self._asker.store(holder, parcel):
                return False
        return True
