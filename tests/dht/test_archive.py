"""The record table on disk: what survives, what is refused, what is begun anew."""

from __future__ import annotations

import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dhtdata.dht.archive import APPLICATION_ID, SCHEMA_VERSION, Archive
from dhtdata.dht.holdings import Changes, Holdings, Kept, Limits, record_id
from dhtdata.errors import StoreError
from tests.dht.test_holdings import KEYS, OWN_ID, START_S, Clock, by, claim, name, peer, shards, withdrawal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dht" / "records.sqlite"


@pytest.fixture
def archive(path: Path) -> Iterator[Archive]:
    opened = Archive.open(path)
    yield opened
    opened.close()


def row(number: int) -> Kept:
    return Kept(b"record %d" % number, f"10.0.0.1:{2_000 + number}", START_S + number, START_S + number + 60.5)


def rows(*numbers: int) -> list[Kept]:
    return [row(number) for number in numbers]


def test_what_is_saved_is_loaded_after_opening_again_oldest_first(path: Path, archive: Archive) -> None:
    assert archive.load() == []
    archive.save(Changes(rows(3, 1, 2), []))
    archive.save(Changes(rows(0), [record_id(row(2).data), record_id(b"unknown")]))
    archive.save(Changes([], []))
    archive.close()
    with pytest.raises(StoreError, match="is closed: open it again"):
        archive.load()
    archive.close()
    again = Archive.open(path)
    assert again.load() == rows(0, 1, 3)
    again.close()


def test_a_row_that_is_removed_and_added_at_once_is_there(archive: Archive) -> None:
    archive.save(Changes(rows(1), []))
    later = Kept(row(1).data, "", START_S, START_S + 9_000)
    archive.save(Changes([later], [record_id(later.data)]))
    assert archive.load() == [later]


def test_file_and_folder_are_for_their_owner_alone(path: Path, archive: Archive) -> None:
    archive.save(Changes(rows(1), []))
    files = list(path.parent.iterdir())
    assert len(files) > 1
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    archive.close()
    path.chmod(0o644)
    Archive.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_node_that_restarts_holds_what_it_held(path: Path, archive: Archive) -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID)
    holdings.keep(claim(KEYS[0]), by(KEYS[0]))
    holdings.keep(name(1).data)
    archive.save(holdings.changes())
    holdings.keep(claim(KEYS[0], 2), by(KEYS[0]))
    holdings.keep(withdrawal(KEYS[1], 4), by(KEYS[1], "127.0.0.1:3000"))
    holdings.keep(shards(KEYS[2], [1, 2]), by(KEYS[2], "[2001:db8::1]:3000"))
    holdings.keep(peer(KEYS[0]), by(KEYS[0]))
    archive.save(holdings.changes())
    archive.close()
    again = Archive.open(path)
    restored = Holdings(clock, OWN_ID)
    assert restored.restore(again.load()) == 5
    assert dict(restored) == dict(holdings) and restored.memory_bytes == holdings.memory_bytes
    clock.now_s += 100_000
    restored.forget_expired()
    again.save(restored.changes())
    assert [each.data for each in again.load()] == [name(1).data]
    again.close()


def test_rows_mirror_the_table_through_a_flood_and_the_file_does_not_grow(path: Path, archive: Archive) -> None:
    clock = Clock()
    holdings = Holdings(clock, OWN_ID, Limits(bytes_in_all=20_000))
    sizes = []
    for sequence in range(1, 41):
        for position, key in enumerate(KEYS):
            holdings.keep(claim(key, sequence), by(key, f"10.0.0.{position}:3000"))
            holdings.keep(shards(key, [sequence % 5, 7, 8], sequence), by(key, f"10.0.0.{position}:3000"))
        archive.save(holdings.changes())
        stored = {data for _, records in holdings for data in records}
        assert {each.data for each in archive.load()} == stored
        sizes.append(sum(each.stat().st_size for each in path.parent.iterdir()))
    assert sizes[-1] <= max(sizes[:20]) + (4 << 20)  # the log is cut back at 4 MiB
    archive.close()
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("damage", ["noise", "no database", "torn page", "cut off", "log only"])
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(path: Path, damage: str) -> None:
    archive = Archive.open(path)
    archive.save(Changes(rows(*range(500)), []))
    archive.close()
    content = path.read_bytes()
    assert len(content) > 5 * 4_096
    broken = {
        "noise": content[:100] + random.Random(1).randbytes(len(content) - 100),
        "no database": b"these are not the records you are looking for\n" * 100,
        "torn page": content[: 3 * 4_096] + bytes(4_096) + content[4 * 4_096 :],
        "cut off": content[: len(content) // 2],
        "log only": b"\0" * len(content),
    }[damage]
    path.write_bytes(broken)
    path.with_name(path.name + ".damaged").write_bytes(b"from the time before")
    again = Archive.open(path)
    assert again.load() == []
    again.save(Changes(rows(1), []))
    assert again.load() == rows(1)
    again.close()
    assert path.with_name(path.name + ".damaged").read_bytes() == broken
    assert {each.name for each in path.parent.iterdir()} == {path.name, path.name + ".damaged"}


def test_damage_that_shows_later_is_told_and_put_aside_at_the_next_start(path: Path) -> None:
    archive = Archive.open(path)
    archive.save(Changes(rows(*range(2_000)), []))
    archive.close()
    archive = Archive.open(path)
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))
    archive._connection.execute("PRAGMA cache_size=0")  # type: ignore[union-attr]  # open: forgets what it has read
    with pytest.raises(StoreError, match=f"{path.name}.*malformed.*put aside at the next start"):
        archive.save(Changes(rows(*range(1_000, 3_000)), [record_id(row(number).data) for number in range(900)]))
        archive.load()
    archive.close()
    again = Archive.open(path)
    assert again.load() == []
    again.close()


def test_an_empty_file_becomes_an_archive(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    archive = Archive.open(path)
    archive.save(Changes(rows(1), []))
    assert archive.load() == rows(1)
    archive.close()


def test_a_database_of_somebody_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.executescript("CREATE TABLE mine(x); INSERT INTO mine VALUES(1);")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"{path.name} is a database of another program: move it away"):
        Archive.open(path)
    assert path.read_bytes() == before


def test_an_archive_of_a_newer_program_asks_for_an_upgrade(path: Path, archive: Archive) -> None:
    archive.close()
    newer = sqlite3.connect(path)
    assert newer.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    newer.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(StoreError, match="format version 2: upgrade dhtdata"):
        Archive.open(path)


def test_a_file_that_is_in_use_is_refused(path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhtdata.dht.archive.BUSY_TIMEOUT_S", 0.0)
    archive.save(Changes(rows(1), []))
    with pytest.raises(StoreError, match=rf"{path.name}.*another process uses it"):
        Archive.open(path)
    second = subprocess.run([sys.executable, "-c", OPENER, path], cwd=ROOT, text=True, capture_output=True, timeout=20)
    assert "another process uses it" in second.stdout
    archive.save(Changes(rows(2), []))
    assert archive.load() == rows(1, 2)
    archive.close()
    Archive.open(path).close()


OPENER = """
import sys
from pathlib import Path
from dhtdata.dht import archive
from dhtdata.errors import StoreError

archive.BUSY_TIMEOUT_S = 0.0
try:
    archive.Archive.open(Path(sys.argv[1]))
except StoreError as failure:
    print(failure)
"""


@pytest.mark.parametrize("obstacle", ["a folder in its place", "a file in place of its folder"])
def test_a_file_that_cannot_be_made_is_named(path: Path, obstacle: str) -> None:
    if obstacle == "a folder in its place":
        path.mkdir(parents=True)
    else:
        path.parent.touch()
    with pytest.raises(StoreError, match=rf"{path.name}.*check that the folder exists and can be written"):
        Archive.open(path)


def test_a_full_disk_is_told_and_leaves_what_was_saved(path: Path, archive: Archive) -> None:
    archive.save(Changes(rows(1), []))
    assert archive._connection is not None
    pages = archive._connection.execute("PRAGMA page_count").fetchone()[0]
    archive._connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="full: free some space"):
        archive.save(Changes(rows(*range(2, 2_000)), [record_id(row(1).data)]))
    assert archive.load() == rows(1)


def test_rows_of_odd_types_are_passed_over(path: Path, archive: Archive) -> None:
    archive.save(Changes(rows(1), []))
    archive.close()
    other = sqlite3.connect(path)
    other.execute("INSERT INTO records VALUES(x'00', 'text', '', 1, 2)")
    other.execute("INSERT INTO records VALUES(x'01', x'aa', x'aa', 1, 2)")
    other.commit()
    other.close()
    again = Archive.open(path)
    assert again.load() == rows(1)
    again.close()


def test_threads_may_save_at_once(archive: Archive) -> None:
    def save(first: int) -> None:
        for number in range(first, first + 25):
            archive.save(Changes(rows(number), []))

    threads = [threading.Thread(target=save, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(archive.load()) == 100


WRITER = """
import sys
from pathlib import Path
from dhtdata.dht.archive import Archive
from dhtdata.dht.holdings import Changes, record_id
from tests.dht.test_archive import row

archive = Archive.open(Path(sys.argv[1]))
number = 0
print("ready", flush=True)
while True:
    # Ten rows a save, and the ten of ten saves before go.
    first = 10 * number
    added = [row(each) for each in range(first, first + 10)]
    removed = [record_id(row(each).data) for each in range(first - 100, first - 90)]
    archive.save(Changes(added, removed))
    print(number, flush=True)
    number += 1
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_a_process_killed_at_any_instant_loses_nothing_that_it_saved_and_tears_nothing(tmp_path: Path) -> None:
    source = random.Random(3)
    for trial in range(12):
        path = tmp_path / str(trial % 3) / "records.sqlite"
        path.unlink(missing_ok=True)
        saved = killed_writer(path, source.randrange(1, 60), source.random() * 0.01)
        archive = Archive.open(path)
        assert archive._connection is not None
        assert archive._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        held = [int(each.data.removeprefix(b"record ")) for each in archive.load()]
        archive.close()
        newest = held[-1]
        assert newest >= 10 * saved + 9 and newest % 10 == 9
        assert held == list(range(max(0, newest - 99), newest + 1))
        assert not path.with_name(path.name + ".damaged").exists()


def killed_writer(path: Path, after_saves: int, then_s: float) -> int:
    """Start a writer, kill it a random moment after some saves; the number of the last save that it told."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    lines = [writer.stdout.readline() for _ in range(after_saves)]
    killer = threading.Timer(then_s, writer.kill)
    killer.start()
    lines += writer.stdout.readlines()
    killer.join()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return max(int(line) for line in lines if line.endswith("\n"))


MAKER = """
import sys
from pathlib import Path
from dhtdata.dht.archive import Archive

print("ready", flush=True)
for number in range(100_000):
    Archive.open(Path(sys.argv[1]) / str(number)).close()
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_a_process_killed_while_it_makes_the_file_leaves_one_that_opens(tmp_path: Path) -> None:
    source = random.Random(4)
    for trial in range(8):
        folder = tmp_path / str(trial)
        process = subprocess.Popen([sys.executable, "-c", MAKER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        killer = threading.Timer(source.random() * 0.05, process.kill)
        killer.start()
        assert process.wait() == -signal.SIGKILL
        killer.join()
        process.stdout.close()
        for path in folder.glob("[0-9]*"):
            if path.name.isdigit():
                archive = Archive.open(path)
                archive.save(Changes(rows(1), []))
                assert archive.load() == rows(1)
                archive.close()
