from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dhtdata.digest import Digest
from dhtdata.errors import StoreError
from dhtdata.store import Store, index
from tests.store.samples import shard

# Python 3.12 and later warn of what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(act: Callable[[], bool]) -> bool:
    """Fork, act, and tell whether the child was content."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if act() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_id_of_a_store_is_random_and_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a") as one, Store.open(tmp_path / "b") as two:
        assert len(one.id) == 16
        assert one.id != two.id
        with Store.open(tmp_path / "a") as again:
            assert again.id == one.id


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.put(b"x")


def test_an_index_of_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="format version 99: upgrade dhtdata"):
        Store.open(tmp_path)


def test_a_broken_index_is_named_and_a_new_one_finds_the_blobs_again(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = store.put(b"still here")
    for file in tmp_path.glob("index.sqlite*"):
        file.write_bytes(b"no database at all " * 100)
    with pytest.raises(StoreError, match=r"index\.sqlite\* away: a new index finds the blobs again"):
        Store.open(tmp_path)
    for file in tmp_path.glob("index.sqlite*"):
        file.unlink()
    with Store.open(tmp_path) as store:
        assert store.read(digest, limit_bytes=100) == b"still here"


def test_an_index_that_another_process_holds_too_long_is_an_operators_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "BUSY_TIMEOUT_S", 0.05)
    with Store.open(tmp_path) as store:
        other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process held it"):
            store.put(b"x")
        other.execute("ROLLBACK")
        other.close()
        assert store.has(store.put(b"x"))


def test_a_file_system_without_wal_is_refused(tmp_path: Path) -> None:
    # An index in memory is the one kind of SQLite database that can never be in WAL mode.
    database = index.Database(Path("file::memory:"))
    database._connect = lambda: sqlite3.connect(":memory:", isolation_level=None)  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="cannot hold a store"):
        database.create(bytes(16))


def test_a_folder_that_cannot_be_written_is_an_operators_matter(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "index.sqlite").unlink()
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"index\.sqlite.*check that the folder"):
        Store.open(tmp_path)


def test_a_forked_child_uses_the_store_of_its_parent(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        before = store.put(b"before")

        def act() -> bool:
            return store.has(before) and store.put(b"in the child") == Digest.of(b"in the child")

        assert in_child(act)
        assert store.has(Digest.of(b"in the child"))
        assert store.has(store.put(b"after"))


def test_no_connection_is_open_while_a_process_forks(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.put(b"x")
        path = str(tmp_path / "index.sqlite")

        assert in_child(lambda: not _opened(path))
        assert store.has(Digest.of(b"x"))


def _opened(path: str) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(path):
            found.append(target)
    return found


def test_forking_while_threads_write_harms_neither_side(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        stop = threading.Event()
        failures: list[BaseException] = []
        written: list[Digest] = []

        def write(number: int) -> None:
            count = 0
            try:
                while not stop.is_set():
                    written.append(store.put(f"{number} {count}".encode()))
                    count += 1
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for i in range(15):
                content = f"child {i}".encode()
                assert in_child(lambda content=content: store.has(store.put(content)))  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert all(store.has(digest) for digest in written)
        assert all(store.has(Digest.of(f"child {i}".encode())) for i in range(15))
        with store._database.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_lock_that_another_thread_held_is_open_in_the_child(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        sample = shard(1)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with store._partials._lock, store._room._lock:
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            assert in_child(lambda: store.partial(sample.digest, sample.table).missing() != [])
        finally:
            release.set()
            thread.join()


def test_a_fork_waits_for_a_transaction_to_end(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        begun, release = threading.Event(), threading.Event()

        def write() -> None:
            with store._database.writing() as connection:
                connection.execute("INSERT INTO publishers VALUES(x'00')")
                begun.set()
                release.wait()

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        timer = threading.Timer(0.05, release.set)
        timer.start()
        assert in_child(lambda: store.trusts(b"\0"))
        timer.join()
        thread.join()


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with pytest.raises(KeyError), store._database.writing() as connection:
            connection.execute("INSERT INTO publishers VALUES(x'00')")
            raise KeyError
        assert not store.trusts(b"\0")


def test_a_connection_that_cannot_even_roll_back_is_given_up(tmp_path: Path) -> None:
    class Broken(sqlite3.Connection):
        def rollback(self) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    with Store.open(tmp_path) as store:
        database = store._database
        database._close_idle()
        whole = database._connect

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(database.path, isolation_level=None, factory=Broken)

        database._connect = connect  # type: ignore[method-assign]
        store.trust_publisher(b"\0")
        assert database._idle == []
        database._connect = whole  # type: ignore[method-assign]
        assert store.trusts(b"\0")
        assert len(database._idle) == 1


def test_many_threads_share_a_few_connections(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = store.put(b"x")
        start = threading.Barrier(12)
        seen: list[bool] = []

        def read() -> None:
            start.wait()
            seen.extend(store.has(digest) for _ in range(20))

        threads = [threading.Thread(target=read) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [True] * 240
        assert len(store._database._idle) <= 4
