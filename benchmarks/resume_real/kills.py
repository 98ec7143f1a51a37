"""Are rows lost or repeated when any process is killed at any step, and does anything hang?

A dataset of 480 rows in 16 shards lies at two seeds. A training run (`trainer`) starts with an empty store and reads an
epoch in 60 steps, so that shards arrive all the time. After a random number of steps something is killed with SIGKILL:
the trainer, a process that it has started (a DataLoader worker, the checker of a stranger's first shard), the peer, or
one of the seeds; training has to go on where it can, until a little later the trainer is killed in any case. The next
run loads the state that was saved last. Each kill is a trial; an epoch takes several, then its rows are counted: those
of steps before the loaded states and those after, all of them once. 1,000 trials with numpy and 20 with two DataLoader
workers (quick: 60 and 2), a few training runs at a time, each with a machine of its own.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import ROOT
from benchmarks.peers import Dataset, Machine, Peer, seed, world
from benchmarks.resume_real.small import children_of, end_process, gone, no_peer_after, peer_pid, publish_small
from dhtdata.errors import NotFoundError
from dhtdata.formats.ticket import Ticket

ROWS, SHARD_ROWS, BATCH = 480, 30, 8
DEADLINE_S = 60.0
MOST_STEPS = 14
RUNS = 3


def measure(quick: bool, seed_number: int) -> Result:
    trials = {0: 60, 2: 2} if quick else {0: 1_000, 2: 20}
    figures: dict[str, float | str] = {"kills_rows": ROWS, "kills_shards": ROWS // SHARD_ROWS}
    checks = []
    with world() as folder, _two_seeds(folder) as seeds:
        for workers, count in trials.items():
            name = f"kills_{'torch' if workers else 'numpy'}"
            started = time.perf_counter()
            tally = Tally(count)
            with ThreadPoolExecutor(RUNS) as pool:
                machines = [Machine(folder / f"{name}{n}", "127.0.0.4") for n in range(RUNS)]
                for done in [
                    pool.submit(_train, machine, seeds, workers, tally, seed_number + n)
                    for n, machine in enumerate(machines)
                ]:
                    done.result()
            figures[f"{name}_seconds"] = time.perf_counter() - started
            figures[f"{name}_epochs"] = tally.epochs
            figures |= {f"{name}_of_{victim}": number for victim, number in sorted(tally.victims.items())}
            if tally.hung:
                figures[f"{name}_hung_after"] = ", ".join(tally.hung[:5])
            checks += [
                Check(f"{name}_trials", sum(tally.victims.values()), ">=", count),
                Check(f"{name}_rows_missing", tally.missing, "==", 0),
                Check(f"{name}_rows_twice", tally.twice, "==", 0),
                Check(f"{name}_hangs", len(tally.hung), "==", 0),
                Check(f"{name}_failed_runs", len(tally.failed), "==", 0),
            ]
            if tally.failed:
                figures[f"{name}_failure"] = tally.failed[0]
    return Result(figures, checks)


@dataclass
class Tally:
    """What came of the trials so far, in all runs."""

    wanted: int
    epochs: int = 0
    missing: int = 0
    twice: int = 0
    victims: Counter[str] = field(default_factory=Counter)
    hung: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> bool:
        return sum(self.victims.values()) >= self.wanted


class Seeds:
    """Two, of which one may be killed; it is started anew. Use `_two_seeds`."""

    def __init__(self, lasting: Peer, machine: Machine, dataset: Dataset) -> None:
        self.dataset = dataset
        self._lasting = lasting
        self._machine = machine
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[tuple[str, Peer]]:
        """A ticket that names both, and the one that may be killed."""
        with self._lock, seed(self._machine, self.dataset) as mortal:
            addresses = [each.address for each in (mortal, self._lasting) if each.address is not None]
            yield str(Ticket(self.dataset.manifest, tuple(addresses))), mortal

    @property
    def ticket(self) -> str:
        return self._lasting.ticket(self.dataset)


@contextmanager
def _two_seeds(folder: Path) -> Iterator[Seeds]:
    lasting, mortal = Machine(folder / "lasting", "127.0.0.2"), Machine(folder / "mortal", "127.0.0.3")
    dataset = publish_small(lasting, ROWS, SHARD_ROWS)
    if publish_small(mortal, ROWS, SHARD_ROWS) != dataset:
        raise RuntimeError("equal rows were published as different datasets")
    with seed(lasting, dataset) as peer:
        yield Seeds(peer, mortal, dataset)


def _train(machine: Machine, seeds: Seeds, workers: int, tally: Tally, seed_number: int) -> None:
    """Epoch after epoch, each from an empty store and with several kills, until there were enough."""
    chance = random.Random(seed_number)
    while not tally.ended:
        with no_peer_after(machine):
            epoch = _Epoch(machine, seeds, workers, tally, chance)
            while not epoch.interrupted():
                pass
            epoch.count()
        shutil.rmtree(machine.folder)


class _Epoch:
    def __init__(self, machine: Machine, seeds: Seeds, workers: int, tally: Tally, chance: random.Random) -> None:
        self._machine = machine
        self._seeds = seeds
        self._workers = workers
        self._tally = tally
        self._chance = chance
        self._seed = chance.randrange(1 << 30)
        self._runs: list[tuple[Path, list[int]]] = []
        machine.folder.mkdir(parents=True, exist_ok=True)

    def interrupted(self) -> bool:
        """One run, killed at some step unless there were trials enough; True if the epoch has ended."""
        victims = ["trainer", "child", "peer", *(["seed"] if self._chance.random() < 0.2 else [])]
        victim = self._chance.choice(victims) if not self._tally.ended else ""
        if victim == "seed":
            with self._seeds.running() as (ticket, mortal):
                return self._run(ticket, victim, mortal.process.pid)
        return self._run(self._seeds.ticket, victim, 0)

    def _run(self, ticket: str, victim: str, seed_pid: int) -> bool:
        options = {
            "ticket": ticket, "home": str(self._machine.folder), "folder": str(self._machine.folder),
            "workers": self._workers, "batch": BATCH, "seed": self._seed,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.resume_real.trainer", json.dumps(options)]
        errors = self._machine.folder / "errors"
        with (
            errors.open("wb") as said,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, bufsize=0) as process,
        ):
            steps = _Steps(process)
            left: list[int] = []
            try:
                running = not victim or steps.wait(self._chance.randrange(MOST_STEPS))
                if victim and running:
                    left = self._watch_children(process.pid)
                    killed = self._kill(victim, process.pid, seed_pid)
                    if killed != "trainer":
                        steps.wait(self._chance.randrange(1, MOST_STEPS))
                        left += self._watch_children(process.pid)
                        end_process(process.pid)
                    with self._tally.lock:
                        self._tally.victims[killed] += 1
                steps.to_the_end()
                for child in left:
                    gone(child)
            except TimeoutError:
                self._tally.hung.append(victim or "resuming")
            finally:
                process.kill()
                process.wait()
                for child in left:
                    os.close(child)
            if process.returncode not in (0, -9) and victim != "child":
                self._tally.failed.append(f"{victim}: {errors.read_text(errors='replace').strip()[-400:]}")
            self._runs.append((self._machine.folder / f"rows.{process.pid}", self._state()))
        return self._state()[0] > 0

    def _kill(self, victim: str, trainer: int, seed_pid: int) -> str:
        """Kill it, or the trainer if there is none such now; whom it hit."""
        with suppress(NotFoundError):
            peer = peer_pid(self._machine)
            if victim == "peer":
                end_process(peer)
                return victim
            children = [pid for pid in children_of(trainer) if pid != peer]
            if victim == "child" and children:
                end_process(self._chance.choice(children))
                return victim
        if victim == "seed":
            end_process(seed_pid)
            return victim
        end_process(trainer)
        return "trainer"

    def _watch_children(self, trainer: int) -> list[int]:
        """Descriptors of what the trainer has started but for the peer: all that must end with it."""
        try:
            peer = peer_pid(self._machine)
        except NotFoundError:
            peer = 0
        watched = []
        for pid in children_of(trainer):
            with suppress(ProcessLookupError):
                if pid != peer:
                    watched.append(os.pidfd_open(pid))
        return watched

    def _state(self) -> list[int]:
        try:
            state = json.loads((self._machine.folder / "state.json").read_bytes())
        except FileNotFoundError:
            return [0, 0]
        return [state["epoch"], state["rows"]]

    def count(self) -> None:
        """The rows of all steps that a saved state covers: each row of the dataset once."""
        rows: Counter[int] = Counter()
        for path, reached in self._runs:
            for line in path.read_bytes().splitlines() if path.exists() else ():
                with suppress(json.JSONDecodeError):  # it was killed in the middle of a line
                    epoch, consumed, numbers = json.loads(line)
                    if [epoch, consumed] <= reached:
                        rows.update(numbers)
        with self._tally.lock:
            self._tally.epochs += 1
            self._tally.missing += ROWS - len(rows)
            self._tally.twice += sum(number - 1 for number in rows.values())


class _Steps:
    """Steps of a trainer, as it tells of them. TimeoutError if it hangs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            raise RuntimeError("a trainer without a pipe")
        self._pipe = process.stdout.fileno()
        self._deadline_s = time.monotonic() + DEADLINE_S

    def wait(self, count: int) -> bool:
        """Until it has made so many more; False if it ended before."""
        while count > 0:
            told = self._read()
            if not told:
                return False
            count -= told
        return True

    def to_the_end(self) -> None:
        while self._read():
            pass

    def _read(self) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([self._pipe], [], [], left_s)[0]:
            raise TimeoutError
        return len(os.read(self._pipe, 4))


if __name__ == "__main__":
    alone(measure)
