from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.blocks import MAX_BLOCKS, MAX_SHARD_BYTES, MAX_TABLE_BYTES, BlockTable
from tests.formats.samples import named

Span = tuple[int, int, Digest]
digests = st.binary(min_size=32, max_size=32).map(Digest)
lengths = st.integers(1, 1 << 20)


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    batches = draw(st.lists(st.tuples(lengths, st.integers(1, 1 << 40), digests), min_size=1, max_size=20))
    return [(draw(lengths), 0, draw(digests)), *batches, (draw(lengths), 0, draw(digests))]


@given(spans=spans())
def test_a_table_is_read_back_and_tiles_its_shard(spans: list[Span]) -> None:
    table = BlockTable.build(spans)
    assert BlockTable.decode(table.encode()) == table
    offset = row = 0
    for block, (length, rows, digest) in zip(table.blocks, spans, strict=True):
        assert (block.offset, block.length, block.first_row, block.rows) == (offset, length, row, rows)
        assert block.digest == digest
        offset, row = offset + length, row + rows
    assert (table.shard_bytes, table.row_count) == (offset, row)


def sized(count: int, length: int = 1) -> list[Span]:
    digest = named("block")
    return [(length, int(0 < i < count - 1), digest) for i in range(count)]


LIMITS: dict[str, tuple[list[Span], bool]] = {
    "no block": ([], False),
    "no batch": (sized(2), False),
    "one batch": (sized(3), True),
    "most blocks": (sized(MAX_BLOCKS), True),
    "one block too many": (sized(MAX_BLOCKS + 1), False),
    "largest shard": ([(1, 0, named("")), (MAX_SHARD_BYTES - 2, 1, named("")), (1, 0, named(""))], True),
    "shard one byte too large": ([(1, 0, named("")), (MAX_SHARD_BYTES - 1, 1, named("")), (1, 0, named(""))], False),
    "empty block": ([(1, 0, named("")), (0, 1, named("")), (1, 0, named(""))], False),
    "negative length": ([(1, 0, named("")), (-1, 1, named("")), (1, 0, named(""))], False),
    "batch without rows": ([(1, 0, named("")), (1, 0, named("")), (1, 0, named(""))], False),
    "rows in the schema block": ([(1, 1, named("")), (1, 1, named("")), (1, 0, named(""))], False),
    "rows in the footer": ([(1, 0, named("")), (1, 1, named("")), (1, 1, named(""))], False),
}


@pytest.mark.parametrize("case", LIMITS)
def test_only_what_can_be_a_shard_is_a_table(case: str) -> None:
    spans, allowed = LIMITS[case]
    if allowed:
        assert len(BlockTable.decode(BlockTable.build(spans).encode()).blocks) == len(spans)
    else:
        with pytest.raises(FormatError, match="block table"):
            BlockTable.build(spans)


def test_the_largest_table_fits_its_limit() -> None:
    digest = named("block")
    length = MAX_SHARD_BYTES // MAX_BLOCKS
    rows = (1 << 48) // MAX_BLOCKS
    spans = [(length, rows if 0 < i < MAX_BLOCKS - 1 else 0, digest) for i in range(MAX_BLOCKS)]
    assert len(BlockTable.build(spans).encode()) < MAX_TABLE_BYTES
