"""Which epoch comes next, agreed on by all processes that iterate over one dataset.

A loop in the process that mounted simply counts. Workers of torch's own DataLoader are copies of the dataset, and the
process that started them never iterates: they agree through a table on a `Page` that workers inherit. The first worker
of an iteration takes the next run and notes it under the iteration's key; the others find it there. The key is torch's
base seed, how many workers there are, and how many iterations the worker process has begun (persistent workers keep
their seed); a worker number that comes twice under one key begins another iteration.

Why POSIX locks: the kernel frees them when a process is killed at any point; a semaphore would be left locked. Pickled
for anything but starting a process, a dataset takes a table of its own along, and so does a process that uses a dataset
without being a DataLoader's worker.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.context import get_spawning_popen
from typing import Any

from dhtdata.errors import ConfigError
from dhtdata.mount.page import Page
from dhtdata.mount.ranks import Worker, find_worker
from dhtdata.order import Turns

TABLE_BYTES = 4_096
MAX_WORKERS = 1_024
_ITERATIONS = 4
"""Iterations whose workers may still be coming; two loaders that start at the same time need two."""

_TABLE, _WORKERS = 0, 1
"""Bytes of the file that are locked: by who reads and writes it; by every worker that has iterated, while it lives."""


@dataclass(frozen=True)
class Run:
    """One iteration: an epoch from a row on. ``rows`` are those that all ranks together consumed before."""

    epoch: int
    rows: int
    lanes: int


@dataclass
class Standing:
    """Where an iteration stands: so many of its steps, of those of its worker, are handed out."""

    run: Run
    steps: Turns
    done: int = 0


@dataclass
class _Iteration:
    """What the workers of one iteration share; ``taken`` and ``finished`` have a bit per worker.

    ``key``: base seed, workers, iterations of the worker process.
    """

    key: tuple[int, int, int]
    run: Run
    taken: int = 0
    finished: int = 0


@dataclass
class _Table:
    """``begun``: iterations that workers have begun so far, ``latest`` the last few of them."""

    next: Run
    begun: int = 0
    latest: list[_Iteration] = field(default_factory=list)

    @classmethod
    def decode(cls, content: bytes) -> _Table:
        value = json.loads(content)
        latest = [
            _Iteration(**each | {"key": tuple(each["key"]), "run": Run(**each["run"])}) for each in value["latest"]
        ]
        return cls(Run(**value["next"]), value["begun"], latest)

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(TABLE_BYTES)


class Epochs:
    """The next run, and where the latest one stands. ``first``: the first run; its lanes are those of later epochs.

    With ``keeps_lanes`` these are, after a state was loaded, the lanes of that state.
    """

    def __init__(self, first: Run, *, keeps_lanes: bool = False) -> None:
        self._first = first
        self._keeps_lanes = keeps_lanes
        self._current: Run | None = None
        self._at: Run | Standing = first
        self._works = False
        self._led = False
        self._seen = 0
        self._begun_here = 0
        self._chosen: Run | None = None
        self._mutex_pid = 0
        self._create(_Table(first))

    # In the process that mounted

    def choose(self, run: Run) -> None:
        """The next iteration is this one; in a worker, that of this worker. The one under way is no longer counted."""
        if find_worker() is not None:
            self._chosen = run
        else:
            with self._own() as table:
                table.next = run
                self._seen = table.begun
        self._stand(run)

    def expect(self) -> None:
        """An iteration was made ready: until it begins, the latest one stands at its start."""
        with self._own() as table:
            self._seen = table.begun
        self._stand(table.next)

    def begin(self, *, led: bool = False) -> Run:
        """Take the next run. ``led``: others hand out, and somebody counts what of it was received."""
        with self._own() as table:
            run, table.next = table.next, self.after(table.next)
            self._seen = table.begun
        self._stand(run)
        self._current = run
        self._led = led
        return run

    def follow(self, run: Run, steps: Turns) -> Standing:
        """For who hands out to count in: looked at while that iteration is the latest one."""
        standing = Standing(run, steps)
        if run is self._current:
            self._at = standing
        return standing

    def finish(self, run: Run) -> None:
        """The iteration is over, or was given up."""
        if run is self._current:
            self._led = False

    @property
    def at(self) -> Run:
        """Where the latest iteration of this process stands.

        A worker never is in the next epoch of its own accord. It stands where its next step would be its first one, in
        an iteration that as many workers begin there.
        """
        if isinstance(self._at, Run):
            return self._at
        run, steps = self._at.run, self._at.steps
        if self._at.done >= steps.count and not self._works:
            return self.after(run)
        return Run(run.epoch, steps.position(self._at.done * steps.share.workers), run.lanes)

    def standing(self) -> Run:
        """Where the latest iteration of all processes stands. ConfigError if only somebody else knows."""
        if self._led:
            raise ConfigError("workers iterate over this dataset: ask the loader for state_dict() instead")
        with self._own() as table:
            if table.begun == self._seen:
                return self.at
            latest = table.latest[-1]
        if self._workers_live() or latest.finished != (1 << latest.key[1]) - 1:
            raise ConfigError(
                f"workers of a DataLoader iterate over this dataset, or were left in the middle of epoch "
                f"{latest.run.epoch}, and how much the loop received of it is not known here: load it with "
                "dhtdata.torch.DataLoader and ask that for state_dict()"
            )
        return self.after(latest.run)

    def _stand(self, at: Run) -> None:
        self._at = at
        self._works = False
        self._current = None
        self._led = False

    def after(self, run: Run) -> Run:
        """The whole epoch that follows."""
        return Run(run.epoch + 1, 0, run.lanes if self._keeps_lanes else self._first.lanes)

    def start_of(self, epoch: int) -> Run:
        """A whole epoch."""
        return Run(epoch, 0, self.at.lanes if self._keeps_lanes else self._first.lanes)

    # In workers

    def begin_with(self, worker: Worker) -> Run:
        """The run that all workers of this iteration share, or what this worker alone was told to go on from."""
        if worker.workers > MAX_WORKERS:
            raise ConfigError(f"{worker.workers} workers are more than {MAX_WORKERS}: use fewer")
        fcntl.lockf(self._page.file, fcntl.LOCK_SH, 1, _WORKERS)
        chosen, self._chosen = self._chosen, None
        self._begun_here += 1
        key = (worker.base_seed, worker.workers, self._begun_here)
        with self._locked() as table:
            found = next((each for each in table.latest if each.key == key and not _has(each.taken, worker)), None)
            if found is None:
                found = _Iteration(key, chosen or table.next)
                table.next = self.after(found.run)
                table.latest = [*table.latest, found][-_ITERATIONS:]
                table.begun += 1
            found.taken |= 1 << worker.number
        run = chosen or found.run
        self._stand(run)
        self._works = True
        self._current = run
        return run

    def finish_with(self, worker: Worker) -> None:
        """This worker has handed out its part of the iteration that it began last."""
        key = (worker.base_seed, worker.workers, self._begun_here)
        with self._locked() as table:
            for found in reversed(table.latest):
                if found.key == key and not _has(found.finished, worker):
                    found.finished |= 1 << worker.number
                    return

    # The table

    @contextmanager
    def _own(self) -> Iterator[_Table]:
        """The table, a copy of it in a process that is neither the one that mounted nor a worker."""
        if self._pid != os.getpid():
            with self._locked() as table:
                pass
            self._create(table)
        with self._locked() as table:
            yield table

    @contextmanager
    def _locked(self) -> Iterator[_Table]:
        if self._mutex_pid != os.getpid():
            # Inherited, maybe from a thread that held it.
            self._mutex, self._mutex_pid = threading.Lock(), os.getpid()
        with self._mutex:
            fcntl.lockf(self._page.file, fcntl.LOCK_EX, 1, _TABLE)
            try:
                before = self._page.read()
                table = _Table.decode(before)
                yield table
                if (content := table.encode()) != before:
                    self._page.write(content)
            finally:
                fcntl.lockf(self._page.file, fcntl.LOCK_UN, 1, _TABLE)

    def _workers_live(self) -> bool:
        try:
            fcntl.lockf(self._page.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _WORKERS)
        except OSError:
            return True
        fcntl.lockf(self._page.file, fcntl.LOCK_UN, 1, _WORKERS)
        return False

    def _create(self, table: _Table) -> None:
        """A table of this process, whose epochs it counts."""
        self._page = Page(table.encode())
        self._pid = os.getpid()
        self._mutex, self._mutex_pid = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_mutex", "_current")}
        shared = get_spawning_popen() is not None
        page = self._page if shared else Page(self._page.read())  # a shallow copy, too, counts on its own
        return kept | {"_at": self.at, "_current": None, "_page": page, "_shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shared = state.pop("_shared")
        self.__dict__.update(state)
        self._mutex, self._mutex_pid = threading.Lock(), os.getpid()
        if not shared:
            self._pid = os.getpid()


def _has(bits: int, worker: Worker) -> bool:
    return bool(bits >> worker.number & 1)
