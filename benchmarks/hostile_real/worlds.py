"""Datasets without Arrow: valid in every format, with random bytes where rows would be. Peers know only blobs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, encode_ranges
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.schema import Field
from dhtdata.formats.statistics import SplitStatistics, Statistics
from dhtdata.store import Store

ROWS_A_BLOCK = 10
HEAD_BYTES = 64
FOOTER_BYTES = 192


@dataclass(frozen=True)
class Shape:
    """How large a dataset is. A shard has a head and a footer besides its blocks."""

    shards: int
    blocks: int
    block_bytes: int

    @property
    def bytes(self) -> int:
        return self.shards * (HEAD_BYTES + self.blocks * self.block_bytes + FOOTER_BYTES)


@dataclass(frozen=True)
class MadeShard:
    """``seed`` makes its bytes again: datasets of a benchmark are larger than what should lie in memory."""

    seed: str
    shape: Shape
    digest: Digest
    table: BlockTable

    def body(self) -> bytes:
        return b"".join(_bodies(self.seed, self.shape))


@dataclass(frozen=True)
class World:
    """A dataset and its parts, not yet in any store. ``small`` are all blobs but the shards."""

    manifest: Digest
    contents: Digest
    shards: tuple[MadeShard, ...]
    small: tuple[bytes, ...]
    small_by_digest: dict[str, bytes] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.table.shard_bytes for shard in self.shards)

    @property
    def blocks(self) -> int:
        return sum(len(shard.table.blocks) for shard in self.shards)

    def publish(self, store: Store) -> None:
        """All blobs into a store, listed and pinned."""
        for blob in self.small:
            store.put(blob)
        for shard in self.shards:
            store.put(shard.body())
        store.add_manifest(self.manifest)
        store.pin(self.manifest)

    def held_by(self, store: Store) -> bool:
        """Whether a store has every byte: all files are digested anew."""
        with suppress(DhtDataError):
            return all(store.has(Digest.of(blob)) for blob in self.small) and all(
                Digest.of_file(store.path_of(shard.digest)) == shard.digest for shard in self.shards
            )
        return False


def make_world(seed: int, shape: Shape, name: str = "world") -> World:
    shards = tuple(_make_shard(f"{seed} {place}", shape) for place in range(shape.shards))
    entries = [
        ShardEntry(shard.digest, Digest.of(shard.table.encode()), shard.table.row_count, shard.table.shard_bytes)
        for shard in shards
    ]
    index = Index.build(entries).encode()
    rows = sum(shard.table.row_count for shard in shards)
    ranges = encode_ranges([rows])
    size = sum(shard.table.shard_bytes for shard in shards)
    group = GroupShards(indexes=(Digest.of(index),), shards=len(shards), bytes=size)
    split = Split(name="train", rows=rows, ranges=Digest.of(ranges), groups=(group,))
    contents = Contents(
        version=1,
        cutting=1,
        columns=(Field(name="value", type="int64"),),
        groups=(Group(columns=("value",)),),
        splits=(split,),
    ).encode()
    columns = SplitStatistics(name="train", rows=rows, sampled=0, columns=(), shards=((),))
    statistics = Statistics(version=1, splits=(columns,)).encode()
    manifest = Manifest(version=1, name=name, contents=Digest.of(contents), statistics=Digest.of(statistics)).encode()
    small = (*(shard.table.encode() for shard in shards), index, ranges, statistics, contents, manifest)
    by_digest = {Digest.of(blob).hex(): blob for blob in small}
    return World(Digest.of(manifest), Digest.of(contents), shards, small, by_digest)


def _make_shard(seed: str, shape: Shape) -> MadeShard:
    bodies = list(_bodies(seed, shape))
    rows = [0, *([ROWS_A_BLOCK] * shape.blocks), 0]
    table = BlockTable.build([(len(body), count, Digest.of(body)) for body, count in zip(bodies, rows, strict=True)])
    return MadeShard(seed, shape, Digest.of(b"".join(bodies)), table)


def _bodies(seed: str, shape: Shape) -> Iterator[bytes]:
    chance = random.Random(seed)
    yield chance.randbytes(HEAD_BYTES)
    for _ in range(shape.blocks):
        yield chance.randbytes(shape.block_bytes)
    yield chance.randbytes(FOOTER_BYTES)
