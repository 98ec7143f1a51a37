"""Packed form: one shard as a seekable zstd file, each block a frame of its own.

Bytes, in this order; integers are little-endian::

    frame of block 0 ‖ frame of block 1 ‖ … ‖ frame of the last block        zstd frames (RFC 8878)
    seek table: u32 0x184D2A5E, u32 length of what follows (9 + 8·n),        a skippable frame
                n times (u32 bytes of the frame, u32 bytes of the block),
                u32 n, u8 0, u32 0x8F92EAB1

This is zstd's own seekable format (contrib/seekable_format in its source), without checksums: blocks have digests. So
``zstd -d`` restores the shard, and a reader that knows the block table asks for the last `seek_table_bytes` of the
file, then for the frames that it wants.

A frame states its content size, which is its block's length, needs no dictionary, and ends where the next begins.

Never part of an identity: the bytes depend on the compressor, so packed files of one shard differ between peers. Each
has a digest of its own (ETag), and ranges of one never mix with another's.

Rejected, before any offset is believed: a seek table of another size than the block table implies, wrong magic, count
or descriptor, a block of another length than the block table's, a frame that is empty or larger than zstd's bound for
its block, frames that do not end where the seek table begins.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dhtdata.digest import Buffer
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_BLOCKS, MAX_SHARD_BYTES, BlockTable

_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_WHAT = "packed shard"


def seek_table_bytes(block_count: int) -> int:
    """Bytes at the end of a packed file that hold the seek table of so many blocks."""
    return _HEADER.size + _ENTRY.size * block_count + _FOOTER.size


MAX_SEEK_TABLE_BYTES = seek_table_bytes(MAX_BLOCKS)


def frame_bound(block_bytes: int) -> int:
    """Most bytes that a block's frame may have: what zstd makes of incompressible ones (ZSTD_COMPRESSBOUND)."""
    return block_bytes + (block_bytes >> 8) + (max(0, (128 << 10) - block_bytes) >> 11)


@dataclass(frozen=True)
class SeekTable:
    """Where the frames of a packed file are, and how long the blocks in them."""

    frames: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def frames_bytes(self) -> int:
        return sum(self.frames)

    @property
    def file_bytes(self) -> int:
        return self.frames_bytes + seek_table_bytes(len(self.frames))

    @property
    def shard_bytes(self) -> int:
        return sum(self.blocks)

    def encode(self) -> bytes:
        count = len(self.frames)
        return b"".join(
            [
                _HEADER.pack(_SKIPPABLE_MAGIC, _ENTRY.size * count + _FOOTER.size),
                *(_ENTRY.pack(frame, block) for frame, block in zip(self.frames, self.blocks, strict=True)),
                _FOOTER.pack(count, 0, _SEEKABLE_MAGIC),
            ]
        )

    @classmethod
    def decode(cls, data: Buffer, file_bytes: int) -> SeekTable:
        """From exactly the bytes of the seek table of a file of ``file_bytes``. FormatError if they do not fit it."""
        entries_bytes = len(data) - _HEADER.size - _FOOTER.size
        if entries_bytes < 3 * _ENTRY.size or entries_bytes % _ENTRY.size or len(data) > MAX_SEEK_TABLE_BYTES:
            raise FormatError(f"{_WHAT}: a seek table of {len(data)} bytes, which no number of blocks has")
        magic, length = _HEADER.unpack_from(data)
        count, descriptor, seekable = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
        if (magic, descriptor, seekable) != (_SKIPPABLE_MAGIC, 0, _SEEKABLE_MAGIC):
            raise FormatError(f"{_WHAT}: no seek table without checksums at its end")
        if length != len(data) - _HEADER.size or count * _ENTRY.size != entries_bytes:
            raise FormatError(f"{_WHAT}: a seek table of {count} frames and {length} bytes, in {len(data)} bytes")
        entries = list(_ENTRY.iter_unpack(memoryview(data)[_HEADER.size : len(data) - _FOOTER.size]))
        table = cls(tuple(frame for frame, _ in entries), tuple(block for _, block in entries))
        table._check(file_bytes)
        return table

    def _check(self, file_bytes: int) -> None:
        if min(self.blocks) < 1 or self.shard_bytes > MAX_SHARD_BYTES:
            raise FormatError(f"{_WHAT}: an empty block, or more bytes than a shard may have")
        for position, (frame, block) in enumerate(zip(self.frames, self.blocks, strict=True)):
            if not 0 < frame <= frame_bound(block):
                raise FormatError(f"{_WHAT}: a frame of {frame} bytes for the {block} bytes of block {position}")
        if self.file_bytes != file_bytes:
            raise FormatError(f"{_WHAT}: frames and seek table have {self.file_bytes} bytes, the file {file_bytes}")


@dataclass(frozen=True)
class PackedTable:
    """Where in a packed file the frames of a shard's blocks are: block i in bytes ``[offsets[i], offsets[i + 1])``.

    ::

        suffix = …  # the last seek_table_bytes(len(table.blocks)) bytes of the file
        frames = PackedTable.parse(suffix, file_bytes, table)
        start, end = frames.span(3, 5)  # frames of blocks 3 and 4
    """

    offsets: tuple[int, ...]

    @classmethod
    def parse(cls, suffix: Buffer, file_bytes: int, table: BlockTable) -> PackedTable:
        """From the end of a packed file. FormatError unless it packs just the blocks of ``table``."""
        if len(suffix) != (expected := seek_table_bytes(len(table.blocks))):
            raise FormatError(f"{_WHAT}: {len(suffix)} bytes of its end, the seek table must have {expected}")
        found = SeekTable.decode(suffix, file_bytes)
        if found.blocks != tuple(block.length for block in table.blocks):
            raise FormatError(f"{_WHAT}: it packs blocks of other lengths than the block table's")
        return cls.of(found.frames)

    @classmethod
    def of(cls, frames: Sequence[int]) -> PackedTable:
        """From the frames' sizes."""
        return cls((0, *accumulate(frames)))

    def span(self, first: int, end: int) -> tuple[int, int]:
        """Bytes of the packed file that hold the frames of blocks ``[first, end)``, half-open like these."""
        return self.offsets[first], self.offsets[end]
