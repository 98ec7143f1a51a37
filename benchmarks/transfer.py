"""Is fetching near what wire, processor and disk allow, and does it stay small?

Each question is a process of its own, one after another, because each needs the whole machine; only the last two, which
mostly wait for slow links, run side by side. By hand, one question: ``python -m benchmarks.transfer_real.one --quick``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

LIMITS_S = {"one": 300.0, "latency": 300.0, "mount": 300.0, "packed": 600.0, "memory": 1_200.0}
WAITING = 2


def main() -> None:
    given = arguments(__doc__ or "")
    questions = [
        Question(name, (f"benchmarks.transfer_real.{name}",), limit_s, 90.0) for name, limit_s in LIMITS_S.items()
    ]
    answers = [ask(question, given.quick) for question in questions[:-WAITING]]
    with ThreadPoolExecutor(WAITING) as lanes:
        answers += lanes.map(lambda question: ask(question, given.quick), questions[-WAITING:])
    tell("transfer", given, answers)


if __name__ == "__main__":
    main()
