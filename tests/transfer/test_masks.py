from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.transfer.masks import Copies, any_of, mask_of

POSITIONS = st.sets(st.integers(0, 70))


def _positions(mask: int) -> set[int]:
    return {position for position in range(mask.bit_length()) if mask >> position & 1}


@given(positions=st.sets(st.integers(0, 4_095)))
def test_a_mask_has_the_bits_of_its_positions(positions: set[int]) -> None:
    assert _positions(mask_of(positions, 4_096)) == positions


@given(holders=st.lists(POSITIONS, max_size=20), among=st.sets(st.integers(0, 70), min_size=1))
def test_copies_agree_with_counting(holders: list[set[int]], among: set[int]) -> None:
    copies = Copies()
    for held in holders:
        copies.add(mask_of(held, 71))
    counted = Counter(position for held in holders for position in held)
    assert all(copies.of(position) == min(counted[position], 15) for position in range(71))
    assert _positions(copies.any) == set(counted)
    fewest = min(min(counted[position], 15) for position in among)
    count, rarest = copies.rarest(mask_of(among, 71))
    assert count == fewest
    assert _positions(rarest) == {position for position in among if min(counted[position], 15) == fewest}


def test_whoever_holds_everything_adds_one_to_every_block() -> None:
    copies = Copies()
    copies.add(-1)
    copies.add(0b100)
    assert [copies.of(position) for position in (0, 2, 4_095)] == [1, 2, 1]


@given(positions=st.sets(st.integers(0, 4_095), min_size=1), seed=st.integers(0, 1 << 16))
def test_any_position_is_one_of_them(positions: set[int], seed: int) -> None:
    assert any_of(mask_of(positions, 4_096), random.Random(seed)) in positions


def test_any_position_is_as_likely_as_another() -> None:
    chance = random.Random(1)
    drawn = Counter(any_of(mask_of([0, 5, 6, 63, 64], 65), chance) for _ in range(5_000))
    assert set(drawn) == {0, 5, 6, 63, 64}
    assert all(850 < count < 1_150 for count in drawn.values())
