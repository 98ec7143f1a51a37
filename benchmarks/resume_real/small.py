"""A small dataset of many shards, where it is seeded, and the peer of whoever reads it."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.peers import Dataset, Machine, shards_of
from dhtdata.control import PeerClient
from dhtdata.errors import NotFoundError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from tests.mount.making import put_dataset

ROW_BYTES = 2_000


def publish_small(machine: Machine, rows: int, rows_per_shard: int) -> Dataset:
    """Rows with their number and some bytes that follow from it; row ranges do not end where shards do."""
    numbers = np.arange(rows, dtype=np.int64)
    table = pa.table(
        {"number": numbers, "filling": pa.array([filling_of(n) for n in range(rows)], pa.binary(ROW_BYTES))}
    )
    with machine.store() as store:
        manifest = put_dataset(
            store,
            table,
            block_rows=max(rows_per_shard // 3, 1),
            shard_blocks=3,
            range_rows=rows_per_shard * 4 // 5,
        )
        store.pin(manifest)
        contents = Manifest.decode(store.read(manifest, limit_bytes=MAX_MANIFEST_BYTES)).contents
        return Dataset(manifest, contents, shards_of(store, contents))


def filling_of(number: int) -> bytes:
    return number.to_bytes(4, "big") * (ROW_BYTES // 4)


def peer_pid(machine: Machine) -> int:
    """Process id of the peer that runs there. NotFoundError if none does."""
    with (
        machine.store() as store,
        PeerClient.connect(store, machine.settings, start=False, keeps_alive=False) as client,
    ):
        link = client.connection()
        link.close()
        return link.welcome.pid


@contextmanager
def no_peer_after(machine: Machine) -> Iterator[None]:
    """Ends the private peer that mounts have started."""
    try:
        yield
    finally:
        try:
            end_process(peer_pid(machine))
        except NotFoundError:
            pass


def end_process(pid: int) -> None:
    """Kill a process, ours or not, and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        gone(descriptor)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def gone(descriptor: int, timeout_s: float = 30.0) -> None:
    """Wait until the process behind a pidfd has ended. TimeoutError if it does not."""
    if not select.select([descriptor], [], [], timeout_s)[0]:
        raise TimeoutError(f"a process did not end within {timeout_s:.0f} s")


def peers_of(machine: Machine) -> list[int]:
    """Every process of this machine that is a private peer of that store, whether it answers or not."""
    if sys.platform != "linux":
        raise RuntimeError("processes are counted in /proc")
    store = os.fsencode(machine.settings.store.absolute())
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"dhtdata.peer" in command and store in command:
                found.append(int(folder.name))
    return found


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def private_dirty(pid: int) -> int:
    """Bytes of memory that a process has written to and shares with no other."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no private memory")


def threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def mapped_files(pid: int) -> int:
    """Shards that a process has mapped, those that are unlinked included."""
    return Path(f"/proc/{pid}/maps").read_text().count("/store/")
