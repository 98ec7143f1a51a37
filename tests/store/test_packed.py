from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.formats.packed import PackedTable, seek_table_bytes
from dhtdata.packing import unpack_into
from dhtdata.store import NotWorthPacking, PackedFile, Store
from dhtdata.store.room import GRACE_S
from tests.store.samples import Clock, Dataset, Shard, dataset, files_under, of_shards, rot, shard
from tests.store.test_crash import check_sound, dies_at_step, small_disk  # noqa: F401
from tests.test_packing import text

ROOT = Path(__file__).resolve().parents[2]


def text_shard(seed: int, *lengths: int) -> Shard:
    """A shard that packs well."""
    return Shard([text(seed + i, length) for i, length in enumerate(lengths or (100, 20_000, 20_000, 20_000, 60))])


def text_dataset(seed: int, shard_count: int = 3) -> Dataset:
    return of_shards([text_shard(seed * 100 + i * 10) for i in range(shard_count)])


def as_a_client_reads(file: PackedFile, item: Shard) -> bytes:
    """The shard out of the end of the packed file, then its frames."""
    content = file.path.read_bytes()
    assert len(content) == file.size
    assert Digest.of(content) == file.digest
    table = PackedTable.parse(content[-seek_table_bytes(len(item.blocks)) :], file.size, item.table)
    blocks = []
    for position, block in enumerate(item.table.blocks):
        view = memoryview(bytearray(block.length))
        start, end = table.span(position, position + 1)
        unpack_into(content[start:end], view)
        assert Digest.of(view) == block.digest
        blocks.append(bytes(view))
    return b"".join(blocks)


@given(
    lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=12),
    ends=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    seed=st.integers(0, 1 << 32),
    randomness=st.sampled_from([0, 1, 2]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_packed_unpacks_to_the_shard_and_the_rest_is_marked(
    tmp_path: Path, lengths: list[int], ends: tuple[int, int], seed: int, randomness: int
) -> None:
    source = random.Random(seed)
    blocks = [
        source.randbytes(length) if source.randrange(2) < randomness else text(seed + i, length)
        for i, length in enumerate([ends[0], *lengths, ends[1]])
    ]
    item = Shard(blocks)
    sample = of_shards([item])
    with Store.open(tmp_path / "store") as store:
        sample.put(store)
        try:
            file = store.pack(item.digest)
        except NotWorthPacking:
            assert not (tmp_path / "store/packed" / item.digest.hex()[:2] / f"{item.digest}.zst").exists()
            with pytest.raises(NotWorthPacking):
                store.packed(item.digest)
        else:
            assert file.size <= 0.9 * len(item.content)
            assert as_a_client_reads(file, item) == item.content
            reader = zstandard.ZstdDecompressor().stream_reader(
                io.BytesIO(file.path.read_bytes()), read_across_frames=True
            )
            assert reader.read() == item.content
            assert store.packed(item.digest) == file
        store.remove_manifest(sample.manifest)
        store.gc(grace_s=-1)
        assert files_under(tmp_path / "store/packed") == []
        assert files_under(tmp_path / "store/incoming") == []


def test_random_data_is_marked_after_a_sample_and_never_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = shard(1)
    with Store.open(tmp_path) as store:
        of_shards([item]).put(store)
        with pytest.raises(NotFoundError, match="not packed"):
            store.packed(item.digest)
        for _ in range(2):
            with pytest.raises(NotWorthPacking, match="packing does not make it smaller"):
                store.pack(item.digest)
            monkeypatch.setattr(os, "pread", None)
        assert store.usage().packed == 0


def test_what_is_packed_already_is_not_packed_again(tmp_path: Path) -> None:
    sample = text_dataset(2)
    first = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        assert store.pack(first) == store.pack(first)
        with Store.open(tmp_path) as other:
            assert other.pack(first) == store.packed(first)


def test_packing_ends_early_when_asked_to(tmp_path: Path) -> None:
    sample = text_dataset(3)
    with Store.open(tmp_path) as store:
        sample.put(store)
        with pytest.raises(NotFoundError, match="broken off"):
            store.pack(sample.shards[0].digest, lambda: False)
        assert files_under(tmp_path / "packed") == files_under(tmp_path / "incoming") == []
        store.pack(sample.shards[0].digest)


def test_a_blob_that_no_dataset_lists_or_that_is_not_here_is_not_packed(tmp_path: Path) -> None:
    sample = text_dataset(4)
    with Store.open(tmp_path) as store:
        stray = store.put(sample.shards[0].content)
        with pytest.raises(NotFoundError, match="no dataset of this store lists"):
            store.pack(stray)
        for content in sample.small:
            store.put(content)
        store.add_manifest(sample.manifest)
        assert store.pack(stray).shard_bytes == len(sample.shards[0].content)
        with pytest.raises(NotFoundError):
            store.pack(sample.shards[1].digest)
        with pytest.raises(NotFoundError, match="no dataset of this store lists"):
            store.pack(sample.manifest)


def test_a_block_table_that_lies_is_the_manifests_fault(tmp_path: Path) -> None:
    honest = text_shard(5)
    for table in (
        Shard([honest.blocks[0], honest.blocks[1][::-1], *honest.blocks[2:]]).table,
        Shard(honest.blocks[:-1]).table,
    ):
        with Store.open(tmp_path / Digest.of(table.encode()).hex()) as store:
            digest = store.put(honest.content)
            with pytest.raises(FormatError, match="manifest is at fault"):
                store._packed.pack(digest, table)
            assert store.has(digest)


def test_a_rotten_blob_is_set_aside_instead_of_packed(tmp_path: Path) -> None:
    sample = text_dataset(6)
    digest = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        rot(store.path_of(digest), keep_times=True)
        with pytest.raises(IntegrityError, match="does not hold the bytes of its name"):
            store.pack(digest)
        assert not store.has(digest)
        assert files_under(tmp_path / "packed") == []


# Damage


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_packed_file_that_has_rotted_is_dropped_and_made_again(tmp_path: Path, keep_times: bool) -> None:
    sample = text_dataset(7)
    digest = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        before = store.pack(digest)
        rot(before.path, keep_times=keep_times)
        if keep_times:
            seen = [result for result in store.scrub() if result.state != "ok"]
            assert [(result.digest, result.packed, result.state) for result in seen] == [(digest, True, "corrupt")]
        else:
            with pytest.raises(IntegrityError, match="is not the packed form"):
                store.packed(digest)
        assert not before.path.exists()
        after = store.pack(digest)
        assert (after.digest, after.size) == (before.digest, before.size)
        assert all(result.state == "ok" for result in store.scrub())


def test_a_packed_file_that_was_only_touched_is_digested_and_kept(tmp_path: Path) -> None:
    sample = text_dataset(8)
    digest = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        before = store.pack(digest)
        os.utime(before.path, (1, 1))
        assert store.packed(digest) == before
        copy = before.path.with_suffix(".copy")
        copy.write_bytes(before.path.read_bytes())
        copy.rename(before.path)
        assert store.packed(digest) == before


def test_a_packed_file_that_somebody_deleted_is_made_again(tmp_path: Path) -> None:
    sample = text_dataset(9)
    digest = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        store.pack(digest).path.unlink()
        assert [result.state for result in store.scrub() if result.packed] == ["missing"]
        with pytest.raises(NotFoundError, match="not packed"):
            store.packed(digest)
        assert store.pack(digest).path.exists()


def test_a_lost_index_is_made_again_from_good_packed_files(tmp_path: Path) -> None:
    sample = text_dataset(10)
    good, bad, odd = (item.digest for item in sample.shards)
    with Store.open(tmp_path) as store:
        sample.put(store)
        before = {digest: store.pack(digest) for digest in (good, bad, odd)}
    rot(before[bad].path, keep_times=False)
    before[odd].path.unlink()
    before[odd].path.write_bytes(b"")
    (before[good].path.parent / "something else").write_bytes(b"x")
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    with Store.open(tmp_path) as store:
        sample.put(store)
        assert all(result.state == "ok" for result in store.scrub())
        assert store.packed(good).digest == before[good].digest
        assert store.packed(good).shard_bytes == before[good].shard_bytes
        for digest in (bad, odd):
            assert not before[digest].path.exists()
            assert store.pack(digest).digest == before[digest].digest


def test_an_index_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    sample = text_dataset(11)
    with Store.open(tmp_path) as store:
        sample.put(store)
        with store._database.writing() as connection:
            for name in ("packed", "places", "placed"):
                connection.execute(f"DROP TABLE {name}")
            connection.execute("PRAGMA user_version=1")
    with Store.open(tmp_path) as store:
        assert store.manifests()[0].digest == sample.manifest
        assert store.pack(sample.shards[0].digest).size


# Room


def test_packed_files_count_in_the_usage_and_leave_before_anything_else(tmp_path: Path) -> None:
    clock = Clock()
    sample = text_dataset(12)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        store.pin(sample.manifest)
        garbage = store.put(b"garbage")
        clock.now_s += GRACE_S + 1
        assert store.usage().cache_bytes == len(b"garbage")
        files = []
        for item in sample.shards:
            clock.now_s += 1
            files.append(store.pack(item.digest))
        usage = store.usage()
        assert (usage.packed, usage.packed_bytes) == (3, sum(file.size for file in files))
        assert usage.cache_bytes == usage.packed_bytes + len(b"garbage")
        assert store.evict(1) == files[0].size
        assert [file.path.exists() for file in files] == [False, True, True]
        assert store.gc() == len(b"garbage")
        assert not store.has(garbage)
        assert [file.path.exists() for file in files] == [False, True, True]
        assert store.evict(1 << 40) == files[1].size + files[2].size
        assert all(store.has(item.digest) for item in sample.shards)


def test_a_packed_file_leaves_with_its_shard(tmp_path: Path) -> None:
    sample, other = text_dataset(13), text_dataset(14)
    with Store.open(tmp_path) as store:
        sample.put(store)
        other.put(store)
        packed = [store.pack(item.digest) for item in (*sample.shards, *other.shards)]
        store.remove_manifest(sample.manifest)
        before = store.usage()
        freed = store.gc()
        after = store.usage()
        assert freed == before.bytes + before.packed_bytes - after.bytes - after.packed_bytes
        assert [file.path.exists() for file in packed] == [False] * 3 + [True] * 3
        assert after.packed == 3


def test_no_shard_is_evicted_for_a_packed_copy_only_other_copies_are(tmp_path: Path) -> None:
    sample = text_dataset(15)
    size = len(sample.shards[0].content)
    small = sum(map(len, set(sample.small)))
    with Store.open(tmp_path, cache_limit=small + 3 * size + size + size // 8) as store:
        sample.put(store)
        files = [store.pack(item.digest) for item in sample.shards]
        assert not files[0].path.exists()
        assert files[2].path.exists()
        assert store.usage().cache_bytes <= small + 4 * size + size // 8
        assert all(store.has(item.digest) for item in sample.shards)
    with Store.open(tmp_path, cache_limit=small + 3 * size) as store:
        store.evict(store.usage().packed_bytes)
        with pytest.raises(StoreError, match="no room for a packed copy under the cache limit"):
            store.pack(sample.shards[0].digest)
        assert all(store.has(item.digest) for item in sample.shards)


def test_packed_copies_go_when_the_disk_is_full(small_disk: Path) -> None:  # noqa: F811
    sample = of_shards([text_shard(i * 10, 100, *[100_000] * 6, 60) for i in range(2)])
    with Store.open(small_disk / "store") as store:
        sample.put(store)
        store.pin(sample.manifest)
        files = [store.pack(item.digest) for item in sample.shards]
        status = os.statvfs(small_disk)
        free = status.f_bavail * status.f_frsize - status.f_blocks * status.f_frsize // 16
        store.reserve(free - 4_096)
        assert all(file.path.exists() for file in files)
        store.reserve(free + files[0].size // 2)
        assert [file.path.exists() for file in files] == [False, True]
        with pytest.raises(StoreError, match="no room for"):
            store.reserve(free + (1 << 20))
        assert all(store.path_of(item.digest).exists() for item in sample.shards)


# Crashes

PACKER = """
import sys
from pathlib import Path
from dhtdata.digest import Digest
from dhtdata.store import Store

store = Store.open(Path(sys.argv[1]))
print("ready", flush=True)
for text in sys.argv[2:]:
    store.pack(Digest.parse(text))
    print(text, flush=True)
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_packing_killed_at_any_instant_leaves_whole_files_or_none(tmp_path: Path) -> None:
    source = random.Random(1)
    sample = of_shards([text_shard(i * 10, 100, 300_000, 300_000, 300_000, 60) for i in range(30)])
    with Store.open(tmp_path) as store:
        sample.put(store)
    digests = [item.digest for item in sample.shards]
    acknowledged: set[Digest] = set()
    for _ in range(12):
        left = [str(digest) for digest in digests if digest not in acknowledged]
        packer = subprocess.Popen(
            [sys.executable, "-c", PACKER, str(tmp_path), *left], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert packer.stdout is not None
        assert packer.stdout.readline() == "ready\n"
        time.sleep(source.random() * 0.05)
        packer.kill()
        acknowledged |= {Digest.parse(line.strip()) for line in packer.stdout.readlines() if line.endswith("\n")}
        packer.stdout.close()
        assert packer.wait() in (-signal.SIGKILL, 0)
        with Store.open(tmp_path) as store:
            assert files_under(tmp_path / "incoming") == []
            for item in sample.shards:
                if item.digest in acknowledged:
                    assert as_a_client_reads(store.packed(item.digest), item) == item.content
    with Store.open(tmp_path) as store:
        for item in sample.shards:
            assert as_a_client_reads(store.pack(item.digest), item) == item.content
        assert all(result.state == "ok" for result in store.scrub())
        assert store.usage().packed == len(files_under(tmp_path / "packed")) == len(digests)


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_crash_between_any_two_steps_of_packing_leaves_a_sound_store(tmp_path: Path) -> None:
    sample = text_dataset(16, shard_count=1)
    item = sample.shards[0]

    def act() -> None:
        with Store.open(folder) as store:
            store.pack(item.digest)

    def prepared(name: str) -> Path:
        with Store.open(tmp_path / name) as store:
            sample.put(store)
        return tmp_path / name

    number = 0
    folder = prepared("0")
    while dies_at_step(number, act):
        check_sound(folder, [item.digest])
        act()
        check_sound(folder, [item.digest])
        with Store.open(folder) as store:
            assert as_a_client_reads(store.packed(item.digest), item) == item.content
            assert len(files_under(folder / "packed")) == 1
        number += 1
        folder = prepared(str(number))
    assert number > 10


# Without the blob


def given_up(store: Store, sample: Dataset) -> None:
    """Keep only the packed form of every shard."""
    for item in sample.shards:
        store.pack(item.digest)
        assert store.give_up(item.digest) == len(item.content)


def test_a_shard_whose_blob_was_given_up_is_held_all_the_same(tmp_path: Path) -> None:
    sample = text_dataset(17)
    digests = {item.digest for item in sample.shards}
    with Store.open(tmp_path) as store:
        sample.put(store)
        whole = store.completeness(sample.manifest)
        given_up(store, sample)
        assert {Digest.parse(path.name) for path in files_under(tmp_path / "blobs")}.isdisjoint(digests)
        assert store.completeness(sample.manifest) == whole
        assert store.missing_blobs(sample.manifest) == []
        assert store.held(digests) == digests
        assert all(store.has(digest) for digest in digests)
        assert [store.size(item.digest) for item in sample.shards] == [len(item.content) for item in sample.shards]
        assert all(result.state == "ok" for result in store.scrub())
        assert store.give_up(sample.shards[0].digest) == 0


def test_who_asks_for_the_blob_gets_it_restored(tmp_path: Path) -> None:
    sample = text_dataset(18)
    item = sample.shards[0]
    with Store.open(tmp_path) as store:
        sample.put(store)
        given_up(store, sample)
        assert store.path_of(item.digest).read_bytes() == item.content
        assert store.locate(sample.shards[1].digest).complete
        assert store.packed(item.digest).path.exists()
        assert store.give_up(item.digest) == len(item.content)


def test_many_who_ask_at_once_restore_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = text_dataset(19)
    item = sample.shards[0]
    with Store.open(tmp_path) as store:
        sample.put(store)
        given_up(store, sample)
        restored: list[Path] = []
        real = store._packed.restore

        def restore(found: PackedFile) -> Path:
            restored.append(real(found))
            return restored[-1]

        monkeypatch.setattr(store._packed, "restore", restore)
        with ThreadPoolExecutor(8) as threads:
            paths = set(threads.map(lambda _: store.path_of(item.digest), range(32)))
        assert paths == set(restored) and len(restored) == 1


def test_a_blob_is_kept_if_its_packed_form_does_not_hold_it(tmp_path: Path) -> None:
    sample = text_dataset(20)
    digest = sample.shards[0].digest
    with Store.open(tmp_path) as store:
        sample.put(store)
        with pytest.raises(NotFoundError, match="not packed"):
            store.give_up(digest)
        rot(store.pack(digest).path, keep_times=True)
        with pytest.raises(IntegrityError, match="is not the packed form"):
            store.give_up(digest)
        assert store.has(digest)
        assert files_under(tmp_path / "packed") == []


def test_a_packed_form_that_rots_alone_is_lost_and_said_to_be(tmp_path: Path) -> None:
    sample = text_dataset(21)
    first, second = (item.digest for item in sample.shards[:2])
    with Store.open(tmp_path) as store:
        sample.put(store)
        given_up(store, sample)
        for digest in (first, second):
            rot(store.packed(digest).path, keep_times=True)
        with pytest.raises(IntegrityError, match="is not the packed form"):
            store.path_of(first)
        with pytest.raises(NotFoundError, match="not in this store"):
            store.path_of(first)
        assert [result.digest for result in store.scrub() if result.state != "ok"] == [second]
        assert store.missing_blobs(sample.manifest) == sorted([first, second])


def test_a_packed_form_alone_is_kept_and_evicted_as_its_shard_would_be(tmp_path: Path) -> None:
    clock = Clock()
    sample = text_dataset(22)
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        given_up(store, sample)
        store.pin(sample.manifest)
        clock.now_s += GRACE_S + 1
        assert store.gc() == store.evict(1 << 40) == store.usage().cache_bytes == 0
        store.unpin(sample.manifest)
        packed_bytes = store.usage().packed_bytes
        assert store.gc() == 0
        assert store.usage().cache_bytes == packed_bytes + store.usage().bytes
        assert store.evict(1) == packed_bytes - store.usage().packed_bytes > 0
        assert store.usage().packed == 2
        store.remove_manifest(sample.manifest)
        before = store.usage()
        assert store.gc() == before.packed_bytes + before.bytes
        assert files_under(tmp_path / "packed") == files_under(tmp_path / "blobs") == []


def test_grace_that_was_promised_for_the_blob_holds_for_its_packed_form(tmp_path: Path) -> None:
    clock = Clock()
    sample = text_dataset(23)
    digest = sample.shards[0].digest
    with Store.open(tmp_path, clock=clock) as store:
        sample.put(store)
        store.pack(digest)
        clock.now_s += GRACE_S + 1
        assert store.retain(digest)
        store.remove_manifest(sample.manifest)
        store.give_up(digest)
        store.gc()
        assert store.has(digest)
        clock.now_s += GRACE_S + 1
        store.gc()
        assert not store.has(digest)


def test_what_is_left_to_pack_and_to_give_up(tmp_path: Path) -> None:
    sample, noise = text_dataset(24, shard_count=4), dataset(25, shard_count=1)
    fresh, packed, alone, absent = (item.digest for item in sample.shards)
    with Store.open(tmp_path) as store:
        sample.put(store)
        noise.put(store)
        marked = noise.shards[0].digest
        with pytest.raises(NotWorthPacking):
            store.pack(marked)
        store.pack(packed)
        store.pack(alone)
        store.give_up(alone)
        store.path_of(absent).unlink()
        store.has(absent)
        everything = [fresh, packed, alone, absent, marked]
        assert store.unpacked(everything, alone=False) == {fresh}
        assert store.unpacked(everything, alone=True) == {fresh, packed}


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("what", ["give up", "restore"])
def test_a_crash_between_any_two_steps_never_loses_both_forms(tmp_path: Path, what: str) -> None:
    sample = text_dataset(26, shard_count=1)
    item = sample.shards[0]

    def act() -> None:
        with Store.open(folder) as store:
            if what == "give up":
                store.give_up(item.digest)
            else:
                store.path_of(item.digest)

    def prepared(name: str) -> Path:
        with Store.open(tmp_path / name) as store:
            sample.put(store)
            store.pack(item.digest)
            if what == "restore":
                store.give_up(item.digest)
        return tmp_path / name

    number = 0
    folder = prepared("0")
    while dies_at_step(number, act):
        check_sound(folder, [item.digest])
        with Store.open(folder) as store:
            assert store.path_of(item.digest).read_bytes() == item.content
        number += 1
        folder = prepared(str(number))
    assert number > (8 if what == "restore" else 3)
