"""Rows gathered in any order out of any blocks are those that Arrow takes from the whole table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dhtdata
from dhtdata.gather import chart
from dhtdata.gather.columns import item
from dhtdata.gather.planes import WIDE_BYTES
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.store import Store
from tests.gather.tables import BLOCK_ROWS, WIDE, table_of_every_type
from tests.gather.test_columns import expected, plain
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed

ROWS = 120
FORMATS = ("numpy", "torch", "arrow", "python")
random_rows = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=60)


@cache
def whole() -> pa.Table:
    return table_of_every_type(ROWS)


@cache
def truth(name: str) -> list[object]:
    """Values of a column as `seen` tells them."""
    column = whole()[name].chunk(0)
    if isinstance(column.type, pa.BaseExtensionType) and not isinstance(column.type, pa.FixedShapeTensorType):
        column = column.storage
    return [told(shaped(column.type, value)) for value in expected(column)]


def shaped(kind: pa.DataType, value: Any) -> Any:
    """Values of fixed shape have it even if they are null; tensors have theirs."""
    if isinstance(kind, pa.FixedShapeTensorType):
        flat = np.array([None] * math.prod(kind.shape) if value is None else value, object).reshape(kind.shape)
        return flat.transpose(kind.permutation or range(flat.ndim)).tolist()
    if pa.types.is_fixed_size_list(kind):
        children = [None] * kind.list_size if value is None else value
        return [shaped(kind.value_type, child) for child in children]
    if pa.types.is_list(kind) and value is not None:
        return [shaped(kind.value_type, child) for child in value]
    return value


@cache
def listed(name: str) -> list[object]:
    values: list[object] = whole()[name].to_pylist()
    return values


def told(value: Any) -> Any:
    """NaN as None, and a struct of nulls as None: numpy cannot tell them apart."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, list):
        return [told(child) for child in value]
    if isinstance(value, dict):
        children = {name: told(child) for name, child in value.items()}
        return None if all(child is None for child in children.values()) else children
    return value


def seen(column: Any, row: int) -> Any:
    return told(plain(item(column, row)))


def names() -> list[str]:
    """All columns whose values are few enough to be compared one by one."""
    return [name for name in whole().column_names if name != "wide"]


def wide_rows(rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = whole()["wide"].chunk(0).values.to_numpy().reshape(ROWS, -1)[rows]
    return values


def check(batch: dict[str, Any], rows: NDArray[np.int64]) -> None:
    for name, column in batch.items():
        if name == "wide":
            assert np.array_equal(column, wide_rows(rows))
            continue
        values = truth(name)
        assert [seen(column, row) for row in range(len(rows))] == [values[row] for row in rows], name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def digest(home: Path) -> str:
    """Two groups whose blocks end at different rows, in shards of 3 blocks; wide columns in a third."""
    table = whole()
    with Store.open(home / "store") as store:
        groups = [names()[::2], names()[1::2], ["wide"]]
        return str(put_dataset(store, table, groups=groups, block_rows=BLOCK_ROWS, shard_blocks=3))


def opened(digest: str, home: Path, format: str, columns: list[str] | None = None) -> MapStyleDataset:
    return dhtdata.mount(digest, home=home, format=format, columns=columns).map_style()


@pytest.fixture(scope="module")
def views(digest: str, home: Path) -> dict[str, MapStyleDataset]:
    held = [name for name in whole().column_names if not name.endswith("_ns")]  # Python has no nanoseconds
    return {
        "numpy": opened(digest, home, "numpy"),
        "arrow": opened(digest, home, "arrow"),
        "python": opened(digest, home, "python", held),
    }


def test_the_table_has_rows_that_no_plane_has_items_for() -> None:
    from dhtdata.gather.planes import WIDE_BYTES

    assert WIDE.list_size * 4 > WIDE_BYTES


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=random_rows)
def test_arrays_hold_the_values_that_arrow_takes(views: dict[str, MapStyleDataset], rows: list[int]) -> None:
    batch = views["numpy"][rows]
    assert list(batch) == whole().column_names
    check(batch, np.array(rows))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=random_rows)
def test_record_batches_are_those_that_arrow_takes(views: dict[str, MapStyleDataset], rows: list[int]) -> None:
    batch = views["arrow"][rows]
    batch.validate(full=True)
    table = whole()
    assert batch.schema == table.schema
    assert batch["wide"].equals(table["wide"].chunk(0).take(pa.array(rows)))
    for name in names():
        assert repr(batch[name].to_pylist()) == repr([listed(name)[row] for row in rows]), name


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=random_rows)
def test_python_values_are_those_of_arrow(views: dict[str, MapStyleDataset], rows: list[int]) -> None:
    batch = views["python"][rows]
    assert batch["wide"] == whole()["wide"].chunk(0).take(pa.array(rows)).to_pylist()
    for name in batch.keys() - {"wide"}:
        assert repr(batch[name]) == repr([listed(name)[row] for row in rows]), name


@cache
def holdable() -> tuple[str, ...]:
    """Columns that tensors can hold: no nulls in integers, bools, dates and times."""
    from dhtdata.errors import ConfigError
    from dhtdata.gather.columns import to_numpy
    from dhtdata.tables.canonical import to_stored
    from dhtdata.tables.schema import stored_schema
    from dhtdata.torch.tensors import to_tensor

    found = []
    for name in whole().column_names:
        table = whole().select([name])
        stored = to_stored(table.combine_chunks().to_batches()[0], stored_schema(table.schema))
        try:
            to_tensor(name, to_numpy(stored.column(0), table.schema.field(0).type))
        except ConfigError:
            continue
        found.append(name)
    return tuple(found)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=random_rows)
def test_tensors_hold_the_values_that_arrow_takes(digest: str, home: Path, rows: list[int]) -> None:
    assert len(holdable()) > len(whole().column_names) / 2
    batch = opened(digest, home, "torch", list(holdable()))[rows]
    assert np.array_equal(batch.pop("wide").numpy(), wide_rows(rows))
    for name, column in batch.items():
        values = truth(name)
        assert [told(untensored(column, row)) for row in range(len(rows))] == [values[row] for row in rows], name


def untensored(column: Any, row: int) -> Any:
    import torch

    if isinstance(column, dict):
        return {name: untensored(child, row) for name, child in column.items()}
    value = column[row]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list):
        return [untensored(value, position) for position in range(len(value))]
    return plain(value)


@pytest.mark.parametrize("format", FORMATS)
def test_columns_come_in_the_order_asked_for(digest: str, home: Path, format: str) -> None:
    wanted = ["wide", "string", "list", "int8", "struct", "tensor_permuted", "bool", "uint8"]
    view = opened(digest, home, format, wanted)
    batch, row = view[[3, 1]], view[7]
    assert (batch.schema.names if isinstance(batch, pa.RecordBatch) else list(batch)) == wanted
    assert list(row) == wanted


def known_blocks(view: MapStyleDataset) -> list[int]:
    gatherer = view._view._process().gatherer
    assert gatherer is not None
    return [int(own.chart.known.sum()) for own in gatherer._charts._groups]


COLUMNS = ["int64", "string_n", "list_n", "float32_n", "tensor_permuted", "struct", "bool_n"]


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_a_chart_that_is_full_forgets_blocks_and_finds_them_again(
    digest: str, home: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chart, "MAX_BLOCKS", limit)
    view = opened(digest, home, "numpy", COLUMNS)
    draw = np.random.Generator(np.random.Philox(limit))
    for _ in range(40):
        rows = draw.integers(0, ROWS, draw.integers(1, 6))
        check(view[rows], rows)
        assert (
            max(known_blocks(view)) <= max(limit, 5) + 5
        )  # of 11 and 12; what the present rows need is never forgotten


@pytest.mark.parametrize("limit", [2, 1_000])
def test_threads_that_gather_at_once_get_their_own_rows(
    digest: str, home: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chart, "MAX_BLOCKS", limit)
    view = opened(digest, home, "numpy", COLUMNS)

    def gather(seed: int) -> None:
        draw = np.random.Generator(np.random.Philox(seed))
        for _ in range(15):
            rows = draw.integers(0, ROWS, 8)
            check(view[rows], rows)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(gather, range(6)))


def test_a_chart_grows_block_by_block_until_it_is_complete(digest: str, home: Path) -> None:
    view = opened(digest, home, "numpy", COLUMNS)
    order = np.random.Generator(np.random.Philox(1)).permutation(ROWS)
    known = [0]
    for first in range(0, ROWS, 3):
        rows = order[first : first + 3]
        check(view[rows], rows)
        known.append(sum(known_blocks(view)))
    assert known == sorted(known) and known[1] < known[-1]
    gatherer = view._view._process().gatherer
    assert gatherer is not None and all(own.chart.complete for own in gatherer._charts._groups)
    everything = np.concatenate([order, order[::-1]])
    check(view[everything], everything)


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_rows_are_right_while_blocks_arrive(digest: str, home: Path, tmp_path: Path) -> None:
    from dhtdata.digest import Digest

    reader = tmp_path / "reader"
    with peer_of(reader), seed(home, Digest.parse(digest)) as (ticket, _):
        view = dhtdata.mount(ticket, home=reader, columns=COLUMNS, timeout=20).map_style()
        order = np.random.Generator(np.random.Philox(2)).permutation(ROWS)
        for first in range(0, ROWS, 7):
            check(view[order[first : first + 7]], order[first : first + 7])
            again = order[: first + 7]  # of shards that were partial when their blocks entered the chart
            check(view[again], again)
        view._view.close()


def test_empty_lists_of_very_wide_items_are_gathered(tmp_path: Path) -> None:
    wide = pa.list_(pa.list_(pa.float32(), WIDE_BYTES // 4 + 1))
    with Store.open(tmp_path / "store") as store:
        made = str(put_dataset(store, pa.table({"wide": pa.array([[], None, [[1.0] * (WIDE_BYTES // 4 + 1)]], wide)})))
    with dhtdata.mount(made, home=tmp_path, batch_size=2) as dataset:
        empty, full = (batch["wide"] for batch in dataset)
    assert empty[0].shape == (0, WIDE_BYTES // 4 + 1) and empty[1] is None
    assert full[0].shape == (1, WIDE_BYTES // 4 + 1) and (full[0] == 1.0).all()
