"""Loaders over the same rows in the same run: each library a process, made ready together, then asked in turns.

1. Every variant runs for a moment. Of each peer the fastest of a *league* goes on: batches without workers
   (``batches``), with two worker processes (``batches_2``), single rows (``rows``).
2. Each of these begins an epoch of which every row is compared with the source: of ours and the floors to its end, of a
   peer for a while or, where it is fast enough, to its end. At the end all rows must have come. Nothing is told of one
   that yields a wrong row: the question fails.
3. They run in turns, round by round. The best round of each counts, as rows a second.

Files are written just before, so they are in the page cache; every process has one thread of torch's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dht_simulated.result import Bars
from benchmarks.harness import temporary_folder
from benchmarks.loader_real import rows as made
from benchmarks.mortal import Worker, worker

PEERS = ("litdata", "mosaic", "huggingface", "webdataset")
OWN = ("ours", "floor")
LEAGUES = {"batches": "", "batches_2": "_2", "rows": "_rows"}
"""Ending of a peer's label by league."""
MOST_S = 600.0


@dataclass(frozen=True)
class Effort:
    """``peer_rows``: rows that peers write and read; seconds are those of one variant."""

    rows: int
    peer_rows: int
    trial_s: float
    verify_s: float
    round_s: float
    rounds: int


@dataclass(frozen=True)
class Standing:
    """Of one label: rows a second in the best round, by which variant, and whether a whole epoch was compared."""

    rows_s: float
    variant: str
    whole: bool


@contextmanager
def contestants() -> Iterator[dict[str, Worker]]:
    """Their processes, by name, until the block ends."""
    python = os.environ.get("DHTDATA_BASELINES_PYTHON")
    if not python:
        raise RuntimeError("the other loaders are not installed: run scripts/bench loader")
    with ExitStack() as stack:
        theirs = {name: worker("benchmarks.loader_real.peer_loaders", name, python=python, what=name) for name in PEERS}
        own = {name: worker("benchmarks.loader_real.our_loaders", name, what=name) for name in OWN}
        processes = {name: stack.enter_context(process) for name, process in {**theirs, **own}.items()}
        for process in processes.values():
            process.hear(MOST_S)
        yield processes


def compete(
    processes: Mapping[str, Worker],
    kind: str,
    effort: Effort,
    seed: int,
    leagues: Sequence[str],
    own: Mapping[str, tuple[str, Sequence[str]]],
) -> dict[str, Standing]:
    """Standings by label. ``own``: process and variants (the fastest counts) of who competes with peers."""
    with temporary_folder() as folder:
        offered = _prepare(processes, kind, effort, seed, folder)
        entered = {
            label: (processes[name], _tried(processes[name], ways, effort)) for label, (name, ways) in own.items()
        }
        for name in PEERS:
            for league in leagues:
                ways = [way for way in offered[name] if _league_of(way) == league]
                entered[name + LEAGUES[league]] = (processes[name], _tried(processes[name], ways, effort))
        whole = {
            label: _verified(process, way, MOST_S if label in own else effort.verify_s)
            for label, (process, way) in entered.items()
        }
        rates = dict.fromkeys(entered, 0.0)
        for _ in range(effort.rounds):
            for label, (process, way) in entered.items():
                rates[label] = max(rates[label], _rate(process, way, effort.round_s))
        for process, way in entered.values():
            process.ask(MOST_S, variant=way, do="end")
        return {label: Standing(rates[label], way, whole[label]) for label, (_, way) in entered.items()}


def _prepare(
    processes: Mapping[str, Worker], kind: str, effort: Effort, seed: int, folder: Path
) -> dict[str, list[str]]:
    """The variants that each process offers for this kind; all make ready side by side."""
    source = folder / "source.arrow"
    made.write(made.make(kind, effort.rows, seed), source)
    for name, process in processes.items():
        rows = effort.peer_rows if name in PEERS else effort.rows
        process.tell(do="prepare", kind=kind, rows=rows, source=str(source), folder=str(folder / name))
    offered = {name: process.hear(MOST_S)["variants"] for name, process in processes.items()}
    os.sync()
    return offered


def fastest_peer(standings: Mapping[str, Standing], league: str) -> float:
    """Rows a second."""
    return max(standings[name + LEAGUES[league]].rows_s for name in PEERS)


def figures(prefix: str, standings: Mapping[str, Standing]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for label, standing in standings.items():
        found[f"{prefix}_{label}_rows_s"] = round(standing.rows_s)
    found[f"{prefix}_ways"] = ", ".join(f"{label}: {standing.variant}" for label, standing in standings.items())
    found[f"{prefix}_compared_whole"] = ", ".join(label for label, standing in standings.items() if standing.whole)
    return found


def bars(what: str, standings: Mapping[str, Standing]) -> Bars:
    """Rows a second, the fastest first."""
    rates = {label: standing.rows_s for label, standing in standings.items()}
    return Bars(f"{what}: rows a second", dict(sorted(rates.items(), key=lambda each: -each[1])))


def _league_of(variant: str) -> str:
    if variant.startswith("rows"):
        return "rows"
    return "batches_2" if variant.endswith("_2") else "batches"


def _tried(process: Worker, variants: Sequence[str], effort: Effort) -> str:
    """The fastest of these variants; the others are let go."""
    if len(variants) == 1:
        return variants[0]
    rates = {}
    for variant in variants:
        rates[variant] = _rate(process, variant, effort.trial_s)
        process.ask(MOST_S, variant=variant, do="end")
    return max(rates, key=lambda variant: rates[variant])


def _verified(process: Worker, variant: str, seconds: float) -> bool:
    """Whether a whole epoch was compared with the source."""
    return bool(process.ask(MOST_S, variant=variant, do="verify", seconds=seconds)["whole"])


def _rate(process: Worker, variant: str, seconds: float) -> float:
    ran = process.ask(MOST_S, variant=variant, do="time", seconds=seconds)
    return float(ran["rows"] / ran["seconds"])
