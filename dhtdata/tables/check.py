"""A stranger's shard, checked before the table side first reads it.

The digests said that the bytes are those the publisher meant; this says that they are a shard. `check_shard` refuses
unless every block holds exactly the bytes that this program would have written for its values: the schema block, every
record batch (read, validated in full, laid out anew, compared) and the footer, rebuilt from the block table. So nothing
that is not canonical, and nothing that a reader could be tricked with, passes. Types need no list of their own here:
the schema comes from the contents, through ``schema.to_arrow``.

`check_shard_in_child` does the same in a process with limits on memory and time, for the first shard of a publisher who
is not trusted yet: should pyarrow crash on it, that process dies and this one refuses the shard.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

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
_MAX_JOB_BYTES = 4 * MAX_CONTENTS_BYTES + MAX_TABLE_BYTES + 8_192


def check_shard(path: Path, table: BlockTable, stored: pa.Schema) -> None:
    """FormatError, naming block and reason, unless the file is the canonical shard of its values.

    StoreError if it cannot be read.
    """
    reader = ShardReader(path, table, stored)
    lengths = [block.length for block in table.blocks]
    if not reader.bytes_of(0).equals(pa.py_buffer(schema_block(stored))):
        raise FormatError(f"shard {path.name}: its first block is not the schema that the contents state")
    if not reader.bytes_of(len(lengths) - 1).equals(pa.py_buffer(footer_block(stored, lengths[:-1]))):
        raise FormatError(f"shard {path.name}: its footer does not list the blocks of the block table")
    for position in range(len(reader)):
        try:
            _check_canonical(reader.batch(position), reader.bytes_of(position + 1))
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
    path: str
    table: bytes
    columns: tuple[Field, ...]


class _Verdict(Format, frozen=True):
    refused: str = ""
    unreadable: str = ""


def check_shard_in_child(path: Path, table: BlockTable, stored: pa.Schema) -> None:
    """`check_shard` in a process of its own: a crash, a limit or a hang of that process is a FormatError too."""
    columns, _ = to_fields(stored)
    job = encode_msgpack(_Job(path=str(path.absolute()), table=table.encode(), columns=columns))
    command = [sys.executable, "-P", "-m", "dhtdata.tables.check"]
    try:
        child = subprocess.run(command, input=job, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as failure:
        raise FormatError(f"shard {path.name}: checking it took more than {CHILD_TIMEOUT_S} s") from failure
    except OSError as failure:
        raise StoreError(f"no process to check shard {path.name} in can be started: {failure}") from failure
    if child.returncode < 0:
        raise FormatError(f"shard {path.name}: the process that checked it died of signal {-child.returncode}")
    if child.returncode:
        reason = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StoreError(f"shard {path.name} could not be checked: {reason or f'exit status {child.returncode}'}")
    verdict = decode_msgpack(child.stdout, _Verdict, limit_bytes=1 << 20, what="verdict on a shard")
    if verdict.unreadable:
        raise StoreError(verdict.unreadable)
    if verdict.refused:
        raise FormatError(verdict.refused)


def _judge(data: bytes) -> _Verdict:
    job = decode_msgpack(data, _Job, limit_bytes=_MAX_JOB_BYTES, what="job")
    try:
        check_shard(Path(job.path), BlockTable.decode(job.table), to_arrow(job.columns, {}))
    except FormatError as failure:
        return _Verdict(refused=str(failure))
    except StoreError as failure:
        return _Verdict(unreadable=str(failure))
    except MemoryError:
        return _Verdict(refused=f"shard {Path(job.path).name}: checking it takes more than {CHILD_MEMORY_BYTES} bytes")
    return _Verdict()


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (lowest, lowest))


def _main() -> None:
    # After the imports, so that only the check itself can meet a limit.
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, CHILD_CPU_S)
    _limit(resource.RLIMIT_AS, CHILD_MEMORY_BYTES + MAX_SHARD_BYTES)
    sys.stdout.buffer.write(encode_msgpack(_judge(sys.stdin.buffer.read())))


if __name__ == "__main__":
    _main()
