"""How fast do many small columns come: 8 float32 and a label, in shuffled batches of 1,024?

2,000,000 rows (quick: 262,144). The peers write and read 100,000 of them (quick: 8,192), which is faster for them, if
anything: some take a minute for all.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.loader_real.contest import Effort, bars, compete, contestants, fastest_peer, figures
from benchmarks.mortal import Worker

FULL = Effort(rows=2_000_000, peer_rows=100_000, trial_s=2.0, verify_s=6.0, round_s=2.0, rounds=4)
QUICK = Effort(rows=262_144, peer_rows=8_192, trial_s=0.06, verify_s=0.15, round_s=0.15, rounds=2)
OWN = {"ours": ("ours", ("batches",)), "gather": ("floor", ("gather",))}


def measure(quick: bool, seed: int) -> Result:
    with contestants() as processes:
        return among(processes, quick, seed)


def among(processes: Mapping[str, Worker], quick: bool, seed: int) -> Result:
    standings = compete(processes, "floats", QUICK if quick else FULL, seed, ("batches",), OWN)
    rates = {label: standing.rows_s for label, standing in standings.items()}
    checks = [
        Check("floats_times_fastest_peer", rates["ours"] / fastest_peer(standings, "batches"), ">=", 50.0),
        Check("floats_of_numpy_gather", rates["ours"] / rates["gather"], ">=", 0.5),
    ]
    by_row = max(rates[name] for name in ("litdata", "mosaic", "webdataset"))
    more: dict[str, float | str] = {"floats_times_fastest_that_reads_row_by_row": rates["ours"] / by_row}
    return Result(
        figures("floats", standings) | more,
        checks,
        bars={"floats": bars("Batches of 1,024 x 8 floats and a label", standings)},
    )


if __name__ == "__main__":
    alone(measure)
