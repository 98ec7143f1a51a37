"""Processes of a benchmark: what one costs, and one that does as it is told.

A *worker* is ``python -m MODULE`` with a loop that reads commands, one JSON object a line, and answers each with one.
It ends with its standard input, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Command = dict[str, Any]
_LINE_BYTES = 1 << 24


def rss_bytes(pid: int) -> int:
    """Resident memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def costs() -> Command:
    """What this process has used: seconds of processor, bytes of memory."""
    return {"cpu_s": time.process_time(), "at_s": time.perf_counter(), "rss": rss_bytes(os.getpid())}


def core_share(before: Command, after: Command) -> float:
    """Share of a core between two answers of `costs`."""
    return float((after["cpu_s"] - before["cpu_s"]) / (after["at_s"] - before["at_s"]))


class Worker:
    """Use `worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, command: str, timeout_s: float = 60.0, **values: Any) -> Command:
        """The answer. RuntimeError if the worker ends, TimeoutError if it takes too long."""
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise RuntimeError("a worker without pipes")
        writer.write(json.dumps({"command": command, **values}).encode() + b"\n")
        async with asyncio.timeout(timeout_s):
            line = await reader.readline()
        if not line:
            raise RuntimeError(f"a worker ended at {command!r}")
        answer: Command = json.loads(line)
        return answer


@asynccontextmanager
async def worker(module: str) -> AsyncIterator[Worker]:
    """A process of this module's own; its errors go to ours."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def obey(answer: Callable[[Command], Awaitable[Command]]) -> None:
    """The worker's side: answer every command until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await answer(json.loads(line))), flush=True)
