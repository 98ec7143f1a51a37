from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dhtdata.store import Store
from tests.mount.making import put_dataset

ROWS = 230


def sample_table(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "number": pa.array(range(rows), pa.int64()),
            "text": [f"row {number}" for number in range(rows)],
            "vector": pa.FixedSizeListArray.from_arrays(np.arange(rows * 3, dtype=np.float32), 3),
            "label": pa.array([None if number % 7 == 0 else number % 5 for number in range(rows)], pa.int8()),
        }
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def made(home: Path) -> str:
    """Digest of `sample_table`, stored under ``home`` in two column groups."""
    with Store.open(home / "store") as store:
        return str(put_dataset(store, sample_table(), groups=[["number", "vector", "label"], ["text"]]))
