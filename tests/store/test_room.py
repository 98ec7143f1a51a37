from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, NotFoundError, StoreError
from dhtdata.formats.manifest import Manifest
from dhtdata.store import Store
from dhtdata.store.room import GRACE_S
from tests.store.samples import Clock, Dataset, dataset, of_shards, rot, shard


def everything(sample: Dataset) -> set[Digest]:
    return {Digest.of(content) for content in sample.small} | {item.digest for item in sample.shards}


def shard_bytes(sample: Dataset) -> int:
    return sum(len(item.content) for item in sample.shards)


def held(store: Store) -> set[Digest]:
    return {result.digest for result in store.scrub()}


# Completeness


def test_a_whole_dataset_is_complete(tmp_path: Path) -> None:
    sample = dataset(1)
    with Store.open(tmp_path) as store:
        sample.put(store)
        found = store.completeness(sample.manifest)
        assert (found.shards_held, found.shards) == (3, 3)
        assert (found.bytes_held, found.bytes) == (shard_bytes(sample),) * 2
        assert found.complete
        assert store.missing_blobs(sample.manifest) == []


@given(missing=st.sets(st.integers(0, 10)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_missing_agrees_with_a_count_of_what_was_left_out(tmp_path: Path, missing: set[int]) -> None:
    sample = dataset(2)
    contents = [item.content for item in sample.shards] + sample.small
    # Without manifest, contents or index the rest is not known.
    left_out = {Digest.of(contents[i]) for i in missing if contents[i] not in sample.small[-1:] + sample.small[-2:-1]}
    left_out -= {Digest.of(sample.small[3])}
    with Store.open(tmp_path) as store:
        store.gc(grace_s=-1)
        for content in contents:
            if Digest.of(content) not in left_out:
                store.put(content)
        expected = set(left_out)
        if Digest.of(sample.small[-3]) in left_out:
            expected -= {Digest.of(sample.small[-4])}  # known from the statistics only
        assert set(store.missing_blobs(sample.manifest)) == expected
        found = store.completeness(sample.manifest)
        whole = [item for item in sample.shards if item.digest not in left_out]
        assert found.shards_held == len(whole)
        assert found.bytes_held == sum(len(item.content) for item in whole)
        assert found.complete == (not left_out)
        shards = [item.digest for item in sample.shards]
        assert store.held(shards) == set(shards) - left_out


def test_blocks_of_a_partial_count_as_held_bytes(tmp_path: Path) -> None:
    sample = dataset(3)
    with Store.open(tmp_path) as store:
        for content in sample.small:
            store.put(content)
        first = sample.shards[0]
        partial = store.partial(first.digest, first.table)
        partial.accept(1, first.blocks[1])
        partial.save()
        found = store.completeness(sample.manifest)
        assert (found.shards_held, found.bytes_held, found.complete) == (0, len(first.blocks[1]), False)


def test_a_shard_that_appears_twice_counts_twice(tmp_path: Path) -> None:
    sample = of_shards([shard(4), shard(5), shard(4)])
    with Store.open(tmp_path) as store:
        sample.put(store)
        found = store.completeness(sample.manifest)
        assert (found.shards_held, found.shards, found.bytes_held) == (3, 3, found.bytes)
        assert found.complete
        assert store.usage().blobs == 2 + len(set(sample.small))


def test_a_dataset_of_which_only_the_digest_is_known_is_not_found(tmp_path: Path) -> None:
    sample = dataset(6)
    with Store.open(tmp_path) as store:
        with pytest.raises(NotFoundError, match="fetch them first"):
            store.completeness(sample.manifest)
        assert store.missing_blobs(sample.manifest) == [sample.manifest]
        store.put(sample.small[-1])
        assert sample.contents in store.missing_blobs(sample.manifest)


def test_a_blob_that_is_no_manifest_is_refused_by_name(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = store.put(b"{}")
        with pytest.raises(FormatError, match="manifest"):
            store.completeness(digest)


def test_wrong_statistics_do_not_keep_a_dataset_from_being_used(tmp_path: Path) -> None:
    sample = dataset(7)
    with Store.open(tmp_path) as store:
        sample.put(store)
        lies = store.put(b"not statistics")
        manifest = store.put(Manifest(version=1, name="lies", contents=sample.contents, statistics=lies).encode())
        assert store.completeness(manifest).complete


# Garbage


def test_gc_drops_exactly_what_no_listed_manifest_leads_to(tmp_path: Path) -> None:
    clock = Clock()
    shared = shard(8)
    keep, drop = of_shards([shared, shard(9)], "keep"), of_shards([shared, shard(10)], "drop")
    with Store.open(tmp_path, clock=clock) as store:
        keep.put(store)
        drop.put(store)
        orphan = store.put(b"no manifest leads here")
        clock.now_s += GRACE_S + 1
        assert store.gc() == len(b"no manifest leads here")
        store.remove_manifest(drop.manifest)
        gone = everything(drop) - everything(keep)
        sizes = {Digest.of(content): len(content) for content in drop.small + [item.content for item in drop.shards]}
        assert store.gc() == sum(sizes[digest] for digest in gone)
        assert held(store) == everything(keep)
        assert not store.has(orphan)
        assert store.gc() == 0


def test_a_removed_dataset_leaves_at_the_next_gc_whatever_its_age(tmp_path: Path) -> None:
    sample = dataset(11)
    clock = Clock()
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        store.remove_manifest(sample.manifest)
        store.gc()
        assert held(store) == set()


def test_what_a_publish_has_just_written_or_retained_survives_gc(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(tmp_path, clock=clock) as store:
        old, reused = store.put(b"old"), store.put(b"reused")
        clock.now_s += GRACE_S + 1
        new = store.put(b"new")
        assert store.retain(reused)
        assert not store.retain(Digest.of(b"never stored"))
        store.gc()
        assert held(store) == {new, reused}
        assert not store.has(old)


def test_storing_again_what_is_there_gives_it_a_new_grace(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(tmp_path, clock=clock) as store:
        first, second = store.put(b"first"), store.put(b"second")
        clock.now_s += GRACE_S + 1
        store.put(b"first")
        with store.new_blob() as blob:
            blob.write(b"second")
            blob.commit()
        store.gc()
        assert held(store) == {first, second}


def test_a_blob_retained_after_its_dataset_was_listed_outlives_the_dataset(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(12)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        clock.now_s += 1
        store.retain(sample.shards[0].digest)
        store.remove_manifest(sample.manifest)
        store.gc()
        assert held(store) == {sample.shards[0].digest}


def test_gc_refuses_to_guess_when_a_pinned_dataset_lost_its_index(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(13)
    index = Digest.of(sample.small[3])
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        store.pin(sample.manifest)
    with Store.open(tmp_path, clock=clock) as store:
        rot(store.path_of(index), keep_times=True)
        clock.now_s += GRACE_S + 1
        with pytest.raises(StoreError, match=str(sample.manifest)):
            store.gc()
        assert store.evict(1 << 40) == 0
        assert {item.digest for item in sample.shards} <= held(store)


def test_a_listed_manifest_that_is_not_well_formed_does_not_stop_gc(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(tmp_path, clock=clock) as store:
        broken = store.put(b"{}")
        store.add_manifest(broken)
        orphan = store.put(b"orphan")
        clock.now_s += GRACE_S + 1
        assert store.gc() == 6
        assert store.has(broken)
        assert not store.has(orphan)
        store.remove_manifest(broken)
        assert store.gc() == 2


def test_gc_finds_garbage_that_has_no_row(tmp_path: Path) -> None:
    stray, wrong = Digest.of(b"stray"), Digest.of(b"wrong")
    with Store.open(tmp_path) as store:
        for digest in (stray, wrong):
            (tmp_path / "blobs" / digest.hex()[:2]).mkdir(exist_ok=True)
            (tmp_path / "blobs" / digest.hex()[:2] / digest.hex()).write_bytes(b"stray")
        assert store.gc(grace_s=0) == 5
        assert held(store) == set()


# Eviction


def test_the_least_recently_used_shard_leaves_first(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(14, shard_count=4)
    digests = [item.digest for item in sample.shards]
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        for digest in (digests[2], digests[0], digests[3], digests[1]):
            clock.now_s += 1
            store.path_of(digest)
        size = len(sample.shards[0].content)
        assert store.evict(size) == size
        assert not store.has(digests[2])
        assert store.evict(size + 1) == 2 * size
        assert [store.has(digest) for digest in digests] == [False, True, False, False]
        assert everything(sample) - set(digests) <= held(store), "small blobs stay with a listed dataset"


def test_asking_whether_a_shard_is_here_is_not_using_it(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(26)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        clock.now_s += 1
        store.path_of(sample.shards[1].digest)
        clock.now_s += 1
        assert store.has(sample.shards[0].digest)
        assert store.size(sample.shards[0].digest) == len(sample.shards[0].content)
        store.evict(1)
        store.evict(1)
        assert [store.has(item.digest) for item in sample.shards] == [False, True, False]


def test_use_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(15)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        clock.now_s += 1
        store.path_of(sample.shards[0].digest)
    with Store.open(tmp_path, clock=clock) as store:
        store.evict(1)
        store.evict(1)
        assert [store.has(item.digest) for item in sample.shards] == [True, False, False]


def test_use_is_noted_now_and_then_by_a_process_that_stays(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(16)
    with Store.open(tmp_path, clock=clock) as store, Store.open(tmp_path, clock=clock) as other:
        sample.put(store)
        clock.now_s += 60
        store.path_of(sample.shards[0].digest)
        other.evict(2 * len(sample.shards[0].content))
        assert [other.has(item.digest) for item in sample.shards] == [True, False, False]


@given(
    pins=st.lists(st.booleans(), min_size=3, max_size=3),
    picks=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=3, max_size=3),
    needed=st.integers(0, 12),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_eviction_never_takes_what_a_pinned_dataset_leads_to(
    tmp_path: Path, pins: list[bool], picks: list[set[int]], needed: int
) -> None:
    pool = [shard(seed, block_bytes=100) for seed in range(6)]
    samples = [of_shards([pool[i] for i in sorted(pick)], f"n{n}") for n, pick in enumerate(picks)]
    size = len(pool[0].content)
    with Store.open(tmp_path) as store:
        for entry in store.manifests():
            store.remove_manifest(entry.digest)
        store.gc(grace_s=-1)
        for sample, pinned in zip(samples, pins, strict=True):
            sample.put(store)
            if pinned:
                store.pin(sample.manifest)
        safe = {item.digest for sample, pin in zip(samples, pins, strict=True) if pin for item in sample.shards}
        loose = {item.digest for sample in samples for item in sample.shards} - safe
        assert store.evict(needed * size) == min(needed, len(loose)) * size
        for sample, pinned in zip(samples, pins, strict=True):
            if pinned:
                assert everything(sample) <= held(store)


def test_a_limit_is_kept_by_dropping_what_was_used_longest_ago(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(17, shard_count=6)
    size = len(sample.shards[0].content)
    small = sum(len(content) for content in sample.small)
    with Store.open(tmp_path, cache_limit=small + 3 * size, clock=clock) as store:
        for content in sample.small:
            store.put(content)
        store.add_manifest(sample.manifest)
        for item in sample.shards:
            clock.now_s += 1
            partial = store.partial(item.digest, item.table)
            for position, block in enumerate(item.blocks):
                partial.accept(position, block)
            partial.finish()
            assert store.usage().cache_bytes <= small + 3 * size
        assert [store.has(item.digest) for item in sample.shards] == [False] * 3 + [True] * 3


def test_partials_take_their_full_size_of_the_limit_and_are_not_evicted_while_in_use(tmp_path: Path) -> None:
    sample = dataset(18)
    first, second = sample.shards[:2]
    size = len(first.content)
    with Store.open(tmp_path, cache_limit=size + size // 2) as store:
        partial = store.partial(first.digest, first.table)
        assert store.usage().cache_bytes == size
        with pytest.raises(StoreError, match=f"at least {2 * size} bytes"):
            store.partial(second.digest, second.table)
        assert store.partials() == [first.digest]
        del partial
        other = store.partial(second.digest, second.table)
        assert store.partials() == [second.digest]
        assert store.partial(second.digest, second.table) is other, "what is there already needs no more room"


def test_a_limit_too_small_is_refused_with_the_number_it_must_be(tmp_path: Path) -> None:
    sample = dataset(19)
    small = sum(len(content) for content in sample.small)
    with Store.open(tmp_path, cache_limit=small + 10) as store:
        for content in sample.small:
            store.put(content)
        store.add_manifest(sample.manifest)
        first = sample.shards[0]
        least = small + len(first.content)
        with pytest.raises(StoreError, match=f"at least {least} bytes"):
            store.partial(first.digest, first.table)
    with Store.open(tmp_path, cache_limit=least) as store:
        store.partial(first.digest, first.table)


def test_a_pinned_dataset_does_not_count_against_the_limit(tmp_path: Path) -> None:
    sample = dataset(20)
    with Store.open(tmp_path, cache_limit=1) as store:
        for content in sample.small:
            store.put(content)
        store.add_manifest(sample.manifest)
        store.pin(sample.manifest)
        for item in sample.shards:
            store.partial(item.digest, item.table)
        assert store.usage().cache_bytes == 0
        store.reserve(1 << 20, sample.shards[0].digest)
        with pytest.raises(StoreError, match="too small"):
            store.reserve(1 << 20)


def test_an_unpinned_dataset_counts_again(tmp_path: Path) -> None:
    sample = dataset(21)
    with Store.open(tmp_path) as store:
        sample.put(store)
        store.pin(sample.manifest)
        assert store.usage().cache_bytes == 0
        store.unpin(sample.manifest)
        assert store.usage().cache_bytes == store.usage().bytes
        assert store.evict(1 << 40) == shard_bytes(sample)


def test_garbage_leaves_before_any_shard_of_a_listed_dataset(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(22)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        garbage = store.put(b"garbage")
        clock.now_s += GRACE_S + 1
        store.has(garbage)
        assert store.evict(7) == 7
        assert not store.has(garbage)


def test_more_than_the_disk_has_is_refused_with_the_bytes_needed(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, pytest.raises(StoreError, match=f"{tmp_path}.*{1 << 60} more bytes"):
        store.reserve(1 << 60)


def test_usage_counts_blobs_and_partials(tmp_path: Path) -> None:
    sample = dataset(23)
    first = sample.shards[0]
    with Store.open(tmp_path) as store:
        store.put(b"12345")
        partial = store.partial(first.digest, first.table)
        partial.accept(1, first.blocks[1])
        partial.save()
        usage = store.usage()
        assert (usage.blobs, usage.bytes, usage.partials, usage.partial_bytes) == (1, 5, 1, 5_000)


def test_gc_drops_a_partial_that_nothing_leads_to_once_it_is_old(tmp_path: Path) -> None:
    clock = Clock()
    sample = dataset(24)
    first = sample.shards[0]
    with Store.open(tmp_path, clock=clock) as store:
        store.partial(first.digest, first.table)
        assert store.gc() == 0
        clock.now_s += GRACE_S + 1
        assert store.gc() == len(first.content)
        assert store.partials() == []


def test_a_dataset_pinned_while_eviction_chooses_is_spared(tmp_path: Path) -> None:
    sample = dataset(25)
    with Store.open(tmp_path) as store, Store.open(tmp_path) as other:
        sample.put(store)
        census = store._room._census(GRACE_S)
        other.pin(sample.manifest)
        assert store._room._drop(census, census.evictable()) == 0
        assert store.completeness(sample.manifest).complete


def test_a_blob_retained_while_gc_chooses_is_spared(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(tmp_path, clock=clock) as store, Store.open(tmp_path, clock=clock) as other:
        digest = store.put(b"about to be referred to")
        clock.now_s += GRACE_S + 1
        census = store._room._census(GRACE_S)
        assert [item.what for item in census.evictable()] == [digest]
        assert other.retain(digest)
        assert store._room._drop(census, census.evictable()) == 0
        assert other.has(digest)
