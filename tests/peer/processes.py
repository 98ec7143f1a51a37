"""Seeds as processes of their own, and stores beside them: what the tests of the peer share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dhtdata.config import Settings
from dhtdata.control import PeerClient
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.store import Store

START_S = 15.0
_SEED = """
import sys
from dhtdata.config import load_settings
from dhtdata.errors import DhtDataError
from dhtdata.formats.ticket import parse_target
from dhtdata.peer import run_seed

store, home, port, bootstrap, network, *targets = sys.argv[1:]
flags = {"store": store, "home": home, "listen": "127.0.0.1", "port": int(port), "bootstrap": bootstrap}
settings = load_settings(flags | {"network": network or None}, environment={})
try:
    run_seed(
        settings,
        [parse_target(target) for target in targets],
        on_listening=lambda status: print("listening", status.addresses[0], flush=True),
        on_seeded=lambda seeded: print("seeded", seeded.ticket, flush=True),
    )
except DhtDataError as failure:
    print("failed", type(failure).__name__, failure, flush=True)
    sys.exit(1)
"""


def settings_at(
    folder: Path, *, bootstrap: tuple[Address, ...] = (), port: int = 0, network: Path | None = None
) -> Settings:
    return Settings(folder / "home", folder / "store", None, "127.0.0.1", port, bootstrap, network)


@dataclass
class SeedProcess:
    """A seed in a process of its own."""

    running: subprocess.Popen[str]
    settings: Settings
    address: Address

    def line(self) -> str:
        """What it says next."""
        assert self.running.stdout is not None
        return self.running.stdout.readline().strip()

    def kill(self) -> None:
        self.running.send_signal(signal.SIGKILL)
        self.running.wait(10)

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(10)


def start_seed(settings: Settings, *targets: str, first: str = "") -> subprocess.Popen[str]:
    """A seed in a process of its own, which runs the statements in ``first`` before anything else."""
    arguments = [str(settings.store), str(settings.home), str(settings.port), ",".join(map(str, settings.bootstrap))]
    arguments.append(str(settings.network or ""))
    return subprocess.Popen(
        [sys.executable, "-c", first + _SEED, *arguments, *targets],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@contextmanager
def seeding(settings: Settings, *targets: str, first: str = "") -> Iterator[SeedProcess]:
    """A seed that listens, until the block ends."""
    running = start_seed(settings, *targets, first=first)
    try:
        assert running.stdout is not None
        said = running.stdout.readline().split()
        assert said[:1] == ["listening"], said
        yield SeedProcess(running, settings, Address.parse(said[1]))
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(5)
        if running.stdout is not None:
            running.stdout.close()


@contextmanager
def opened(folder: Path, **options: object) -> Iterator[tuple[Store, Settings]]:
    """A store and its settings; whatever private peer was started for it is stopped at the end."""
    settings = replace(settings_at(folder), **options)  # type: ignore[arg-type]
    with Store.open(settings.store) as store:
        try:
            yield store, settings
        finally:
            stop_peer(store, settings)


def stop_peer(store: Store, settings: Settings) -> None:
    try:
        with PeerClient.connect(store, settings, start=False) as client:
            pid = client.status().pid
            client.stop()
    except NotFoundError:
        return
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for another process to get there."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
