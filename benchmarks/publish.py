"""How fast does publishing turn a Parquet file into a dataset, and in how much memory?

Input: 2 GiB of mixed columns (numbers, times, labels, texts, lists, embeddings, binaries, nulls) in one Parquet
file, made from a fixed seed in bounded memory. Measured in one run, alternating:

*ours*      `dhtdata.publish`: read, cut by content, canonical shards, digests of every block and shard, statistics,
            fsync and rename of every shard.
*ceiling*   what no publisher can leave out: the same pyarrow read, pyarrow's IPC writer, BLAKE3 and fsync of 32 MiB
            files, on as many threads, nothing else.
*baselines* MosaicML's MDSWriter and LitData's optimize on the same rows with as many processes as there are cores,
            and an fsync of every file at the end. They digest nothing. (Nulls, which MDS cannot hold, become empty
            texts and zeros for both.)

Every run starts after a sync of the disk. All take turns, and the best of a program's runs counts: three, or with
``--quick`` two, of each alike.

Every byte is verified before a speed is printed: shards are digested again and rows compared with the source. Peak
memory is that of a process that only publishes, at the input's size and at twice that.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from benchmarks.harness import (
    Check,
    arguments,
    cores,
    draw_bars,
    peak_rss_bytes,
    report,
    run_child,
    temporary_folder,
)

if TYPE_CHECKING:
    from dhtdata.formats.contents import GroupShards
    from dhtdata.store import Store

NEEDS_BASELINES = True
SEED = 20
GROUP_ROWS = 1 << 16
ROW_BYTES = 2_470  # about, in Arrow
FULL_BYTES = 2 << 30
QUICK_BYTES = 192 << 20
SHARD_BYTES = 32 << 20
BASELINES = ("mds", "litdata")
_WORDS = 4_096
_MIB = 1 << 20


def main() -> None:
    given = arguments(__doc__ or "")
    size = QUICK_BYTES if given.quick else FULL_BYTES
    repeats = 2 if given.quick else 3
    with temporary_folder() as folder:
        source = folder / "source.parquet"
        stored_bytes = write_source(source, size, SEED)
        twice = folder / "twice"
        twice.mkdir()
        os.link(source, twice / "1.parquet")
        write_source(twice / "2.parquet", size, SEED + 1)
        ours, ceilings = [], []
        tried: dict[str, list[float]] = {name: [] for name in BASELINES}
        for _ in range(repeats):
            ceilings.append(_measured("ceiling", source, folder / "ceiling")["seconds"])
            ours.append(_measured("ours", source, folder / "ours")["seconds"])
            for name in BASELINES:
                tried[name].append(_baseline(name, source, folder / "baseline"))
        once = _measured("ours", source, folder / "ours", verify=True)
        double = _measured("ours", twice, folder / "ours")
        mib = stored_bytes / _MIB
        ratio = min(ceilings) / min(ours)
        baselines = {name: min(seconds) for name, seconds in tried.items()}
        faster = min(baselines.values()) / min(ours)
        figures = {
            "input_mib": round(mib, 1),
            "source_mib": round(source.stat().st_size / _MIB, 1),
            "ours_mib_s": mib / min(ours),
            "ceiling_mib_s": mib / min(ceilings),
            **{f"{name}_mib_s": mib / seconds for name, seconds in baselines.items()},
            "verified_rows": once["rows"],
            "peak_mib": once["peak_bytes"] / _MIB,
            "peak_twice_mib": double["peak_bytes"] / _MIB,
        }
    checks = [
        Check("of the ceiling", round(ratio, 3), ">=", 0.5),
        Check("times the faster baseline", round(faster, 2), ">=", 4.0),
        Check("peak MiB", round(figures["peak_mib"], 1), "<=", 600.0),
        Check("peak MiB at twice the input", round(figures["peak_twice_mib"], 1), "<=", 600.0),
        Check("peak at twice the input, ratio", round(double["peak_bytes"] / once["peak_bytes"], 3), "<=", 1.15),
    ]
    if given.plot is not None:
        speeds = {name: figures[f"{name}_mib_s"] for name in ("ceiling", "ours", *baselines)}
        draw_bars(given.plot, "publish", "Publishing from Parquet, MiB/s", speeds)
    report("publish", SEED, repeats, figures, checks, given.json)


# The input


def write_source(path: Path, size: int, seed: int) -> int:
    """Write a Parquet file of about ``size`` bytes of rows; their exact size in Arrow."""
    rows, written = size // ROW_BYTES, 0
    writer = None
    for first in range(0, rows, GROUP_ROWS):
        table = make_rows(seed, first, min(GROUP_ROWS, rows - first))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        written += table.nbytes
    if writer is not None:
        writer.close()
    return written


def make_rows(seed: int, first: int, count: int) -> pa.Table:
    """Rows ``first`` to ``first + count`` of the input."""
    random = np.random.Generator(np.random.Philox(key=seed, counter=first))
    words = np.array([f"word{n}" for n in range(_WORDS)])
    picked = words[random.zipf(1.3, size=count * 60) % _WORDS].reshape(count, 60)
    texts = [" ".join(row) for row in picked.tolist()]
    nulls = random.random(count) < 0.05
    embedding = random.standard_normal(count * 256, dtype=np.float32)
    lengths = random.integers(600, 1_600, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    payload = random.bytes(int(offsets[-1]))
    tags = random.integers(0, 40, count * 3).astype(np.int16)
    return pa.table(
        {
            "id": pa.array(np.arange(first, first + count)),
            "label": pa.array(random.integers(0, 100, count).astype(np.int32)),
            "score": pa.array(random.standard_normal(count), mask=nulls),
            "weight": pa.array(random.random(count, dtype=np.float32)),
            "seen": pa.array(1_700_000_000_000 + np.cumsum(random.integers(0, 9_000, count)), pa.timestamp("ms")),
            "title": pa.array([text[:30] for text in texts], mask=nulls),
            "text": pa.array(texts),
            "tags": pa.ListArray.from_arrays(np.arange(0, count * 3 + 1, 3, dtype=np.int32), pa.array(tags)),
            "embedding": pa.ListArray.from_arrays(
                np.arange(0, count * 256 + 1, 256, dtype=np.int32), pa.array(embedding)
            ),
            "blob": pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(payload)]),
        }
    )


# Children


def _measured(what: str, source: Path, target: Path, *, verify: bool = False) -> dict[str, float]:
    target.mkdir()
    os.sync()
    try:
        command = [sys.executable, "-m", "benchmarks.publish", "--child", what, str(source), str(target)]
        return run_child([*command, "verify"] if verify else command, timeout_s=1_800).result
    finally:
        shutil.rmtree(target)


def _baseline(name: str, source: Path, target: Path) -> float:
    python = os.environ.get("DHTDATA_BASELINES_PYTHON")
    if not python:
        raise RuntimeError("the baselines are not installed: run scripts/bench publish")
    target.mkdir()
    os.sync()
    try:
        script = Path(__file__).parent / "baseline_writers.py"
        return float(run_child([python, script, name, source, target, str(cores())], timeout_s=1_800).result["seconds"])
    finally:
        shutil.rmtree(target)


def _child(what: str, source: Path, target: Path, verify: bool) -> None:
    before = time.process_time()
    if what == "ceiling":
        rows, seconds = _ceiling(source, target)
    else:
        rows, seconds = _ours(source, target)
    peak = peak_rss_bytes()
    cpu_seconds = time.process_time() - before
    if verify:
        _verify(source, target)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "rows": rows, "peak_bytes": peak}))


def _ours(source: Path, target: Path) -> tuple[int, float]:
    from dhtdata.config import Settings
    from dhtdata.publish import publish

    started = time.perf_counter()
    published = publish(source, name="bench", settings=Settings(home=target / "home", store=target / "store"))
    return published.rows, time.perf_counter() - started


def _ceiling(source: Path, target: Path) -> tuple[int, float]:
    """Threads as in `dhtdata.publish`: one reads ahead, this one encodes, one a core digests, writes and syncs."""
    started = time.perf_counter()
    rows = 0
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(cores()) as finishers:
        batches = pq.ParquetFile(source, pre_buffer=False, buffer_size=_MIB).iter_batches(8 * _MIB // ROW_BYTES)
        ahead = deque(reader.submit(next, batches, None) for _ in range(2))
        # Memory is used again and again: fresh pages would cost more than what is written into them.
        free: queue.SimpleQueue[pa.Buffer] = queue.SimpleQueue()
        for _ in range(cores() + 1):
            free.put(pa.allocate_buffer(SHARD_BYTES + 16 * _MIB))
        done: list[Future[None]] = []
        shard = None
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(reader.submit(next, batches, None))
            rows += batch.num_rows
            shard = shard or _Shard(free.get(), batch.schema)
            shard.writer.write_batch(batch)
            if shard.sink.tell() >= SHARD_BYTES:
                done.append(finishers.submit(shard.finish, target / f"{len(done)}.arrow", free))
                shard = None
        if shard is not None:
            done.append(finishers.submit(shard.finish, target / f"{len(done)}.arrow", free))
        for future in done:
            future.result()
    return rows, time.perf_counter() - started


class _Shard:
    """An Arrow IPC file that is being encoded into memory."""

    def __init__(self, space: pa.Buffer, schema: pa.Schema) -> None:
        self.sink = pa.FixedSizeBufferWriter(space)
        self.writer = pa.ipc.new_file(self.sink, schema)
        self._space = space

    def finish(self, path: Path, free: queue.SimpleQueue[pa.Buffer]) -> None:
        self.writer.close()
        content = memoryview(self._space)[: self.sink.tell()]
        blake3(content).digest()
        with path.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        free.put(self._space)


def _verify(source: Path, target: Path) -> None:
    """RuntimeError unless every blob has its digest and the rows are the source's."""
    from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
    from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
    from dhtdata.store import Store
    from dhtdata.tables.schema import stored_schema, to_arrow

    with Store.open(target / "store") as store:
        bad = [result for result in store.scrub() if result.state != "ok"]
        if bad:
            raise RuntimeError(f"blobs that do not verify: {bad}")
        (entry,) = store.manifests()
        manifest = Manifest.decode(store.read(entry.digest, limit_bytes=MAX_MANIFEST_BYTES))
        contents = Contents.decode(store.read(manifest.contents, limit_bytes=MAX_CONTENTS_BYTES))
        stored = stored_schema(to_arrow(contents.columns, contents.metadata))
        for group, placed in zip(contents.groups, contents.splits[0].groups, strict=True):
            schema = pa.schema([stored.field(name) for name in group.columns])
            expected = pq.ParquetFile(source, pre_buffer=False, buffer_size=_MIB)
            _check_equal(_stored_batches(store, placed, schema), expected.iter_batches(4_096, columns=schema.names))


def _stored_batches(store: Store, placed: GroupShards, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    from dhtdata.formats.blocks import MAX_TABLE_BYTES, BlockTable
    from dhtdata.formats.index import MAX_INDEX_BYTES, Index
    from dhtdata.tables.reader import ShardReader

    for digest in placed.indexes:
        index = Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES))
        for shard in (index[position] for position in range(len(index))):
            table = BlockTable.decode(store.read(shard.table, limit_bytes=MAX_TABLE_BYTES))
            reader = ShardReader(store.path_of(shard.digest), table, schema)
            for position in range(len(reader)):
                yield reader.batch(position)


def _check_equal(found: Iterator[pa.RecordBatch], expected: Iterator[pa.RecordBatch]) -> None:
    """RuntimeError unless both give the same rows, whatever their batches."""
    left = right = None
    row = 0
    while True:
        left = left if left is not None and left.num_rows else next(found, None)
        right = right if right is not None and right.num_rows else next(expected, None)
        if left is None or right is None:
            break
        count = min(left.num_rows, right.num_rows)
        if not left.slice(0, count).equals(right.slice(0, count).select(left.schema.names)):
            raise RuntimeError(f"rows {row} to {row + count} of {left.schema.names} are not the source's")
        left, right, row = left.slice(count), right.slice(count), row + count
    if left is not None or right is not None:
        raise RuntimeError(f"only {row} rows are on both sides")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:] == ["verify"])
    else:
        main()
