"""Does anything grow over 100 epochs?

A process reads 8 MB in 160 shards, shuffled, epoch after epoch (quick: 20): once with all shards in the store, once
through a store whose cache limit holds a third of them, so that shards are fetched and dropped all the time. After
every epoch it notes its private dirty memory, descriptors (but those of the store's index, a pool of a few
connections), threads and mapped files; the peer's are noted, too. Growth is the least of the last fifth of what was
noted, less that of the second fifth: what is loaded once is loaded by then, and what is on its way at the moment of a
look is no growth.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import descriptors, worker
from benchmarks.peers import MIB, Dataset, Machine, Peer, seed, world
from benchmarks.resume_real.small import mapped_files, no_peer_after, peer_pid, private_dirty, publish_small, threads

ROWS, SHARD_ROWS = 4_000, 25
EPOCH_S = 60.0
NOTED = ("mib", "descriptors", "threads", "maps")
BARS = {"mib": 4.0, "descriptors": 2.0, "threads": 1.0, "maps": 8.0}


def measure(quick: bool, seed_number: int) -> Result:
    count = 20 if quick else 100
    figures: dict[str, float | str] = {"epochs_count": count, "epochs_rows": ROWS}
    checks: list[Check] = []
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        dataset = publish_small(giver, ROWS, SHARD_ROWS)
        limits = {"stored": None, "limited": dataset.byte_count // 3}
        with seed(giver, dataset) as peer:
            for name, limit in limits.items():
                options = {} if limit is None else {"cache_limit": limit}
                taker = Machine(folder / name, "127.0.0.3", options)
                with no_peer_after(taker):
                    loop, fetching = _watched(taker, peer, dataset, count)
                for who, notes in ((name, loop), (f"{name}_peer", fetching)):
                    for what, values in zip(NOTED, zip(*notes, strict=True), strict=True):
                        figures[f"epochs_{who}_{what}"] = statistics.median(values)
                        checks.append(Check(f"epochs_{who}_{what}_growth", _growth(values), "<=", BARS[what]))
    return Result(figures, checks)


def _watched(taker: Machine, peer: Peer, dataset: Dataset, count: int) -> tuple[list[list[float]], list[list[float]]]:
    """What was noted of the loop and of its peer, epoch by epoch."""
    notes, of_peer = [], []
    options = json.dumps({"ticket": peer.ticket(dataset), "rows": ROWS, **taker.flags})
    with worker("benchmarks.resume_real.epochs_worker", options) as loop:
        for _ in range(count):
            if loop.ask(EPOCH_S)["rows"] != ROWS:
                raise RuntimeError("an epoch has lost rows")
            notes.append(_noted(loop.pid))
            of_peer.append(_noted(peer_pid(taker)))
    return notes, of_peer


def _noted(pid: int) -> list[float]:
    return [
        private_dirty(pid) / MIB,
        descriptors(pid) - descriptors(pid, "/index.sqlite"),
        threads(pid),
        mapped_files(pid),
    ]


def _growth(values: Sequence[float]) -> float:
    fifth = max(len(values) // 5, 1)
    return min(values[-fifth:]) - min(values[fifth : 2 * fifth])


if __name__ == "__main__":
    alone(measure)
