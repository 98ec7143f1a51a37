"""By hand: ``python -m benchmarks.swarm_simulated [--quick] [--seed N]``, one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from benchmarks.dht_simulated.result import Curves, Result, p50, p95
from benchmarks.harness import Check
from benchmarks.swarm_simulated.peers import Dataset
from benchmarks.swarm_simulated.swarm import Kind, Outcome, Setup, Swarm

BLOCKS = 32
BLOCK_BYTES = 1 << 20
ALIKE = (Kind(1.0, 100, 100),)
HALF_CANNOT_UPLOAD = (Kind(0.5, 100, 100), Kind(0.5, 0, 100))


def measure(quick: bool, seed: int) -> Result:
    """The swarm that is asked for, and two small ones that are also built of real processes elsewhere."""
    crowd = Setup(
        peers=80 if quick else 1_000,
        dataset=Dataset.of(4 if quick else 8, BLOCKS, BLOCK_BYTES),
        gone=0.05,
        restarts=0.10,
    )
    outcome = Swarm(crowd, seed).run()
    eight = Setup(peers=8, dataset=Dataset.of(8, BLOCKS, BLOCK_BYTES), kinds=ALIKE)
    small = {"alike": eight, "half_cannot_upload": dataclasses.replace(eight, kinds=HALF_CANNOT_UPLOAD)}
    outcomes = {name: Swarm(setup, seed).run() for name, setup in small.items()}
    return Result(
        figures={
            "peers": crowd.peers,
            "dataset_bytes": crowd.dataset.bytes,
            "left_for_good": outcome.left,
            "restarted": round(crowd.restarts * crowd.peers),
            "bound_s": outcome.bound_s,
            "seed_alone_s": outcome.terms_s[0],
            "slowest_downlink_s": outcome.terms_s[1],
            "all_uplinks_s": outcome.terms_s[2],
            "p50_s": p50(outcome.done_s),
            "p95_s": p95(outcome.done_s),
            "last_s": max(outcome.done_s),
            "wasted_share": outcome.wasted,
            "events": outcome.events,
            **{f"eight_{name}_over_bound": each.ratio for name, each in outcomes.items()},
            **{f"eight_{name}_seed_copies": each.copies for name, each in outcomes.items()},
        },
        checks=[
            Check("swarm_over_bound", outcome.ratio, "<=", 1.5),
            Check("swarm_seed_copies", outcome.copies, "<=", 3.0),
        ],
        curves={"swarm": Curves("Peers that are done", "seconds", "share of peers", {"done": _shares(outcome)})},
    )


def _shares(outcome: Outcome) -> list[tuple[float, float]]:
    done_s = sorted(outcome.done_s)
    every = max(len(done_s) // 100, 1)
    return [(at_s, (place + 1) / len(done_s)) for place, at_s in enumerate(done_s) if (place + 1) % every == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.perf_counter()
    result = measure(given.quick, given.seed)
    checks = [{**dataclasses.asdict(check), "ok": check.ok} for check in result.checks]
    curves = {name: dataclasses.asdict(each) for name, each in result.curves.items()}
    seconds = time.perf_counter() - started
    print(json.dumps({"figures": result.figures, "checks": checks, "curves": curves, "seconds": seconds}))


if __name__ == "__main__":
    main()
