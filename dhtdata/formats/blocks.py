"""Block table: the blocks of one shard in file order, as (length, rows, digest).

Bytes: canonical msgpack map ``{"digests": 32·n bytes, "lengths": [n], "rows": [n], "version": 1}`` (+ ``ext``). Columns
rather than entries, so that a table of 4,096 blocks parses in well under a millisecond.

Blocks tile the shard: block i spans ``[sum(lengths[:i]), sum(lengths[:i + 1]))``. The first holds the magic and the
schema, the last the footer, both with 0 rows; every other one is one record batch with at least one row.

Rejected: other versions, columns of unequal length, fewer than 3 or more than 4,096 blocks, a length of 0, rows where
there must be none or none where there must be some, more than 256 KiB of bytes, a shard over `MAX_SHARD_BYTES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dhtdata.digest import DIGEST_BYTES, Digest, join, split
from dhtdata.errors import FormatError
from dhtdata.formats.codec import Format, check_ext, check_version, decode_msgpack, encode_msgpack

VERSION = 1
MAX_BLOCKS = 4_096
MAX_TABLE_BYTES = 256 << 10
MAX_ROW_BYTES = 256 << 20
MAX_SHARD_BYTES = MAX_ROW_BYTES + (64 << 20)
"""The largest row is 256 MiB; its shard adds the rows that came before it and the envelopes."""


class _Wire(Format, frozen=True):
    version: int
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    digests: bytes
    ext: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Block:
    """One contiguous span of a shard: bytes ``[offset, offset + length)``, rows ``[first_row, first_row + rows)``."""

    offset: int
    length: int
    first_row: int
    rows: int
    digest: Digest


@dataclass(frozen=True)
class BlockTable:
    """Blocks of one shard in file order."""

    blocks: tuple[Block, ...]

    @classmethod
    def build(cls, spans: Sequence[tuple[int, int, Digest]]) -> BlockTable:
        """From (length, rows, digest) in file order. FormatError if they cannot be a shard's."""
        lengths = [length for length, _, _ in spans]
        rows = [count for _, count, _ in spans]
        _check(lengths, rows, "block table")
        offsets = [0, *accumulate(lengths)]
        first_rows = [0, *accumulate(rows)]
        return cls(
            tuple(
                Block(offsets[i], length, first_rows[i], count, digest)
                for i, (length, count, digest) in enumerate(spans)
            )
        )

    @property
    def shard_bytes(self) -> int:
        last = self.blocks[-1]
        return last.offset + last.length

    @property
    def row_count(self) -> int:
        return self.blocks[-1].first_row

    def encode(self) -> bytes:
        return encode_msgpack(
            _Wire(
                version=VERSION,
                lengths=tuple(block.length for block in self.blocks),
                rows=tuple(block.rows for block in self.blocks),
                digests=join(block.digest for block in self.blocks),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> BlockTable:
        what = "block table"
        wire = decode_msgpack(data, _Wire, limit_bytes=MAX_TABLE_BYTES, what=what)
        check_version(wire, VERSION, what)
        check_ext(wire.ext, what)
        if len(wire.rows) != len(wire.lengths) or len(wire.digests) != DIGEST_BYTES * len(wire.lengths):
            raise FormatError(f"{what}: columns of unequal length")
        return cls.build(list(zip(wire.lengths, wire.rows, split(wire.digests), strict=True)))


def _check(lengths: Sequence[int], rows: Sequence[int], what: str) -> None:
    if not 3 <= len(lengths) <= MAX_BLOCKS:
        raise FormatError(f"{what}: {len(lengths)} blocks, a shard has 3 to {MAX_BLOCKS}")
    if min(lengths) < 1 or rows[0] != 0 or rows[-1] != 0 or min(rows[1:-1]) < 1:
        raise FormatError(f"{what}: a block is empty, or has rows where the schema or footer stands")
    if sum(lengths) > MAX_SHARD_BYTES:
        raise FormatError(f"{what}: shard of {sum(lengths)} bytes, at most {MAX_SHARD_BYTES} are allowed")
