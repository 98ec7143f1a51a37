"""One loader in a process: runs for a while whenever it is asked. Needs nothing of dhtdata.

A process makes its loaders ready (`serve`), says which variants it has, and then obeys lines of JSON:

``{"variant", "do": "time", "seconds"}``: hand out items for so long; says ``rows`` and ``seconds``. An epoch that ends
is followed by the next. Some items are taken before the clock starts, so that it shows the pace of a loop that goes on,
not what workers made while nobody asked.
``{"variant", "do": "verify", "seconds"}``: begin an epoch and compare every row with the source, for so long at most;
says ``rows`` and whether the epoch ended (``whole``), in which case every row has come exactly once.
``{"variant", "do": "end"}``: let the loader go, and its workers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import torch

from benchmarks.loader_real.rows import Checker
from benchmarks.mortal import die_with_parent

_TAKEN_FIRST = 8


@dataclass(frozen=True)
class Variant:
    """``make``: a loader, which every ``iter()`` makes begin its next epoch.

    ``key``: the column whose length is an item's number of rows; None where an item is one row. ``named``: the names of
    an item's columns where it is a tuple.
    """

    make: Callable[[], Iterable[Any]]
    key: str | int | None
    named: tuple[str, ...] = ()

    def columns(self, item: Any) -> dict[str, Any]:
        """An item as columns, for comparing."""
        found = dict(zip(self.named, item, strict=True)) if self.named else dict(item)
        return {name: [value] for name, value in found.items()} if self.key is None else found


class _Running:
    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self._loader = variant.make()
        self._items = self._endless()

    def run(self, seconds: float) -> dict[str, float]:
        key, items, rows = self._variant.key, self._items, 0
        for _ in range(_TAKEN_FIRST):
            next(items)
        started = now = time.perf_counter()
        end = started + seconds
        while now < end:
            item = next(items)
            rows += 1 if key is None else len(item[key])
            now = time.perf_counter()
        return {"rows": rows, "seconds": now - started}

    def verify(self, checker: Checker, seconds: float) -> dict[str, float]:
        end = time.perf_counter() + seconds
        rows = 0
        for item in self._loader:
            columns = self._variant.columns(item)
            checker.batch(columns)
            rows += len(next(iter(columns.values())))
            if time.perf_counter() > end:
                return {"rows": rows, "whole": False}
        checker.end()
        return {"rows": rows, "whole": True}

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self._loader


def wire() -> TextIO:
    """Standard output for what is said to the parent alone: what libraries print goes to standard error."""
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return talk


def serve(talk: TextIO, variants: Mapping[str, Variant], checker: Callable[[], Checker]) -> None:
    """Obey until standard input is closed."""
    torch.set_num_threads(1)
    running: dict[str, _Running] = {}
    _say(talk, variants=list(variants))
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["variant"]
        try:
            if asked["do"] == "end":
                running.pop(name, None)
                _say(talk, ended=name)
                continue
            if name not in running:
                running[name] = _Running(variants[name])
            if asked["do"] == "verify":
                _say(talk, **running[name].verify(checker(), asked["seconds"]))
            else:
                _say(talk, **running[name].run(asked["seconds"]))
        except Exception as failure:
            _say(talk, failure=f"{name}: {type(failure).__name__}: {failure}")
            raise


def _say(talk: TextIO, **values: Any) -> None:
    talk.write(json.dumps(values) + "\n")
    talk.flush()


def begin() -> TextIO:
    """What every such process does first."""
    die_with_parent()
    return wire()
