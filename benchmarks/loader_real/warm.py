"""The three contests over files in the page cache, among the same processes: tokens, objects, floats."""

from __future__ import annotations

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.loader_real import floats, objects, tokens
from benchmarks.loader_real.contest import contestants


def measure(quick: bool, seed: int) -> Result:
    result = Result({}, [])
    with contestants() as processes:
        for question in (tokens, objects, floats):
            answer = question.among(processes, quick, seed)
            result.figures.update(answer.figures)
            result.checks.extend(answer.checks)
            result.bars.update(answer.bars)
    return result


if __name__ == "__main__":
    alone(measure)
