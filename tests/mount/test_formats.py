"""What a batch is made of: memory of its own, the order of columns, one format or another, whole tables."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.gather import gatherer, planes
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.gather.tables import table_of_every_type
from tests.mount.making import put_dataset

ROWS = 60
FORMATS = ("numpy", "torch", "arrow", "python")
PERMUTED = ("tensor_permuted", "tensor_permuted_n", "golden_tensor")


@cache
def whole() -> pa.Table:
    return table_of_every_type(ROWS, seed=9)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def every(home: Path) -> str:
    names = [name for name in whole().column_names if name != "wide"]
    with Store.open(home / "store") as store:
        return str(put_dataset(store, whole(), groups=[names[::2], names[1::2], ["wide"]]))


def arrays_of(column: Any) -> Iterator[NDArray[Any]]:
    """All arrays and masks that a column, or a row of one, is made of."""
    if isinstance(column, dict):
        for child in column.values():
            yield from arrays_of(child)
    elif isinstance(column, np.ma.MaskedArray):
        yield column.data
        yield np.ma.getmaskarray(column)
    elif isinstance(column, torch.Tensor):
        yield column.numpy()
    elif isinstance(column, np.ndarray):
        yield column
        if column.dtype == object:
            yield from arrays_of(list(column.ravel()))
    elif isinstance(column, list):
        for child in column:
            yield from arrays_of(child)


def all_arrays(batches: Iterable[dict[str, Any]]) -> list[tuple[str, NDArray[Any]]]:
    return [(name, array) for batch in batches for name, column in batch.items() for array in arrays_of(column)]


def tensor_columns() -> list[str]:
    """Columns that no null keeps from being tensors."""
    refused = ("_n", "golden_")
    return [name for name in whole().column_names if not name.endswith(refused[0]) and not name.startswith(refused[1])]


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_everything_is_writable_and_nothing_overlaps(
    every: str, home: Path, format: str, batch_size: int | None
) -> None:
    columns = tensor_columns() if format == "torch" else None
    dataset = dhtdata.mount(every, home=home, batch_size=batch_size, shuffle=True, format=format, columns=columns)
    before = [json.dumps(batch.to_pylist(), default=repr) for batch in dataset.iter_arrow()] if batch_size else []
    dataset.set_epoch(0)
    items = list(dataset)  # rows and batches of the same parcels are alive at once
    arrays = all_arrays(items)
    assert len(arrays) > len(items) * 30
    spans = []
    for name, array in arrays:
        assert array.flags.writeable, name
        if array.dtype.kind != "O" and array.size:
            low, high = np.lib.array_utils.byte_bounds(array)
            spans.append((low, high, name))
            array.fill(array.flat[0])
    spans.sort()
    for (_, high, name), (low, _, other) in zip(spans, spans[1:], strict=False):
        assert high <= low, (name, other)
    if batch_size:
        dataset.set_epoch(0)
        assert [json.dumps(batch.to_pylist(), default=repr) for batch in dataset.iter_arrow()] == before


@pytest.mark.parametrize("collate", ["padded", "jagged"])
def test_shaped_batches_are_writable_and_apart(every: str, home: Path, collate: str) -> None:
    names = ["list", "large_list", "list_of_pairs", "list_n", "string"]
    how: Any = dict.fromkeys(names, collate)
    arrays = all_arrays(dhtdata.mount(every, home=home, batch_size=7, columns=names, collate=how))
    spans = sorted((*np.lib.array_utils.byte_bounds(array), name) for name, array in arrays if array.size)
    assert all(array.flags.writeable and array.flags.c_contiguous for _, array in arrays)
    assert all(high <= low for (_, high, _), (low, _, _) in zip(spans, spans[1:], strict=False))


def test_arrays_are_contiguous_and_in_native_byte_order(every: str, home: Path) -> None:
    """What ``jax.numpy.asarray`` and every C library take as it is."""
    for batch in dhtdata.mount(every, home=home, batch_size=16, shuffle=True, format="python").iter_numpy():
        for name, column in batch.items():
            for array in arrays_of(column):
                assert array.dtype.isnative
                if array.dtype.kind != "O" and name not in PERMUTED:
                    assert array.flags.c_contiguous, name
        assert all(batch[name].base is not None for name in PERMUTED)  # a view: transposed, not copied


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_columns_are_in_the_order_asked_for(every: str, home: Path, format: str, batch_size: int | None) -> None:
    wanted = ["uint8", "wide", "string", "int8", "tensor", "struct", "bool", "list"]
    for item in dhtdata.mount(every, home=home, batch_size=batch_size, format=format, columns=wanted):
        assert (item.schema.names if isinstance(item, pa.RecordBatch) else list(item)) == wanted


@pytest.mark.parametrize("name", ["tensor", "tensor_permuted", "triple", "pair_of_triples", "int64", "wide"])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_values_of_one_width_are_copied_once(
    every: str, home: Path, name: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the map into the batch; a tensor is a view of what was gathered, however it is permuted."""
    gathered: list[NDArray[Any]] = []

    def watched(*arguments: Any) -> Any:
        gathered.append(planes.values_at(*arguments))
        return gathered[-1]

    monkeypatch.setattr(gatherer, "values_at", watched)
    batch = dhtdata.mount(every, home=home, columns=[name], format=format).map_style()[[3, 50, 3, 8]]
    column = batch[name].numpy() if format == "torch" else batch[name]
    assert len(gathered) == 1 and np.shares_memory(column, gathered[0])
    assert column.nbytes == gathered[0].nbytes


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))))
def test_dimensions_of_permuted_tensors_are_those_of_the_specification(
    home: Path, permutation: tuple[int, ...]
) -> None:
    """Dimension i of what is shown is the stored dimension ``permutation[i]``."""
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3, 4], permutation=permutation)
    stored = np.arange(24 * 30, dtype=np.float32)
    tensors = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(stored, 24))
    with Store.open(home / "store") as store:
        digest = str(put_dataset(store, pa.table({"tensor": tensors}), name=f"permuted {permutation}"))
    expected = stored.reshape(30, 2, 3, 4).transpose(0, *(axis + 1 for axis in permutation))
    if permutation not in ((1, 2, 0), (2, 0, 1)):  # these pyarrow 26 gets wrong: its strides overlap
        assert np.array_equal(tensors.to_numpy_ndarray(), expected)
    for format in ("numpy", "torch"):
        batches = [batch["tensor"] for batch in dhtdata.mount(digest, home=home, batch_size=8, format=format)]
        assert np.array_equal(np.concatenate(batches), expected)


@pytest.mark.timeout(60)
@pytest.mark.slow_e2e
def test_permuted_tensors_are_handed_over_as_they_are(every: str, home: Path) -> None:
    options: dict[str, Any] = {"home": home, "batch_size": 8, "columns": ["tensor_permuted"], "format": "torch"}
    alone = [batch["tensor_permuted"] for batch in dhtdata.mount(every, **options)]
    handed = [batch["tensor_permuted"] for batch in DataLoader(dhtdata.mount(every, **options), num_workers=1)]
    assert torch.equal(torch.cat(alone), torch.cat(handed))


def numbers(batches: Iterable[Any]) -> list[list[int]]:
    return [np.asarray(batch["int64"]).tolist() for batch in batches]


@pytest.mark.parametrize("format", FORMATS)
def test_iterations_of_any_format_count_the_same_epochs_and_rows(every: str, home: Path, format: str) -> None:
    options: dict[str, Any] = {"home": home, "batch_size": 16, "shuffle": True, "columns": ["int64"], "format": format}
    reference = dhtdata.mount(every, **options)
    epochs = [numbers(reference) for _ in range(4)]
    mixed = dhtdata.mount(every, **options)
    assert numbers(mixed.iter_numpy()) == epochs[0]
    assert numbers(mixed.iter_arrow()) == epochs[1]
    part = mixed.iter_numpy()
    first = [next(part) for _ in range(2)]
    assert all(isinstance(batch["int64"], np.ndarray) for batch in first)
    state = mixed.state_dict()
    assert (state["epoch"], state["rows"]) == (2, 32)
    resumed = dhtdata.mount(every, **options)
    resumed.load_state_dict(state)
    assert numbers(first) + numbers(resumed.iter_arrow()) == epochs[2]
    assert numbers(resumed) == epochs[3]


def test_rows_are_iterated_over_in_both_formats(every: str, home: Path) -> None:
    dataset = dhtdata.mount(every, home=home, columns=["int64", "string"], format="python")
    assert isinstance(next(dataset.iter_numpy())["int64"], np.int64)
    dataset.set_epoch(0)
    assert isinstance(next(dataset.iter_arrow())["string"], pa.StringScalar)
    sampled = dhtdata.mount(every, home=home, batch_size=4, transform=lambda row: row, transform_on="sample")
    with pytest.raises(ConfigError, match="cannot put Arrow batches together"):
        sampled.iter_arrow()


PLAIN = ["int64", "float32_n", "string_n", "list", "struct", "timestamp_us", "bool", "dictionary"]


def test_a_whole_split_becomes_a_data_frame(every: str, home: Path) -> None:
    import pandas as pd

    dataset = dhtdata.mount(every, home=home, columns=PLAIN, batch_size=4)
    frame = dataset.to_pandas()
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == PLAIN
    pd.testing.assert_frame_equal(frame, dataset.to_arrow().to_pandas())
    assert frame["int64"].tolist() == whole()["int64"].to_pylist()
    typed = dataset.to_pandas(types_mapper=pd.ArrowDtype)
    assert typed["string_n"].isna().sum() == whole()["string_n"].null_count


def test_a_whole_split_becomes_a_polars_frame_on_mapped_memory(every: str, home: Path) -> None:
    import polars as pl

    dataset = dhtdata.mount(every, home=home, columns=PLAIN, batch_size=4)
    frame = dataset.to_polars()
    assert isinstance(frame, pl.DataFrame) and frame.columns == PLAIN and frame.height == ROWS
    assert frame["int64"].to_list() == whole()["int64"].to_pylist()
    assert frame["string_n"].to_list() == whole()["string_n"].to_pylist()
    assert frame["list"].to_list() == whole()["list"].to_pylist()
    mapped = {piece.buffers()[1].address + 8 * piece.offset for piece in dataset.to_arrow()["int64"].chunks}
    pieces = frame["int64"].get_chunks()
    assert {piece.to_numpy(allow_copy=False).ctypes.data for piece in pieces} == mapped


@pytest.mark.parametrize(
    ("method", "column"),
    [
        ("to_pandas", "golden_dense_union"),
        ("to_pandas", "golden_time_ns"),
        ("to_polars", "golden_dense_union"),
        ("to_polars", "interval"),
    ],
)
def test_a_column_that_a_frame_cannot_hold_is_named(every: str, home: Path, method: str, column: str) -> None:
    dataset = dhtdata.mount(every, home=home, columns=["int8", column, "string"])
    with pytest.raises(ConfigError, match=f"column '{column}' of type .* cannot .*leave it out of columns"):
        getattr(dataset, method)()


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_without_the_package_the_extra_is_named(every: str, home: Path, package: str) -> None:
    script = f"""
import sys
sys.modules[{package!r}] = None
import dhtdata
dataset = dhtdata.mount({every!r}, home={str(home)!r}, columns=["int8"])
try:
    dataset.to_{package}()
except dhtdata.errors.ConfigError as failure:
    print(failure)
assert len(dataset.to_arrow()) == {ROWS}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert f"to_{package} needs {package}" in done.stdout and f"its extra {package}" in done.stdout
