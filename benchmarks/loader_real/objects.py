"""How fast do binaries and texts become Python objects of the loop's own?

Binaries of 8,000 to 12,000 bytes as ``bytes`` with a label (20,000 rows, quick: 2,000), texts of 200 to 4,000
characters as ``str`` (40,000 rows, quick: 4,000): shuffled batches of 64, and row by row. The floor is the bare
conversion of rows that lie in memory as Arrow arrays, the fastest of several ways.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.loader_real.contest import Effort, bars, compete, contestants, fastest_peer, figures
from benchmarks.mortal import Worker

EFFORTS = {
    "binary": (
        Effort(rows=20_000, peer_rows=20_000, trial_s=1.5, verify_s=5.0, round_s=1.5, rounds=4),
        Effort(rows=2_000, peer_rows=2_000, trial_s=0.06, verify_s=0.12, round_s=0.12, rounds=2),
    ),
    "text": (
        Effort(rows=40_000, peer_rows=40_000, trial_s=1.5, verify_s=5.0, round_s=1.5, rounds=4),
        Effort(rows=4_000, peer_rows=4_000, trial_s=0.06, verify_s=0.12, round_s=0.12, rounds=2),
    ),
}
OWN = {
    "ours": ("ours", ("batches", "batches_python")),
    "ours_rows": ("ours", ("rows", "rows_numpy")),
    "floor": ("floor", ("convert_slices", "convert_taken", "convert_taken_at_once")),
}


def measure(quick: bool, seed: int) -> Result:
    with contestants() as processes:
        return among(processes, quick, seed)


def among(processes: Mapping[str, Worker], quick: bool, seed: int) -> Result:
    result = Result({}, [])
    for kind, (full_effort, quick_effort) in EFFORTS.items():
        standings = compete(processes, kind, quick_effort if quick else full_effort, seed, ("batches", "rows"), OWN)
        rates = {label: standing.rows_s for label, standing in standings.items()}
        result.bars[kind] = bars(f"{kind.capitalize()} as Python objects", standings)
        result.figures.update(figures(kind, standings))
        result.checks.extend(
            [
                Check(f"{kind}_times_fastest_peer", rates["ours"] / fastest_peer(standings, "batches"), ">=", 2.5),
                Check(f"{kind}_of_floor", rates["ours"] / rates["floor"], ">=", 0.6),
                Check(
                    f"{kind}_rows_times_fastest_peer", rates["ours_rows"] / fastest_peer(standings, "rows"), ">=", 2.5
                ),
            ]
        )
    return result


if __name__ == "__main__":
    alone(measure)
