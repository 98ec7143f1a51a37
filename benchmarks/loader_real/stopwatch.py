"""Loaders of one library in a process: each runs for a while whenever it is asked. Needs nothing of dhtdata.

A process obeys lines of JSON (`serve`):

``{"do": "prepare", "kind", "rows", "source", "folder"}``: forget all before, make loaders of that kind of rows (`rows`)
ready, and say which ``variants`` there are.
``{"do": "time", "variant", "seconds"}``: hand out items for so long; says ``rows`` and ``seconds``. An epoch that ends
is followed by the next. Some items are taken before the clock starts, so that it shows the pace of a loop that goes on,
not what workers made while nobody asked.
``{"do": "verify", "variant", "seconds"}``: begin an epoch and compare every row with the source, for so long at most;
says ``rows`` and whether the epoch ended (``whole``), in which case every row has come exactly once.
``{"do": "end", "variant"}``: let the loader go, and its workers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from benchmarks.loader_real import rows as made
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
        self._items = _endless(self._loader)

    def run(self, seconds: float) -> dict[str, float]:
        key, items, rows = self._variant.key, self._items, 0
        next(items)
        end = time.perf_counter() + seconds
        for _ in range(_TAKEN_FIRST):
            if time.perf_counter() < end:
                next(items)
        started = now = time.perf_counter()
        end = started + seconds
        while now < end:
            item = next(items)
            rows += 1 if key is None else len(item[key])
            now = time.perf_counter()
        return {"rows": rows, "seconds": now - started}

    def verify(self, checker: made.Checker, seconds: float) -> dict[str, float]:
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

    def end(self) -> None:
        """Let workers go now: torch's wait seconds for them when a loader is found to be garbage."""
        self._items.close()
        for loader in (self._loader, getattr(self._loader, "loader", None)):
            if isinstance(loader, DataLoader) and loader.num_workers and loader._iterator is not None:
                loader._iterator._shutdown_workers()


def _endless(loader: Iterable[Any]) -> Generator[Any, None, None]:
    while True:
        yield from loader


@dataclass(frozen=True)
class Order:
    """What to make ready: the first ``rows`` rows of ``source``; ``folder`` is new, and for files."""

    kind: str
    rows: int
    source: Path
    folder: Path

    def table(self) -> pa.Table:
        return made.read(self.source).slice(0, self.rows).combine_chunks()


def serve(prepare: Callable[[Order], Mapping[str, Variant]]) -> None:
    """Obey until standard input is closed."""
    die_with_parent()
    talk = _wire()
    torch.set_num_threads(1)
    order: Order | None = None
    variants: Mapping[str, Variant] = {}
    running: dict[str, _Running] = {}
    _say(talk, ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "prepare":
                running = {}
                order = Order(asked["kind"], asked["rows"], Path(asked["source"]), Path(asked["folder"]))
                order.folder.mkdir(parents=True)
                variants = prepare(order)
                _say(talk, variants=list(variants))
                continue
            name, seconds = asked["variant"], asked.get("seconds", 0.0)
            if asked["do"] == "end":
                if name in running:
                    running.pop(name).end()
                _say(talk, ended=name)
                continue
            if name not in running:
                running[name] = _Running(variants[name])
            if asked["do"] == "verify" and order is not None:
                _say(talk, **running[name].verify(made.Checker(order.kind, order.table()), seconds))
            else:
                _say(talk, **running[name].run(seconds))
        except Exception as failure:
            _say(talk, failure=f"{asked}: {type(failure).__name__}: {failure}")
            raise


def _wire() -> TextIO:
    """Standard output for what is said to the parent alone: what libraries print goes to standard error."""
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return talk


def _say(talk: TextIO, **values: Any) -> None:
    talk.write(json.dumps(values) + "\n")
    talk.flush()
