"""Announcing: our records on the nodes that should hold them, with our address along.

Claims to contents and names go all over the region of their key (`region`), shard claims, of which there are many, to
the nodes nearest to their keys (`sweep`). Every holder gets a PeerRecord with the address at which *it* sees us,
because it keeps no other: the IP that it told us in its last reply, and the port that we serve on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

from dhtdata.dht.asking import Asker
from dhtdata.dht.cookies import Acquaintances
from dhtdata.dht.holdings import PEER_LIFETIME_S, Holdings, check_lifetime, keys_of
from dhtdata.dht.identity import Identity
from dhtdata.dht.messages import parcels
from dhtdata.dht.routing import Contact
from dhtdata.dht.sweep import Sweep
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.records import MAX_SHARD_KEYS, SHARD_LIFETIME_S, PeerRecord, ShardClaims, Signed, sign

PARALLEL_STORES = 8
PEER_RENEWAL_S = 3_600
MAX_OWN_IPS = 16
MAX_FAILURES = 3


class Introductions:
    """Our PeerRecords, one for each IP at which others see us, signed anew every hour."""

    def __init__(self, identity: Identity, port: int, now_s: Callable[[], float]) -> None:
        self._identity = identity
        self.port = port
        self._now_s = now_s
        self._signed: dict[bytes, tuple[int, Signed]] = {}
        self._times: Counter[bytes] = Counter()
        self._sequence = 0

    def seen_at(self, ip: bytes) -> bytes:
        """The record for this IP of ours."""
        now = int(self._now_s())
        signed_s, signed = self._signed.get(ip, (0, None))
        if signed is None or not 0 <= now - signed_s < PEER_RENEWAL_S:
            wire = AddressWire(ip=ip, port=self.port)
            # Never lower than before, also when the clock was set back.
            self._sequence = max(now, self._sequence + 1)
            record = PeerRecord(addresses=(wire,), sequence=self._sequence, expires=now + PEER_LIFETIME_S)
            signed = sign(record, self._identity.key)
            if ip not in self._signed and len(self._signed) >= MAX_OWN_IPS:
                # Somebody tells us new addresses all the time.
                oldest = next(iter(self._signed))
                del self._signed[oldest], self._times[oldest]
            self._signed[ip] = (now, signed)
            self._times[ip] = 0
        self._times[ip] += 1
        return signed.data

    def ours(self) -> list[bytes]:
        """What we keep ourselves: of each family the record for the IP that most holders saw, so no liar's."""
        now = int(self._now_s())
        recent = {
            ip: signed.data for ip, (signed_s, signed) in self._signed.items() if 0 <= now - signed_s < PEER_RENEWAL_S
        }
        families = {len(ip): ip for ip in sorted(recent, key=self._times.__getitem__)}
        return [recent[ip] for ip in families.values()]

    def __len__(self) -> int:
        return len(self._signed)

    def addresses(self) -> list[Address]:
        """Where others see us."""
        return [AddressWire(ip=ip, port=self.port).address() for ip in self._signed]


class Announcer:
    """The announcing side of one socket. We hold records ourselves where we are among those who should."""

    def __init__(
        self,
        introductions: Introductions,
        identity: Identity,
        asker: Asker,
        acquaintances: Acquaintances,
        holdings: Holdings,
        now_s: Callable[[], float],
    ) -> None:
        self._introductions = introductions
        self._identity = identity
        self._asker = asker
        self._acquaintances = acquaintances
        self._holdings = holdings
        self._now_s = now_s
        # Stands for ourselves among contacts; nothing is ever sent to its address.
        self._own = Contact(asker.id, Address("127.0.0.1", 1))

    async def announce(self, key: bytes, records: Sequence[Signed]) -> int:
        """Put records of one key all over its region: how many others keep them all now.

        FormatError if a record belongs under another key, or has expired or lives longer than its kind may.
        """
        if any(key not in keys_of(record) for record in records):
            raise FormatError(f"a record does not belong under the key {key.hex()}")
        for record in records:
            check_lifetime(record.record, self._now_s())
        holders = [*await self._asker.region(key), self._own]
        ours = any(record.signer == self._identity.key.public for record in records)
        datas = [record.data for record in records]
        return sum(await self._store_all([(holder, ours, datas) for holder in holders]))

    async def announce_shards(self, keys: Sequence[bytes], randomness: random.Random) -> set[bytes]:
        """One sweep over the keys: those of them that other nodes hold now."""
        now = int(self._now_s())
        introduced: set[bytes] = set()
        failures: Counter[bytes] = Counter()
        held: set[bytes] = set()
        async for assignment in Sweep(self._asker.nearest, self._own, randomness).assignments(keys):
            work: list[tuple[Contact, bool, list[bytes]]] = []
            parts: list[list[bytes]] = []
            for holder, mine in assignment.items():
                if failures[holder.id] >= MAX_FAILURES:
                    continue
                for start in range(0, len(mine), MAX_SHARD_KEYS):
                    parts.append(mine[start : start + MAX_SHARD_KEYS])
                    claims = ShardClaims(keys=b"".join(parts[-1]), sequence=now, expires=now + SHARD_LIFETIME_S)
                    signed = sign(claims, self._identity.key)
                    work.append((holder, holder.id not in introduced, [signed.data]))
                    introduced.add(holder.id)
            for part, (holder, *_), kept in zip(parts, work, await self._store_all(work), strict=True):
                held.update(part if kept else ())
                # Whoever never keeps what it is given costs two time-outs each time.
                failures[holder.id] = 0 if kept or holder.id == self._own.id else failures[holder.id] + 1
        return held

    async def _store_all(self, work: Sequence[tuple[Contact, bool, Sequence[bytes]]]) -> list[bool]:
        """Put records on holders, 8 at once: for each piece of work whether another node keeps all of it now."""
        kept = [False] * len(work)
        waiting = iter(enumerate(work))

        async def carry() -> None:
            for position, (holder, introduce, records) in waiting:
                kept[position] = await self._store(holder, introduce, records)

        async with asyncio.TaskGroup() as carriers:
            for _ in range(min(PARALLEL_STORES, len(work))):
                carriers.create_task(carry())
        return kept

    async def _store(self, holder: Contact, introduce: bool, records: Sequence[bytes]) -> bool:
        if holder.id == self._own.id:
            for record in [*self._introductions.ours(), *records] if introduce else records:
                self._holdings.keep(record)
            return False
        seen_at = self._acquaintances.saw_us_at(holder.address) if introduce else b""
        introduction = (self._introductions.seen_at(seen_at),) if seen_at else ()
        for parcel in parcels([*introduction, *records]):
            if not await self._asker.store(holder, parcel):
                return False
        return True
