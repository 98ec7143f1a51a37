"""Is the DHT fit for the open internet: fast among dead nodes, cheap to announce in, hard to take over or to exhaust?

Real questions (`benchmarks.dht_real`) run whole nodes on sockets of this machine, beside the stock ``kademlia`` package
where that can do the same; simulated ones (`benchmarks.dht_simulated`) run the same code at sizes and under attacks
that no test machine has, in virtual time. Every question is a process of its own with a time limit: `flood` alone, then
`lookup`, then the others two at once, and beside them one that mostly waits.

By hand, one question: ``python -m benchmarks.dht_real.lookup --quick``, ``python -m benchmarks.dht_simulated wan
--quick``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.dht_simulated.__main__ import QUESTIONS as SIMULATED
from benchmarks.harness import arguments
from benchmarks.questions import Answer, Question, ask, tell

BUSY = ("mutations", "stores", "forgeries", "announce")
WAITING = ("cost", "amplification", "stranger")
LONGEST = ("growth", "sybils", "churn", "eclipse")
AT_ONCE = 2
LIMIT_S = 3_000.0
QUICK_LIMIT_S = 150.0


def real(name: str) -> Question:
    return Question(name, (f"benchmarks.dht_real.{name}",), LIMIT_S, QUICK_LIMIT_S)


def simulated(name: str) -> Question:
    return Question(name, ("benchmarks.dht_simulated", name), LIMIT_S, QUICK_LIMIT_S)


def ask_all(quick: bool) -> list[Answer]:
    def ask_real(name: str) -> Answer:
        return ask(real(name), quick)

    busy = [*map(simulated, SIMULATED), *map(real, BUSY)]
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
    tell("dht", given, ask_all(given.quick))


if __name__ == "__main__":
    main()
