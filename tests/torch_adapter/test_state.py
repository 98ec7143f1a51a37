"""Where a loop stands: every corner of `DataLoader.state_dict`, and going on with other ranks and workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.torch import DataLoader
from tests.torch_adapter.conftest import ROWS, batches

GLOBAL_BATCH = 48
pytestmark = [
    pytest.mark.slow_e2e,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
]


def mounted(made: str, home: Path, **options: Any) -> dhtdata.StreamingDataset:
    wanted: dict[str, Any] = {"shuffle": True, "columns": ["number"]} | options
    if "global_batch_size" not in wanted:
        wanted.setdefault("batch_size", 16)
    return dhtdata.mount(made, home=home, **wanted)


def where(source: Any) -> tuple[int, int]:
    state = source.state_dict()
    return state["epoch"], state["rows"]


@pytest.mark.parametrize(
    "options", [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
)
def test_a_loop_that_is_left_and_begun_anew(made: str, home: Path, options: dict[str, Any]) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(4)]
    dataset = mounted(made, home)
    loader = DataLoader(dataset, **options)
    assert where(loader) == where(dataset) == (0, 0)
    for step, _ in enumerate(loader, start=1):
        if step == 3:
            break
    assert where(loader) == where(dataset) == (0, 48)
    assert batches(loader) == expected[1]
    assert where(loader) == where(dataset) == (2, 0)
    iterator = iter(loader)
    received = batches(islice(iterator, len(loader)))  # the last batch, and nobody asked for the end
    assert received == expected[2] and where(loader) == (3, 0)
    # A state that is loaded while a loop is under way is that of the next loop.
    iterator = iter(loader)
    next(iterator)
    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "rows": 32})
    assert where(loader) == (1, 32)
    if "persistent_workers" not in options:
        assert next(iterator)["number"].tolist() == expected[3][1]
        assert where(loader) == (1, 32)
    assert batches(loader) == expected[1][2:]


@pytest.mark.parametrize("workers", [0, 2])
def test_of_two_loops_at_once_the_latest_counts(made: str, home: Path, workers: int) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(2)]
    loader = DataLoader(mounted(made, home), num_workers=workers)
    first, second = iter(loader), iter(loader)
    received: list[list[list[int]]] = [[], []]
    for step in range(1, 4):
        for number, iterator in enumerate((first, second)):
            received[number].append(next(iterator)["number"].tolist())
        assert where(loader) == (1, 16 * step)
    assert received == [epoch[:3] for epoch in expected]


def test_persistent_workers_serve_one_loop_at_a_time(made: str, home: Path) -> None:
    loader = DataLoader(mounted(made, home), num_workers=1, persistent_workers=True)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(ConfigError, match="a newer iteration"):
        next(first)
    assert where(loader) == (1, 16)


def doubled(batch: dict[str, Any]) -> list[int]:
    return [2 * number for number in batch["number"].tolist()]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_torchs_keywords_are_taken(made: str, home: Path) -> None:
    expected = batches(mounted(made, home))
    started = home / "started"
    started.mkdir(exist_ok=True)
    loader = DataLoader(
        mounted(made, home),
        num_workers=2, prefetch_factor=3, timeout=60, pin_memory=True, multiprocessing_context="fork",
        worker_init_fn=lambda number: (started / str(number)).touch(), collate_fn=doubled,
    )  # fmt: skip
    assert list(loader) == [[2 * number for number in batch] for batch in expected]
    assert {path.name for path in started.iterdir()} == {"0", "1"}


def lap(
    made: str, home: Path, ranks: int, workers: int, state: dict[str, Any] | None, steps: int | None, seed: int
) -> tuple[list[list[int]], dict[str, Any]]:
    """Some steps of all ranks together, as global batches; and the state, which is the same on every rank."""
    loaders = [
        DataLoader(
            mounted(
                made, home, global_batch_size=GLOBAL_BATCH, rank=rank, world_size=ranks, remainder="pad", seed=seed,
                lanes=2,
            ),
            num_workers=workers,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    if state is not None:
        for loader in loaders:
            loader.load_state_dict(state)
    together: list[list[int]] = []
    # One rank after the other: nothing of the order depends on when they run.
    for loader in loaders:
        iterator: Iterator[Any] = iter(loader)
        for step, batch in enumerate(islice(iterator, steps)):
            if step == len(together):
                together.append([])
            together[step] += batch["number"][batch["_valid"]].tolist()
        del iterator
    states = [json.dumps(loader.state_dict()) for loader in loaders]
    assert len(set(states)) == 1
    return together, json.loads(states[0])


@given(first=st.integers(0, 2), second=st.integers(0, 2), seed=st.integers(0, 5))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_and_workers_change_in_the_middle_of_an_epoch_and_the_global_batches_do_not(
    made: str, home: Path, first: int, second: int, seed: int
) -> None:
    expected, _ = lap(made, home, 1, 0, None, None, seed)
    received, state = lap(made, home, 2, 0, None, first, seed)
    more, state = lap(made, home, 8, 4 if seed % 2 else 1, state, second, seed)
    rest, state = lap(made, home, 3, 1, state, None, seed)
    assert received + more + rest == expected
    assert sorted(sum(expected, [])) == list(range(ROWS)) and state["epoch"] == 1
