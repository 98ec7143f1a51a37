"""One simulated question by hand: ``python -m benchmarks.dht_simulated wan [--quick] [--seed N]``, one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import time

QUESTIONS = ("wan", "loss", "growth", "tiny", "vanish", "churn", "sybils", "eclipse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.perf_counter()
    result = importlib.import_module(f"benchmarks.dht_simulated.{given.question}").measure(given.quick, given.seed)
    checks = [{**dataclasses.asdict(check), "ok": check.ok} for check in result.checks]
    curves = {name: dataclasses.asdict(each) for name, each in result.curves.items()}
    seconds = time.perf_counter() - started
    print(json.dumps({"figures": result.figures, "checks": checks, "curves": curves, "seconds": seconds}))


if __name__ == "__main__":
    main()
