from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_BLOCKS, BlockTable
from dhtdata.formats.packed import MAX_SEEK_TABLE_BYTES, PackedTable, SeekTable, frame_bound, seek_table_bytes
from tests.formats.samples import GOLDEN, damaged, named

TABLE = SeekTable((90, 21_000, 200), (136, 70_000, 450))
FILE_BYTES = 90 + 21_000 + 200 + seek_table_bytes(3)


def of_lengths(lengths: tuple[int, ...]) -> BlockTable:
    """A block table with blocks of these lengths."""
    last = len(lengths) - 1
    return BlockTable.build([(length, int(0 < i < last), named(str(i))) for i, length in enumerate(lengths)])


BLOCKS = of_lengths(TABLE.blocks)


def test_a_seek_table_has_the_bytes_that_it_always_had() -> None:
    golden = bytes.fromhex((GOLDEN / "seek_table.hex").read_text())
    assert TABLE.encode() == golden
    assert SeekTable.decode(golden, FILE_BYTES) == TABLE


def test_a_seek_table_is_the_one_of_the_specification() -> None:
    # contrib/seekable_format/zstd_seekable_compression_format.md
    words = [0x184D2A5E, 3 * 8 + 9, 90, 136, 21_000, 70_000, 200, 450, 3]
    assert TABLE.encode() == struct.pack("<9I", *words) + b"\0" + struct.pack("<I", 0x8F92EAB1)


@given(
    st.lists(st.integers(1, 70_000), min_size=3, max_size=200),
    st.integers(0, 1 << 32),
)
def test_spans_tile_the_file_up_to_the_seek_table(lengths: list[int], seed: int) -> None:
    source = random.Random(seed)
    frames = tuple(source.randint(1, frame_bound(length)) for length in lengths)
    written = SeekTable(frames, tuple(lengths))
    suffix = written.encode()
    assert len(suffix) == seek_table_bytes(len(lengths))
    assert SeekTable.decode(suffix, written.file_bytes) == written
    read = PackedTable.parse(suffix, written.file_bytes, of_lengths(tuple(lengths)))
    spans = [read.span(i, i + 1) for i in range(len(lengths))]
    assert [end - start for start, end in spans] == list(frames)
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] == written.file_bytes - len(suffix)
    assert read.span(1, len(lengths)) == (spans[1][0], spans[-1][1])


def test_the_largest_table_is_read() -> None:
    written = SeekTable((9,) * MAX_BLOCKS, (1,) * MAX_BLOCKS)
    assert len(written.encode()) == MAX_SEEK_TABLE_BYTES
    assert SeekTable.decode(written.encode(), written.file_bytes) == written


WRONG = {
    "nothing": (b"", FILE_BYTES),
    "two frames": (SeekTable((90, 200), (136, 450)).encode(), 90 + 200 + seek_table_bytes(2)),
    "one byte less": (TABLE.encode()[1:], FILE_BYTES),
    "one byte more": (b"\0" + TABLE.encode(), FILE_BYTES),
    "another file size": (TABLE.encode(), FILE_BYTES + 1),
    "an empty frame": (SeekTable((90, 0, 200), TABLE.blocks).encode(), FILE_BYTES - 21_000),
    "an empty block": (SeekTable(TABLE.frames, (136, 0, 450)).encode(), FILE_BYTES),
    "a frame over the bound": (SeekTable((90, 21_000, 10_000), TABLE.blocks).encode(), FILE_BYTES + 9_800),
    "sizes that wrap": (SeekTable((90, 0xFFFFFFFF, 200), (136, 0xFFFFFFFF, 450)).encode(), 289 + seek_table_bytes(3)),
    "a wrong count": (TABLE.encode()[:-9] + struct.pack("<IBI", 4, 0, 0x8F92EAB1), FILE_BYTES),
    "checksums": (TABLE.encode()[:-5] + b"\x80" + TABLE.encode()[-4:], FILE_BYTES),
    "a reserved bit": (TABLE.encode()[:-5] + b"\x04" + TABLE.encode()[-4:], FILE_BYTES),
    "another footer": (TABLE.encode()[:-1] + b"\0", FILE_BYTES),
    "another magic": (b"\x5d" + TABLE.encode()[1:], FILE_BYTES),
    "too many frames": (SeekTable((9,) * 4_097, (1,) * 4_097).encode(), 9 * 4_097 + seek_table_bytes(4_097)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_seek_table_is_refused(case: str) -> None:
    data, file_bytes = WRONG[case]
    with pytest.raises(FormatError, match="packed shard: "):
        SeekTable.decode(data, file_bytes)
    with pytest.raises(FormatError, match="packed shard: "):
        PackedTable.parse(data, file_bytes, BLOCKS)


def test_the_packed_form_of_another_shard_is_refused() -> None:
    assert PackedTable.parse(TABLE.encode(), FILE_BYTES, BLOCKS).offsets == (0, 90, 21_090, 21_290)
    with pytest.raises(FormatError, match="blocks of other lengths"):
        PackedTable.parse(TABLE.encode(), FILE_BYTES, of_lengths((137, 69_999, 450)))
    with pytest.raises(FormatError, match="the seek table must have"):
        PackedTable.parse(TABLE.encode(), FILE_BYTES, of_lengths((136, 70_000, 1, 450)))


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=500, deadline=None)
def test_damaged_bytes_are_refused_or_tile_the_file_all_the_same(seed: int) -> None:
    bad = damaged(TABLE.encode(), random.Random(seed))
    try:
        read = PackedTable.parse(bad, FILE_BYTES, BLOCKS)
    except FormatError:
        return
    assert read.offsets[-1] == FILE_BYTES - seek_table_bytes(3)
    assert list(read.offsets) == sorted(set(read.offsets))


@given(data=st.binary(max_size=100), file_bytes=st.integers(0, 1 << 40))
def test_any_bytes_are_refused(data: bytes, file_bytes: int) -> None:
    with pytest.raises(FormatError):
        PackedTable.parse(data, file_bytes, BLOCKS)
