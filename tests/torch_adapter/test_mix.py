"""Mixes in PyTorch's loaders: real workers, fork and spawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils import data as torch_data

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.order.mixing import BATCHINGS
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.mount.making import put_dataset

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def targets(home: Path) -> list[str]:
    made = []
    with Store.open(home / "store") as store:
        for name, rows in (("long", 230), ("short", 90)):
            table = pa.table({"number": pa.array(range(rows)), "text": [f"{name} {row}" for row in range(rows)]})
            made.append(str(put_dataset(store, table, name=name, groups=[["number"], ["text"]])))
    return made


def mix_of(home: Path, targets: list[str], batching: str = "random", *, batch_size: int = 16, **mounted: Any) -> Any:
    given: dict[str, Any] = {"home": home, "batch_size": batch_size, "shuffle": True, "seed": 4} | mounted
    sources = [(dhtdata.mount(target, **given), weight) for target, weight in zip(targets, (0.7, 0.3), strict=True)]
    return dhtdata.Mix(sources, batching=batching, stop="all", source_column="origin")


def pairs(items: Iterable[Mapping[str, Any]]) -> list[list[tuple[int, int]]]:
    return [list(zip(batch["origin"].tolist(), batch["number"].tolist(), strict=True)) for batch in items]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_workers_yield_the_batches_of_the_main_process_epoch_after_epoch(
    home: Path, targets: list[str], batching: str, context: str, persistent: bool
) -> None:
    alone = mix_of(home, targets, batching)
    expected = [pairs(alone) for _ in range(2)]
    loader = DataLoader(
        mix_of(home, targets, batching),
        num_workers=2, multiprocessing_context=context, persistent_workers=persistent,
    )  # fmt: skip
    assert len(loader) == len(expected[0])
    for epoch in range(2):
        received = list(loader)
        assert pairs(received) == expected[epoch]
        assert all(isinstance(batch["number"], torch.Tensor) for batch in received)
        assert [text for batch in received for text in batch["text"]] == [
            f"{('long', 'short')[source]} {number}" for batch in expected[epoch] for source, number in batch
        ]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_workers_and_ranks_change_in_the_middle_of_an_epoch_and_batches_do_not(
    home: Path, targets: list[str], batching: str
) -> None:
    expected = pairs(mix_of(home, targets, batching, batch_size=48))
    state: dict[str, Any] | None = None
    seen: list[list[tuple[int, int]]] = []
    for ranks, workers, count in ((2, 0, 2), (8, 2, 1), (3, 1, 10**6)):
        parts, states = [], []
        for rank in range(ranks):
            mix = mix_of(home, targets, batching, batch_size=48 // ranks, rank=rank, world_size=ranks, lanes=1)
            loader = DataLoader(mix, num_workers=workers)
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            received = [item for _, item in zip(range(count), loader, strict=False)]
            parts.append(
                [
                    [pair for pair, kept in zip(batch, item["_valid"].tolist(), strict=True) if kept]
                    for batch, item in zip(pairs(received), received, strict=True)
                ]
            )
            states.append(loader.state_dict())
        assert all(saved == states[0] for saved in states)
        state = states[0]
        seen += [sum(step, []) for step in zip(*parts, strict=True)]
    assert seen == expected
    assert state is not None and state["epoch"] == 1


def test_the_mix_refers_to_the_loader_while_workers_iterate(home: Path, targets: list[str]) -> None:
    mix = mix_of(home, targets)
    loader = DataLoader(mix)
    items = iter(loader)
    next(items)
    with pytest.raises(ConfigError, match="ask the loader"):
        mix.state_dict()
    assert loader.state_dict()["rows"] == 16
    assert loader.rows_per_item == 16 and loader.standing() == (0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_loader_takes_a_mix(home: Path, targets: list[str], workers: int) -> None:
    expected = pairs(mix_of(home, targets))
    loader = torch_data.DataLoader(mix_of(home, targets, format="torch"), batch_size=None, num_workers=workers)
    assert pairs(loader) == expected


def halved(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {"half": batch["number"] / 2, "origin": batch["origin"]}


def doubled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": row["number"] * 2, "origin": row["origin"]}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_transforms_of_sources_and_of_the_mix_run_in_workers(home: Path, targets: list[str], context: str) -> None:
    mounted = partial(dhtdata.mount, home=home, batch_size=16)
    long, short = (mounted(targets[0], transform=doubled, transform_on="sample"), mounted(targets[1]))
    mix = dhtdata.Mix([(long, 1), (short, 1)], transform=halved, source_column="origin")
    with pytest.raises(
        ConfigError, match="different fields .number, origin; number, origin, text. .*of source 0.*of the mix"
    ):  # one source has no text any more
        list(DataLoader(mix, num_workers=1, multiprocessing_context=context))
    short = mounted(targets[1], columns=["number", "text"], transform=doubled, transform_on="sample")
    mix = dhtdata.Mix([(long, 1), (short, 1)], transform=halved, source_column="origin")
    loader = DataLoader(mix, num_workers=2, multiprocessing_context=context)
    halves = [half for batch in loader for half in batch["half"].tolist()]
    assert len(halves) == mix.num_rows and all(half == int(half) for half in halves)
