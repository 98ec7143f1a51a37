"""One question by hand: ``python -m benchmarks.dht_real.lookup [--quick] [--seed N]``, last one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence

from benchmarks.dht_simulated.result import Result


def alone(measure: Callable[[bool, int], Result]) -> None:
    """Answer the question and print it, with the seconds that it took."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the stock package logs every time-out as an error
    started = time.perf_counter()
    result = measure(given.quick, given.seed)
    checks = [{**dataclasses.asdict(check), "ok": check.ok} for check in result.checks]
    curves = {name: dataclasses.asdict(each) for name, each in result.curves.items()}
    bars = {name: dataclasses.asdict(each) for name, each in result.bars.items()}
    seconds = time.perf_counter() - started
    for name, value in result.figures.items():
        print(f"  {name}  {value}")
    for check in result.checks:
        print(f"  {check.name}  {check.value:.6g} {check.op} {check.bar:.6g}  {'ok' if check.ok else 'MISSED'}")
    answer = {"figures": result.figures, "checks": checks, "curves": curves, "bars": bars, "seconds": seconds}
    print(json.dumps(answer))


def distribution(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """Up to 101 points (milliseconds, share of values that are no larger), for a curve."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    chosen = sorted({round(last * step / 100) for step in range(101)})
    return [(1e3 * ordered[place], (place + 1) / len(ordered)) for place in chosen]
