"""A user's function on batches and samples, in the loop, in threads and in workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.mount.transform import collate
from dhtdata.torch import DataLoader
from tests.mount.conftest import ROWS


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"number": batch["number"] * 2}


def fails_on_sevens(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["number"] % 7 == 0:
        raise ValueError("a seven")
    return {"number": sample["number"], "text": sample["text"].upper()}


def refuses(item: Any) -> Any:
    raise KeyError("gone")


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_a_batch_transform_gets_what_the_loop_would_get(made: str, home: Path, threads: int, format: str) -> None:
    options: dict[str, Any] = {"home": home, "batch_size": 8, "shuffle": True, "format": format, "columns": ["number"]}
    plain = [batch["number"].tolist() for batch in dhtdata.mount(made, **options)]
    changed = dhtdata.mount(made, **options, transform=doubled, threads=threads)
    assert [batch["number"].tolist() for batch in changed] == [[2 * n for n in batch] for batch in plain]


@pytest.mark.parametrize("format", ["numpy", "torch", "python"])
def test_transformed_samples_are_put_together_in_the_order_of_their_rows(made: str, home: Path, format: str) -> None:
    dataset = dhtdata.mount(
        made,
        home=home,
        batch_size=10,
        format=format,
        columns=["number", "text"],
        transform=lambda row: {"square": row["number"] ** 2, "text": row["text"].upper()},
        transform_on="sample",
    )
    batches = list(dataset)
    assert [n for batch in batches for n in np.asarray(batch["square"]).tolist()] == [n * n for n in range(ROWS)]
    assert list(batches[0]["text"])[:2] == ["ROW 0", "ROW 1"]


def test_rows_are_transformed_one_by_one_without_a_batch_size(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, columns=["number"], transform=lambda row: int(row["number"]) + 1)
    assert list(dataset) == list(range(1, ROWS + 1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 100}, r"KeyError: 'gone' \(rows 0, 1, 2, 3, 4, … of split 'train'\)"),
        ({"batch_size": 100, "transform_on": "sample"}, r"KeyError: 'gone' \(row 0 of split 'train'\)"),
        ({}, r"KeyError: 'gone' \(row 0 of split 'train'\)"),
    ],
)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_transform_that_raises_is_told_with_its_rows(
    made: str, home: Path, options: dict[str, Any], named: str, threads: int
) -> None:
    dataset = dhtdata.mount(made, home=home, transform=refuses, threads=threads, **options)
    with pytest.raises(ConfigError, match=named) as raised:
        list(dataset)
    assert isinstance(raised.value.__cause__, KeyError)


def test_rows_that_fail_are_left_out_and_told(made: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = dhtdata.mount(
        made, home=home, batch_size=10, transform=fails_on_sevens, transform_on="sample", on_error="skip"
    )
    with caplog.at_level(logging.WARNING, "dhtdata"):
        seen = [n for batch in dataset for n in batch["number"].tolist()]
    assert seen == [n for n in range(ROWS) if n % 7]
    assert "ValueError: a seven (row 7 of split 'train'): left out" in caplog.text


def test_left_out_items_count_in_the_state(made: str, home: Path) -> None:
    mounted = partial(dhtdata.mount, made, home=home, transform=fails_on_sevens, on_error="skip")
    dataset, seen = mounted(), []
    for row in dataset:
        seen.append(int(row["number"]))
        if len(seen) == 20:
            state = dataset.state_dict()
            break
    assert state["rows"] == seen[-1] + 1
    after = mounted()
    after.load_state_dict(state)
    assert seen + [int(row["number"]) for row in after] == [n for n in range(ROWS) if n % 7]


def test_padded_ranks_stay_in_step_when_rows_fail(made: str, home: Path) -> None:
    counted: list[int] = []
    steps = set()
    for rank in range(3):
        dataset = dhtdata.mount(
            made, home=home, rank=rank, world_size=3, batch_size=7, shuffle=True,
            transform=fails_on_sevens, transform_on="sample", on_error="skip",
        )  # fmt: skip
        batches = list(dataset)
        steps.add(len(batches))
        assert all(len(batch["number"]) == len(batch["_valid"]) == 7 for batch in batches)
        counted += [n for batch in batches for n in batch["number"][batch["_valid"]].tolist()]
    assert len(steps) == 1
    assert sorted(counted) == [n for n in range(ROWS) if n % 7]


def test_a_batch_of_which_nothing_is_left_cannot_keep_step(made: str, home: Path) -> None:
    dataset = dhtdata.mount(
        made, home=home, rank=0, world_size=2, batch_size=5,
        transform=refuses, transform_on="sample", on_error="skip",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="all 5 rows of a batch"):
        list(dataset)


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_transform_and_name_the_row(made: str, home: Path, context: str) -> None:
    mounted = partial(dhtdata.mount, made, home=home, batch_size=10, columns=["number", "text"], transform_on="sample")
    loader = DataLoader(
        mounted(transform=fails_on_sevens, on_error="skip"), num_workers=2, multiprocessing_context=context
    )
    seen = [n for batch in loader for n in batch["number"].tolist()]
    assert seen == [n for n in range(ROWS) if n % 7]
    assert loader.state_dict()["epoch"] == 1
    with pytest.raises(ConfigError, match=r"ValueError: a seven \(row 0 of split 'train'\)"):
        # One worker: torch gives up a second one that is still being spawned, and tells of it from a destructor.
        list(DataLoader(mounted(transform=fails_on_sevens), num_workers=1, multiprocessing_context=context))


def test_threads_yield_the_same_and_end_with_the_loop(made: str, home: Path) -> None:
    mounted = partial(dhtdata.mount, made, home=home, batch_size=3, shuffle=True, columns=["number"])
    expected = [batch["number"].tolist() for batch in mounted()]
    assert [batch["number"].tolist() for batch in mounted(threads=4)] == expected
    iterator = iter(mounted(threads=4))
    next(iterator)
    gathering = [thread for thread in threading.enumerate() if thread.name == "dhtdata-gather"]
    assert gathering
    iterator.close()  # type: ignore[attr-defined]
    for thread in gathering:
        thread.join(10)
    assert not any(thread.is_alive() for thread in gathering)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"transform": 3}, "not a function"),
        ({"transform": doubled, "transform_on": "column"}, "transform_on"),
        ({"transform": doubled, "transform_on": "batch"}, "give batch_size"),
        ({"transform": doubled, "on_error": "ignore"}, "on_error"),
        ({"on_error": "skip"}, "give transform"),
        ({"transform": doubled, "transform_on": "sample", "batch_size": 2, "format": "arrow"}, "another format"),
        ({"transform": doubled, "on_error": "skip", "rank": 0, "world_size": 2, "batch_size": 2}, "unequal steps"),
        ({"threads": -1}, "threads"),
        ({"threads": 1000}, "threads"),
    ],
)
def test_nonsense_is_refused_at_once(made: str, home: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        dhtdata.mount(made, home=home, **options)


def test_random_access_is_refused_under_a_transform_which_it_would_not_see(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=10, transform=doubled)
    with pytest.raises(ConfigError, match="transform belongs to loops"):
        dataset.map_style()


def test_samples_collate_by_member() -> None:
    samples = [{"a": np.ones(2), "b": (1, "x")}, {"a": np.zeros(2), "b": (2, "y")}]
    batch = collate(samples, "numpy")
    assert batch["a"].shape == (2, 2) and batch["b"][0].tolist() == [1, 2] and list(batch["b"][1]) == ["x", "y"]
    tensors = collate(samples, "torch")
    assert isinstance(tensors["a"], torch.Tensor) and tensors["b"][1] == ["x", "y"]
    ragged = collate([np.ones(2), np.ones(3)], "numpy")
    assert ragged.dtype == object and [len(one) for one in ragged] == [2, 3]
    assert [len(one) for one in collate([torch.ones(2), torch.ones(3)], "torch")] == [2, 3]


def forgets_a_key(row: dict[str, Any]) -> dict[str, Any]:
    return {"even": 1} if row["number"] % 2 == 0 else {"odd": 1}


def returns_tuples(row: dict[str, Any]) -> tuple[int, ...]:
    return (1,) * (1 + int(row["number"]) % 2)


def returns_what_no_tensor_holds(row: dict[str, Any]) -> int:
    return 1 << 80


@pytest.mark.parametrize(
    ("transform", "format"),
    [
        (forgets_a_key, "numpy"),
        (forgets_a_key, "python"),
        (forgets_a_key, "torch"),
        (returns_tuples, "numpy"),
        (returns_tuples, "torch"),
        (returns_what_no_tensor_holds, "torch"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_results_that_make_no_batch_are_told_with_their_rows(
    made: str, home: Path, transform: Callable[[Any], Any], format: str, on_error: str
) -> None:
    dataset = dhtdata.mount(
        made,
        home=home,
        columns=["number"],
        batch_size=10,
        transform=transform,
        transform_on="sample",
        format=format,
        on_error=on_error,
    )
    with pytest.raises(ConfigError, match=r"makes no batch: .* \(rows 0, 1, 2, 3, 4, … of split 'train'\)"):
        next(iter(dataset))


def returns_a_generator(batch: dict[str, Any]) -> Iterator[int]:
    yield 1


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_what_no_worker_can_send_is_an_error_and_no_endless_wait(made: str, home: Path, pin_memory: bool) -> None:
    dataset = dhtdata.mount(made, home=home, columns=["number"], batch_size=10, transform=returns_a_generator)
    with pytest.raises(ConfigError, match="cannot be sent by a worker .*generator"):
        list(DataLoader(dataset, num_workers=2, pin_memory=pin_memory))
    plain = dhtdata.mount(made, home=home, columns=["number"], batch_size=10)
    with pytest.raises(ConfigError, match="cannot be sent by a worker .*generator"):
        list(DataLoader(plain, num_workers=1, pin_memory=pin_memory, collate_fn=returns_a_generator))
