"""`dhtdata.torch.DataLoader`: real workers, fork and spawn."""

from __future__ import annotations

import gc
import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.torch import DataLoader
from dhtdata.torch.tensors import to_tensor
from tests.torch_adapter.conftest import ROWS, batches


@pytest.mark.timeout(90)
@pytest.mark.slow_e2e
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_yield_the_batches_of_the_main_process_epoch_after_epoch(
    made: str, home: Path, context: str, persistent: bool
) -> None:
    mounted = partial(dhtdata.mount, made, home=home, batch_size=16, shuffle=True, seed=4)
    alone = mounted()
    expected = [batches(alone) for _ in range(3)]
    loader = DataLoader(mounted(), num_workers=2, multiprocessing_context=context, persistent_workers=persistent)
    assert len(loader) == len(expected[0]) == 15
    for epoch in range(2):
        received = list(loader)
        assert batches(received) == expected[epoch]
        assert all(isinstance(batch["number"], torch.Tensor) for batch in received)
        assert [text for batch in received for text in batch["text"]] == [
            f"row {number}" for batch in received for number in batch["number"].tolist()
        ]
        received[0]["vector"] += 1
    loader.load_state_dict(loader.state_dict())
    assert batches(loader) == expected[2]


@pytest.mark.timeout(60)
@pytest.mark.slow_e2e
@pytest.mark.parametrize(("workers_before", "workers_after"), [(0, 2), (2, 0), (2, 1)])
def test_the_state_counts_what_the_loop_received_whatever_the_workers_made_ahead(
    made: str, home: Path, workers_before: int, workers_after: int
) -> None:
    mounted = partial(dhtdata.mount, made, home=home, batch_size=16, shuffle=True, columns=["number"])
    expected = batches(mounted())
    loader = DataLoader(mounted(), num_workers=workers_before)
    iterator = iter(loader)
    received = batches([next(iterator) for _ in range(4)])
    saved = json.dumps(loader.state_dict())
    del iterator
    after = DataLoader(mounted(), num_workers=workers_after)
    after.load_state_dict(json.loads(saved))
    assert received + batches(after) == expected
    assert after.state_dict()["epoch"] == 1


@pytest.mark.timeout(60)
@pytest.mark.slow_e2e
def test_a_dataset_in_use_may_be_given_to_forked_workers(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=16)
    iterator = iter(dataset)
    next(iterator)
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context="fork")
    dataset.set_epoch(0)
    assert sum(batches(loader), []) == list(range(ROWS))
    assert next(iterator)["number"].tolist() == list(range(16, 32))


@pytest.mark.timeout(60)
@pytest.mark.slow_e2e
def test_workers_end_with_the_failure_of_one_and_do_not_wait_for_the_collector(made: str, home: Path) -> None:
    loader = DataLoader(
        dhtdata.mount(made, home=home, batch_size=16, transform=refuses),
        num_workers=2,
        multiprocessing_context="fork",
    )
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        try:
            list(loader)
        except ConfigError as failure:
            assert "KeyError: 'gone'" in str(failure)
        assert set(multiprocessing.active_children()) == before
    finally:
        gc.enable()


def refuses(batch: Any) -> Any:
    raise KeyError("gone")


def test_the_dataset_refers_to_the_loader_while_workers_iterate(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=16)
    loader = DataLoader(dataset)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(ConfigError, match="ask the loader"):
        dataset.state_dict()
    assert loader.state_dict()["rows"] == 16
    list(iterator)
    assert dataset.state_dict() == loader.state_dict()


def test_rows_are_tensors_too(made: str, home: Path) -> None:
    row = next(iter(DataLoader(dhtdata.mount(made, home=home))))
    assert row["number"].shape == () and row["vector"].shape == (3,) and row["text"] == "row 0"


def test_padding_is_a_tensor(made: str, home: Path) -> None:
    loader = DataLoader(dhtdata.mount(made, home=home, batch_size=100, remainder="pad"))
    assert list(loader)[-1]["_valid"].tolist() == [True] * 30 + [False] * 70


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"batch_size": 3}, r"batch_size.*dhtdata.mount\(..., batch_size"),
        ({"shuffle": True}, r"shuffle.*shuffle=True"),
        ({"drop_last": True}, r'drop_last.*remainder="drop"'),
        ({"sampler": [1]}, "sampler.*map_style"),
        ({"in_order": False}, "in_order"),
    ],
)
def test_what_the_mount_decides_is_rejected_by_name(
    made: str, home: Path, option: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        DataLoader(dhtdata.mount(made, home=home), **option)


def test_only_mounted_datasets_are_loaded() -> None:
    with pytest.raises(ConfigError, match="list"):
        DataLoader([1, 2])  # type: ignore[arg-type]


def test_random_access_works_with_torch_samplers(made: str, home: Path) -> None:
    view = dhtdata.mount(made, home=home, format="torch", columns=["number"]).map_style()
    sampler = torch.utils.data.SequentialSampler(view)
    loader = torch.utils.data.DataLoader(view, batch_size=50, sampler=sampler)
    assert sum(batches(loader), []) == list(range(ROWS))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (np.array([1.5, 2.5], np.float16), torch.tensor([1.5, 2.5], dtype=torch.float16)),
        (np.array([True, False]), torch.tensor([True, False])),
        (np.array(["2024-01-02"], "datetime64[D]"), torch.tensor([19724])),
        (np.array([5], "timedelta64[us]"), torch.tensor([5])),
    ],
)
def test_arrays_become_tensors_of_the_same_values(column: NDArray[Any], expected: torch.Tensor) -> None:
    assert torch.equal(to_tensor("x", column), expected)


def test_what_no_tensor_holds_is_a_list_and_nests() -> None:
    column = np.fromiter([np.array([1, 2]), None], object, 2)
    first, second = to_tensor("x", column)
    assert first.tolist() == [1, 2] and second is None
    assert to_tensor("x", {"a": np.array(["s"], object)}) == {"a": ["s"]}


@pytest.mark.parametrize("column", [np.ma.MaskedArray([1, 2], mask=[False, True]), np.array(["NaT"], "datetime64[s]")])
def test_nulls_that_no_tensor_holds_are_refused_by_column(column: NDArray[Any]) -> None:
    with pytest.raises(ConfigError, match=r"'s\.x' has nulls"):
        to_tensor("s", {"x": column})
