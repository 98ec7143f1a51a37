from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from shutil import which

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.formats.packed import SeekTable, frame_bound
from dhtdata.packing import MAX_WINDOW_BYTES, pack, unpack_into

WORDS = [b"block", b"table", b"shard", b"of", b"the", b"digest"]


def text(seed: int, length: int) -> bytes:
    """Bytes that pack well."""
    source = random.Random(seed)
    return b" ".join(source.choices(WORDS, k=length // 3 + 1))[:length]


def unpacked(frame: bytes, length: int) -> bytes:
    view = memoryview(bytearray(length))
    unpack_into(frame, view)
    return bytes(view)


# Lengths at the edges of what zstd does: one byte, its blocks of 128 KiB, its windows.
LENGTHS = [1, 2, 255, 256, 257, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 1 << 20, (8 << 20) - 1, (8 << 20) + 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["zeros", "text", "random"])
def test_a_block_comes_back_as_it_was(length: int, kind: str) -> None:
    block = {"zeros": bytes(length), "text": text(1, length), "random": random.Random(2).randbytes(length)}[kind]
    frame = pack(block)
    assert len(frame) <= frame_bound(length)
    assert zstandard.get_frame_parameters(frame).window_size <= max(MAX_WINDOW_BYTES, length)
    assert unpacked(frame, length) == block


@given(blocks=st.lists(st.binary(min_size=1, max_size=3_000), min_size=3, max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_zstd_reads_the_file_that_frames_and_seek_table_make(blocks: list[bytes]) -> None:
    frames = [pack(block) for block in blocks]
    seek_table = SeekTable(tuple(map(len, frames)), tuple(map(len, blocks))).encode()
    file = io.BytesIO(b"".join(frames) + seek_table)
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    assert reader.read() == b"".join(blocks)


@pytest.mark.skipif(which("zstd") is None, reason="there is no zstd program")
def test_the_zstd_program_reads_it_too() -> None:
    blocks = [text(seed, 100_000) for seed in range(5)]
    frames = [pack(block) for block in blocks]
    seek_table = SeekTable(tuple(map(len, frames)), tuple(map(len, blocks))).encode()
    done = subprocess.run(["zstd", "-dc"], input=b"".join(frames) + seek_table, capture_output=True, check=True)
    assert done.stdout == b"".join(blocks)


BLOCK = text(3, 50_000)
FRAME = pack(BLOCK)


def _unstated(block: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(block)


WRONG = {
    "nothing": b"",
    "no frame": b"x" * 100,
    "no last byte": FRAME[:-1],
    "a byte more": FRAME + b"\0",
    "another frame": FRAME + pack(b"x"),
    "an empty frame more": FRAME + zstandard.compress(b""),
    "a skippable frame more": FRAME + struct.pack("<II", 0x184D2A50, 0),
    "a skippable frame before": struct.pack("<II", 0x184D2A50, 0) + FRAME,
    "a skippable frame of the block's length": struct.pack("<II", 0x184D2A50, len(BLOCK)) + BLOCK,
    "a block of one byte less": pack(BLOCK[:-1]),
    "a block of one byte more": pack(BLOCK + b"x"),
    "no stated size": _unstated(BLOCK),
    "a dictionary": zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(b"abc" * 99)).compress(BLOCK[1:]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_frame_is_refused(case: str) -> None:
    with pytest.raises(FormatError, match="packed shard: "):
        unpacked(WRONG[case], len(BLOCK))


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_a_damaged_frame_is_refused_or_fills_the_block(seed: int) -> None:
    source = random.Random(seed)
    bad = bytearray(FRAME)
    for _ in range(source.randint(1, 4)):
        bad[source.randrange(len(bad))] = source.randrange(256)
    try:
        unpacked(bytes(bad[: source.choice([len(bad), source.randrange(len(bad))])]), len(BLOCK))
    except FormatError:
        pass


def test_a_wide_window_is_never_made() -> None:
    # A frame of a single segment has a window of the block's size. A whole one is unpacked in place, without a window.
    block = bytes(MAX_WINDOW_BYTES + 1)
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    frame = zstandard.ZstdCompressor(compression_params=wide).compress(block)
    assert zstandard.get_frame_parameters(frame).window_size > MAX_WINDOW_BYTES
    assert unpacked(frame, len(block)) == block
    with pytest.raises(FormatError, match="too much memory"):
        unpacked(frame[:-1], len(block))


def test_a_bomb_of_one_to_thirty_thousand_takes_no_more_memory_than_the_block() -> None:
    # The bombs are made in one process and tried in another, whose peak of memory is then theirs alone.
    code = """
import resource, struct, sys, zstandard
from dhtdata.errors import FormatError
from dhtdata.packing import unpack_into
frames = sys.stdin.buffer.read()
count = struct.unpack_from("<I", frames)[0]
sizes = struct.unpack_from(f"<{count}I", frames, 4)
first = 4 + 4 * count
view = memoryview(bytearray(1 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for size in sizes:
    try:
        unpack_into(frames[first : first + size], view)
    except FormatError:
        refused += 1
    first += size
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    whole = bytes(256 << 20)
    bomb = pack(whole)
    assert len(whole) / len(bomb) > 30_000
    lying = bytearray(bomb)
    stated = bomb.index(struct.pack("<I", len(whole)))
    lying[stated : stated + 4] = struct.pack("<I", 1 << 20)
    frames = [bomb, bytes(lying), _unstated(whole)]
    given = struct.pack(f"<{len(frames) + 1}I", len(frames), *map(len, frames)) + b"".join(frames)
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
    refused, grown_kib = map(int, done.stdout.split())
    assert refused == len(frames)
    assert grown_kib < 16 << 10
