"""Blobs, shards and small datasets for tests of the store. Shards need not be Arrow: the store knows bytes only."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import Index, ShardEntry, encode_ranges
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.schema import Field
from dhtdata.formats.statistics import SplitStatistics, Statistics
from dhtdata.store import Store


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Shard:
    """Blocks of bytes, and the table that says so."""

    blocks: list[bytes]

    @property
    def content(self) -> bytes:
        return b"".join(self.blocks)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)

    @property
    def table(self) -> BlockTable:
        last = len(self.blocks) - 1
        return BlockTable.build(
            [(len(block), int(0 < i < last), Digest.of(block)) for i, block in enumerate(self.blocks)]
        )


def shard(seed: int, block_bytes: int = 5_000, batches: int = 6) -> Shard:
    """A head, some batches, a footer."""
    source = random.Random(seed)
    sizes = [100, *[block_bytes] * batches, 60]
    return Shard([source.randbytes(size) for size in sizes])


@dataclass(frozen=True)
class Dataset:
    """A manifest and every blob that it leads to."""

    manifest: Digest
    contents: Digest
    shards: list[Shard]
    small: list[bytes]

    def put(self, store: Store) -> None:
        """All blobs, then the manifest is listed."""
        for item in self.shards:
            store.put(item.content)
        for content in self.small:
            store.put(content)
        store.add_manifest(self.manifest)


def dataset(seed: int, shard_count: int = 3, name: str = "sample", block_bytes: int = 5_000) -> Dataset:
    """One split, one group, statistics for its only index."""
    return of_shards([shard(seed * 1_000 + i, block_bytes) for i in range(shard_count)], name)


def of_shards(shards: list[Shard], name: str = "sample") -> Dataset:
    tables = [item.table for item in shards]
    entries = [
        ShardEntry(item.digest, Digest.of(table.encode()), table.row_count, table.shard_bytes)
        for item, table in zip(shards, tables, strict=True)
    ]
    rows = sum(entry.rows for entry in entries)
    index = Index.build(entries).encode()
    ranges = encode_ranges([rows])
    per_shard = b"statistics of " + index[:40]
    statistics = Statistics(
        version=1,
        splits=(SplitStatistics(name="train", rows=rows, sampled=0, columns=(), shards=((Digest.of(per_shard),),)),),
    ).encode()
    contents = Contents(
        version=1,
        cutting=1,
        columns=(Field(name="x", type="int64"),),
        groups=(Group(columns=("x",)),),
        splits=(
            Split(
                name="train",
                rows=rows,
                ranges=Digest.of(ranges),
                groups=(
                    GroupShards(
                        indexes=(Digest.of(index),), shards=len(shards), bytes=sum(entry.size for entry in entries)
                    ),
                ),
            ),
        ),
    ).encode()
    manifest = Manifest(version=1, name=name, contents=Digest.of(contents), statistics=Digest.of(statistics)).encode()
    small = [*(table.encode() for table in tables), index, ranges, per_shard, statistics, contents, manifest]
    return Dataset(Digest.of(manifest), Digest.of(contents), shards, small)


def rot(path: Path, *, keep_times: bool) -> None:
    """Flip one bit in the middle of a file; with ``keep_times`` nothing but its bytes tells."""
    status = path.stat()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
