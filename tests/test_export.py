"""Rows as ordinary files: equal to what was published, named when a format cannot hold them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dhtdata
from dhtdata import export as exporting
from dhtdata.config import Settings, load_settings
from dhtdata.errors import ConfigError, StoreError
from dhtdata.export import export

ROWS = 3_000
_BOTH = pa.table(
    {
        "number": pa.array([None if n % 7 == 0 else n for n in range(ROWS)], pa.uint32()),
        "text": [("é" * (n % 5)) for n in range(ROWS)],
        "label": pa.array(["cat", None, "dog"] * (ROWS // 3)).dictionary_encode(),
        "tags": pa.array([[], None, ["a", None]] * (ROWS // 3)),
        "pair": pa.array([{"a": 1}, None, {"a": None}] * (ROWS // 3)),
        "map": pa.array([[("k", 1)], [], None] * (ROWS // 3), pa.map_(pa.string(), pa.int8())),
        "vector": pa.FixedSizeListArray.from_arrays(np.arange(ROWS * 4, dtype=np.float32), 4),
        "when": pa.array(range(ROWS), pa.timestamp("us", "Europe/Paris")),
        "money": pa.array([None, 1, 2] * (ROWS // 3), pa.decimal128(20, 3)),
        "wide": [f"{n}" * 400 for n in range(ROWS)],
    }
).replace_schema_metadata({"huggingface": "{}"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"home": tmp_path / "home"}, environment={})


def exported(table: pa.Table, settings: Settings, folder: Path, kind: str) -> list[Path]:
    published = dhtdata.publish(table, name="rows", settings=settings)
    return export(settings, published.manifest, folder, kind, splits=["train"], columns=table.column_names)


def read(paths: list[Path]) -> pa.Table:
    if paths[0].suffix == ".parquet":
        return pa.concat_tables([pq.read_table(path) for path in paths])
    return pa.concat_tables([pa.ipc.open_file(path).read_all() for path in paths])


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.parametrize("file_bytes", [256 << 20, 300_000])
def test_exported_rows_are_those_that_were_published(
    kind: str, file_bytes: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "FILE_BYTES", file_bytes)
    paths = exported(_BOTH, settings, tmp_path / "out", kind)
    assert (len(paths) == 1) == (file_bytes == 256 << 20)
    assert sorted(paths) == paths and {path.name for path in paths} == set(os.listdir(tmp_path / "out"))
    found = read(paths)
    assert found.schema.equals(_BOTH.schema) and found.schema.metadata == {b"huggingface": b"{}"}
    assert found.to_pylist() == _BOTH.to_pylist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([b""], pa.binary(0)),
        pa.array([100], pa.decimal64(16, -1)),
        pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    ],
    ids=lambda column: str(column.type)[:20],
)
def test_a_column_that_parquet_cannot_hold_is_named_and_arrow_holds_it(
    column: pa.Array, settings: Settings, tmp_path: Path
) -> None:
    table = pa.table({"fine": [1], "odd": column})
    with pytest.raises(ConfigError, match="column 'odd' of type .* cannot be written as parquet .*export as arrow"):
        exported(table, settings, tmp_path / "out", "parquet")
    assert os.listdir(tmp_path / "out") == []
    assert read(exported(table, settings, tmp_path / "out", "arrow"))["odd"].to_pylist() == column.to_pylist()


def test_a_value_that_parquet_cannot_hold_is_no_fault_of_the_folder(settings: Settings, tmp_path: Path) -> None:
    table = pa.table({"far": pa.array([1 << 60], pa.int64()).cast(pa.timestamp("s"))})
    with pytest.raises(ConfigError, match="a value of these rows cannot be written as parquet .*overflow"):
        exported(table, settings, tmp_path / "out", "parquet")
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_that_cannot_be_written_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file cannot be written"):
        exported(_BOTH, settings, tmp_path / "file", "arrow")
