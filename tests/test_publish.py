from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from dhtdata.config import Settings
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, StoreError
from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents, Group
from dhtdata.formats.index import MAX_INDEX_BYTES, MAX_RANGES_BYTES, Index, decode_ranges
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.records import NameRecord, Signed
from dhtdata.formats.statistics import (
    MAX_SHARD_STATISTICS_BYTES,
    MAX_STATISTICS_BYTES,
    ShardStatistics,
    Statistics,
)
from dhtdata.publish import Progress, Published, publish
from dhtdata.publish.destination import DryDestination
from dhtdata.publish.pending import PendingRows
from dhtdata.publish.splits import SplitPublisher, stored_rows
from dhtdata.publish.version import FRESH_S, without_credentials
from dhtdata.store import Store
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.check import check_shard
from dhtdata.tables.ipc import batch_block
from dhtdata.tables.logical import to_logical_table
from dhtdata.tables.reader import ShardReader
from dhtdata.tables.schema import stored_schema, to_arrow, to_fields
from dhtdata.tables.sources import agreed_schema, open_source
from tests.golden.every_type import every_type

NOW_S = 1_800_000_000.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", store=tmp_path / "store")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with Store.open(settings.store) as opened:
        yield opened


def random_table(rows: int, seed: int = 0, wide_bytes: int = 3_000) -> pa.Table:
    """Two narrow columns and a wide one that does not compress."""
    generator = np.random.Philox(seed)
    payload = generator.random_raw(rows * wide_bytes // 8).astype("<u8").tobytes()
    offsets = np.arange(rows + 1, dtype=np.int32) * (len(payload) // max(rows, 1))
    return pa.table(
        {
            "id": pa.array(generator.random_raw(rows).astype(np.int64)),
            "text": [f"row {n} of {seed}" for n in range(rows)],
            "blob": pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(payload)]),
        }
    )


def contents_of(store: Store, published: Published) -> Contents:
    return Contents.decode(store.read(published.contents, limit_bytes=MAX_CONTENTS_BYTES))


def manifest_of(store: Store, published: Published) -> Manifest:
    return Manifest.decode(store.read(published.manifest, limit_bytes=MAX_MANIFEST_BYTES))


def shards_of(store: Store, contents: Contents) -> list[Digest]:
    indexes = [digest for split in contents.splits for group in split.groups for digest in group.indexes]
    return [
        shard for digest in indexes for shard in Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES)).digests()
    ]


def read_back(store: Store, published: Published, split: str) -> pa.Table:
    """A split's rows in their logical types, from checked shards."""
    contents = contents_of(store, published)
    logical = to_arrow(contents.columns, contents.metadata)
    stored = stored_schema(logical)
    found = next(part for part in contents.splits if part.name == split)
    columns: dict[str, pa.ChunkedArray] = {}
    for group, placed in zip(contents.groups, found.groups, strict=True):
        schema = pa.schema([stored.field(name) for name in group.columns])
        batches = []
        for digest in placed.indexes:
            index = Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES))
            for entry in (index[position] for position in range(len(index))):
                table = BlockTable.decode(store.read(entry.table, limit_bytes=MAX_TABLE_BYTES))
                path = store.path_of(entry.digest)
                assert (
                    (table.row_count, table.shard_bytes)
                    == (entry.rows, entry.size)
                    == (entry.rows, path.stat().st_size)
                )
                check_shard(path, table, schema)
                reader = ShardReader(path, table, schema)
                batches += [reader.batch(position) for position in range(len(reader))]
        part = pa.Table.from_batches(batches, schema)
        assert part.num_rows == found.rows
        columns |= dict(zip(part.column_names, part.columns, strict=True))
    whole = pa.table({field.name: columns[field.name] for field in logical}, schema=stored)
    assert sum(decode_ranges(store.read(found.ranges, limit_bytes=MAX_RANGES_BYTES))) == found.rows
    return to_logical_table(whole.to_batches(), logical)


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's inode and modification time."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


# What is published


def test_rows_come_back_equal(store: Store, settings: Settings) -> None:
    table = random_table(20_000).replace_schema_metadata({"made": "here"})
    published = publish(table, name="rows", store=store, settings=settings)
    assert read_back(store, published, "train").equals(table, check_metadata=True)
    assert (published.rows, published.splits, published.sequence) == (20_000, {"train": 20_000}, 1)
    contents = contents_of(store, published)
    assert [group.columns for group in contents.groups] == [("id", "text"), ("blob",)]
    assert (published.bytes, published.shards) == (contents.byte_count, contents.shard_count)
    assert published.new_shards == published.shards > 2
    assert published.new_bytes == published.bytes > table.nbytes
    assert store.missing_blobs(published.manifest) == []


def test_every_type_comes_back(store: Store, settings: Settings) -> None:
    batch = every_type()
    published = publish(iter([batch] * 3), name="types", store=store, settings=settings)
    table = read_back(store, published, "train")
    assert table.schema.equals(to_arrow(*to_fields(batch.schema)), check_metadata=True)
    stored = stored_schema(batch.schema)
    expected = pa.concat_batches([to_stored(batch, stored)] * 3)
    found = pa.concat_batches([to_stored(part, stored) for part in table.to_batches()])
    # Bit for bit, NaN payloads included: equal values have equal canonical bytes.
    assert b"".join(batch_block(found)) == b"".join(batch_block(expected))


def test_the_same_rows_give_the_same_version_however_they_come(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    table = random_table(3_000)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=700)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=123)
    sources: list[Any] = [
        table,
        iter(table.to_batches(max_chunksize=77)),
        table.to_pylist(),
        tmp_path / "rows.parquet",
        str(tmp_path / "*.arrow"),
    ]
    versions = [publish(source, name=f"n{n}", store=store, settings=settings) for n, source in enumerate(sources)]
    assert len({version.contents for version in versions}) == 1
    statistics = {manifest_of(store, version).statistics for version in versions}
    assert len(statistics) == 1


def test_splits_share_columns_and_groups(store: Store, settings: Settings) -> None:
    train, test = random_table(4_000, 1), random_table(500, 2)
    published = publish(splits={"train": train, "test": test}, name="two", store=store, settings=settings)
    assert published.splits == {"train": 4_000, "test": 500}
    assert read_back(store, published, "train").equals(train)
    assert read_back(store, published, "test").equals(test)


def test_splits_with_other_columns_are_named(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,y\n1,2\n")
    (tmp_path / "b.csv").write_bytes(b"x\n1\n")
    sources = {"train": tmp_path / "a.csv", "test": tmp_path / "b.csv"}
    with pytest.raises(ConfigError, match=r"b\.csv lacks column 'y'"):
        publish(splits=sources, name="two", store=store, settings=settings)
    published = publish(splits=sources, name="two", allow_missing=True, store=store, settings=settings)
    assert read_back(store, published, "test").to_pydict() == {"x": [1], "y": [None]}


def test_the_manifest_says_what_people_say(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_bytes(b"x\n1\n")
    published = publish(
        tmp_path / "a b.csv",
        name="said",
        licence="CC-BY-4.0",
        card="# Rows",
        source_url="https://me:pw@example.org/d?v=1",
        store=store,
        settings=settings,
    )
    manifest = manifest_of(store, published)
    assert (manifest.licence, manifest.card, manifest.name) == ("CC-BY-4.0", "# Rows", "said")
    assert manifest.provenance.url == "https://example.org/d?v=1"
    assert [(source.name, source.bytes) for source in manifest.provenance.sources] == [("a b.csv", 4)]
    assert (manifest.provenance.files, published.files) == (1, 1)


def test_statistics_are_published_per_column_and_per_shard(store: Store, settings: Settings) -> None:
    table = random_table(20_000)
    published = publish(table, name="rows", store=store, settings=settings)
    root = store.read(manifest_of(store, published).statistics, limit_bytes=MAX_STATISTICS_BYTES)
    (split,) = Statistics.decode(root).splits
    ids = table.column("id").to_pylist()
    figures = {column.name: column for column in split.columns}
    assert list(figures) == table.column_names
    assert (figures["id"].min, figures["id"].max, figures["id"].mean) == (min(ids), max(ids), sum(ids) / len(ids))
    contents = contents_of(store, published)
    for group, digests, placed in zip(contents.groups, split.shards, contents.splits[0].groups, strict=True):
        (shards,) = (
            ShardStatistics.decode(store.read(digest, limit_bytes=MAX_SHARD_STATISTICS_BYTES)) for digest in digests
        )
        assert (shards.shards, [column.name for column in shards.columns]) == (placed.shards, list(group.columns))
    narrow = ShardStatistics.decode(store.read(split.shards[0][0], limit_bytes=MAX_SHARD_STATISTICS_BYTES))
    assert (min(narrow.columns[0].min), max(narrow.columns[0].max)) == (min(ids), max(ids))  # type: ignore[type-var]


def test_progress_grows_to_the_whole(store: Store, settings: Settings, tmp_path: Path) -> None:
    pq.write_table(random_table(8_000), tmp_path / "rows.parquet", row_group_size=1_000)
    heard: list[Progress] = []
    publish(tmp_path / "rows.parquet", name="rows", store=store, settings=settings, progress=heard.append)
    assert [part.rows for part in heard] == sorted({part.rows for part in heard})
    assert (heard[-1].rows, heard[-1].split) == (8_000, "train")
    assert heard[-1].stored_bytes >= 8_000 * 3_000
    total = (tmp_path / "rows.parquet").stat().st_size
    assert all(0 <= part.source_done <= part.source_total == total for part in heard)
    assert heard[-1].source_done > 0.5 * total


def test_publishing_leaves_no_thread_behind(store: Store, settings: Settings) -> None:
    before = set(threading.enumerate())
    publish(random_table(100), name="rows", store=store, settings=settings)
    with pytest.raises(ConfigError, match="broke off"):
        publish(breaking_off(), name="rows", store=store, settings=settings)
    assert set(threading.enumerate()) == before


def breaking_off() -> pa.RecordBatchReader:
    table = random_table(30_000)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches(max_chunksize=1_000)
        raise pa.ArrowInvalid("cut")

    return pa.RecordBatchReader.from_batches(table.schema, batches())


# Versions


def test_an_unchanged_input_keeps_version_and_sequence(store: Store, settings: Settings) -> None:
    table = random_table(2_000)
    first = publish(table, name="rows", store=store, settings=settings)
    record = store.names()[0].data
    files = files_below(settings.store / "blobs")
    second = publish(table, name="rows", store=store, settings=settings)
    assert (second.manifest, second.sequence, second.unchanged, second.new_shards) == (first.manifest, 1, True, 0)
    assert files_below(settings.store / "blobs") == files
    assert store.names()[0].data == record
    third = publish(table, name="rows", card="other words", store=store, settings=settings)
    assert (third.sequence, third.unchanged, third.contents) == (2, False, first.contents)
    assert manifest_of(store, third).parent == first.manifest
    again = publish(table, name="rows", card="other words", store=store, settings=settings)
    assert (again.manifest, again.sequence) == (third.manifest, 2)


def test_a_stale_record_is_renewed_under_its_sequence(store: Store, settings: Settings) -> None:
    table = random_table(100)
    publish(table, name="rows", store=store, settings=settings, clock=lambda: NOW_S)
    later = publish(table, name="rows", store=store, settings=settings, clock=lambda: NOW_S + FRESH_S + 1)
    record = store.names()[0].record
    assert isinstance(record, NameRecord)
    assert (later.sequence, record.sequence) == (1, 1)
    assert record.fresh_until == int(NOW_S + FRESH_S + 1) + FRESH_S


def test_inserted_rows_leave_most_shards_and_blocks_alone(store: Store, settings: Settings) -> None:
    table = random_table(60_000)
    first = publish(table, name="rows", store=store, settings=settings)
    grown = pa.concat_tables([table.slice(0, 29_000), random_table(50, 9), table.slice(29_000)])
    second = publish(grown, name="rows", store=store, settings=settings)
    assert second.sequence == 2
    assert second.new_shards <= 4 < second.shards
    assert manifest_of(store, second).parent == first.manifest

    def blocks(published: Published) -> dict[Digest, int]:
        contents = contents_of(store, published)
        digests = [digest for split in contents.splits for group in split.groups for digest in group.indexes]
        indexes = [Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES)) for digest in digests]
        tables = [index[n].table for index in indexes for n in range(len(index))]
        decoded = [BlockTable.decode(store.read(table, limit_bytes=MAX_TABLE_BYTES)) for table in tables]
        return {block.digest: block.length for table in decoded for block in table.blocks if block.rows}

    before, after = blocks(first), blocks(second)
    fresh = sum(length for digest, length in after.items() if digest not in before)
    assert fresh < 0.05 * sum(after.values())


def test_a_new_column_is_a_new_group_and_moves_nothing_else(store: Store, settings: Settings) -> None:
    table = random_table(5_000)
    first = publish(table, name="rows", store=store, settings=settings)
    shards = set(shards_of(store, contents_of(store, first)))
    wider = table.add_column(0, "label", pa.array(np.arange(5_000) % 7))
    second = publish(wider, name="rows", store=store, settings=settings)
    assert [group.columns for group in contents_of(store, second).groups] == [("id", "text"), ("blob",), ("label",)]
    assert shards < set(shards_of(store, contents_of(store, second)))
    assert read_back(store, second, "train").equals(wider)


def test_a_previous_version_that_is_gone_does_not_hinder(store: Store, settings: Settings) -> None:
    table = random_table(500)
    first = publish(table, name="rows", store=store, settings=settings)
    store.remove_manifest(first.manifest)
    store.gc(grace_s=0)
    again = publish(table, name="rows", store=store, settings=settings)
    assert (again.manifest, again.sequence) == (first.manifest, 1)
    assert read_back(store, again, "train").equals(table)
    store.remove_manifest(again.manifest)
    store.gc(grace_s=0)
    other = publish(random_table(400), name="rows", store=store, settings=settings)
    assert other.sequence == 2
    assert manifest_of(store, other).parent == first.manifest


class RacingStore(Store):
    """Lets another publish win the name just before ours is put."""

    rival: Any = None

    def put_name_record(self, signed: Signed) -> bool:
        rival, self.rival = self.rival, None
        if rival is not None:
            rival()
        return super().put_name_record(signed)


def test_two_publishes_of_one_name_get_sequences_of_their_own(settings: Settings) -> None:
    with RacingStore.open(settings.store) as store:
        assert isinstance(store, RacingStore)
        rivals: list[Published] = []
        store.rival = lambda: rivals.append(publish(random_table(10, 1), name="rows", store=store, settings=settings))
        ours = publish(random_table(10, 2), name="rows", store=store, settings=settings)
        assert (rivals[0].sequence, ours.sequence) == (1, 2)
        record = store.names()[0].record
        assert isinstance(record, NameRecord)
        assert (record.manifest, record.parent) == (ours.manifest, rivals[0].manifest)


def test_the_manifest_is_listed_and_pinned_and_the_name_signed(store: Store, settings: Settings) -> None:
    published = publish(random_table(10), name="rows", store=store, settings=settings, clock=lambda: NOW_S)
    (entry,) = store.manifests()
    assert (entry.digest, entry.pinned) == (published.manifest, True)
    record = store.names()[0].record
    assert isinstance(record, NameRecord)
    assert (record.target, record.manifest) == (published.name, published.manifest)
    assert (record.fresh_until, record.delegation.number) == (int(NOW_S) + FRESH_S, 1)


# A dry run


@pytest.mark.parametrize("before", [False, True], ids=["first", "later"])
def test_a_dry_run_counts_everything_and_writes_nothing(before: bool, settings: Settings, tmp_path: Path) -> None:
    table = random_table(3_000)
    if before:
        publish(random_table(10), name="rows", settings=settings)
    files = files_below(tmp_path)
    dry = publish(table, name="rows", settings=settings, dry_run=True)
    changed = {name for name in files_below(tmp_path).items() ^ files.items() if "index.sqlite" not in name[0]}
    assert not changed
    assert not list((settings.store / "incoming").glob("*"))
    real = publish(table, name="rows", settings=settings)
    assert (dry.manifest, dry.contents, dry.sequence) == (real.manifest, real.contents, real.sequence)
    assert (dry.rows, dry.bytes, dry.shards, dry.new_shards) == (real.rows, real.bytes, real.shards, real.new_shards)
    assert dry.name == (real.name if before else None)
    again = publish(table, name="rows", settings=settings, dry_run=True)
    assert (again.new_shards, again.unchanged, again.sequence) == (0, True, real.sequence)


# Interruptions

CHILD = """
import os, signal, sys
from pathlib import Path
from dhtdata.config import Settings
from dhtdata.publish import publish
from dhtdata.publish import dataset, destination
from dhtdata.store import BlobWriter, Store
from tests.test_publish import random_table

home, last = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def deadly(method):
    # Counts the steps that change what is on disk, and dies before one of them.
    def step(*args, **kwargs):
        global steps
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return method(*args, **kwargs)
    return step

BlobWriter.commit = deadly(BlobWriter.commit)
for name in ("add_manifest", "pin", "put_name_record"):
    setattr(Store, name, deadly(getattr(Store, name)))
publish(random_table(20_000), name="rows", settings=Settings(home=home / "home", store=home / "store"))
print(steps)
"""


def run_child(home: Path, last: int) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", CHILD, str(home), str(last)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", range(4))
def test_a_publish_that_is_killed_shows_nothing_and_its_rerun_redoes_no_finished_shard(
    part: int, tmp_path: Path
) -> None:
    # Every step that changes the disk, a quarter of them each time.
    whole = publish(random_table(20_000), name="rows", settings=Settings(tmp_path / "h", tmp_path / "s"), dry_run=True)
    step = part
    while True:
        home = tmp_path / str(step)
        settings = Settings(home=home / "home", store=home / "store")
        done = run_child(home, step)
        if done.returncode == 0:
            assert step >= int(done.stdout) > 10
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        with Store.open(settings.store) as store:
            for signed in store.names():
                assert isinstance(signed.record, NameRecord)
                assert store.missing_blobs(signed.record.manifest) == []
            for entry in store.manifests():
                assert store.missing_blobs(entry.digest) == []
            blobs = files_below(settings.store / "blobs")
            rerun = publish(random_table(20_000), name="rows", store=store, settings=settings)
            assert (rerun.manifest, rerun.sequence) == (whole.manifest, 1)
            assert files_below(settings.store / "blobs").items() >= blobs.items()
            held = [digest for digest in shards_of(store, contents_of(store, rerun)) if digest.hex() in str(blobs)]
            assert rerun.new_shards == rerun.shards - len(held)
            assert read_back(store, rerun, "train").num_rows == 20_000
            assert not list((settings.store / "incoming").glob("*"))
        step += 4


def test_the_name_comes_last_and_leads_to_what_is_all_there(settings: Settings) -> None:
    seen: list[str] = []

    class WatchingStore(Store):
        def add_manifest(self, manifest: Digest) -> None:
            assert self.missing_blobs(manifest) == []
            assert self.completeness(manifest).complete
            seen.append("listed")
            super().add_manifest(manifest)

        def pin(self, manifest: Digest) -> None:
            seen.append("pinned")
            super().pin(manifest)

        def put_name_record(self, signed: Signed) -> bool:
            seen.append("named")
            return super().put_name_record(signed)

        def put(self, content: Any) -> Digest:
            assert not seen
            return super().put(content)

    with WatchingStore.open(settings.store) as store:
        publish(random_table(10_000), name="rows", store=store, settings=settings)
    assert seen == ["listed", "pinned", "named"]


# Full disks


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes past ``size`` fail for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_a_store_error_and_the_next_publish_goes_on(store: Store, settings: Settings) -> None:
    table = random_table(20_000)
    first = publish(random_table(100), name="rows", store=store, settings=settings)
    with largest_file(6 << 20), pytest.raises(StoreError, match=str(settings.store)):
        publish(table, name="rows", store=store, settings=settings)
    assert [entry.digest for entry in store.manifests()] == [first.manifest]
    assert not list((settings.store / "incoming").glob("*"))
    assert all(result.state == "ok" for result in store.scrub())
    assert read_back(store, publish(table, name="rows", store=store, settings=settings), "train").equals(table)


def test_a_full_disk_is_a_store_error_and_the_next_publish_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and mount_tmpfs(disk, 24 << 20)
    if not mounted:
        pytest.skip("only root can make a small disk; the test before this one covers others")
    try:
        settings = Settings(home=tmp_path / "home", store=disk / "store")
        table = random_table(6_000)
        ballast = disk / "ballast"
        with Store.open(settings.store) as store:
            first = publish(random_table(100), name="rows", store=store, settings=settings)
            ballast.write_bytes(bytes(12 << 20))
            with pytest.raises(StoreError, match="no room for [0-9]+ more bytes"):
                publish(table, name="rows", store=store, settings=settings)
            assert [entry.digest for entry in store.manifests()] == [first.manifest]
            assert read_back(store, first, "train").num_rows == 100
            ballast.unlink()
            second = publish(table, name="rows", store=store, settings=settings)
            assert read_back(store, second, "train").equals(table)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def mount_tmpfs(folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# Bad input


def test_a_row_over_the_cap_is_named_with_file_row_and_column(tmp_path: Path) -> None:
    blobs = [b"x" * 10, b"x" * 10, b"x" * 5_000, b"x" * 10]
    for name, part in (("1.parquet", blobs[:2]), ("2.parquet", blobs[2:])):
        pq.write_table(pa.table({"n": list(range(len(part))), "blob": part}), tmp_path / name)
    source = open_source(str(tmp_path / "*.parquet"))
    logical = agreed_schema([source])
    stored = stored_schema(logical)
    rows = stored_rows(source, logical, stored)
    publisher = SplitPublisher(stored, DryDestination(None), max_row_bytes=4_096)
    with pytest.raises(
        ConfigError, match=r"2\.parquet: row 0 takes 5012 bytes, most of them in column 'blob'; at most 4096"
    ):
        publisher.publish("train", rows, [Group(columns=("n", "blob"))], lambda *_: None)


def test_no_rows_are_refused_before_anything_is_visible(store: Store, settings: Settings, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    for source in (tmp_path / "none.parquet", pa.table({"a": pa.array([], pa.int64())})):
        with pytest.raises(ConfigError, match="split 'train' has no rows"):
            publish(source, name="none", store=store, settings=settings)
    with pytest.raises(ConfigError, match="split 'test' has no rows"):
        publish(
            splits={"train": pa.table({"a": [1]}), "test": tmp_path / "none.parquet"},
            name="none",
            store=store,
            settings=settings,
        )
    assert (store.manifests(), store.names()) == ([], [])


def test_values_that_are_not_what_their_type_says_are_named(store: Store, settings: Settings, tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"n": [1, 2], "text": text}), tmp_path / "latin.parquet")
    with pytest.raises(ConfigError, match=r"latin\.parquet: after row 0: column 'text' holds malformed values"):
        publish(tmp_path / "latin.parquet", name="latin", store=store, settings=settings)


@pytest.mark.parametrize("name", ["", "Upper", "sp ace", "a/b", "-dash", "ünï", "x" * 64, "new\nline"])
def test_odd_names_are_refused(name: str, store: Store, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="cannot be a dataset's name: use 1 to 63 of"):
        publish(pa.table({"a": [1]}), name=name, store=store, settings=settings)


@pytest.mark.parametrize("split", ["", "a/b", "x" * 65, "new\nline", 5])
def test_odd_split_names_are_refused(split: Any, store: Store, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="cannot be a split's name"):
        publish(splits={split: pa.table({"a": [1]})}, name="rows", store=store, settings=settings)


def test_one_source_or_splits_must_be_given(store: Store, settings: Settings) -> None:
    for arguments in ({}, {"source": pa.table({"a": [1]}), "splits": {"train": pa.table({"a": [1]})}}):
        with pytest.raises(ConfigError, match="give either a source"):
            publish(**arguments, name="rows", store=store, settings=settings)
    with pytest.raises(ConfigError, match="1 to 256 splits, not 0"):
        publish(splits={}, name="rows", store=store, settings=settings)


def test_words_that_no_manifest_holds_are_refused_before_any_row_is_read(settings: Settings) -> None:
    def never() -> Iterator[dict[str, int]]:
        raise RuntimeError("a row was read")
        yield {}

    for arguments, complaint in (
        ({"card": "x" * 128_001}, "the card has more than"),
        ({"licence": "x" * 129}, "licence or the source URL is too long"),
        ({"card": "half a pair: \ud83d"}, "licence or card is not Unicode text"),
        ({"licence": "MIT\n\x1b[31m"}, "is no SPDX expression"),
        ({"source_url": "not a url"}, "source URL is malformed"),
        ({"source_url": "http://[::1"}, "source URL is malformed"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            publish(never(), name="rows", settings=settings, **arguments)  # type: ignore[arg-type]


def test_an_unsupported_type_is_named(store: Store, settings: Settings) -> None:
    class Odd(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.int8(), "tests.odd")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

    odd = pa.ExtensionArray.from_storage(Odd(), pa.array([1], pa.int8()))
    with pytest.raises(ConfigError, match=r"column 'x'.*tests\.odd"):
        publish(pa.table({"x": odd}), name="rows", store=store, settings=settings)


def test_a_schema_that_no_contents_hold_is_refused(store: Store, settings: Settings) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"notes": "x" * 300_000})
    with pytest.raises(ConfigError, match="too large to publish"):
        publish(table, name="rows", store=store, settings=settings)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.org/a?b=c#d", "https://example.org/a?b=c#d"),
        ("https://user@example.org:8443/a", "https://example.org:8443/a"),
        ("https://user:p%40ss@[2001:db8::1]/a", "https://[2001:db8::1]/a"),
        ("https://b.example/x?X-Amz-Signature=1&X-Amz-Credential=2&versionId=3", "https://b.example/x?versionId=3"),
        ("https://b.example/x?sv=1&sig=abc", "https://b.example/x?sv=1"),
        ("https://b.example/x?access_token=1&page=2&API_KEY=3", "https://b.example/x?page=2"),
        ("https://b.example/x#access_token=1", "https://b.example/x"),
        ("https://b.example/x#part-2", "https://b.example/x#part-2"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("", ""),
    ],
)
def test_credentials_are_stripped_from_urls(url: str, kept: str) -> None:
    assert without_credentials(url) == kept


def test_a_file_that_breaks_off_midway_leaves_nothing_visible(store: Store, settings: Settings, tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(random_table(12_000, number), tmp_path / f"{number}.parquet", write_page_checksum=True)
    content = (tmp_path / "2.parquet").read_bytes()
    middle = len(content) // 2
    (tmp_path / "2.parquet").write_bytes(content[:middle] + bytes(4_096) + content[middle + 4_096 :])
    rows: list[int] = []
    with pytest.raises(FormatError, match=r"2\.parquet cannot be read as Parquet"):
        publish(
            str(tmp_path / "*.parquet"),
            name="rows",
            store=store,
            settings=settings,
            progress=lambda part: rows.append(part.rows),
        )
    assert rows[-1] >= 24_000
    assert (store.manifests(), store.names()) == ([], [])
    assert not list((settings.store / "incoming").glob("*"))


# Memory


def test_waiting_rows_are_taken_as_they_came() -> None:
    table = pa.table({"n": list(range(1_000)), "t": [str(n) for n in range(1_000)]})
    for settle in (False, True):
        pending, taken = PendingRows(), []
        first = 0
        for size in (1, 300, 0, 7, 92, *[5] * 100, 100):
            for batch in table.slice(first, size).to_batches():
                pending.push(batch)
            first += size
            if size % 2:
                taken += pending.take(size // 2)
            if settle:
                pending.settle()
        taken += pending.take(1_000 - sum(batch.num_rows for batch in taken))
        assert pa.Table.from_batches(taken).equals(table)


def test_settled_rows_do_not_keep_the_buffers_they_came_in() -> None:
    pending = PendingRows()
    for _ in range(200):
        pending.push(pa.RecordBatch.from_pydict({"n": np.zeros(1 << 16)}).slice(5, 10))
        pending.settle()
    held = sum(batch.get_total_buffer_size() for batch in pending.take(2_000))
    assert held <= 2_000 * 8 + 64


MEMORY_CHILD = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from benchmarks.harness import peak_rss_bytes
from dhtdata.config import Settings
from dhtdata.publish import publish

home, source = Path(sys.argv[1]), sys.argv[2]
settings = Settings(home=home / "home", store=home / "store")

def batches():
    generator = np.random.Philox(1)
    for n in range(100):
        payload = pa.array(generator.random_raw(1 << 19).astype(np.int64))
        columns = [pa.array(np.full(512, n, np.int8)), pa.FixedSizeListArray.from_arrays(payload, 1_024)]
        yield pa.RecordBatch.from_arrays(columns, ["label", "vector"])

publish(batches() if source == "batches" else Path(source), name="rows", settings=settings)
print(peak_rss_bytes())
"""


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", ["batches", "parquet", "arrow"])
def test_memory_stays_bounded_whatever_the_input(kind: str, tmp_path: Path) -> None:
    source = kind
    if kind != "batches":
        source = str(tmp_path / f"giant.{kind}")
        write_giant(kind, source)
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", MEMORY_CHILD, str(tmp_path), source]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=80)
    assert done.returncode == 0, done.stderr
    # 400 MiB go through; what a small publish takes is about 150 MiB.
    assert int(done.stdout) < 380 << 20


def write_giant(kind: str, path: str) -> None:
    """400 MiB in one row group or record batch."""
    values = np.random.Philox(1).random_raw(50 << 20).astype(np.int64)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 1_024)
    table = pa.table({"label": np.zeros(len(vectors), np.int8), "vector": vectors})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=len(table), use_dictionary=False, compression="none")
        return
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])


def test_long_dictionary_values_are_decoded_a_few_rows_at_a_time(store: Store, settings: Settings) -> None:
    words = pa.array(["x" * 100_000, "y" * 100_000])
    table = pa.table({"word": pa.DictionaryArray.from_arrays(np.arange(2_000) % 2, words)})
    source = open_source(table)
    stored = stored_schema(table.schema)
    assert max(rows.batch.nbytes for rows in stored_rows(source, table.schema, stored)) <= 9 << 20
    published = publish(table, name="words", store=store, settings=settings)
    assert read_back(store, published, "train").column("word").to_pylist() == table.column("word").to_pylist()
    assert replace(Group(columns=("word",))) in contents_of(store, published).groups
