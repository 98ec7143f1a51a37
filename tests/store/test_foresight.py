"""Eviction by next use: what is known of running loops, and what goes first because of it."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import StoreError
from dhtdata.store import NoRoomYet, Store
from dhtdata.store.foresight import NOW, SOMETIME, Foresight, NextUse, Part
from tests.store.samples import Clock, Dataset, of_shards, shard

ORDER, OTHER = Digest(bytes(32)), Digest(b"\x01" * 32)
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4).map(
    lambda pairs: [(first, first + count) for first, count in sorted(pairs)]
)


def part(stop: int, **uses: list[tuple[int, int]]) -> Part:
    return Part(
        stop, {name.encode(): array("q", [end for span in each for end in span]) for name, each in uses.items()}
    )


@given(spans, spans, st.lists(st.integers(0, 100), min_size=1, max_size=4), st.lists(st.integers(0, 100), max_size=3))
def test_the_next_use_is_the_least_over_all_readers_and_spans(
    here: list[tuple[int, int]], there: list[tuple[int, int]], readers: list[int], others: list[int]
) -> None:
    foresight = Foresight()
    for number, position in enumerate(readers):
        foresight.stand(("a", number), ORDER, position, 2.0)
    for number, position in enumerate(others):
        foresight.stand(("b", number), OTHER, position, 1.0)
    foresight.learn(ORDER, 0, part(1_000, shard=here))
    foresight.learn(OTHER, 0, part(1_000, shard=there))
    expected = [
        NextUse(max(first - position, 0) * row_bytes, first)
        for of_order, positions, row_bytes in ((here, readers, 2.0), (there, others, 1.0))
        for position in positions
        for first, stop in of_order
        if stop > position
    ]
    assert foresight.next_use(b"shard") == min(expected, default=None)
    assert foresight.next_use(b"unknown") is None


def test_who_leaves_is_forgotten_and_an_order_without_readers_too() -> None:
    foresight = Foresight()
    foresight.stand("first", ORDER, 10, 1.0)
    foresight.stand("second", ORDER, 50, 1.0)
    foresight.learn(ORDER, 0, part(100, shard=[(60, 70)]))
    assert foresight.next_use(b"shard") == (10.0, 60)
    foresight.leave("second")
    assert foresight.next_use(b"shard") == (50.0, 60)
    foresight.leave("first")
    foresight.leave("first")
    assert foresight.next_use(b"shard") is None
    assert foresight.stand("first", ORDER, 10, 1.0) == []


def test_a_part_is_dropped_when_everybody_is_past_it() -> None:
    foresight = Foresight()
    foresight.stand("ahead", ORDER, 0, 1.0)
    foresight.stand("behind", ORDER, 0, 1.0)
    for first in (0, 100):
        foresight.learn(ORDER, first, part(first + 100, shard=[(first, first + 10)]))
    assert foresight.stand("ahead", ORDER, 100, 1.0) == [0, 100]
    assert foresight.stand("behind", ORDER, 100, 1.0) == [100]
    assert foresight.stand("ahead", OTHER, 0, 1.0) == []
    foresight.leave("behind")
    assert foresight.stand("ahead", ORDER, 0, 1.0) == []


def test_what_somebody_waits_for_displaces_what_is_needed_later_and_what_is_foreseen_no_sooner_thing() -> None:
    foresight = Foresight()
    foresight.stand("reader", ORDER, 10, 1.0)
    foresight.learn(ORDER, 0, part(100, now=[(5, 20)], later=[(20, 40)]))
    assert foresight.urgency(b"now", now=True) == foresight.urgency(b"now", now=False) == (0.0, 5)
    assert foresight.urgency(b"later", now=True) == NOW
    assert foresight.urgency(b"later", now=False) == (10.0, 20)
    assert foresight.urgency(b"unknown", now=True) == NOW
    assert foresight.urgency(b"unknown", now=False) == SOMETIME
    assert NOW < (0.0, 5) < SOMETIME < (10.0, 20)


@pytest.fixture
def sample() -> Dataset:
    return of_shards([shard(number) for number in range(100, 105)])


def limit_of(store: Store, shards: int, size: int) -> int:
    return store.kept_bytes() + shards * size


def full(path: Path, sample: Dataset) -> Store:
    """A store of shards 0 to 3, with room for none beside them; shard 4 is not here."""
    with Store.open(path) as store:
        for content in sample.small:
            store.put(content)
        store.add_manifest(sample.manifest)
        limit = limit_of(store, 4, len(sample.shards[0].content))
    clock = Clock()
    store = Store.open(path, cache_limit=limit, clock=clock)
    for item in sample.shards[:4]:
        clock.now_s += 1
        store.put(item.content)
    return store


@given(uses=st.permutations([(0, 10), (10, 20), (20, 30), (30, 40)]), at=st.integers(0, 39))
@settings(max_examples=15, deadline=None)
def test_what_is_needed_last_goes_first_and_nothing_for_what_is_needed_later(
    tmp_path_factory: pytest.TempPathFactory, uses: list[tuple[int, int]], at: int
) -> None:
    sample = of_shards([shard(number) for number in range(100, 105)])
    digests = [item.digest for item in sample.shards]
    size = len(sample.shards[0].content)
    with full(tmp_path_factory.mktemp("store"), sample) as store:
        store.foresight.stand("loop", ORDER, at, 1.0)
        known = {bytes(digest): array("q", span) for digest, span in zip(digests, uses, strict=False)}
        known[bytes(digests[4])] = array("q", (15, 25))
        store.foresight.learn(ORDER, 0, Part(40, known))
        past = [digest for digest, (_, stop) in zip(digests, uses, strict=False) if stop <= at]
        later = [digest for digest, (first, _) in zip(digests, uses, strict=False) if max(first - at, 0) > 15 - at]
        last = digests[uses.index((30, 40))]
        if at < 25 and not past and not later:
            with pytest.raises(NoRoomYet, match="needed sooner"):
                store.reserve(size, digests[4])
            assert store.held(digests) == set(digests[:4])
        else:
            store.reserve(size, digests[4])
            gone = set(digests[:4]) - store.held(digests)
            assert gone == {min(past, key=digests.index) if past else last}


def test_without_loops_what_was_used_longest_ago_goes_first(tmp_path: Path, sample: Dataset) -> None:
    digests = [item.digest for item in sample.shards]
    with full(tmp_path, sample) as store:
        store.foresight.stand("loop", ORDER, 0, 1.0)
        store.foresight.learn(ORDER, 0, Part(40, {bytes(digests[0]): array("q", (0, 40))}))
        store.foresight.leave("loop")
        store.reserve(len(sample.shards[0].content), digests[4])
        assert store.held(digests) == set(digests[1:4])


def test_a_shard_that_somebody_waits_for_finds_room_but_not_in_the_window_of_who_is_behind(
    tmp_path: Path, sample: Dataset
) -> None:
    digests = [item.digest for item in sample.shards]
    with full(tmp_path, sample) as store:
        store.foresight.stand("behind", ORDER, 5, 1.0)
        store.foresight.stand("ahead", ORDER, 15, 1.0)
        window = {bytes(digest): array("q", (0, 10)) for digest in digests[:4]}
        store.foresight.learn(ORDER, 0, Part(40, {**window, bytes(digests[4]): array("q", (10, 20))}))
        with pytest.raises(NoRoomYet):
            store.partial(digests[4], sample.shards[4].table, now=True)
        store.foresight.stand("behind", ORDER, 10, 1.0)
        store.partial(digests[4], sample.shards[4].table, now=True)
        assert digests[0] not in store.held(digests)


def test_a_limit_that_no_waiting_would_help_is_named(tmp_path: Path, sample: Dataset) -> None:
    size = len(sample.shards[0].content)
    with full(tmp_path, sample) as store:
        store.foresight.stand("loop", ORDER, 0, 1.0)
        needed = {bytes(item.digest): array("q", (0, 40)) for item in sample.shards}
        store.foresight.learn(ORDER, 0, Part(40, needed))
        least = store.kept_bytes() + 5 * size
        with pytest.raises(StoreError, match=f"must be at least {least} bytes") as failure:
            store.reserve(5 * size)
        assert not isinstance(failure.value, NoRoomYet)
