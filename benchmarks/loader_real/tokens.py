"""How many shuffled batches of 64 x 512 int32 does a loop get from files in the page cache?

200,000 rows, 50,000 of them for the peers (quick: 4,096), which is faster for them, if anything; read without workers,
with two threads and with two worker processes. Beside the peers, each in its fastest way, a gather by numpy from
memory, and tensors that lie ready in two worker processes and are handed over as ours are, in parcels of 32 batches
(and, for comparison, one by one as torch does it).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.loader_real.contest import Effort, bars, compete, contestants, fastest_peer, figures
from benchmarks.mortal import Worker

FULL = Effort(rows=200_000, peer_rows=50_000, trial_s=2.0, verify_s=6.0, round_s=2.0, rounds=5)
QUICK = Effort(rows=200_000, peer_rows=4_096, trial_s=0.06, verify_s=0.15, round_s=0.15, rounds=2)
OWN = {
    "ours": ("ours", ("batches",)),
    "ours_threads": ("ours", ("batches_threads",)),
    "ours_2": ("ours", ("batches_2",)),
    "gather": ("floor", ("gather",)),
    "ready_2": ("floor", ("ready_2",)),
    "ready_parcels_2": ("floor", ("ready_parcels_2",)),
}


def measure(quick: bool, seed: int) -> Result:
    with contestants() as processes:
        return among(processes, quick, seed)


def among(processes: Mapping[str, Worker], quick: bool, seed: int) -> Result:
    standings = compete(processes, "tokens", QUICK if quick else FULL, seed, ("batches", "batches_2"), OWN)
    rates = {label: standing.rows_s for label, standing in standings.items()}
    checks = [
        Check("tokens_times_fastest_peer", rates["ours"] / fastest_peer(standings, "batches"), ">=", 10.0),
        Check("tokens_of_numpy_gather", rates["ours"] / rates["gather"], ">=", 0.35),
        Check("tokens_2_threads_of_numpy_gather", rates["ours_threads"] / rates["gather"], ">=", 0.5),
        Check("tokens_2_workers_times_fastest_peer", rates["ours_2"] / fastest_peer(standings, "batches_2"), ">=", 5.0),
        Check("tokens_2_workers_of_ready_tensors", rates["ours_2"] / rates["ready_parcels_2"], ">=", 0.7),
    ]
    return Result(figures("tokens", standings), checks, bars={"tokens": bars("Batches of 64 x 512 int32", standings)})


if __name__ == "__main__":
    alone(measure)
