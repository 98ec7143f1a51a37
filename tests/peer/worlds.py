"""Datasets without Arrow: valid in every format, with random bytes where rows would be. Peers know only blobs."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, encode_ranges
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import Delegation, NameRecord, Signed, sign
from dhtdata.formats.schema import Field
from dhtdata.formats.statistics import SplitStatistics, Statistics
from dhtdata.signing import SigningKey
from dhtdata.store import Store

DAY_S = 86_400


@dataclass(frozen=True)
class Shard:
    body: bytes
    table: BlockTable

    @property
    def digest(self) -> Digest:
        return Digest.of(self.body)

    @property
    def table_digest(self) -> Digest:
        return Digest.of(self.table.encode())


@dataclass(frozen=True)
class World:
    """A dataset and its parts, not yet in any store."""

    manifest: Digest
    contents: Digest
    shards: tuple[Shard, ...]
    small: tuple[bytes, ...]

    def publish(self, store: Store, *, pin: bool = True) -> None:
        """All blobs into a store, listed and pinned."""
        self.publish_small(store)
        for shard in self.shards:
            store.put(shard.body)
        store.add_manifest(self.manifest)
        if pin:
            store.pin(self.manifest)

    def publish_small(self, store: Store) -> None:
        """Everything but the shards."""
        for blob in self.small:
            store.put(blob)

    def held_by(self, store: Store) -> bool:
        """Whether a store has every byte."""
        small = all(store.has(Digest.of(blob)) for blob in self.small)
        return small and all(
            store.has(shard.digest) and store.read(shard.digest, limit_bytes=len(shard.body)) == shard.body
            for shard in self.shards
        )


def make_shard(chance: random.Random, blocks: int = 8, block_bytes: int = 40_000) -> Shard:
    bodies = [chance.randbytes(64), *(chance.randbytes(block_bytes) for _ in range(blocks)), chance.randbytes(192)]
    rows = [0, *([10] * blocks), 0]
    table = BlockTable.build([(len(body), count, Digest.of(body)) for body, count in zip(bodies, rows, strict=True)])
    return Shard(b"".join(bodies), table)


def make_world(
    seed: int = 0, *, shards: int = 3, blocks: int = 8, block_bytes: int = 40_000, name: str = "world"
) -> World:
    chance = random.Random(seed)
    made = tuple(make_shard(chance, blocks, block_bytes) for _ in range(shards))
    return world_of(made, name=name)


def world_of(shards: tuple[Shard, ...], *, name: str = "world") -> World:
    """The dataset that consists of these shards."""
    index = Index.build(
        [ShardEntry(shard.digest, shard.table_digest, shard.table.row_count, len(shard.body)) for shard in shards]
    ).encode()
    rows = sum(shard.table.row_count for shard in shards)
    ranges = encode_ranges([rows])
    contents = Contents(
        version=1,
        cutting=1,
        columns=(Field(name="value", type="int64"),),
        groups=(Group(columns=("value",)),),
        splits=(
            Split(
                name="train",
                rows=rows,
                ranges=Digest.of(ranges),
                groups=(
                    GroupShards(
                        indexes=(Digest.of(index),), shards=len(shards), bytes=sum(len(s.body) for s in shards)
                    ),
                ),
            ),
        ),
    ).encode()
    statistics = Statistics(
        version=1, splits=(SplitStatistics(name="train", rows=rows, sampled=0, columns=(), shards=((),)),)
    ).encode()
    manifest = Manifest(version=1, name=name, contents=Digest.of(contents), statistics=Digest.of(statistics)).encode()
    tables = [shard.table.encode() for shard in shards]
    small = (*tables, index, ranges, statistics, contents, manifest)
    return World(Digest.of(manifest), Digest.of(contents), shards, small)


@dataclass(frozen=True)
class Publisher:
    """Keys of somebody who names datasets."""

    root: SigningKey
    release: SigningKey

    @classmethod
    def fresh(cls) -> Publisher:
        return cls(SigningKey.generate(), SigningKey.generate())

    def name(self, text: str = "world", sequence: int | None = None) -> Name:
        return Name(self.root.public, text, sequence)

    def sign(self, world: World, sequence: int = 1, *, fresh_s: int = 30 * DAY_S, text: str = "world") -> Signed:
        delegation = Delegation(root=self.root.public, number=1, release=self.release.public).signed(self.root)
        record = NameRecord(
            delegation=delegation,
            name=text,
            sequence=sequence,
            manifest=world.manifest,
            fresh_until=int(time.time()) + fresh_s,
        )
        return sign(record, self.release)
