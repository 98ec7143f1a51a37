"""A stranger's shard, checked before the table side first reads it.

The digests said that the bytes are those the publisher meant; this says that they are a shard. `check_shard` refuses
unless every block holds exactly the bytes that this program would have written for its values: the schema block, every
record batch (read, validated in full, laid out anew, compared) and the footer, rebuilt from the block table. So nothing
that is not canonical, and nothing that a reader could be tricked with, passes. Types need no list of their own here:
the schema comes from the contents, through ``schema.to_arrow``.

A `Checker` does the same in a process with limits on memory and time, for what comes from a publisher who is not
trusted yet: should pyarrow crash on it, that process dies and this one refuses the shard. It checks single blocks, too,
so that the first rows of a stranger's shard can be read before all of it has arrived.
"""

from __future__ import annotations

import math
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from weakref import WeakSet

import pyarrow as pa

from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.blocks import MAX_SHARD_BYTES, MAX_TABLE_BYTES, BlockTable
from dhtdata.formats.codec import Format, decode_msgpack, encode_msgpack
from dhtdata.formats.contents import MAX_CONTENTS_BYTES
from dhtdata.formats.schema import Field
from dhtdata.tables.ipc import batch_block, footer_block, schema_block
from dhtdata.tables.reader import ShardReader
from dhtdata.tables.schema import to_arrow, to_fields

CHILD_MEMORY_BYTES = 4 << 30
CHILD_CPU_S = 60
CHILD_TIMEOUT_S = 120
END_S = 5.0
_MAX_JOB_BYTES = 4 * MAX_CONTENTS_BYTES + MAX_TABLE_BYTES + 32_768
_MAX_VERDICT_BYTES = 1 << 20
_LENGTH_BYTES = 4
_PROGRAM = (
    # numpy comes with pyarrow, and its OpenBLAS would start a thread for each core: half the start.
    "import os; os.environ['OPENBLAS_NUM_THREADS'] = '1'; from dhtdata.tables.check import serve; serve()"
)


def check_shard(path: Path, table: BlockTable, stored: pa.Schema) -> None:
    """FormatError, naming block and reason, unless the file is the canonical shard of its values.

    StoreError if it cannot be read.
    """
    check_blocks(path, table, stored, range(len(table.blocks)))


def check_blocks(path: Path, table: BlockTable, stored: pa.Schema, positions: Sequence[int]) -> None:
    """`check_shard` for some blocks only, of a file that has its full length and these blocks at least."""
    reader = ShardReader(path, table, stored)
    lengths = [block.length for block in table.blocks]
    for position in positions:
        if position == 0:
            if not reader.bytes_of(0).equals(pa.py_buffer(schema_block(stored))):
                raise FormatError(f"shard {path.name}: its first block is not the schema that the contents state")
        elif position == len(lengths) - 1:
            if not reader.bytes_of(position).equals(pa.py_buffer(footer_block(stored, lengths[:-1]))):
                raise FormatError(f"shard {path.name}: its footer does not list the blocks of the block table")
        else:
            try:
                _check_canonical(reader.batch(position - 1), reader.bytes_of(position))
            except FormatError as failure:
                raise FormatError(f"shard {path.name}: {failure}") from failure


def _check_canonical(batch: pa.RecordBatch, block: pa.Buffer) -> None:
    end = 0
    for part in batch_block(batch):
        expected = pa.py_buffer(part)
        actual = block.slice(end, expected.size)
        end += expected.size
        # Most parts are the very memory that was read.
        if actual.address != expected.address and not actual.equals(expected):
            raise FormatError("a record batch is not in canonical form")
    if end != block.size:
        raise FormatError("a record batch is not in canonical form")


class _Job(Format, frozen=True):
    """``blocks``: positions in the table; None means the whole shard."""

    path: str
    table: bytes
    columns: tuple[Field, ...]
    blocks: tuple[int, ...] | None = None


class _Verdict(Format, frozen=True):
    refused: str = ""
    unreadable: str = ""


class Checker:
    """A process that checks shards and blocks, one after another. It starts at once, before there is anything to check.

    Threads may share it. A crash, a limit or a hang of that process is a FormatError for the shard that it checked; the
    next one gets a new process. It ends with `close`, or with this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._messages = tempfile.TemporaryFile()
        _checkers.add(self)
        with suppress(StoreError):  # asked again when there is something to check
            self._start()

    def check(self, path: Path, table: BlockTable, stored: pa.Schema, positions: Sequence[int] | None = None) -> None:
        """`check_shard`, or `check_blocks` of these positions. StoreError if that cannot be found out."""
        columns, _ = to_fields(stored)
        blocks = None if positions is None else tuple(positions)
        job = encode_msgpack(_Job(path=str(path.absolute()), table=table.encode(), columns=columns, blocks=blocks))
        with self._lock:
            verdict = self._ask(path, job)
        if verdict.unreadable:
            raise StoreError(verdict.unreadable)
        if verdict.refused:
            raise FormatError(verdict.refused)

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            _end(child)
        self._messages.close()

    def __del__(self) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-c", _PROGRAM]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, bufsize=0
            )
        except OSError as failure:
            raise StoreError(f"no process to check shards in can be started: {failure}") from failure
        return self._child

    def _ask(self, path: Path, job: bytes) -> _Verdict:
        child = self._child or self._start()
        try:
            answer = _exchange(child, job)
        except TimeoutError as failure:
            self._child = None
            child.kill()
            _end(child)
            raise FormatError(f"shard {path.name}: checking it took more than {CHILD_TIMEOUT_S} s") from failure
        except (OSError, EOFError) as failure:
            self._child = None
            self._blame(path, _end(child), failure)
        return decode_msgpack(answer, _Verdict, limit_bytes=_MAX_VERDICT_BYTES, what="verdict on a shard")

    def _blame(self, path: Path, status: int, failure: Exception) -> NoReturn:
        if status < 0:
            raise FormatError(f"shard {path.name}: the process that checked it died of signal {-status}") from failure
        self._messages.seek(0)
        reason = self._messages.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise StoreError(f"shard {path.name} could not be checked: {reason or f'exit status {status}'}") from failure

    def _after_fork_in_child(self) -> None:
        """The process belongs to the parent: let go of its pipes, so that it ends when the parent closes them."""
        child, self._child = self._child, None
        self._lock = threading.Lock()
        if child is not None:
            child.returncode = 0
            _close_pipes(child)


def check_shard_in_child(path: Path, table: BlockTable, stored: pa.Schema) -> None:
    """`check_shard` in a process of its own."""
    checker = Checker()
    try:
        checker.check(path, table, stored)
    finally:
        checker.close()


def _exchange(child: subprocess.Popen[bytes], job: bytes) -> bytes:
    """The answer to a job. TimeoutError if it takes too long, OSError or EOFError if the process ends."""
    if child.stdin is None or child.stdout is None:
        raise EOFError
    deadline_s = time.monotonic() + CHILD_TIMEOUT_S
    os.set_blocking(child.stdin.fileno(), False)
    left = memoryview(len(job).to_bytes(_LENGTH_BYTES, "big") + job)
    while left:
        if not select.select([], [child.stdin], [], max(deadline_s - time.monotonic(), 0.0))[1]:
            raise TimeoutError
        left = left[os.write(child.stdin.fileno(), left) :]
    received, wanted = b"", _LENGTH_BYTES
    while len(received) < wanted:
        if not select.select([child.stdout], [], [], max(deadline_s - time.monotonic(), 0.0))[0]:
            raise TimeoutError
        piece = child.stdout.read(1 << 16)
        if not piece:
            raise EOFError
        received += piece
        if len(received) >= _LENGTH_BYTES:
            wanted = _LENGTH_BYTES + min(int.from_bytes(received[:_LENGTH_BYTES], "big"), _MAX_VERDICT_BYTES)
    return received[_LENGTH_BYTES:wanted]


def _end(child: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, which closed pipes make it find; how it ended."""
    _close_pipes(child)
    try:
        return child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


_checkers: WeakSet[Checker] = WeakSet()


def _after_fork_in_child() -> None:
    for checker in list(_checkers):
        checker._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _judge(data: bytes) -> _Verdict:
    job = decode_msgpack(data, _Job, limit_bytes=_MAX_JOB_BYTES, what="job")
    path, table, stored = Path(job.path), BlockTable.decode(job.table), to_arrow(job.columns, {})
    try:
        if job.blocks is None:
            check_shard(path, table, stored)
        else:
            check_blocks(path, table, stored, job.blocks)
    except FormatError as failure:
        return _Verdict(refused=str(failure))
    except StoreError as failure:
        return _Verdict(unreadable=str(failure))
    except MemoryError:
        return _Verdict(refused=f"shard {path.name}: checking it takes more than {CHILD_MEMORY_BYTES} bytes")
    return _Verdict()


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (lowest, lowest))


def _limit_cpu() -> None:
    """The next job's share: a limit counts all that a process has ever used."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(time.process_time()) + CHILD_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard))


def serve() -> None:
    """Judge what comes on standard input, until it ends."""
    # After the imports, so that only the check itself can meet a limit.
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, CHILD_MEMORY_BYTES + MAX_SHARD_BYTES)
    jobs, verdicts = sys.stdin.buffer, sys.stdout.buffer
    while len(length := jobs.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
        _limit_cpu()
        verdict = encode_msgpack(_judge(jobs.read(int.from_bytes(length, "big"))))
        verdicts.write(len(verdict).to_bytes(_LENGTH_BYTES, "big") + verdict)
        verdicts.flush()
