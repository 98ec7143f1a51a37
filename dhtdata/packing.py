"""Blocks to zstd frames and back (door of ``zstandard``); `formats.packed` says how frames make a file.

A frame from outside is hostile until its block's digest was compared. What bounds it: the header must state exactly the
length that the block table gives (``decompress(max_output_size=)`` is ignored once a frame states its size, so the
statement is compared, not believed), output is written to memory of that length and no further, whatever the frame
claims of its window. So 30,000 bytes for one cost no more than the block does.

Why level 3 (source files of Python's standard library in blocks of 1 MiB, one core of a 2-core machine, zstd 1.5.7):

| level | smaller by | packs, MB/s | unpacks, MB/s |
|---|---|---|---|
| 1 | 4.37 | 345 | 1,190 |
| 3 | 4.71 | 265 | 1,200 |
| 5 | 5.08 | 128 | 1,190 |
| 6 | 5.29 | 93 | 1,270 |
| 9 | 5.41 | 63 | 1,330 |
| 19 | 5.96 | 3 | 1,280 |

A shard is packed while its first reader waits, and often read once or twice: beyond 3, a tenth fewer bytes take twice
the time.
"""

from __future__ import annotations

import zstandard

from dhtdata.digest import Buffer
from dhtdata.errors import FormatError

LEVEL = 3
MAX_WINDOW_BYTES = 8 << 20
LEAST_SAVING = 0.1
"""Data that gets smaller by less than this share is not worth packing."""


def pack(block: Buffer) -> bytes:
    """The frame of one block. Releases the GIL."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(block)


def worth_packing(raw_bytes: int, packed_bytes: int) -> bool:
    return packed_bytes <= raw_bytes * (1 - LEAST_SAVING)


def unpack_into(frame: Buffer, view: memoryview) -> None:
    """Fill ``view`` with what one whole frame holds. FormatError unless that is just so many bytes.

    The bytes still have to be verified. Releases the GIL; takes as much memory again as ``view`` has, and no window.
    """
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != len(view):
            raise FormatError(f"packed shard: a frame for {stated} bytes, where a block of {len(view)} bytes is")
        opened = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        content = opened.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as failure:
        raise FormatError(f"packed shard: a frame cannot be unpacked: {failure}") from failure
    if len(content) != len(view):
        # A skippable frame states a size and holds nothing.
        raise FormatError(f"packed shard: a frame of {len(content)} bytes, where a block of {len(view)} bytes is")
    view[:] = content
