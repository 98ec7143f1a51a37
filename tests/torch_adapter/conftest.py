from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dhtdata.store import Store
from tests.mount.making import put_dataset

ROWS = 230


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def made(home: Path) -> str:
    table = pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "text": [f"row {number}" for number in range(ROWS)],
            "vector": pa.FixedSizeListArray.from_arrays(np.arange(ROWS * 3, dtype=np.float32), 3),
            "nested": [{"half": number / 2, "name": str(number)} for number in range(ROWS)],
        }
    )
    with Store.open(home / "store") as store:
        return str(put_dataset(store, table, groups=[["number", "vector"], ["text", "nested"]]))


def batches(items: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    return [batch["number"].tolist() for batch in items]
