"""What goes wrong while a loop runs: damaged shards, full disks, peers and providers that go away."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import dhtdata
from dhtdata.config import load_settings
from dhtdata.control import PeerClient
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError, StoreError
from dhtdata.mount.dataset import StreamingDataset
from dhtdata.peer.addresses import free_port
from dhtdata.store import Store, filesystem
from dhtdata.vault import vault
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed

ROWS = 1_200
SHARD_ROWS = 60
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digest]:
    """20 shards of 120 KB."""
    home = tmp_path_factory.mktemp("seed")
    table = pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "filling": pa.array([filling(number) for number in range(ROWS)], pa.binary(2_000)),
        }
    )
    with Store.open(home / "store") as store:
        return home, put_dataset(store, table, block_rows=20, shard_blocks=3, range_rows=SHARD_ROWS)


def filling(number: int) -> bytes:
    return number.to_bytes(2, "big") * 1_000


@pytest.fixture(autouse=True)
def _files_are_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "LOOK_S", 0.0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with peer_of(tmp_path / "reader"):
        yield tmp_path / "reader"


def numbers_of(batch: Any) -> list[int]:
    numbers: list[int] = batch["number"].tolist()
    assert [bytes(value) for value in batch["filling"]] == [filling(number) for number in numbers]
    return numbers


def shard_file(home: Path, dataset: StreamingDataset, number: int) -> Path:
    digest = list(dataset._view.groups[0].digests())[number]
    with Store.open(home / "store") as store:
        return store.path_of(digest)


def spoil(path: Path) -> None:
    """Other bytes in the same file, which is mapped."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"rot" * 10_000)


def cut_off(path: Path) -> None:
    """A shorter file in its place: a mapped one must not lose pages, or the reader gets a SIGBUS."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [spoil, cut_off, lose])
def test_a_shard_that_is_damaged_while_a_loop_reads_is_fetched_again_and_training_goes_on(
    home: Path, published: tuple[Path, Digest], damage: Any
) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(ticket, home=home, batch_size=10, shuffle=True, shuffle_window=20, timeout=20) as dataset:
            assert sorted(number for batch in dataset for number in numbers_of(batch)) == list(range(ROWS))
            path = shard_file(home, dataset, 7)
            sound = path.read_bytes()
            items = iter(dataset)
            seen = [number for _ in range(30) for number in numbers_of(next(items))]
            damage(path)
            # What had been gathered before the damage is still handed out.
            seen += [number for batch in items for number in batch["number"].tolist()]
            assert sorted(seen) == list(range(ROWS))
            third = [number for batch in dataset for number in numbers_of(batch)]
            assert sorted(third) == list(range(ROWS))
            if damage is not lose:  # a file that is only gone is still mapped
                assert shard_file(home, dataset, 7).read_bytes() == sound


def test_a_stored_dataset_that_is_damaged_is_repaired_by_a_peer_that_was_not_needed_before(
    home: Path, published: tuple[Path, Digest]
) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(ticket, home=home, batch_size=100, timeout=20) as dataset:
            assert len(list(dataset)) == ROWS // 100
        with peer_of(home):
            pass
        with dhtdata.mount(ticket, home=home, batch_size=100, timeout=20) as dataset:
            items = iter(dataset)
            seen = numbers_of(next(items))
            spoil(shard_file(home, dataset, 15))
            assert seen + [number for batch in items for number in numbers_of(batch)] == list(range(ROWS))


def test_a_provider_that_comes_back_in_time_is_enough(
    home: Path, published: tuple[Path, Digest], caplog: pytest.LogCaptureFixture
) -> None:
    source, manifest = published
    port = free_port("127.0.0.1")
    with seed(source, manifest, port) as (ticket, process):
        dataset = dhtdata.mount(ticket, home=home, batch_size=10, predownload=50_000, timeout=60)
        items = iter(dataset)
        seen = numbers_of(next(items))
        process.kill()
        process.wait()
    received: list[int] = []
    reading = threading.Thread(target=lambda: received.extend(n for batch in items for n in numbers_of(batch)))
    with caplog.at_level(logging.WARNING, "dhtdata"):
        reading.start()
        _until(lambda: any("waiting up to 60 s" in record.getMessage() for record in caplog.records))
        with seed(source, manifest, port):
            reading.join(60)
    assert seen + received == list(range(ROWS))
    dataset.close()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_say_what_is_missing_and_who_was_asked_when_nobody_comes_back(
    home: Path, published: tuple[Path, Digest], context: str
) -> None:
    from dhtdata.torch import DataLoader

    with seed(*published) as (ticket, process):
        dataset = dhtdata.mount(ticket, home=home, batch_size=10, predownload=50_000, timeout=4)
        items = iter(DataLoader(dataset, num_workers=2, multiprocessing_context=context))
        next(items)
        process.kill()
        process.wait()
        with pytest.raises(NotFoundError, match="within 4 s") as failure:
            for _ in items:
                pass
        assert "of dataset made" in str(failure.value) and "Asked: 127.0.0.1" in str(failure.value)
        dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_when_the_peer_is_killed(home: Path, published: tuple[Path, Digest], workers: int) -> None:
    from dhtdata.torch import DataLoader

    with seed(*published) as (ticket, _):
        dataset = dhtdata.mount(ticket, home=home, batch_size=10, shuffle=True, predownload=50_000, timeout=30)
        loader = DataLoader(dataset, num_workers=workers, **({"multiprocessing_context": "fork"} if workers else {}))
        seen, killed = [], set()
        for step, batch in enumerate(loader):
            seen += batch["number"].tolist()
            if step in (3, 40):
                killed.add(_kill_peer(home))
        assert sorted(seen) == list(range(ROWS)) and len(killed) == 2
        dataset.close()


def test_a_full_disk_is_an_error_that_says_so_and_what_came_is_kept(
    tmp_path: Path, published: tuple[Path, Digest]
) -> None:
    with _small_disk(tmp_path / "disk", 20 << 20) as disk, peer_of(disk / "reader"), seed(*published) as (ticket, _):
        mounted = partial(dhtdata.mount, ticket, home=disk / "reader", batch_size=10, predownload=50_000, timeout=20)
        dataset = mounted()
        items = iter(dataset)
        seen = numbers_of(next(items))
        ballast = disk / "ballast"
        _fill(ballast)
        with pytest.raises(StoreError, match="no room") as failure:
            for batch in items:
                seen += numbers_of(batch)
        assert "dhtdata gc" in str(failure.value)
        assert isinstance(items, Generator)
        state = dataset.state_dict()
        dataset.close()
        assert state["rows"] == len(seen) < ROWS
        ballast.unlink()
        with mounted() as dataset:
            dataset.load_state_dict(state)
            seen += [number for batch in dataset for number in numbers_of(batch)]
        assert seen == list(range(ROWS))


def test_a_store_on_a_network_file_system_is_refused_by_name(
    tmp_path: Path, published: tuple[Path, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "nfs"
    away.mkdir()
    magic_of = filesystem.magic_of
    monkeypatch.setattr(filesystem, "magic_of", lambda path: 0x6969 if path.is_relative_to(away) else magic_of(path))
    with pytest.raises(StoreError, match="is on NFS, which cannot hold a store") as failure:
        dhtdata.mount(str(published[1]), home=away, batch_size=10)
    assert "--store or DHTDATA_STORE" in str(failure.value)


def _kill_peer(home: Path) -> int:
    settings = load_settings({"home": home}, environment={})
    with Store.open(settings.store) as store:
        for _ in range(100):
            try:
                with PeerClient.connect(store, settings, start=False, keeps_alive=False) as client:
                    pid = client.status().pid
                    os.kill(pid, signal.SIGKILL)
                    return pid
            except NotFoundError:
                time.sleep(0.1)  # a new one is being elected
    raise AssertionError("no peer runs")


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.05)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory. Only root may mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    """Take all the room that its disk has."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(64 << 10))
            except OSError as failure:
                assert failure.errno == errno.ENOSPC
                return
