"""What holds after a process is killed at any instant, after a full disk, and while several processes work at once.

Always with real processes, real signals and a real full file system.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dhtdata.digest import Digest
from dhtdata.errors import StoreError
from dhtdata.store import Store
from tests.store.samples import files_under, shard

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import random, sys
from pathlib import Path
from dhtdata.store import Store
from tests.store.samples import shard

store = Store.open(Path(sys.argv[1]))
seed = int(sys.argv[2])
print("ready", flush=True)
while True:
    seed += 1
    content = random.Random(seed).randbytes(200_000)
    if seed % 3:
        with store.new_blob() as blob:
            for first in range(0, len(content), 30_000):
                blob.write(content[first : first + 30_000])
            blob.commit()
            print(blob.digest(), flush=True)
    else:
        sample = shard(seed, block_bytes=30_000)
        partial = store.partial(sample.digest, sample.table)
        for position in partial.missing():
            partial.accept(position, sample.blocks[position])
        partial.save()
        partial.finish()
        print(sample.digest, flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def killed(writer: subprocess.Popen[str], after_lines: int, then_s: float) -> list[Digest]:
    """Let a writer acknowledge some blobs, kill it a random moment later; what it had acknowledged by then."""
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    lines = [writer.stdout.readline() for _ in range(after_lines)]
    threading.Timer(then_s, writer.kill).start()
    lines += writer.stdout.readlines()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    return [Digest.parse(line.strip()) for line in lines if line.endswith("\n")]


def check_sound(folder: Path, acknowledged: list[Digest]) -> None:
    """Every file at a final path holds its name's bytes, nothing acknowledged is lost, nothing is left over."""
    for path in files_under(folder / "blobs"):
        assert Digest.of_file(path).hex() == path.name
    with Store.open(folder) as store:
        assert all(store.has(digest) for digest in acknowledged)
        assert all(result.state == "ok" for result in store.scrub())
        assert not files_under(folder / "incoming")
        assert not files_under(folder / "quarantine")
        for digest in store.partials():
            partial = store.locate(digest).partial
            if partial is not None:
                for position, block in enumerate(partial.table.blocks):
                    with partial.path.open("rb") as file:
                        file.seek(block.offset)
                        right = Digest.of(file.read(block.length)) == block.digest
                    assert right or not partial.has(position)
        with store._database.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_any_instant_loses_nothing_that_it_acknowledged(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    acknowledged: list[Digest] = []
    for trial in range(10):
        writer = start(WRITER, tmp_path, seed * 1_000_000 + trial * 1_000)
        acknowledged += killed(writer, source.randrange(4), source.random() * 0.03)
        check_sound(tmp_path, acknowledged)
    assert len(acknowledged) >= 10


STEPS = (
    "os.fsync",
    "os.writev",
    "os.pwrite",
    "os.open",
    "os.close",
    "os.rename",
    "os.unlink",
    "os.fchmod",
    "fcntl.flock",
)


def dies_at_step(number: int, act: Callable[[], object]) -> bool:
    """Run ``act`` in a forked child that is killed as it begins its n-th system call on files; whether it was."""
    child = os.fork()
    if child == 0:
        left = iter(range(number))

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: Any, **options: Any) -> object:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for step in STEPS:
            module, name = step.split(".")
            setattr(sys.modules[module], name, counted(getattr(sys.modules[module], name)))
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["put", "partial"])
def test_a_crash_between_any_two_steps_leaves_a_sound_store(tmp_path: Path, kind: str) -> None:
    sample = shard(3)

    def act() -> None:
        with Store.open(folder) as store:
            if kind == "put":
                store.put(sample.content)
            else:
                partial = store.partial(sample.digest, sample.table)
                for position in partial.missing():
                    partial.accept(position, sample.blocks[position])
                partial.finish()

    number = 0
    folder = tmp_path / "0"
    while dies_at_step(number, act):
        check_sound(folder, [])
        act()
        check_sound(folder, [sample.digest])
        assert not files_under(folder / "partial")
        number += 1
        folder = tmp_path / str(number)
    assert number > 15


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_one_killed_writer_does_not_harm_another_that_goes_on(tmp_path: Path) -> None:
    source = random.Random(7)
    with Store.open(tmp_path) as store:
        for trial in range(6):
            writer = start(WRITER, tmp_path, trial * 1_000)
            stop = threading.Event()
            mine: list[Digest] = []

            def write(trial: int = trial, stop: threading.Event = stop, mine: list[Digest] = mine) -> None:
                while not stop.is_set():
                    mine.append(store.put(f"{trial} {len(mine)}".encode()))

            thread = threading.Thread(target=write)
            thread.start()
            try:
                theirs = killed(writer, source.randrange(3), source.random() * 0.03)
            finally:
                stop.set()
                thread.join()
            assert mine
            assert all(store.has(digest) for digest in mine + theirs)
        check_sound(tmp_path, [])


RACER = """
import random, sys
from pathlib import Path
from dhtdata.errors import NotFoundError, StoreError
from dhtdata.store import Store
from tests.store.samples import shard

store = Store.open(Path(sys.argv[1]))
source = random.Random(int(sys.argv[2]))
for turn in range(40):
    seed = source.randrange(6)
    sample = shard(seed, block_bytes=3_000)
    if source.random() < 0.5:
        store.put(sample.content)
        store.read(store.put(b"kept %d" % seed), limit_bytes=100)
    else:
        partial = store.partial(sample.digest, sample.table)
        for position in partial.missing():
            partial.accept(position, sample.blocks[position])
        partial.finish()
    if source.random() < 0.2:
        Store.open(store.path).close()
    if source.random() < 0.2:
        assert all(result.state != "corrupt" for result in store.scrub())
print("done")
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_four_processes_write_and_finish_the_same_blobs_at_once(tmp_path: Path) -> None:
    racers = [start(RACER, tmp_path, seed) for seed in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.read() == "done\n"
        racer.stdout.close()
        assert racer.wait() == 0
    check_sound(tmp_path, [])
    with Store.open(tmp_path) as store:
        assert store.partials() == []
        assert not files_under(tmp_path / "partial")


EVICTOR = """
import sys
from pathlib import Path
from dhtdata.store import Store

store = Store.open(Path(sys.argv[1]))
print("ready", flush=True)
dropped = 0
for line in sys.stdin:
    dropped += store.gc(grace_s=0)
print(dropped)
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
def test_what_is_stored_again_while_another_process_drops_it_is_whole_or_gone(tmp_path: Path) -> None:
    contents = [random.Random(seed).randbytes(5_000) for seed in range(5)]
    evictor = subprocess.Popen(
        [sys.executable, "-c", EVICTOR, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert evictor.stdin is not None
    assert evictor.stdout is not None
    assert evictor.stdout.readline() == "ready\n"
    with Store.open(tmp_path) as store:
        for _ in range(60):
            evictor.stdin.write("\n")
            evictor.stdin.flush()
            for content in contents:
                store.put(content)
    dropped, _ = evictor.communicate()
    assert int(dropped) > 0
    check_sound(tmp_path, [])


def test_opening_from_many_threads_at_once_makes_one_store(tmp_path: Path) -> None:
    ids: list[bytes] = []
    start_line = threading.Barrier(8)

    def open_often() -> None:
        start_line.wait()
        for _ in range(25):
            with Store.open(tmp_path / "store") as store:
                ids.append(store.id)

    threads = [threading.Thread(target=open_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 200
    assert len(set(ids)) == 1


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB, if this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_loses_nothing_and_takes_more_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with Store.open(small_disk / "store") as store:
        before = store.put(b"stored before" * 1_000)
        ballast.write_bytes(bytes(1 << 20))
        content = bytes(range(256)) * 10_000
        with pytest.raises(StoreError, match=rf"{small_disk}.*no room for \d+ more bytes"):
            store.put(content)
        assert not store.has(Digest.of(content))
        assert store.read(before, limit_bytes=1 << 20) == b"stored before" * 1_000
        assert not files_under(store.path / "incoming")
        ballast.unlink()
        assert store.has(store.put(content[: 1 << 20]))
    check_sound(small_disk / "store", [before])


def test_a_disk_full_to_the_last_byte_still_serves_and_recovers(small_disk: Path) -> None:
    with Store.open(small_disk / "store") as store:
        before = [store.put(bytes([i]) * 3_000) for i in range(20)]
        stored = []
        ballast = (small_disk / "ballast").open("wb", buffering=0)
        with ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4_096))
        refused = 0
        for i in range(200):
            try:
                stored.append(store.put(f"small {i}".encode() * 300))
            except StoreError as failure:
                assert str(small_disk) in str(failure)
                refused += 1
        assert refused > 0
        assert all(store.has(digest) for digest in before + stored)
        assert all(store.read(digest, limit_bytes=3_000) for digest in before)
        (small_disk / "ballast").unlink()
        stored += [store.put(f"small {i}".encode() * 300) for i in range(200)]
        assert all(store.has(digest) for digest in before + stored)
    check_sound(small_disk / "store", before + stored)


def test_a_store_cannot_be_made_on_a_full_disk_and_can_once_there_is_room(small_disk: Path) -> None:
    ballast = (small_disk / "ballast").open("wb", buffering=0)
    with ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(4_096))
    refused = 0
    # A page more each time, so that making a store fails at another step each time.
    while True:
        try:
            Store.open(small_disk / "store").close()
            break
        except StoreError as failure:
            assert str(small_disk) in str(failure)
            refused += 1
            os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 4_096)
    assert refused > 3
    (small_disk / "ballast").unlink()
    with Store.open(small_disk / "store") as store:
        assert store.has(store.put(b"x"))


def test_a_shard_that_outgrows_the_disk_keeps_its_blocks_and_goes_on(small_disk: Path) -> None:
    sample = shard(1, block_bytes=200_000)
    with Store.open(small_disk / "store") as store:
        partial = store.partial(sample.digest, sample.table)
        partial.accept(0, sample.blocks[0])
        ballast = (small_disk / "ballast").open("wb", buffering=0)
        with ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4_096))
        with pytest.raises(StoreError, match="no room for 200000 more bytes"):
            partial.accept(1, sample.blocks[1])
        assert partial.missing() == list(range(1, 8))
        (small_disk / "ballast").unlink()
        for position in partial.missing():
            partial.accept(position, sample.blocks[position])
        assert partial.finish().read_bytes() == sample.content


def test_a_file_over_the_limit_of_this_process_is_a_store_error(tmp_path: Path) -> None:
    # The same without root: a limit on the size of files fails the write in the same place (EFBIG).
    with Store.open(tmp_path) as store:
        store.put(b"before")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(StoreError, match=f"no room for {2 << 20} more bytes"):
                store.put(bytes(2 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert store.has(store.put(bytes(2 << 20)))
        assert not files_under(tmp_path / "incoming")
