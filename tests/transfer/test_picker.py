from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.picker import BACKGROUND, RUN_BYTES, Wanted, pick

SIZES = [1, 4_096, 1 << 18, 1 << 20, 3 << 20, 5 << 20]


def _table(lengths: list[int]) -> BlockTable:
    last = len(lengths) - 1
    spans = [
        (length, 0 if place in (0, last) else 1, Digest.of(bytes([place]))) for place, length in enumerate(lengths)
    ]
    return BlockTable.build(spans)


@st.composite
def wants(draw: st.DrawFn) -> list[Wanted]:
    made = []
    for number in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.sampled_from(SIZES), min_size=3, max_size=12))
        want = Wanted(Digest.of(b"shard" + bytes([number])), _table(lengths))
        turns = st.one_of(st.integers(0, 5), st.just(BACKGROUND))
        want.turns = draw(st.dictionaries(st.integers(0, len(lengths) - 1), turns))
        want.asked = draw(st.dictionaries(st.integers(0, len(lengths) - 1), st.integers(1, 2)))
        want.late = draw(st.sets(st.integers(0, len(lengths) - 1)))
        made.append(want)
    return made


def _offer(seed: int) -> Callable[[Digest, int], bool]:
    """Some blocks of some shards, always the same for one seed."""
    return lambda shard, position: random.Random(f"{seed}{shard}{position}").random() < 0.7


@settings(max_examples=300, deadline=None)
@given(wanted=wants(), offer=st.integers(0, 1 << 16), seed=st.integers(0, 1 << 16))
def test_a_run_is_wanted_offered_adjacent_and_the_most_urgent(wanted: list[Wanted], offer: int, seed: int) -> None:
    has = _offer(offer)
    possible = {
        (want.shard, position): turn
        for want in wanted
        for position, turn in want.turns.items()
        if want.open(position) and has(want.shard, position)
    }
    run = pick(wanted, has, random.Random(seed))
    if run is None:
        assert not possible
        return
    assert all((run.shard, position) in possible for position in run.positions)
    assert possible[run.shard, run.first] == min(possible.values())
    blocks = next(want for want in wanted if want.shard == run.shard).table.blocks
    chosen = [blocks[position] for position in run.positions]
    assert run.offset == chosen[0].offset
    assert run.length == sum(block.length for block in chosen)
    assert run.length <= RUN_BYTES or run.count == 1


@settings(max_examples=100, deadline=None)
@given(wanted=wants(), seed=st.integers(0, 1 << 16))
def test_taking_run_after_run_asks_for_every_block_once(wanted: list[Wanted], seed: int) -> None:
    for want in wanted:
        want.asked, want.late = {}, set()
    expected = {(want.shard, position) for want in wanted for position in want.turns}
    asked: list[tuple[Digest, int]] = []
    chance = random.Random(seed)
    by_shard = {want.shard: want for want in wanted}
    while (run := pick(wanted, lambda *_: True, chance)) is not None:
        for position in run.positions:
            asked.append((run.shard, position))
            by_shard[run.shard].asked[position] = 1
    assert len(asked) == len(set(asked))
    assert set(asked) == expected


def test_a_late_block_may_be_asked_of_one_more_provider() -> None:
    want = Wanted(Digest.of(b"shard"), _table([10, 10, 10]), turns={1: 0}, asked={1: 1})
    assert pick([want], lambda *_: True, random.Random(0)) is None
    want.late = {1}
    assert pick([want], lambda *_: True, random.Random(0)) is not None
    want.asked = {1: 2}
    assert pick([want], lambda *_: True, random.Random(0)) is None
