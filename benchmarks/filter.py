"""How much of a dataset does a filter fetch that keeps 5% of it, by a column in which the rows are sorted?

2 GiB of rows (quick: 1 GiB; of wide rows 256 MiB) are published and seeded by a process of its own; on a machine with
an empty store a fresh process mounts them with the filter and runs through a shuffled epoch, and is told nothing but a
ticket. Bytes are what that machine's peer received. Twice: with rows of 264 bytes, which lie with the sorted column in
one group, and with rows of 2 KiB, which lie apart from it. Every row that arrives is compared with what was published.

Besides, what a filter costs a loop that begins in the middle of 10^9 rows in 30,000 row ranges, of which a random 5%
are kept: memory that Python and numpy allocate (the bitmaps are mapped from disk) and processor time of the first
batch, against the same order without a filter.
"""

from __future__ import annotations

import shutil
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Check, arguments, draw_bars, report, run_child, temporary_folder
from benchmarks.peers import MIB, Dataset, Machine, private, publish_rows, seed, world
from dhtdata.digest import Digest
from dhtdata.filters import Segments, Selection
from dhtdata.filters.selection import open_selection, writing_selection
from dhtdata.order import EpochOrder, Pieces, Share, Steps

SEED = 7
KEPT = 0.05
FIRST = 0.42
"""Where the kept rows begin, as a share of all."""
WIDTHS = {"narrow": 64, "wide": 512}
FULL_MIB = 2_048
QUICK_MIB = {"narrow": 1_024, "wide": 256}
"""Shards have about 32 MiB: what lies in one group with the column comes by the shard, so 5% must be more than one."""
BATCH = 64
ROWS, RANGES, WINDOW, STEPS = 10**9, 30_000, 8, 20_000
_BATCH_ROWS = 8_192
_TIMEOUT_S = 600.0
_EPOCH = """
import json, sys, time
home, ticket, first, stop = sys.argv[1:]
started = time.perf_counter()
import dhtdata
dataset = dhtdata.mount(
    ticket, home=home, filter=f"{first} <= number < {stop}", batch_size=64, shuffle=True, timeout=120
)
mounted = time.perf_counter()
import numpy as np
first_s, seen = None, []
for batch in dataset:
    first_s = first_s or time.perf_counter() - started
    expected = (batch["number"][:, None] * 2654435761 + np.arange(batch["values"].shape[1])) % (1 << 31)
    if not (batch["values"] == expected).all():
        sys.exit("wrong rows")
    seen.append(batch["number"])
done = time.perf_counter()
rows = np.sort(np.concatenate(seen))
right = bool((rows == np.arange(int(first), int(stop))).all())
dataset.close()
print(json.dumps({"mount_s": mounted - started, "first_s": first_s, "epoch_s": done - started, "right": right}))
"""


def main() -> None:
    given = arguments(__doc__ or "")
    figures: dict[str, float | str] = {"kept_share": KEPT}
    checks = []
    for name, width in WIDTHS.items():
        mib = QUICK_MIB[name] if given.quick else FULL_MIB
        with world() as folder:
            share = _fetched_share(folder, name, width, mib * MIB, figures)
        checks.append(Check(f"{name}_fetched_share", share, "<=", 0.15))
    with temporary_folder() as folder:
        checks.append(_large(folder / "kept.rows", figures))
    if given.plot is not None:
        bars = {check.name: check.value for check in checks if check.name.endswith("share")} | {"kept": KEPT}
        draw_bars(given.plot, "filter", "share of the bytes that was fetched", bars)
    report("filter", SEED, 1, figures, checks, given.json)


def _fetched_share(folder: Path, name: str, width: int, byte_count: int, figures: dict[str, float | str]) -> float:
    giver, taker = Machine(folder / "giver", "127.0.0.2"), Machine(folder / "taker", "127.0.0.3")
    rows = byte_count // (4 * width + 8)
    dataset = _publish(giver, rows, width)
    first, stop = int(FIRST * rows), int((FIRST + KEPT) * rows)
    with seed(giver) as peer, private(taker):
        command: list[str | Path] = [
            sys.executable,
            "-c",
            _EPOCH,
            taker.folder,
            peer.ticket(dataset),
            str(first),
            str(stop),
        ]
        result = run_child(command, timeout_s=_TIMEOUT_S).result
        if not result["right"]:
            raise RuntimeError("the epoch has other rows than the filter keeps")
        with taker.client() as client:
            fetched = client.status().bytes_fetched
    shutil.rmtree(folder / "taker")
    figures |= {f"{name}_{key}": value for key, value in result.items() if key != "right"}
    figures |= {
        f"{name}_mib": dataset.byte_count / MIB,
        f"{name}_rows": rows,
        f"{name}_shards": len(dataset.shards),
        f"{name}_fetched_mib": fetched / MIB,
    }
    return fetched / dataset.byte_count


def _publish(machine: Machine, rows: int, width: int) -> Dataset:
    """Ascending numbers, and values that each number says."""
    schema = pa.schema([("number", pa.int64()), ("values", pa.list_(pa.int32(), width))])

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, rows, _BATCH_ROWS):
            numbers = np.arange(begin, min(begin + _BATCH_ROWS, rows))
            values = (numbers[:, None] * 2654435761 + np.arange(width)) % (1 << 31)
            lists = pa.FixedSizeListArray.from_arrays(values.astype(np.int32).ravel(), width)
            yield pa.RecordBatch.from_arrays([pa.array(numbers), lists], schema=schema)

    return publish_rows(machine, pa.RecordBatchReader.from_batches(schema, batches()), "sorted")


def _large(path: Path, figures: dict[str, float | str]) -> Check:
    """Costs of a filter at 10^9 rows; the check is of the memory of order and filter together."""
    ranges = [ROWS // RANGES + (number < ROWS % RANGES) for number in range(RANGES)]
    _write_random(path, ranges)
    started = time.thread_time()
    open_selection(path, Digest.of(b"random"), ranges)
    opened_s = time.thread_time() - started
    tracemalloc.start()
    plain_s = _first_batch(None, ranges)
    plain_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tracemalloc.start()
    selection = open_selection(path, Digest.of(b"random"), ranges)
    filtered_s = _first_batch(selection, list(selection.range_counts()))
    filtered_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    figures |= {
        "large_rows": ROWS,
        "large_kept_rows": selection.count,
        "large_file_mib": path.stat().st_size / MIB,
        "large_check_and_open_s": opened_s,
        "large_order_mib": plain_bytes / MIB,
        "large_first_batch_ms": 1e3 * plain_s,
        "large_filtered_first_batch_ms": 1e3 * filtered_s,
    }
    return Check("large_order_and_filter_mib", filtered_bytes / MIB, "<=", 16)


def _write_random(path: Path, ranges: list[int]) -> None:
    chance = np.random.default_rng(SEED)
    pool = chance.random(1 << 22) < KEPT
    segments = Segments(ranges)
    with writing_selection(path, Digest.of(b"random"), segments) as writer:
        for number, count in enumerate(segments.counts.tolist()):
            begin = int(chance.integers(pool.size - count))
            writer.put(number, pool[begin : begin + count])
        writer.commit()


def _first_batch(selection: Selection | None, ranges: list[int]) -> float:
    """Seconds of the first batch in the middle of an epoch; 20,000 steps are dealt out after it."""
    started = time.thread_time()
    order = EpochOrder(Pieces(ranges), seed=SEED, epoch=3, shuffle=True, window=WINDOW)
    steps = Steps(order, Share(), global_batch=BATCH, remainder="uneven", consumed=order.rows // 2)
    seconds = 0.0
    for first in range(0, STEPS, BATCH):
        rows = steps.deal(range(first, first + (BATCH if first else 1))).rows
        if selection is not None:
            selection.rows(rows)
        seconds = seconds or time.thread_time() - started
    return seconds


if __name__ == "__main__":
    main()
