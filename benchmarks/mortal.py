"""Processes of a benchmark that never outlive it: a child that dies with its parent, and commands over pipes.

A worker is ``python -m MODULE ARGUMENTS``; it calls `die_with_parent` first. It says what it has to say in lines of
JSON on standard output and is told things in lines on standard input; a closed input ends it where it listens to one.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
END_S = 5.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends (Linux; elsewhere pipes must do)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def say(**values: Any) -> None:
    """One line to whoever started this process."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Worker:
    """Use `worker`."""

    def __init__(self, process: subprocess.Popen[bytes], what: str) -> None:
        self.process = process
        self.pid = process.pid
        self._what = what
        self._received = b""

    def hear(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """What it says next. RuntimeError if it ends, or says nothing in time."""
        pipe = self.process.stdout
        if pipe is None:
            raise RuntimeError("a worker without pipes")
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                raise RuntimeError(f"{self._what} said nothing for {timeout_s:.0f} s")
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                raise RuntimeError(f"{self._what} ended early")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if "failure" in said:
            raise RuntimeError(f"{self._what}: {said['failure']}")
        return said

    def tell(self, **values: Any) -> None:
        if self.process.stdin is None:
            raise RuntimeError("a worker without pipes")
        self.process.stdin.write(json.dumps(values).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, timeout_s: float = 60.0, **values: Any) -> dict[str, Any]:
        self.tell(**values)
        return self.hear(timeout_s)


@contextmanager
def worker(
    module: str,
    *arguments: str,
    python: str = sys.executable,
    what: str = "",
    script: Path | None = None,
    before: Sequence[str] = (),
) -> Iterator[Worker]:
    """A process until the block ends; its errors go to ours.

    ``script``: a file to run in place of the module; ``before``: put before the command, to run it elsewhere.
    """
    command: Sequence[str] = [*before, python, *(("-m", module) if script is None else (str(script),))]
    process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0
    )
    try:
        yield Worker(process, what or module)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Politely first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def anonymous_bytes(pid: int) -> int:
    """Resident memory that belongs to a process alone: without pages of files, which the system takes back at will."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no anonymous memory")


def descriptors(pid: int, among: str = "") -> int:
    """Open files and sockets of a process, those only whose path has this in it."""
    folder = Path(f"/proc/{pid}/fd")
    return sum(among in _target(each) for each in folder.iterdir())


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed meanwhile
        return ""


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
