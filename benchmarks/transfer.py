"""Is fetching near what wire, processor and disk allow, and does it stay small?

Each question is a process of its own, one after another, because each needs the whole machine. By hand, one question:
``python -m benchmarks.transfer_real.one --quick``.
"""

from __future__ import annotations

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

LIMITS_S = {"one": 300.0, "latency": 300.0, "packed": 600.0, "mount": 300.0, "memory": 1_200.0}


def main() -> None:
    given = arguments(__doc__ or "")
    questions = [Question(name, (f"benchmarks.transfer_real.{name}",), limit_s) for name, limit_s in LIMITS_S.items()]
    tell("transfer", given, [ask(question, given.quick) for question in questions])


if __name__ == "__main__":
    main()
