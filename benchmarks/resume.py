"""Does training go on where it was, whatever was killed, and do all processes of a machine share one download?

Each question (`benchmarks.resume_real`) is a process of its own with a time limit, one after another, because each
starts many processes itself. By hand, one question: ``python -m benchmarks.resume_real.kills --quick``.
"""

from __future__ import annotations

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

LIMITS_S = {"seek": 120.0, "node": 900.0, "kills": 1_200.0, "elastic": 300.0, "race": 900.0, "epochs": 600.0}
QUICK_LIMIT_S = 180.0


def main() -> None:
    given = arguments(__doc__ or "")
    questions = [
        Question(name, (f"benchmarks.resume_real.{name}",), limit_s, QUICK_LIMIT_S)
        for name, limit_s in LIMITS_S.items()
    ]
    tell("resume", given, [ask(question, given.quick) for question in questions])


if __name__ == "__main__":
    main()
