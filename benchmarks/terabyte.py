"""A dataset of 1 TB as far as anybody who starts to read it can tell, out of few real shards.

30,000 index entries of about 32 MiB, a row range for each. The entries whose rows a loop reads first (in the given
order, far beyond what it reads ahead) are real shards, some that are repeated; all others have digests of their own, of
shards that nobody has: an index, a have-map and a layout of 30,000 different shards. Every row says which row of its
shard it is, and its values follow from that, so that a reader's rows are checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.peers import MIB, SHARD_BYTES, Dataset, Machine, publish_rows, shards_of
from dhtdata.digest import Digest
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents, GroupShards, Split
from dhtdata.formats.index import MAX_SHARDS, Index, ShardEntry, encode_ranges
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.statistics import SplitStatistics, Statistics
from dhtdata.order import EpochOrder, Pieces

ENTRIES = 30_000
VALUES = 250
WINDOW = 8
_READ_FIRST = 256
_BATCH_ROWS = 4_096


@dataclass(frozen=True)
class Terabyte:
    """``dataset.shards`` are the real ones."""

    dataset: Dataset
    rows: int
    index_bytes: int
    byte_count: int


def values_of(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """The values of rows with these numbers, shape (rows, `VALUES`): nothing that compresses."""
    mixed: NDArray[np.uint64] = numbers.astype(np.uint64)[:, None] * np.uint64(VALUES)
    mixed += np.arange(VALUES, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    low: NDArray[np.uint32] = (mixed & np.uint64(0x3FFFFFFF)).astype(np.uint32)
    return low.view(np.float32)


def publish_terabyte(machine: Machine, shards: int, seed: int, *, shuffle: bool) -> Terabyte:
    """All blobs into a store; ``shards`` are real, read first by epoch 0 of seed 0 in this order."""
    real = publish_rows(machine, pa.RecordBatchReader.from_batches(_schema(), _batches(shards)), "few")
    usual = [entry for entry in real.shards if entry.size >= SHARD_BYTES // 2]
    rows = sum(entry.rows for entry in usual) // len(usual)
    chance = random.Random(seed)
    entries = [
        ShardEntry(Digest(chance.randbytes(32)), Digest(chance.randbytes(32)), rows, SHARD_BYTES)
        for _ in range(ENTRIES)
    ]
    for turn, place in enumerate(_read_first([rows] * ENTRIES, shuffle)):
        entries[place] = usual[turn % len(usual)]
    pieces = [Index.build(entries[first : first + MAX_SHARDS]).encode() for first in range(0, ENTRIES, MAX_SHARDS)]
    ranges = encode_ranges([entry.rows for entry in entries])
    total, byte_count = sum(entry.rows for entry in entries), sum(entry.size for entry in entries)
    with machine.store() as store:
        few = Contents.decode(store.read(real.contents, limit_bytes=MAX_CONTENTS_BYTES))
        if len(few.groups) != 1:
            raise RuntimeError("the rows were meant to be stored in one column group")
        group = GroupShards(indexes=tuple(map(Digest.of, pieces)), shards=ENTRIES, bytes=byte_count)
        split = Split(name="train", rows=total, ranges=Digest.of(ranges), groups=(group,))
        contents = Contents(
            version=few.version, cutting=few.cutting, columns=few.columns, groups=few.groups, splits=(split,)
        ).encode()
        statistics = Statistics(
            version=1, splits=(SplitStatistics(name="train", rows=total, sampled=0, columns=(), shards=((),)),)
        ).encode()
        manifest = Manifest(
            version=1, name="terabyte", contents=Digest.of(contents), statistics=Digest.of(statistics)
        ).encode()
        for blob in (*pieces, ranges, statistics, contents, manifest):
            store.put(blob)
        shards_listed = shards_of(store, real.contents)
    dataset = Dataset(Digest.of(manifest), Digest.of(contents), shards_listed)
    return Terabyte(dataset, total, sum(map(len, pieces)), byte_count)


def _read_first(ranges: list[int], shuffle: bool) -> list[int]:
    """Numbers of the row ranges that an epoch reads first, in that order."""
    pieces = Pieces(ranges)
    order = EpochOrder(pieces, seed=0, epoch=0, shuffle=shuffle, window=WINDOW)
    places: dict[int, None] = {}
    for window in order.windows(0, 0):
        for first in window.spans[:, 0]:
            places[int(np.searchsorted(pieces.firsts, first, "right")) - 1] = None
        if len(places) >= _READ_FIRST:
            break
    return list(islice(places, _READ_FIRST))


def _schema() -> pa.Schema:
    return pa.schema([("number", pa.int64()), ("values", pa.list_(pa.float32(), VALUES))])


def _batches(shards: int) -> Iterator[pa.RecordBatch]:
    row_bytes = 8 + 4 * VALUES
    count = shards * (SHARD_BYTES + 4 * MIB) // row_bytes
    for first in range(0, count, _BATCH_ROWS):
        numbers = np.arange(first, min(first + _BATCH_ROWS, count), dtype=np.int64)
        values = pa.FixedSizeListArray.from_arrays(pa.array(values_of(numbers).ravel()), VALUES)
        yield pa.RecordBatch.from_arrays([pa.array(numbers), values], schema=_schema())
