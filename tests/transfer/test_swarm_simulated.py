from __future__ import annotations

import dataclasses

import pytest

from benchmarks.swarm_simulated.peers import Dataset
from benchmarks.swarm_simulated.swarm import Kind, Outcome, Setup, Swarm

DATASET = Dataset.of(2, 32, 1 << 20)
ALIKE = (Kind(1.0, 100, 100),)
MIXED = (Kind(0.2, 0, 100), Kind(0.4, 20, 100), Kind(0.4, 100, 100))
CROWD = Setup(peers=30, dataset=DATASET, kinds=MIXED, neighbours=12, gone=0.1, restarts=0.1)


def _run(setup: Setup, seed: int = 1) -> Outcome:
    return Swarm(setup, seed).run()


def test_a_crowd_under_churn_is_done_soon_and_the_seed_sends_few_copies() -> None:
    outcome = _run(CROWD)
    assert len(outcome.done_s) == 30
    assert outcome.left == 3
    assert outcome.ratio <= 2.0
    assert outcome.copies <= 3.0
    assert outcome.wasted <= 0.1


def test_the_same_seed_gives_the_same_swarm() -> None:
    assert _run(CROWD, 7) == _run(CROWD, 7)
    assert _run(CROWD, 7) != _run(CROWD, 8)


def test_eight_alike_take_little_more_than_one_copy_of_the_seed() -> None:
    outcome = _run(Setup(peers=8, dataset=Dataset.of(8, 32, 1 << 20), kinds=ALIKE))
    assert outcome.copies <= 1.1
    assert outcome.ratio <= 1.25


@pytest.mark.parametrize(
    ("kinds", "seed_up", "term"),
    [(ALIKE, 10.0, 0), ((Kind(1.0, 100, 10),), 100.0, 1), ((Kind(1.0, 1, 100),), 100.0, 2)],
)
def test_nobody_is_done_before_the_lower_bound(kinds: tuple[Kind, ...], seed_up: float, term: int) -> None:
    small = dataclasses.replace(CROWD, peers=10, kinds=kinds, seed_up=seed_up, gone=0.0, restarts=0.0)
    outcome = _run(dataclasses.replace(small, dataset=Dataset.of(1, 16, 1 << 20)))
    assert outcome.bound_s == outcome.terms_s[term]
    assert outcome.ratio >= 1.0
