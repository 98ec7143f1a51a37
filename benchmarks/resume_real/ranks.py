"""Ranks of one training run on one machine, each a process of its own (`rank`), started together."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from benchmarks.mortal import worker
from benchmarks.peers import Machine

WAIT_S = 400.0


def run_ranks(machine: Machine, ticket: str, ranks: int, workers: int, **options: Any) -> list[dict[str, Any]]:
    """What each of them said in the end; options are those of `rank`."""
    usual = {"home": str(machine.folder), "context": "fork", "seed": 1, "state": None, "steps": 0, "looks": 0}
    with ExitStack() as running:
        started = [
            running.enter_context(
                worker(
                    "benchmarks.resume_real.rank",
                    json.dumps(
                        {**usual, **options, "ticket": ticket, "rank": rank, "ranks": ranks, "workers": workers}
                    ),
                    what=f"rank {rank}",
                )
            )
            for rank in range(ranks)
        ]
        return [process.hear(WAIT_S) for process in started]
