from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.masks import mask_of
from dhtdata.transfer.picker import BACKGROUND, Wanted

LENGTHS = st.lists(st.sampled_from([1, 4_096, 1 << 18, 1 << 20, 3 << 20]), min_size=3, max_size=12)
TURNS = st.one_of(st.integers(0, 5), st.just(BACKGROUND))


def _wanted(lengths: list[int]) -> Wanted:
    last = len(lengths) - 1
    spans = [
        (length, 0 if place in (0, last) else 1, Digest.of(bytes([place]))) for place, length in enumerate(lengths)
    ]
    return Wanted(Digest.of(b"shard"), BlockTable.build(spans))


@given(lengths=LENGTHS, turns=st.dictionaries(st.integers(0, 11), TURNS), gone=st.lists(st.integers(0, 11)))
def test_masks_and_queue_always_agree_with_the_turns(
    lengths: list[int], turns: dict[int, int], gone: list[int]
) -> None:
    want = _wanted(lengths)
    want.turns = expected = {position: turn for position, turn in turns.items() if position < len(lengths)}
    for position in gone:
        want.arrived(position)
        expected.pop(position, None)
        want.asked = mask_of([0, 2], 3)
        urgent = [(turn, place) for place, turn in expected.items() if turn != BACKGROUND]
        assert want.turns == expected
        assert want.missing == mask_of(expected, 12)
        assert want.open == mask_of(set(expected) - {0, 2}, 12)
        assert want.urgent == sorted(urgent)
        assert want.urgent_mask == mask_of([place for _, place in urgent], 12)


@given(lengths=LENGTHS, first=st.integers(0, 11), among=st.sets(st.integers(0, 11)), limit=st.integers(0, 5 << 20))
def test_a_run_is_adjacent_among_these_within_the_limit_and_as_long_as_can_be(
    lengths: list[int], first: int, among: set[int], limit: int
) -> None:
    want = _wanted(lengths)
    first %= len(lengths)
    places = {place for place in among if place < len(lengths)}
    run = want.run(first, mask_of(places, 12), limit)
    blocks = want.table.blocks
    chosen = [blocks[position] for position in run.positions]
    assert first in run.positions
    assert run.mask == mask_of(run.positions, 12)
    assert set(run.positions) <= places | {first}
    assert run.offset == chosen[0].offset
    assert run.length == sum(block.length for block in chosen)
    assert run.count == 1 or run.length <= limit
    for beside in (run.first - 1, run.first + run.count):
        if beside in places:
            assert run.length + blocks[beside].length > limit
