"""Loaders over the same rows in the same run: each a process, made ready together, then asked in turns.

1. Every variant of every contestant runs for a moment. Of each contestant the fastest of a *league* goes on: batches
   without workers (``batches``), with two worker processes (``batches_2``), single rows (``rows``).
2. Each of these begins an epoch of which every row is compared with the source, for a while or, where it is fast
   enough, to the end, when all rows must have come. Nothing is told of one that yields a wrong row: the question fails.
3. They run in turns, round by round. The best round of each counts, as rows a second.

Files are written just before, so they are in the page cache; every process has one thread of torch's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import temporary_folder
from benchmarks.loader_real import rows as made
from benchmarks.mortal import Worker, worker

PEERS = ("litdata", "mosaic", "huggingface", "webdataset")
OWN = ("ours", "floor")
MOST_S = 600.0


@dataclass(frozen=True)
class Effort:
    """``trial_s``, ``verify_s``, ``round_s``: seconds a variant; ``peer_rows``: rows that peers write and read."""

    rows: int
    peer_rows: int
    trial_s: float
    verify_s: float
    round_s: float
    rounds: int
    peer_rounds: int


@dataclass
class Standings:
    """Rows a second by league, contestant and, in ``tried``, variant. ``whole``: whose epoch was compared to its end."""

    best: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, dict[str, str]] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)

    def fastest_peer(self, league: str) -> float:
        return max(rate for name, rate in self.best[league].items() if name in PEERS)

    def figures(self, prefix: str) -> dict[str, float | str]:
        found: dict[str, float | str] = {}
        for league, rates in self.best.items():
            for name, rate in rates.items():
                found[f"{prefix}_{league}_{name}_rows_s"] = round(rate)
                if self.chosen[league][name] != league:
                    found[f"{prefix}_{league}_{name}_way"] = self.chosen[league][name]
        found[f"{prefix}_epochs_compared_whole"] = ", ".join(self.whole)
        return found


def compete(kind: str, effort: Effort, seed: int, leagues: Mapping[str, Sequence[str]]) -> Standings:
    """``leagues``: variants of ``ours`` and ``floor`` that take part besides the peers', by league."""
    with temporary_folder() as folder, ExitStack() as stack:
        source = folder / "source.arrow"
        made.write(made.make(kind, effort.rows, seed), source)
        contestants = {name: stack.enter_context(_start(name, kind, effort, source, folder)) for name in (*PEERS, *OWN)}
        offered = {name: process.hear(MOST_S)["variants"] for name, process in contestants.items()}
        os.sync()
        standings = Standings()
        entered = {
            league: _enter(league, kind, contestants, offered, effort, standings, wanted)
            for league, wanted in leagues.items()
        }
        for league, variants in entered.items():
            _verify(league, contestants, variants, effort, standings)
        for league, variants in entered.items():
            _race(league, contestants, variants, effort, standings)
        return standings


def _start(name: str, kind: str, effort: Effort, source: Path, folder: Path):  # type: ignore[no-untyped-def]
    peer = name in PEERS
    count = effort.peer_rows if peer else effort.rows
    arguments = (name, kind, str(count), str(source), str(folder / name))
    if not peer:
        return worker("benchmarks.loader_real.our_loaders", *arguments, what=name)
    python = os.environ.get("DHTDATA_BASELINES_PYTHON")
    if not python:
        raise RuntimeError("the other loaders are not installed: run scripts/bench loader")
    return worker("benchmarks.loader_real.peer_loaders", *arguments, python=python, what=name)
