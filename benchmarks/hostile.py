"""Does a peer stand its ground among hostile and broken ones: does a fetch end, is a lie believed, is anybody served?

Every question (`benchmarks.hostile_real`) runs real peers on real sockets, is a process of its own with a time limit,
and has the machine to itself, for all of them measure time. A question that fails is a check that fails, its reason is
among the figures.

By hand, one question: ``python -m benchmarks.hostile_real.providers --quick``.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.harness import Check, arguments, report, run_child

SEED = 1
QUESTIONS = ("providers", "answers", "crashes", "slow")
LIMIT_S = 3_000.0
QUICK_LIMIT_S = 180.0


def ask(name: str, quick: bool) -> tuple[dict[str, float | str], list[Check]]:
    """Figures and checks of one question, asked to its end or to its limit."""
    command = [sys.executable, "-m", f"benchmarks.hostile_real.{name}", "--seed", str(SEED)]
    try:
        child = run_child([*command, *(["--quick"] if quick else [])], timeout_s=QUICK_LIMIT_S if quick else LIMIT_S)
    except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError) as failure:
        lines = str(failure).strip().splitlines()
        return {f"{name}_failure": lines[-1]}, [Check(f"{name}_answered", 0, "==", 1)]
    checks = [Check(each["name"], each["value"], each["op"], each["bar"]) for each in child.result["checks"]]
    return {**child.result["figures"], f"{name}_took_s": child.seconds}, checks


def main() -> None:
    given = arguments(__doc__ or "")
    figures: dict[str, float | str] = {}
    checks: list[Check] = []
    for name in QUESTIONS:
        found, judged = ask(name, given.quick)
        figures |= found
        checks += judged
    report("hostile", SEED, 1, figures, checks, given.json)


if __name__ == "__main__":
    main()
