"""What does it cost to begin in the middle of an epoch of 10^9 rows in 30,000 row ranges?

The order alone, which is pure: from the lengths of the ranges to the numbers of the first batch's rows, in the
processor time of one thread, at the start of an epoch and at places within (the median over places, windows and
batches inside them). Every place is compared with what the whole window says. Memory is what Python and numpy allocate
for the order, at its peak, while the next 20,000 steps are dealt out as well.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc

import numpy as np

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from dhtdata.digest import Digest
from dhtdata.order import EpochOrder, OrderKey, Pieces, Share, State, Steps

ROWS, RANGES, WINDOW, BATCH = 10**9, 30_000, 8, 64
STEPS = 20_000
MIB = 1 << 20


def measure(quick: bool, seed: int) -> Result:
    ranges = [ROWS // RANGES + (number < ROWS % RANGES) for number in range(RANGES)]
    repeats = 9 if quick else 51
    chance = np.random.default_rng(seed)
    places = [int(chance.integers(ROWS // 10, 9 * ROWS // 10)) for _ in range(repeats)]
    fresh_s, middle_s = [], []
    for place in places:
        fresh_s.append(_first_batch(ranges, seed, 0)[0])
        seconds, rows = _first_batch(ranges, seed, place)
        middle_s.append(seconds)
        _compare(ranges, seed, place, rows)
    state = State(
        contents=str(Digest(b"\xff" * 32)), key=OrderKey("train", True, WINDOW), seed=(1 << 56) - 1, epoch=99_999,
        rows=ROWS - 1, global_batch=1 << 20, lanes=4_096,
    ).as_dict()  # fmt: skip
    fresh, middle = statistics.median(fresh_s), statistics.median(middle_s)
    return Result(
        figures={
            "seek_rows": ROWS,
            "seek_ranges": RANGES,
            "seek_fresh_first_batch_ms": 1e3 * fresh,
            "seek_resumed_first_batch_ms": 1e3 * middle,
            "seek_resumed_first_batch_worst_ms": 1e3 * max(middle_s),
        },
        checks=[
            Check("seek_resumed_over_fresh", middle / fresh, "<=", 2.0),
            Check("seek_state_bytes", len(json.dumps(state).encode()), "<=", 1_024),
            Check("seek_order_mib", _peak_bytes(ranges, seed) / MIB, "<=", 16),
        ],
    )


def _steps(ranges: list[int], seed: int, consumed: int) -> Steps:
    order = EpochOrder(Pieces(ranges), seed=seed, epoch=3, shuffle=True, window=WINDOW)
    return Steps(order, Share(), global_batch=BATCH, remainder="uneven", consumed=consumed)


def _first_batch(ranges: list[int], seed: int, consumed: int) -> tuple[float, list[int]]:
    started = time.thread_time()
    rows = _steps(ranges, seed, consumed).deal(range(1)).rows
    return time.thread_time() - started, rows.tolist()


def _compare(ranges: list[int], seed: int, place: int, rows: list[int]) -> None:
    order = _steps(ranges, seed, 0).order
    first = order.take(0, place - 1, place)  # from now on windows are shuffled whole
    if rows != order.take(0, place, place + BATCH).tolist() or first.size != 1:
        raise RuntimeError(f"a loop that begins at row {place} takes other rows than one that comes there")


def _peak_bytes(ranges: list[int], seed: int) -> int:
    tracemalloc.start()
    steps = _steps(ranges, seed, ROWS // 2)
    for first in range(0, STEPS, BATCH):
        steps.deal(range(first, first + BATCH))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    alone(measure)
