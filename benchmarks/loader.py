"""Is a training loop fed faster than by what people use, near what memory allows, and while shards still arrive?

Each question is a process of its own, one after another, because each needs the whole machine. By hand, one question:
see `benchmarks.loader_real`.
"""

from __future__ import annotations

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

NEEDS_BASELINES = True
LIMITS_S = {"warm": 1_800.0, "cold": 300.0, "nodes": 300.0}


def main() -> None:
    given = arguments(__doc__ or "")
    questions = [
        Question(name, (f"benchmarks.loader_real.{name}",), limit_s, 120.0) for name, limit_s in LIMITS_S.items()
    ]
    tell("loader", given, [ask(question, given.quick) for question in questions])


if __name__ == "__main__":
    main()
