"""Does a peer stand its ground among hostile and broken ones: does a fetch end, is a lie believed, is anybody served?

Every question (`benchmarks.hostile_real`) runs real peers on real sockets, is a process of its own with a time limit,
and has the machine to itself, for all of them measure time. A question that fails is a check that fails, its reason is
among the figures.

By hand, one question: ``python -m benchmarks.hostile_real.providers --quick``.
"""

from __future__ import annotations

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

QUESTIONS = ("providers", "answers", "crashes", "slow")
LIMIT_S = 3_000.0
QUICK_LIMIT_S = 180.0


def main() -> None:
    given = arguments(__doc__ or "")
    questions = [Question(name, (f"benchmarks.hostile_real.{name}",), LIMIT_S, QUICK_LIMIT_S) for name in QUESTIONS]
    tell("hostile", given, [ask(question, given.quick) for question in questions])


if __name__ == "__main__":
    main()
