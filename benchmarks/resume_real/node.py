"""Do 8 ranks with 4 DataLoader workers each download a shard once, and what memory does a worker take?

256 MiB (quick: 64 MiB, 4 ranks, 2 workers) of rows of 512 int32 and a number, published as anybody's, at one seed. All
ranks start at once on a machine whose store is empty and has no peer, and read an epoch of batches of 64 rows a rank;
their rows together must be those of the dataset. Counted is what the seed has served. Workers are forked, then, with
another empty store, spawned. Their private dirty memory (``/proc/PID/smaps_rollup``) is noted eight times in an epoch;
the most of any worker counts, less that of a worker that has torch and pyarrow loaded too and makes zeros of the same
size.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.peers import MIB, Dataset, Machine, Peer, publish_rows, seed, world
from benchmarks.resume_real.ranks import run_ranks
from benchmarks.resume_real.small import no_peer_after

ROW_VALUES, BATCH, LOOKS = 512, 64, 8
_BATCH_ROWS = 2_048


def measure(quick: bool, seed_number: int) -> Result:
    mib, ranks, workers = (64, 4, 2) if quick else (256, 8, 4)
    figures: dict[str, float | str] = {"node_mib": mib, "node_ranks": ranks, "node_workers_each": workers}
    checks = []
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        rows = mib * MIB // (4 * ROW_VALUES)
        dataset = publish_tokens(giver, rows, seed_number)
        for context in ("fork", "spawn"):
            taker = Machine(folder / context, "127.0.0.3")
            with seed(giver, dataset) as peer, no_peer_after(taker):
                worst = _epoch(taker, peer, dataset, (ranks, workers), context, rows)
                with giver.client() as client:
                    served = client.status().bytes_served
            base = run_ranks(taker, "", 1, workers, context=context, global_batch=BATCH, looks=LOOKS)[0]["worst_bytes"]
            figures[f"node_{context}_worker_mib"] = worst / MIB
            figures[f"node_{context}_baseline_mib"] = base / MIB
            checks += [
                Check(f"node_{context}_copies_served", served / dataset.byte_count, "<=", 1.02),
                Check(f"node_{context}_worker_over_baseline_mib", (worst - base) / MIB, "<=", 40),
            ]
            shutil.rmtree(taker.folder)
    return Result(figures, checks)


def _epoch(taker: Machine, peer: Peer, dataset: Dataset, crew: tuple[int, int], context: str, rows: int) -> int:
    """The most memory of any worker. RuntimeError unless all rows came, once but for those that fill a batch."""
    ranks, workers = crew
    said = run_ranks(
        taker, peer.ticket(dataset), ranks, workers, context=context, global_batch=ranks * BATCH, looks=LOOKS
    )
    seen = Counter(number for each in said for batch in each["batches"] for number in batch)
    if seen.keys() != set(range(rows)) or seen.total() - rows >= ranks * BATCH:
        raise RuntimeError(f"{len(seen)} of {rows} rows came, {seen.total()} in all")
    return max(int(each["worst_bytes"]) for each in said)


def publish_tokens(machine: Machine, rows: int, seed_number: int) -> Dataset:
    chance = np.random.default_rng(seed_number)
    schema = pa.schema([("number", pa.int64()), ("tokens", pa.list_(pa.int32(), ROW_VALUES))])

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, _BATCH_ROWS):
            numbers = np.arange(first, min(first + _BATCH_ROWS, rows), dtype=np.int64)
            values = pa.array(chance.integers(0, 50_000, numbers.size * ROW_VALUES, dtype=np.int32))
            tokens = pa.FixedSizeListArray.from_arrays(values, ROW_VALUES)
            yield pa.RecordBatch.from_arrays([pa.array(numbers), tokens], schema=schema)

    return publish_rows(machine, pa.RecordBatchReader.from_batches(schema, batches()), "tokens")


if __name__ == "__main__":
    alone(measure)
