"""Contract of blobs: the same on a fresh store, a reopened one, and through two `Store` objects on one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError, StoreError
from dhtdata.store import Store
from tests.store.samples import files_under, rot, shard

SIZES = {
    "nothing: an empty file is a blob too": 0,
    "one byte: the smallest that has bytes": 1,
    "one below a page": 4_095,
    "a page": 4_096,
    "one above a page": 4_097,
    "one below the reading buffer": (1 << 20) - 1,
    "the reading buffer": 1 << 20,
    "one above the reading buffer": (1 << 20) + 1,
    "a large block": 4 << 20,
}


@pytest.fixture(params=["fresh", "reopened", "two"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """A store to write through and one to read through."""
    first = Store.open(tmp_path / "store")
    if request.param == "reopened":
        first.close()
        first = Store.open(tmp_path / "store")
    second = Store.open(tmp_path / "store") if request.param == "two" else first
    with first, second:
        yield first, second


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_what_is_put_can_be_read(pair: tuple[Store, Store], size: int) -> None:
    writer, reader = pair
    content = os.urandom(size)
    digest = writer.put(content)
    assert digest == Digest.of(content)
    assert reader.has(digest)
    assert reader.size(digest) == size
    assert reader.read(digest, limit_bytes=size) == content
    assert reader.path_of(digest).read_bytes() == content
    located = reader.locate(digest)
    assert (located.complete, located.size, located.path) == (True, size, reader.path_of(digest))


@given(parts=st.lists(st.binary(max_size=300), max_size=8))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_blob_written_in_pieces_is_the_pieces_joined(pair: tuple[Store, Store], parts: list[bytes]) -> None:
    writer, reader = pair
    with writer.new_blob() as blob:
        blob.write(*parts)
        for part in parts:
            blob.write(memoryview(part), bytearray(part))
        path = blob.commit()
    content = b"".join(parts) + b"".join(part * 2 for part in parts)
    assert path.read_bytes() == content
    assert reader.path_of(Digest.of(content)) == path


def test_more_parts_than_one_system_call_takes_are_all_written(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    parts = [bytes([i % 251]) * (i % 7) for i in range(5_000)]
    with writer.new_blob() as blob:
        blob.write(*parts)
        blob.commit()
    assert reader.read(Digest.of(b"".join(parts)), limit_bytes=1 << 20) == b"".join(parts)


def test_what_nobody_put_is_not_found(pair: tuple[Store, Store]) -> None:
    _, reader = pair
    digest = Digest.of(b"nobody has this")
    asking: list[Callable[[], object]] = [
        lambda: reader.size(digest),
        lambda: reader.path_of(digest),
        lambda: reader.read(digest, limit_bytes=10),
        lambda: reader.locate(digest),
    ]
    assert not reader.has(digest)
    for ask in asking:
        with pytest.raises(NotFoundError, match=str(digest)):
            ask()


def test_storing_the_same_bytes_twice_keeps_the_first_file(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"twice")
    inode = writer.path_of(digest).stat().st_ino
    assert reader.put(b"twice") == digest
    with reader.new_blob() as blob:
        blob.write(b"twice")
        blob.commit(digest)
    assert writer.path_of(digest).stat().st_ino == inode
    assert not files_under(writer.path / "incoming")


def test_a_blob_over_the_limit_of_its_reader_is_refused(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"12345")
    assert reader.read(digest, limit_bytes=5) == b"12345"
    with pytest.raises(FormatError, match="more than the 4 bytes"):
        reader.read(digest, limit_bytes=4)


def test_a_commit_that_expects_another_digest_stores_nothing(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    with pytest.raises(IntegrityError, match="expected"), writer.new_blob() as blob:
        blob.write(b"these")
        blob.commit(Digest.of(b"those"))
    assert not reader.has(Digest.of(b"these"))
    assert not reader.has(Digest.of(b"those"))
    assert not files_under(writer.path / "incoming")


def test_an_abandoned_blob_leaves_no_file(pair: tuple[Store, Store]) -> None:
    writer, _ = pair
    with writer.new_blob() as blob:
        blob.write(b"never mind")
    assert not files_under(writer.path / "incoming")
    assert not files_under(writer.path / "blobs")


def test_a_temporary_file_of_a_living_writer_survives_another_open(pair: tuple[Store, Store]) -> None:
    writer, _ = pair
    with writer.new_blob() as blob:
        blob.write(b"still writing")
        with Store.open(writer.path) as other:
            path = blob.commit()
            assert other.path_of(Digest.of(b"still writing")) == path


def test_a_temporary_file_without_an_owner_is_swept_at_the_next_open(pair: tuple[Store, Store]) -> None:
    writer, _ = pair
    stray = writer.path / "incoming" / "left-by-a-crash"
    stray.write_bytes(b"half a blob")
    Store.open(writer.path).close()
    assert not stray.exists()


def test_a_blob_without_a_row_is_adopted_once_its_bytes_are_right(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = Digest.of(b"stray")
    path = writer.path / "blobs" / digest.hex()[:2] / digest.hex()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"stray")
    assert reader.has(digest)
    assert writer.usage().blobs == 1
    path.unlink()
    path.write_bytes(b"wrong")
    with pytest.raises(IntegrityError) as caught:
        writer.path_of(digest)
    assert caught.value.culprit == str(path)


def test_a_row_without_a_file_is_dropped(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"gone")
    writer.path_of(digest).unlink()
    assert not reader.has(digest)
    assert reader.usage().blobs == 0
    assert writer.put(b"gone") == digest
    assert reader.has(digest)


def test_a_changed_file_goes_to_quarantine_and_its_path_is_named(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"as it was" * 100)
    path = writer.path_of(digest)
    rot(path, keep_times=False)
    with pytest.raises(IntegrityError, match=str(path)) as caught:
        reader.path_of(digest)
    assert caught.value.culprit == str(path)
    assert [file.name.split(".")[0] for file in files_under(writer.path / "quarantine")] == [digest.hex()]
    assert not writer.has(digest)
    assert writer.usage().blobs == 0
    writer.put(b"as it was" * 100)
    assert reader.has(digest)


def test_rot_that_leaves_no_trace_in_the_inode_is_found_when_a_small_blob_is_read(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"small" * 100)
    rot(writer.path_of(digest), keep_times=True)
    with pytest.raises(IntegrityError):
        reader.read(digest, limit_bytes=1_000)
    assert not writer.has(digest)


@pytest.mark.parametrize("keep_times", [False, True], ids=["touched", "untouched"])
def test_scrub_finds_every_kind_of_damage(pair: tuple[Store, Store], keep_times: bool) -> None:
    writer, reader = pair
    good, bad, gone = writer.put(b"good"), writer.put(b"bad" * 9), writer.put(b"gone")
    stray = Digest.of(b"stray")
    (writer.path / "blobs" / stray.hex()[:2]).mkdir(exist_ok=True)
    (writer.path / "blobs" / stray.hex()[:2] / stray.hex()).write_bytes(b"stray")
    (writer.path / "blobs" / stray.hex()[:2] / "no digest").write_bytes(b"not ours")
    rot(writer.path_of(bad), keep_times=keep_times)
    writer.path_of(gone).unlink()
    results = list(reader.scrub())
    assert [result.digest for result in results] == sorted([good, bad, gone, stray])
    states = {result.digest: (result.state, result.size) for result in results}
    assert states == {good: ("ok", 4), bad: ("corrupt", 27), gone: ("missing", 0), stray: ("ok", 5)}
    assert {result.state for result in reader.scrub()} == {"ok"}


def test_a_file_with_new_times_and_right_bytes_is_digested_once_and_kept(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = writer.put(b"restored from a copy")
    path = writer.path_of(digest)
    os.utime(path, ns=(1, 1))
    assert reader.path_of(digest) == path
    with writer._database.reading() as connection:
        assert connection.execute("SELECT mtime_ns FROM blobs").fetchone() == (1,)


def test_a_folder_where_a_blob_should_be_is_no_blob(pair: tuple[Store, Store]) -> None:
    writer, reader = pair
    digest = Digest.of(b"x")
    (writer.path / "blobs" / digest.hex()[:2] / digest.hex()).mkdir(parents=True)
    with pytest.raises(IntegrityError):
        reader.path_of(digest)


def test_a_link_where_a_blob_should_be_is_not_followed(pair: tuple[Store, Store], tmp_path: Path) -> None:
    writer, reader = pair
    target = tmp_path / "elsewhere"
    target.write_bytes(b"x")
    digest = Digest.of(b"x")
    path = writer.path / "blobs" / digest.hex()[:2] / digest.hex()
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    with pytest.raises(StoreError, match=str(path)):
        reader.path_of(digest)


def test_nobody_but_the_owner_may_look_into_a_store(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    with Store.open(tmp_path / "open") as store:
        digest = store.put(b"mine")
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(store.path_of(digest).stat().st_mode) == 0o400


def test_a_blob_whose_digest_is_known_is_not_digested_again(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = Digest.of(b"known")
        with store.new_blob(digest) as blob:
            blob.write(b"known")
            assert blob.digest() == digest
            assert blob.written_bytes == 5
            blob.commit()
        assert store.read(digest, limit_bytes=5) == b"known"


def test_a_mapped_blob_stays_readable_after_it_was_dropped(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = store.put(b"mapped")
        with store.path_of(digest).open("rb") as file:
            assert store.gc(grace_s=0) == 6
            assert not store.has(digest)
            assert file.read() == b"mapped"


def test_a_block_of_the_disk_that_cannot_be_read_is_damage_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path) as store:
        bad, good = store.put(b"on a bad block"), store.put(b"elsewhere")
        inode, real = store.path_of(bad).stat().st_ino, os.read

        def read(descriptor: int, count: int) -> bytes:
            if os.fstat(descriptor).st_ino == inode:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, count)

        with monkeypatch.context() as patch:
            patch.setattr("os.read", read)
            states = {result.digest: result.state for result in store.scrub()}
        assert states == {bad: "corrupt", good: "ok"}


def test_any_other_failure_to_read_is_an_operators_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path) as store:
        digest = store.put(b"x")

        def read(descriptor: int, count: int) -> bytes:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        with monkeypatch.context() as patch:
            patch.setattr("os.read", read)
            with pytest.raises(StoreError, match="Cannot allocate memory"):
                list(store.scrub())
        assert store.has(digest)
        path = store.path_of(digest)
        path.unlink()
        path.parent.rmdir()
        path.parent.touch()
        with pytest.raises(StoreError, match="Not a directory"):
            store.path_of(digest)


def test_a_sweep_between_making_and_locking_a_temporary_file_takes_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    swept: list[Path] = []

    def flock(descriptor: int, how: int) -> None:
        if not swept:
            swept.extend((tmp_path / "incoming").iterdir())
            swept[0].unlink()
        real(descriptor, how)

    with Store.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", flock)
            writer = store.new_blob()
        with writer:
            writer.write(b"x")
            assert writer.commit().read_bytes() == b"x"
        assert len(swept) == 1


def test_a_temporary_file_that_cannot_be_locked_is_an_operators_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with Store.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", flock)
            with pytest.raises(StoreError, match="No locks available"):
                store.new_blob()
            with pytest.raises(StoreError, match="No locks available"):
                store.partial(shard(1).digest, shard(1).table)
        assert store.partials() == []


def test_a_stray_that_is_no_file_is_an_operators_matter(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "incoming" / "folder").mkdir()
    with pytest.raises(StoreError, match="incoming/folder"):
        Store.open(tmp_path)


def test_many_blobs_are_looked_up_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        here = {store.put(bytes([i])) for i in range(5)}
        assert store.held([*here, Digest.of(b"not here")]) == here
