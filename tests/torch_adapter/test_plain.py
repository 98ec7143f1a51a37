"""torch's own DataLoader over a mounted dataset: real workers, fork and spawn, persistent and not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import dhtdata
from dhtdata.errors import ConfigError
from tests.torch_adapter.conftest import ROWS, batches

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
KINDS = pytest.mark.parametrize(
    ("context", "persistent"), [("fork", False), ("fork", True), ("spawn", False), ("spawn", True)]
)


def mounted(made: str, home: Path, **options: Any) -> dhtdata.StreamingDataset:
    return dhtdata.mount(made, home=home, shuffle=True, seed=4, columns=["number"], **{"batch_size": 16} | options)


@pytest.mark.slow_e2e
@pytest.mark.timeout(120)
@KINDS
def test_every_iteration_of_workers_is_the_next_epoch(made: str, home: Path, context: str, persistent: bool) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(8)]
    dataset = mounted(made, home)
    workers = 3 if context == "fork" else 2  # a spawned one takes seconds to start
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, persistent_workers=persistent
    )
    assert len(loader) == len(expected[0])
    assert [batches(loader), batches(loader)] == expected[:2]
    dataset.set_epoch(5)
    assert batches(loader) == expected[5]
    if context == "spawn" and not persistent:
        return
    dataset.load_state_dict(alone.state_dict() | {"epoch": 2, "rows": 32})
    assert batches(loader) == expected[2][2:]
    given_up = iter(loader)
    next(given_up)
    del given_up
    assert batches(loader) == expected[4]
    # And what the main process does itself goes on from there.
    assert batches(dataset) == expected[5]
    assert batches(loader) == expected[6]


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_two_loops_at_once_keep_their_epochs_apart(made: str, home: Path, persistent: bool) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(2)]
    dataset = mounted(made, home)
    first, second = (
        iter(DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)) for _ in range(2)
    )
    received: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(len(dataset)):
        received[0].append(next(first))
        received[1].append(next(second))
    assert sorted(map(batches, received)) == sorted(expected)


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_the_same_seed_of_torch_for_every_iteration_confuses_nobody(made: str, home: Path) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(3)]
    loader = DataLoader(mounted(made, home), batch_size=None, num_workers=2)
    for epoch in range(3):
        torch.manual_seed(0)
        assert batches(loader) == expected[epoch]


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_the_state_is_known_before_and_after_workers_iterate_and_not_in_between(made: str, home: Path) -> None:
    dataset = mounted(made, home)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(ConfigError, match=r"dhtdata\.torch\.DataLoader"):
        dataset.state_dict()
    for _ in iterator:
        pass
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["rows"]) == (1, 0)
    iterator = iter(loader)
    next(iterator)
    del iterator
    with pytest.raises(ConfigError, match="left in the middle of epoch 1"):
        dataset.state_dict()
    dataset.set_epoch(3)
    assert dataset.state_dict()["epoch"] == 3


def epoch_of_the_worker(_: int) -> None:
    info = get_worker_info()
    assert info is not None and isinstance(info.dataset, dhtdata.StreamingDataset)
    info.dataset.set_epoch(2)


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_workers_may_be_told_their_epoch_where_they_start(made: str, home: Path) -> None:
    alone = mounted(made, home)
    expected = [batches(alone) for _ in range(4)]
    loader = DataLoader(
        mounted(made, home),
        batch_size=None, num_workers=2, worker_init_fn=epoch_of_the_worker, persistent_workers=True,
    )  # fmt: skip
    assert [batches(loader), batches(loader)] == expected[2:]


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
def test_arrays_become_tensors_and_strings_and_dicts_stay(made: str, home: Path, workers: int) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=50)
    for batch in DataLoader(dataset, batch_size=None, num_workers=workers):
        numbers = batch["number"].tolist()
        assert batch["vector"].shape == (len(numbers), 3) and batch["vector"][:, 0].tolist() == [3 * n for n in numbers]
        assert list(batch["text"]) == [f"row {number}" for number in numbers]
        assert batch["nested"]["half"].tolist() == [number / 2 for number in numbers]
        assert list(batch["nested"]["name"]) == [str(number) for number in numbers]


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}])
def test_batches_of_batches_are_refused(made: str, home: Path, options: dict[str, int]) -> None:
    loader = DataLoader(mounted(made, home), **options)
    with pytest.raises(ConfigError, match=r"batch_size=None.*dhtdata\.torch\.DataLoader"):
        next(iter(loader))


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_torch_may_make_batches_of_rows(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, columns=["number", "text"])
    seen = []
    for batch in DataLoader(dataset, batch_size=20, num_workers=2):
        assert batch["text"] == [f"row {number}" for number in batch["number"].tolist()]
        seen += batch["number"].tolist()
    assert sorted(seen) == list(range(ROWS))


LATE = """
import sys
import dhtdata
dataset = dhtdata.mount(sys.argv[1], home=sys.argv[2], batch_size=8)
assert "torch" not in sys.modules
import torch
from dhtdata.errors import ConfigError
try:
    next(iter(torch.utils.data.DataLoader(dataset, batch_size=None)))
except ConfigError as failure:
    assert "import torch before mounting" in str(failure), failure
else:
    raise SystemExit("not refused")
import dhtdata.torch
next(iter(torch.utils.data.DataLoader(dataset, batch_size=None)))
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_torch_that_is_imported_after_mounting_is_told_what_to_do(made: str, home: Path) -> None:
    subprocess.run([sys.executable, "-c", LATE, made, str(home)], check=True, timeout=50)
