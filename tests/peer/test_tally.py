"""How far a fetch is, in numbers and in a strip of cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.peer.tally import CELLS, FULL, Tally


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


@st.composite
def fetches(draw: st.DrawFn) -> tuple[list[int], set[int], dict[int, list[tuple[int, int]]]]:
    """Sizes of shards, those that are whole, and blocks that are here of some of the others."""
    sizes = draw(st.lists(st.integers(1, 300), max_size=90))
    whole = set(draw(st.lists(st.integers(0, len(sizes) - 1)))) if sizes else set()
    begun = {}
    for place in draw(st.lists(st.integers(0, len(sizes) - 1), max_size=4)) if sizes else []:
        ends = sorted(set(draw(st.lists(st.integers(1, sizes[place]), max_size=6))))
        blocks = [(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
        begun[place] = [block for block in blocks if draw(st.booleans())]
    return sizes, whole, begun


@given(fetch=fetches(), late=st.data())
def test_numbers_and_cells_agree_with_a_map_of_every_byte(
    fetch: tuple[list[int], set[int], dict[int, list[tuple[int, int]]]], late: st.DataObject
) -> None:
    sizes, whole, begun = fetch
    # Some shards were whole at first, the others became so.
    first = {place for place in whole if late.draw(st.booleans())}
    tally = Tally()
    tally.begin([(digest(place), size) for place, size in enumerate(sizes)], set(map(digest, first)))
    for place in whole:
        tally.whole(digest(place))
    partials = {digest(place): blocks for place, blocks in begun.items()} | {digest(10**6): [(0, 9)]}

    every_byte = bytearray()
    for place, size in enumerate(sizes):
        here = bytearray(b"\1" * size if place in whole else size)
        for offset, length in begun.get(place, ()):
            here[offset : offset + length] = b"\1" * length
        every_byte += here
    total = len(every_byte)
    assert (tally.shards, tally.shards_total, tally.bytes_total) == (len(whole), len(sizes), total)
    assert tally.bytes == sum(sizes[place] for place in whole)
    assert tally.held_bytes(partials) == sum(every_byte)
    cells = min(CELLS, total)
    parts = [every_byte[cell * total // cells : (cell + 1) * total // cells] for cell in range(cells)]
    assert tally.have(partials) == bytes(sum(part) * FULL // len(part) for part in parts)


def test_a_fetch_that_begins_again_forgets_the_one_before() -> None:
    tally = Tally()
    tally.begin([(digest(1), 4), (digest(2), 4)], {digest(1)})
    tally.begin([(digest(3), 2)], set())
    tally.whole(digest(2))
    assert (tally.shards, tally.shards_total, tally.bytes, tally.bytes_total) == (0, 1, 0, 2)
    assert tally.have({}) == bytes(2)


def test_a_cell_is_full_only_if_every_byte_of_it_is_here() -> None:
    tally = Tally()
    tally.begin([(digest(1), 1 << 30)], set())
    here = tally.have({digest(1): [(0, (1 << 30) - 1)]})
    assert here == bytes([FULL] * (CELLS - 1) + [FULL - 1])
