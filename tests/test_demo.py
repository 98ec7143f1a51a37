"""The demo shows what it says, and cleans up after itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "scripts" / "demo"
DEMO_S = 150
FILES = 240
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(DEMO_S + 30)]


def write_sources(folder: Path) -> int:
    """A folder of some 7 MiB of source files in packages; how many files."""
    dice = random.Random(5)
    words = [f"{''.join(dice.choices('abcdefghijklmnop', k=dice.randint(3, 9)))}" for _ in range(2_000)]
    for number in range(FILES):
        package = folder / f"package{number % 7}"
        package.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{dice.choice(words)}_{number} = {dice.choice(words)}({dice.random()}, {dice.getrandbits(64)})"
            for _ in range(dice.randint(50, 1_000))
        ]
        (package / f"module{number}.py").write_text("\n".join(lines) + "\n")
    (folder / ".hidden.py").write_text("left = 'out'\n")
    (folder / "link.py").symlink_to(folder / "package0" / "module0.py")
    return FILES


@contextmanager
def playing(folder: Path, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo on a folder, with a temporary folder of its own to look at afterwards."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DHTDATA_")}
    with subprocess.Popen(
        [str(DEMO), str(folder), "--json"],
        env=kept | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        yield demo


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that mention a folder or live in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            spoken = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in spoken:
            found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def followed(temporary: Path, demo: subprocess.Popen[str]) -> bool:
    """Wait until the demo's follower has a store; whether that came to be while the demo ran."""
    deadline_s = time.monotonic() + DEMO_S
    while demo.poll() is None and time.monotonic() < deadline_s:
        if list(temporary.glob("dhtdata-demo-*/follower/store/index.sqlite")):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path: sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="dd") as folder:
        yield Path(folder)


def test_the_epoch_survives_the_publisher_and_the_rest_comes_from_the_follower(tmp_path: Path, temporary: Path) -> None:
    count = write_sources(tmp_path / "sources")
    with playing(tmp_path / "sources", temporary) as demo:
        out, err = demo.communicate(timeout=DEMO_S)
    assert demo.returncode == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert figures["rows"] == figures["rows_expected"] == count
    assert figures["duplicates"] == figures["missing"] == 0
    assert figures["publisher_killed"] is True
    assert figures["outstanding_at_kill"] > 0
    after = figures["bytes_after_kill"]
    assert after[figures["follower"]] > 0.9 * figures["outstanding_at_kill"]
    assert after[figures["publisher"]] == 0
    assert figures["providers"][figures["publisher"]] > 0, "the publisher never helped, so its death proves nothing"
    assert sum(figures["providers"].values()) == figures["bytes"] > 0
    assert figures["blocks_verified"] > 3
    assert figures["first_batch_s"] > 0 and figures["rows_s"] > 0
    assert figures["loss_last"] < figures["loss_first"]
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []


def test_an_interrupted_demo_leaves_no_process_and_no_file_behind(tmp_path: Path, temporary: Path) -> None:
    write_sources(tmp_path / "sources")
    with playing(tmp_path / "sources", temporary) as demo:
        waiting = followed(temporary, demo)
        with suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGINT)
        _, err = demo.communicate(timeout=DEMO_S)
    assert waiting, "the demo never got as far as a running follower"
    assert demo.returncode == 130, err
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []
