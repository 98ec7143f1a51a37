"""Thousands of broken shards for `check_shard` and `read_block`; run as a program, so that a crash is seen.

``python -m tests.tables.mutations SEED COUNT`` prints how many were refused and how many accepted. Accepted ones must
be canonical shards of other values; any other exception, or a signal, ends the program.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import BlockTable
from dhtdata.tables.check import check_shard
from dhtdata.tables.logical import to_logical
from dhtdata.tables.reader import ShardReader, read_block
from tests.tables.shards import block_bytes, shard
from tests.tables.strategies import seeded

_TEXTS = pa.list_(pa.struct([("t", pa.string()), ("n", pa.decimal128(9, 2))]))
KINDS = [
    [pa.int32(), pa.string(), pa.large_list(pa.int16())],
    [pa.dictionary(pa.int8(), pa.string()), pa.run_end_encoded(pa.int16(), pa.float32()), pa.binary(3)],
    [_TEXTS, pa.map_(pa.string(), pa.bool_()), pa.time32("s")],
    [pa.dense_union([pa.field("a", pa.int8()), pa.field("b", pa.string())], [3, 7]), pa.string_view()],
    [pa.sparse_union([pa.field("a", pa.null()), pa.field("b", pa.large_binary())], [0, 1]), pa.list_view(pa.bool_())],
    [pa.fixed_shape_tensor(pa.float16(), [2, 2]), pa.uuid(), pa.list_(pa.list_(pa.string(), 2)), pa.null()],
    [pa.struct([]), pa.list_(pa.null()), pa.list_(pa.struct([])), pa.list_(pa.int8(), 0), pa.binary(0)],
]
_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    65,
    127,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """The bytes with one to three things wrong."""
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(0, 6))
        at = int(rng.integers(0, len(broken)))
        if kind == 0:
            broken[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            broken[at] = int(rng.integers(0, 256))
        elif kind in (2, 3):  # a number where a number may stand
            width = 4 if kind == 2 else 8
            at = min(at // width * width, len(broken) - width)
            number = _NUMBERS[int(rng.integers(0, len(_NUMBERS)))] % 2 ** (8 * width)
            broken[at : at + width] = struct.pack("<I" if width == 4 else "<Q", number)
        elif kind == 4:
            other, size = int(rng.integers(0, len(broken))), int(rng.integers(1, 65))
            piece = broken[other : other + size]
            broken[at : at + len(piece)] = piece
        else:
            broken[at : at + 64] = bytes(len(broken[at : at + 64]))
    return bytes(broken[: len(data)])


def resized(rng: np.random.Generator, data: bytes, table: BlockTable) -> tuple[bytes, BlockTable]:
    """Cut short or lengthened, with a block table that agrees."""
    change = int(rng.integers(-200, 200)) or 1
    data = data[:change] if change < 0 else data + rng.bytes(change)
    spans = [(block.length, block.rows, block.digest) for block in table.blocks]
    position = int(rng.integers(0, len(spans)))
    length, rows, digest = spans[position]
    spans[position] = (max(1, length + change), rows + int(rows and rng.integers(0, 2)), digest)
    return data, BlockTable.build(spans)


def _try_shard(path: Path, data: bytes, table: BlockTable, stored: pa.Schema, logical: pa.Schema) -> bool:
    path.write_bytes(data)
    try:
        check_shard(path, table, stored)
    except FormatError:
        return False
    reader = ShardReader(path, table, stored, checked=True)
    for position in range(len(reader)):
        batch = reader.batch(position)
        if block_bytes(batch) != reader.bytes_of(position + 1).to_pybytes():
            raise ValueError("accepted, but not canonical")
        repr(to_logical(batch, logical).to_pydict())
    return True


def _try_block(data: bytes, table: BlockTable, stored: pa.Schema, rng: np.random.Generator) -> bool:
    block = table.blocks[1]
    broken = mutated(rng, data[block.offset : block.offset + block.length])
    try:
        batch = read_block(broken, replace(block, digest=Digest.of(broken)), stored)
    except FormatError:
        return False
    repr(batch.to_pydict())
    return True


def run(seed: int, count: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.arrow"
        for number in range(count):
            kinds = KINDS[number % len(KINDS)]
            values = seeded(seed + number // 50)
            names = [f"c{i}" for i in range(len(kinds))]
            made = [pa.RecordBatch.from_arrays([values.array(k, rows) for k in kinds], names) for rows in (9, 3)]
            data, table, stored = shard(made)
            if number % 50 < len(KINDS) and not _try_shard(path, data, table, stored, made[0].schema):
                raise ValueError("an unbroken shard was refused")
            if number % 5 == 4:
                broken, other = resized(rng, data, table)
                accepted = _try_shard(path, broken, other, stored, made[0].schema)
            else:
                accepted = _try_shard(path, mutated(rng, data), table, stored, made[0].schema)
            seen["shards accepted" if accepted else "shards refused"] += 1
            seen["blocks accepted" if _try_block(data, table, stored, rng) else "blocks refused"] += 1
    return dict(seen)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
