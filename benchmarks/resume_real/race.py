"""Is there exactly one peer when 8 processes want one, and does training go on when the one who started it is killed?

Eight processes that are ready wait for a line each and connect, as mounts do, to the peer of one store, which none
runs; whoever is first starts it. All must meet the same process, and no other peer of that store may run (counted in
``/proc``) while they are connected. Then it is killed with SIGKILL, and they race again: 200 times (quick: 20).

Then two training runs (`trainer`) share a machine; the one that came first has started the peer. Both are killed in the
middle of the epoch, first the run, then the peer, as a batch system kills what belongs to a job. The other run must end
its epoch by itself, through a peer that it starts: 10 times (quick: 2).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import ROOT, Worker, worker
from benchmarks.peers import Machine, seed, world
from benchmarks.resume_real.small import (
    children_of,
    end_process,
    no_peer_after,
    peer_pid,
    peers_of,
    publish_small,
)
from dhtdata.errors import NotFoundError

RACERS = 8
RACE_S = 60.0
ROWS, SHARD_ROWS, BATCH = 480, 30, 8
FIRST_STEPS = 5


def measure(quick: bool, seed_number: int) -> Result:
    races, orphanings = (20, 2) if quick else (200, 10)
    with world() as folder:
        winners = _races(Machine(folder / "raced", "127.0.0.4"), races)
        lost = [_orphaned(folder / f"orphaned{number}", seed_number + number) for number in range(orphanings)]
    return Result(
        figures={
            "race_processes": RACERS,
            "race_owners_killed": orphanings,
            "race_peers_most": max(winners),
        },
        checks=[
            Check("race_races", len(winners), "==", races),
            Check("race_races_with_one_peer", winners.count(1), "==", races),
            Check("race_rows_lost_with_the_owner", sum(lost), "==", 0),
        ],
    )


def _races(machine: Machine, count: int) -> list[int]:
    """How many peers there were each time."""
    found = []
    with ExitStack() as running, no_peer_after(machine):
        racers = [running.enter_context(worker("benchmarks.resume_real.racer")) for _ in range(RACERS)]
        for racer in racers:
            racer.tell(**machine.flags)
            racer.hear()
        for _ in range(count):
            met = _race(racers)
            found.append(len(met.union(peers_of(machine))))
            for pid in met:
                end_process(pid)
            for racer in racers:
                racer.tell()
                racer.hear()
    return found


def _race(racers: list[Worker]) -> set[int]:
    """Process ids of the peers that they met."""
    for racer in racers:
        racer.tell()
    return {int(racer.hear(RACE_S)["pid"]) for racer in racers}


def _orphaned(folder: Path, seed_number: int) -> int:
    """Rows that the surviving run did not have, or had twice."""
    giver, taker = Machine(folder / "giver", "127.0.0.2"), Machine(folder / "taker", "127.0.0.3")
    dataset = publish_small(giver, ROWS, SHARD_ROWS)
    with seed(giver, dataset) as peer, no_peer_after(taker):
        with _Run(taker, peer.ticket(dataset), "owner", seed_number) as owner:
            owner.steps(FIRST_STEPS)
            started = peer_pid(taker)
            if started not in children_of(owner.process.pid):
                raise RuntimeError("the run that came first has not started the peer")
            with _Run(taker, peer.ticket(dataset), "other", seed_number + 1) as other:
                other.steps(FIRST_STEPS)
                owner.process.kill()
                end_process(started)
                other.to_the_end()
                if other.process.returncode:
                    return ROWS
                with suppress(NotFoundError):
                    if peer_pid(taker) == started:
                        raise RuntimeError("the peer that was killed is still there")
    rows = Counter(
        number
        for log in (taker.folder / "other").glob("rows.*")
        for line in log.read_bytes().splitlines()
        for number in json.loads(line)[2]
    )
    shutil.rmtree(folder)
    return ROWS - len(rows) + rows.total() - len(rows)


class _Run:
    """A trainer with a folder of its own, that tells of its steps."""

    def __init__(self, machine: Machine, ticket: str, name: str, seed_number: int) -> None:
        folder = machine.folder / name
        folder.mkdir(parents=True)
        options = {
            "ticket": ticket, "home": str(machine.folder), "folder": str(folder),
            "workers": 0, "batch": BATCH, "seed": seed_number, "step_s": 0.05,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.resume_real.trainer", json.dumps(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0)

    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.process.stdout is None or not self.process.stdout.read(1):
                raise RuntimeError("a training run ended early")

    def to_the_end(self) -> None:
        self.process.communicate(timeout=RACE_S)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    alone(measure)
