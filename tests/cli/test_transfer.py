"""``get`` and ``seed`` on a terminal and elsewhere: real processes on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.machine import COMMAND_S, END_S, Machine

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]


class Screen:
    """A terminal: everything that was written to it."""

    def __init__(self) -> None:
        self.end, self.child_end = pty.openpty()
        fcntl.ioctl(self.child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._news = threading.Condition()
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.end, 65_536)
            except OSError:
                # What Linux says when the last process has closed the other end.
                return
            with self._news:
                self._written += piece
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: text.encode() in self._written, END_S), self.text

    @property
    def text(self) -> str:
        return self._written.decode()

    def close(self) -> None:
        os.close(self.child_end)
        self._reader.join(END_S)
        os.close(self.end)


@contextmanager
def screen() -> Iterator[Screen]:
    made = Screen()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine]:
    """One that has published 40,000 rows, and one that has nothing."""
    first, second = Machine(tmp_path, "first"), Machine(tmp_path, "second")
    (first.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(40_000))))
    first.run("publish", "rows.csv", "--name", "rows")
    return first, second


def test_get_tells_programs_how_the_fetch_went(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    with first.seeding("seed", "rows") as (seeded, _):
        done = second.document("get", seeded["ticket"])
        assert done["fetched"] == done["bytes_held"] == done["bytes"] > 0
        assert done["wasted"] == done["reused"] == 0 and done["blocks_verified"] >= 3
        [provider] = done["providers"]
        assert provider["address"] == seeded["addresses"][0] and provider["bytes"] == done["bytes"]
        assert 0 < done["seconds"] < COMMAND_S
        again = second.document("get", seeded["ticket"])
        assert (again["fetched"], again["blocks_verified"], again["providers"], again["bound_seconds"]) == (
            0,
            0,
            [],
            None,
        )
        second.stop_private_peer()


def test_get_draws_on_a_terminal_what_it_fetches_and_nothing_elsewhere(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    with first.seeding("seed", "rows") as (seeded, _), screen() as terminal:
        done = subprocess.run(
            second.command(["get", seeded["ticket"]]),
            cwd=second.work,
            env=second.environment | {"TERM": "xterm-256color"},
            stdout=subprocess.PIPE,
            stderr=terminal.child_end,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0
        terminal.wait_for("fetching rows")
        assert "is in the store" in done.stdout and "from 1 provider" in done.stdout
        assert "\x1b" not in done.stdout and "fetching" not in done.stdout
        second.stop_private_peer()
        third = Machine(first.home.parent, "third")
        assert "fetching" not in third.run("get", seeded["ticket"]).err
        third.stop_private_peer()


def test_a_seed_draws_what_it_does_below_what_it_said(machines: tuple[Machine, Machine]) -> None:
    first, _ = machines
    with screen() as terminal:
        child = subprocess.Popen(
            first.command(["seed", "rows"]),
            cwd=first.work,
            env=first.environment | {"TERM": "xterm-256color"},
            stdout=terminal.child_end,
            stderr=terminal.child_end,
        )
        try:
            terminal.wait_for("Ctrl-C or dhtdata stop ends it.")
            terminal.wait_for("seeding 1 dataset")
            terminal.wait_for("0 B/s · 0 B in 0 requests")
        finally:
            child.send_signal(signal.SIGTERM)
            code = child.wait(END_S)
        assert code == 0
        terminal.wait_for("Stopped seeding")
