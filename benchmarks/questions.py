"""Questions that are processes of their own: each a module that prints figures and, last, one line of JSON.

A benchmark's file lists its questions, `ask` runs one to its end or its limit, `tell` reports all of them. A question
that fails is a check that fails, its reason is among the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Arguments, Check, draw_bars, draw_lines, report, run_child

SEED = 1


@dataclass(frozen=True)
class Question:
    """``command``: what comes after ``python -m``. ``limit_s`` of wall time, with --quick ``quick_limit_s``."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    quick_limit_s: float = 60.0


@dataclass(frozen=True)
class Answer:
    figures: dict[str, float | str]
    checks: list[Check]
    curves: dict[str, dict[str, Any]]
    bars: dict[str, dict[str, Any]]


def ask(question: Question, quick: bool) -> Answer:
    """Run the question to its end, or to its limit."""
    command = [sys.executable, "-m", *question.command, "--seed", str(SEED), *(["--quick"] if quick else [])]
    try:
        child = run_child(command, timeout_s=question.quick_limit_s if quick else question.limit_s)
    except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as failure:
        print(failure, file=sys.stderr, flush=True)
        # The last line of a group of errors is but its frame.
        said = [line for line in str(failure).splitlines() if any(map(str.isalpha, line))]
        return Answer({f"{question.name}_failure": said[-1]}, [Check(f"{question.name}_answered", 0, "==", 1)], {}, {})
    checks = [Check(each["name"], each["value"], each["op"], each["bar"]) for each in child.result["checks"]]
    figures = {**child.result["figures"], f"{question.name}_took_s": child.seconds}
    return Answer(figures, checks, child.result.get("curves", {}), child.result.get("bars", {}))


def tell(benchmark: str, given: Arguments, answers: Sequence[Answer]) -> None:
    """Draw what was to be drawn, and report."""
    if given.plot is not None:
        for answer in answers:
            for name, curves in answer.curves.items():
                lines = {label: [(x, y) for x, y in line] for label, line in curves["lines"].items()}
                axes = (curves["title"], curves["x_label"], curves["y_label"])
                draw_lines(given.plot, f"{benchmark}_{name}", *axes, lines, curves["log_x"])
            for name, bars in answer.bars.items():
                draw_bars(given.plot, f"{benchmark}_{name}", bars["title"], bars["values"])
    figures = {name: value for answer in answers for name, value in answer.figures.items()}
    checks = [check for answer in answers for check in answer.checks]
    report(benchmark, SEED, 1, figures, checks, given.json)
