"""The table of epochs: processes that agree, are killed, are copied."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.mount.epochs import MAX_WORKERS, TABLE_BYTES, Epochs, Run, _Iteration, _Table
from dhtdata.mount.ranks import Worker

FIRST = Run(0, 0, 2)


def begun(epochs: Epochs, worker: Worker, times: int, answers: Connection) -> None:
    """A worker process that begins a few iterations, says which, and waits to be ended."""
    answers.send([epochs.begin_with(worker) for _ in range(times)])
    signal.pause()


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_other_processes_share_a_run_and_their_death_is_noticed(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    assert isinstance(context, ForkContext | SpawnContext)
    epochs = Epochs(FIRST)
    epochs.choose(Run(3, 100, 1))
    processes, answers = [], []
    for number in range(2):
        mine, theirs = context.Pipe()
        process = context.Process(target=begun, args=(epochs, Worker(number, 2, 77), 2, theirs))
        process.start()
        processes.append(process)
        answers.append(mine)
    for answer in answers:
        assert answer.poll(30) and answer.recv() == [Run(3, 100, 1), Run(4, 0, 2)]
    for process in processes:
        with pytest.raises(ConfigError, match="workers of a DataLoader"):
            epochs.standing()
        process.kill()
        process.join()
    with pytest.raises(ConfigError, match="left in the middle of epoch 4"):
        epochs.standing()
    assert epochs.begin() == Run(5, 0, 2) and epochs.standing() == Run(5, 0, 2)


def dying(epochs: Epochs, worker: Worker) -> None:
    with epochs._locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_with_the_table_in_hand_locks_nobody_out() -> None:
    epochs = Epochs(FIRST)
    process = multiprocessing.get_context("fork").Process(target=dying, args=(epochs, Worker(0, 1, 5)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and epochs.begin() == FIRST


@given(
    iterations=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_iterations_that_start_together_never_share_an_epoch_and_their_workers_always_do(
    iterations: list[tuple[int, int]], order: Any
) -> None:
    """Pairs of iterations start at the same time: their workers come in any order. Seeds repeat between pairs."""
    epochs = Epochs(FIRST)
    expected = 0
    for first in range(0, len(iterations), 2):
        pair = [(number, seed, workers) for number, (seed, workers) in enumerate(iterations[first : first + 2])]
        if len({seed for _, seed, _ in pair}) < len(pair):
            continue
        coming = [(number, Worker(each, workers, seed)) for number, seed, workers in pair for each in range(workers)]
        order.shuffle(coming)
        runs: dict[int, set[Run]] = {}
        for number, worker in coming:
            # Each worker is a process that begins its first iteration.
            epochs._begun_here = 0
            runs.setdefault(number, set()).add(epochs.begin_with(worker))
        assert all(len(shared) == 1 for shared in runs.values())
        found = sorted(run.epoch for shared in runs.values() for run in shared)
        assert found == list(range(expected, expected + len(pair)))
        expected += len(pair)


def test_a_copy_counts_on_its_own() -> None:
    epochs = Epochs(FIRST)
    epochs.begin()
    for twin in (pickle.loads(pickle.dumps(epochs)), copy.deepcopy(epochs), copy.copy(epochs)):
        assert [twin.begin().epoch, twin.begin().epoch] == [1, 2]
    assert epochs.begin().epoch == 1


def counted(epochs: Epochs, answers: Connection) -> None:
    answers.send(epochs.begin())


def test_a_forked_process_that_is_no_worker_counts_on_its_own() -> None:
    context = multiprocessing.get_context("fork")
    epochs = Epochs(FIRST)
    for _ in range(2):
        mine, theirs = context.Pipe()
        process = context.Process(target=counted, args=(epochs, theirs))
        process.start()
        assert mine.poll(10) and mine.recv() == FIRST
        process.join()
    assert epochs.begin() == FIRST


def test_the_fullest_table_fits_its_page() -> None:
    many = (1 << MAX_WORKERS) - 1
    run = Run(2**56, 2**56, 2**14)
    table = _Table(run, 2**56, [_Iteration((2**63, MAX_WORKERS, 2**56), run, many, many)] * 4)
    assert len(table.encode()) == TABLE_BYTES and _Table.decode(table.encode()) == table


def test_more_workers_than_the_table_has_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="1025 workers"):
        Epochs(FIRST).begin_with(Worker(0, MAX_WORKERS + 1, 5))


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        copy.copy(Epochs(FIRST))
    assert len(os.listdir("/proc/self/fd")) <= before
