"""Does a crowd spread a dataset by itself: faster than libtorrent's, with little asked of its one seed?

Real peers on this machine (`benchmarks.swarm_real`), beside libtorrent in the same run; and the same decisions in
simulated swarms of a size that no test machine has (`benchmarks.swarm_simulated`). Each question is a process of its
own, one after another. By hand, one question: ``python -m benchmarks.swarm_real.crowd --quick``.
"""

from __future__ import annotations

from benchmarks.harness import arguments
from benchmarks.questions import Question, ask, tell

NEEDS_LIBTORRENT = True
QUESTIONS = (
    Question("crowd", ("benchmarks.swarm_real.crowd",), limit_s=600.0, quick_limit_s=90.0),
    Question("simulated", ("benchmarks.swarm_simulated",), limit_s=1_200.0),
)


def main() -> None:
    given = arguments(__doc__ or "")
    tell("swarm", given, [ask(question, given.quick) for question in QUESTIONS])


if __name__ == "__main__":
    main()
