"""Is the DHT fit for the open internet: fast among dead nodes, cheap to announce in, hard to take over or to exhaust?

Real questions (`benchmarks.dht_real`) run whole nodes on sockets of this machine, beside the stock ``kademlia`` package
where that can do the same; simulated ones (`benchmarks.dht_simulated`) run the same code at sizes and under attacks
that no test machine has, in virtual time. Every question is a process of its own with a time limit; x of the others two
at once, and beside them one that mostly waits. A question that fails is a check that fails, its reason is among the
figures.

By hand, one question: ``python -m benchmarks.dht_real.lookup --quick``, ``python -m benchmarks.dht_simulated wan
--quick``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.dht_simulated.__main__ import QUESTIONS as SIMULATED
from benchmarks.harness import Check, arguments, draw_lines, report, run_child

SEED = 1
BUSY = ("mutations", "stores", "forgeries", "announce")
WAITING = ("cost", "amplification", "stranger")
LONGEST = ("growth", "sybils", "churn", "eclipse")
AT_ONCE = 2
LIMIT_S = 3_000.0
QUICK_LIMIT_S = 150.0


@dataclass(frozen=True)
class Question:
    """A module that measures, as a command."""

    name: str
    command: tuple[str, ...]

    @classmethod
    def real(cls, name: str) -> Question:
        return cls(name, (f"benchmarks.dht_real.{name}",))

    @classmethod
    def simulated(cls, name: str) -> Question:
        return cls(name, ("benchmarks.dht_simulated", name))


@dataclass(frozen=True)
class Answer:
    figures: dict[str, float | str]
    checks: list[Check]
    curves: dict[str, dict[str, Any]]


def ask(question: Question, quick: bool) -> Answer:
    """Run the question to its end, or to its limit."""
    command = [sys.executable, "-m", *question.command, "--seed", str(SEED), *(["--quick"] if quick else [])]
    try:
        child = run_child(command, timeout_s=QUICK_LIMIT_S if quick else LIMIT_S)
    except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as failure:
        lines = str(failure).strip().splitlines()
        return Answer({f"{question.name}_failure": lines[-1]}, [Check(f"{question.name}_answered", 0, "==", 1)], {})
    checks = [Check(each["name"], each["value"], each["op"], each["bar"]) for each in child.result["checks"]]
    figures = {**child.result["figures"], f"{question.name}_took_s": child.seconds}
    return Answer(figures, checks, child.result["curves"])


def ask_all(quick: bool) -> list[Answer]:
    def ask_real(name: str) -> Answer:
        return ask(Question.real(name), quick)

    busy = [*map(Question.simulated, SIMULATED), *map(Question.real, BUSY)]
    # The longest first, so that none is left alone at the end.
    busy.sort(key=lambda question: question.name not in LONGEST)
    answers = [ask_real("flood")]  # three processes, which need all of two cores
    with ThreadPoolExecutor(AT_ONCE) as lanes, ThreadPoolExecutor(1) as waiting_lane:
        lookup = lanes.submit(ask_real, "lookup")  # one process, which needs all of one core
        if not quick:
            lookup.result()  # there is time to leave it alone

        def ask_after_lookup(name: str) -> Answer:
            lookup.result()
            return ask_real(name)

        waiting = waiting_lane.map(ask_after_lookup, WAITING)
        others = lanes.map(lambda question: ask(question, quick), busy)
        return [*answers, lookup.result(), *others, *waiting]


def main() -> None:
    given = arguments(__doc__ or "")
    answers = ask_all(given.quick)
    if given.plot is not None:
        for answer in answers:
            for name, curves in answer.curves.items():
                lines = {label: [(x, y) for x, y in line] for label, line in curves["lines"].items()}
                axes = (curves["title"], curves["x_label"], curves["y_label"])
                draw_lines(given.plot, f"dht_{name}", *axes, lines, curves["log_x"])
    figures = {name: value for answer in answers for name, value in answer.figures.items()}
    checks = [check for answer in answers for check in answer.checks]
    report("dht", SEED, 1, figures, checks, given.json)


if __name__ == "__main__":
    main()
