"""Peers as users run them: ``dhtdata seed`` in a process of its own, private peers as a program starts them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhtdata.config import Settings
from dhtdata.control import PeerClient
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.store import Store

LOOPBACK = "127.0.0.1"
START_S = 60.0
END_S = 15.0


def settings_at(folder: Path, listen: str = LOOPBACK, bootstrap: tuple[Address, ...] = ()) -> Settings:
    return Settings(folder / "home", folder / "store", None, listen, 0, bootstrap)


@dataclass(frozen=True)
class Seed:
    """A running ``dhtdata seed``."""

    process: subprocess.Popen[str]
    settings: Settings
    address: Address
    pid: int


@contextmanager
def seeding(
    settings: Settings, targets: Sequence[str], *, before: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[Seed]:
    """``dhtdata seed``, until the block ends; yields when it has found its targets. ``before``: a command to run it by.

    RuntimeError if it ends or says nothing in `START_S`.
    """
    command = [*before, sys.executable, "-m", "dhtdata", "seed", "--json", *options, *targets]
    command += ["--store", str(settings.store), "--home", str(settings.home)]
    command += ["--listen", settings.listen, "--port", str(settings.port)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = _first_line(running)
        yield Seed(running, settings, Address.parse(said["addresses"][0]), int(said["pid"]))
    finally:
        end(running)


def _first_line(running: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = running.stdout, running.stderr
    if output is None or errors is None:
        raise RuntimeError("a process without pipes")
    ready, _, _ = select.select([output], [], [], START_S)
    line = output.readline() if ready else ""
    if not line:
        end(running)
        raise RuntimeError(f"{running.args!r} did not start: {errors.read()[-2_000:]}")
    said: dict[str, Any] = json.loads(line)
    return said


def end(running: subprocess.Popen[Any]) -> None:
    """SIGTERM, SIGKILL if that does not do."""
    if running.poll() is None:
        running.terminate()
        try:
            running.wait(END_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(END_S)


@dataclass(frozen=True)
class Fetching:
    """A store and the private peer that was started for it."""

    store: Store
    settings: Settings
    client: PeerClient


@contextmanager
def fetching(folder: Path, *bootstrap: Address) -> Iterator[Fetching]:
    """A private peer of an own store, as a program has it that mounts a dataset; stopped at the end."""
    settings = settings_at(folder, bootstrap=bootstrap)
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(settings.store))
        client = stack.enter_context(PeerClient.connect(store, settings, start=True))
        stack.callback(stop_peer, store, settings)
        yield Fetching(store, settings, client)


def stop_peer(store: Store, settings: Settings) -> None:
    """Stop whatever peer runs on a store, and wait for its end."""
    try:
        with PeerClient.connect(store, settings, start=False) as client:
            pid = client.status().pid
            client.stop()
    except NotFoundError:
        return
    until(lambda: not alive(pid), END_S)


def kill(pid: int) -> None:
    """SIGKILL; the process may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def cpu_s(pid: int) -> float:
    """Seconds of processor that a process has used."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> None:
    """Wait for another process to get there. TimeoutError if it does not."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"it did not happen within {timeout_s:.0f} s")
        time.sleep(every_s)
