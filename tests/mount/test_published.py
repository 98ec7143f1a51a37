"""What publish wrote, mounted: real cuts, real groups, real statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dhtdata
from dhtdata.config import load_settings
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store

ROWS = 20_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    draw = np.random.Generator(np.random.Philox(7))
    values = draw.integers(0, 1 << 30, (ROWS, 64)).astype(np.int32)
    return pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "tokens": pa.FixedSizeListArray.from_arrays(values.ravel(), 64),
            "picture": pa.array([draw.bytes(1_500) for _ in range(ROWS)], pa.binary()),
            "label": pa.array(["cat", "dog", None, "owl"] * (ROWS // 4)).dictionary_encode(),
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> Path:
    home = tmp_path_factory.mktemp("home")
    dhtdata.publish(table, name="animals", settings=load_settings({"home": home}, environment={}))
    return home


def test_all_columns_of_a_shuffled_epoch_belong_together(home: Path, table: pa.Table) -> None:
    dataset = dhtdata.mount("animals", home=home, batch_size=256, shuffle=True, seed=1)
    assert len(dataset._view.groups) == 2
    seen = []
    for batch in dataset:
        rows = table.take(pa.array(batch["number"]))
        assert batch["picture"].tolist() == rows["picture"].to_pylist()
        assert batch["label"].tolist() == rows["label"].to_pylist()
        assert batch["tokens"].tolist() == rows["tokens"].to_pylist()
        seen += batch["number"].tolist()
    assert sorted(seen) == list(range(ROWS)) and seen != sorted(seen)


def test_the_whole_table_comes_back_with_its_types(home: Path, table: pa.Table) -> None:
    dataset = dhtdata.mount("animals", home=home)
    assert dataset.schema == table.schema
    assert dataset.to_arrow().cast(table.schema).to_pylist() == table.to_pylist()


def test_statistics_of_the_chosen_columns_are_shown(home: Path) -> None:
    stats = dhtdata.mount("animals", home=home, columns=["number", "label"]).stats()
    assert set(stats) == {"number", "label"}
    assert (stats["number"].min, stats["number"].max) == (0, ROWS - 1) and stats["label"].nulls == ROWS // 4


def test_shards_of_ones_own_are_trusted_and_the_name_resolves_in_the_store(home: Path) -> None:
    with Store.open(home / "store") as store:
        (signed,) = store.names()
    assert isinstance(signed.record, NameRecord)
    publisher = signed.record.delegation.root
    for target in (Name(publisher, "animals"), Name(publisher, "animals", 1), Ticket(Name(publisher, "animals"))):
        assert next(iter(dhtdata.mount(str(target), home=home)))["number"] == 0
    with Store.open(home / "store") as store:
        assert store.trusts(publisher)
    assert not (home / "store" / "peer.log").exists()
