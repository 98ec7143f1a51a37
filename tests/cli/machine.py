"""Machines for tests: the real command line as child processes, each machine with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_S = 60.0
END_S = 15.0


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one line of JSON on standard output."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"{self.out}\n{self.err}"
        return json.loads(lines[0])


class Machine:
    """One user's home and store; all machines of a test share loopback and a folder for sockets."""

    def __init__(self, folder: Path, name: str) -> None:
        self.home = folder / name
        self.work = folder / f"{name}-work"
        self.work.mkdir()
        self._runtime = folder / "run"
        self._runtime.mkdir(mode=0o700, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DHTDATA_")}
        own = {"DHTDATA_HOME": str(self.home), "DHTDATA_LISTEN": "127.0.0.1", "DHTDATA_PORT": "0"}
        return kept | own | {"XDG_RUNTIME_DIR": str(self._runtime), "COLUMNS": "100"}

    def run(self, *arguments: str) -> Done:
        done = subprocess.run(
            self.command(arguments),
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def document(self, *arguments: str) -> Any:
        """Result of a command that must succeed."""
        done = self.run(*arguments, "--json")
        assert done.code == 0, done.err
        return done.document

    def fails(self, code: int, *arguments: str) -> str:
        """The one sentence of a command that must fail with this exit code."""
        done = self.run(*arguments)
        assert done.code == code, f"{done.code}\n{done.out}\n{done.err}"
        lines = [line for line in done.err.splitlines() if line.startswith("dhtdata: ")]
        assert len(lines) == 1, done.err
        return lines[0].removeprefix("dhtdata: ")

    @contextmanager
    def seeding(self, *arguments: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
        """A foreground seed: what it printed when it was ready, and its process. Ended at the end of the block."""
        log = self.work / "seed.log"
        with log.open("w") as errors:
            child = subprocess.Popen(
                self.command([*arguments, "--json"]),
                cwd=self.work,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, log.read_text()
            yield json.loads(line), child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                child.wait(END_S)
            if child.stdout is not None:
                child.stdout.close()

    def stop_private_peer(self) -> None:
        """End the peer that a command started, if one runs."""
        self.run("stop")

    @staticmethod
    def command(arguments: Any) -> list[str]:
        return [sys.executable, "-P", "-m", "dhtdata", *arguments]
