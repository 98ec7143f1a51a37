from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.blocks import BlockTable
from dhtdata.tables import check
from dhtdata.tables.check import check_shard, check_shard_in_child
from dhtdata.tables.ipc import batch_block, batch_header, counts, footer_block, schema_block
from dhtdata.tables.schema import stored_schema
from tests.golden.every_type import every_type
from tests.tables.shards import shard, table_of, write_shard
from tests.tables.strategies import batches

Check = Callable[[Path, BlockTable, pa.Schema], None]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=[check_shard, check_shard_in_child], ids=["here", "in a child"])
def either(request: pytest.FixtureRequest) -> Check:
    checker: Check = request.param
    return checker


def sample() -> list[pa.RecordBatch]:
    return [
        pa.RecordBatch.from_pydict({"n": pa.array([1, None, 3]), "t": pa.array(["a", "bcd", None])}),
        pa.RecordBatch.from_pydict({"n": pa.array([4, 5]), "t": pa.array(["", "eeee"])}),
    ]


def blocks_of(batches: list[pa.RecordBatch]) -> list[bytes]:
    data, table, _ = shard(batches)
    return [data[block.offset : block.offset + block.length] for block in table.blocks]


def written(folder: Path, blocks: list[bytes], rows: list[int]) -> tuple[Path, BlockTable]:
    path = folder / "shard.arrow"
    path.write_bytes(b"".join(blocks))
    return path, table_of(blocks, rows)


def test_a_shard_of_every_type_passes(tmp_path: Path, either: Check) -> None:
    either(*write_shard(tmp_path, [every_type(), every_type().slice(1, 2)]))


@settings(max_examples=50, deadline=None)
@given(batch=batches())
def test_every_shard_that_is_written_passes(tmp_path_factory: pytest.TempPathFactory, batch: pa.RecordBatch) -> None:
    if batch.num_rows:
        check_shard(*write_shard(tmp_path_factory.mktemp("shard"), [batch, batch.slice(0, 1)]))


def test_a_footer_that_does_not_tile_is_refused(tmp_path: Path, either: Check) -> None:
    blocks, stored = blocks_of(sample()), sample()[0].schema
    lengths = [len(block) for block in blocks[:-1]]
    for wrong in (lengths[:-1], [*lengths, 64], [lengths[0], lengths[1] + 64, lengths[2]], lengths[::-1]):
        path, table = written(tmp_path, [*blocks[:-1], footer_block(stored, wrong)], [0, 3, 2, 0])
        with pytest.raises(FormatError, match="its footer does not list the blocks"):
            either(path, table, stored)


def test_another_schema_is_refused(tmp_path: Path, either: Check) -> None:
    path, table, stored = write_shard(tmp_path, sample())
    for other in (
        pa.schema([("n", pa.int64()), ("u", pa.string())]),
        pa.schema([pa.field("n", pa.int64(), nullable=False), ("t", pa.string())]),
        pa.schema([("n", pa.uint64()), ("t", pa.string())]),
        pa.schema([("n", pa.int64())]),
        stored.append(pa.field("more", pa.int8())),
    ):
        with pytest.raises(FormatError, match="not the schema that the contents state"):
            either(path, table, other)


def with_metadata(schema: pa.Schema) -> bytes:
    """The schema block as pyarrow would write it, with metadata."""
    message: bytes = schema.with_metadata({"ARROW:extension:name": "evil"}).serialize().to_pybytes()
    return (b"ARROW1\0\0" + message).ljust(-(-(8 + len(message)) // 64) * 64, b"\0")


def test_metadata_in_a_shard_is_refused(tmp_path: Path) -> None:
    stored = sample()[0].schema
    blocks = [with_metadata(stored), *blocks_of(sample())[1:-1]]
    blocks.append(footer_block(stored, [len(block) for block in blocks]))
    path, table = written(tmp_path, blocks, [0, 3, 2, 0])
    with pytest.raises(FormatError, match="not the schema"):
        check_shard(path, table, stored)


def test_what_pyarrow_writes_is_refused_if_compressed_or_not_canonical(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    for options in (pa.ipc.IpcWriteOptions(), pa.ipc.IpcWriteOptions(compression="lz4")):
        with pa.ipc.new_file(str(path), sample()[0].schema, options=options) as writer:
            writer.write_batch(sample()[0])
        data = path.read_bytes()
        table = BlockTable.build(
            [(count, rows, Digest.of(b"")) for count, rows in ((64, 0), (len(data) - 128, 3), (64, 0))]
        )
        with pytest.raises(FormatError, match="not the schema"):
            check_shard(path, table, sample()[0].schema)


def body_edits() -> dict[str, tuple[bytes, bytes, str]]:
    """Bytes of the first batch's body: what to find, what to put instead, how it is refused."""
    three = (3).to_bytes(8, "little")
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 1, 4, 4))
    return {
        "a value under a null": (bytes(8) + three, b"\x01" + bytes(7) + three, "canonical"),
        "another value is fine": (three, (9).to_bytes(8, "little"), ""),
        "text that is no UTF-8": (b"abcd", b"\xff\xff\xff\xff", "values are malformed"),
        "padding": (b"abcd" + bytes(4), b"abcd" + b"\0\0\0\x01", "padding"),
        "offsets that go back": (offsets, offsets[:4] + b"\x05" + offsets[5:], "values are malformed"),
        "text under a null": (offsets, offsets[:8] + b"\x03" + offsets[9:], "canonical"),
    }


@pytest.mark.parametrize("name", body_edits())
def test_batches_that_are_not_canonical_are_refused(tmp_path: Path, name: str) -> None:
    find, put, reason = body_edits()[name]
    blocks = blocks_of(sample())
    start = batch_header(*counts(stored_schema(sample()[0].schema))).size
    assert blocks[1][start:].count(find) >= 1
    blocks[1] = blocks[1][:start] + blocks[1][start:].replace(find, put, 1)
    path, table = written(tmp_path, blocks, [0, 3, 2, 0])
    if not reason:
        check_shard(path, table, sample()[0].schema)
        return
    with pytest.raises(FormatError, match=reason):
        check_shard(path, table, sample()[0].schema)


def test_wrong_row_counts_are_refused(tmp_path: Path, either: Check) -> None:
    stored = sample()[0].schema
    for rows in ([0, 2, 3, 0], [0, 3, 1, 0]):
        path, table = written(tmp_path, blocks_of(sample()), rows)
        with pytest.raises(FormatError, match="rows, the block table says"):
            either(path, table, stored)


def test_blocks_in_another_order_than_the_footer_says_are_refused(tmp_path: Path) -> None:
    first, one, two, last = blocks_of(sample())
    path, table = written(tmp_path, [first, two, one, last], [0, 3, 2, 0])
    with pytest.raises(FormatError, match="shard.arrow"):
        check_shard(path, table, sample()[0].schema)


def test_values_without_bytes_are_limited(tmp_path: Path) -> None:
    kind = pa.large_list(pa.null())
    offsets = pa.array([0, 2**40], pa.int64()).buffers()[1]
    column = pa.Array.from_buffers(kind, 1, [None, offsets], children=[pa.Array.from_buffers(pa.null(), 2**40, [None])])
    batch = pa.RecordBatch.from_arrays([column], ["c"])
    blocks = [schema_block(batch.schema), b"".join(batch_block(batch))]
    blocks.append(footer_block(batch.schema, [len(block) for block in blocks]))
    path, table = written(tmp_path, blocks, [0, 1, 0])
    with pytest.raises(FormatError, match="has 1099511627776 values"):
        check_shard(path, table, batch.schema)


def test_a_missing_file_is_a_store_error(tmp_path: Path, either: Check) -> None:
    path, table, stored = write_shard(tmp_path, sample())
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        either(path, table, stored)


def child_that(monkeypatch: pytest.MonkeyPatch, folder: Path, behaves: str) -> None:
    """Let the child be another program: the interpreter is replaced by a script."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{behaves}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_child_that_crashes_refuses_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_shard = write_shard(tmp_path, sample())
    child_that(monkeypatch, tmp_path, "kill -SEGV $$")
    with pytest.raises(FormatError, match="died of signal 11"):
        check_shard_in_child(*given_shard)


def test_a_child_that_hangs_refuses_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_shard = write_shard(tmp_path, sample())
    child_that(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(check, "CHILD_TIMEOUT_S", 0.2)
    with pytest.raises(FormatError, match=r"took more than 0\.2 s"):
        check_shard_in_child(*given_shard)


def test_a_child_that_cannot_start_is_no_fault_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_shard = write_shard(tmp_path, sample())
    child_that(monkeypatch, tmp_path, "echo no such module >&2; exit 1")
    with pytest.raises(StoreError, match="could not be checked: no such module"):
        check_shard_in_child(*given_shard)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="can be started"):
        check_shard_in_child(*given_shard)


LIMITED = """
import resource
from dhtdata.tables import check

def greedy(path, table, stored):
    {act}

check.check_shard = greedy
check.CHILD_CPU_S = 1
check.serve()
"""


@pytest.mark.parametrize(
    ("act", "reason"), [("bytearray(16 << 30)", "takes more than"), ("while True: pass", "died of signal")]
)
def test_a_child_has_limits_on_memory_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, reason: str
) -> None:
    given_shard = write_shard(tmp_path, sample())
    script = tmp_path / "greedy.py"
    script.write_text(LIMITED.format(act=act))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    child_that(monkeypatch, tmp_path, f'exec "{sys.executable}" "{script}"')
    with pytest.raises(FormatError, match=reason):
        check_shard_in_child(*given_shard)


@pytest.mark.timeout(110)
def test_thousands_of_broken_shards_are_refused_and_the_process_lives() -> None:
    command = [sys.executable, "-m", "tests.tables.mutations", "7", "1500"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    seen = json.loads(child.stdout)
    assert sum(seen.values()) == 3000
    assert seen["shards refused"] > 1200
    assert seen["blocks refused"] > 1200
    assert seen["shards accepted"] > 20
    assert seen["blocks accepted"] > 20
