"""Mounting what lies in a folder, with nobody there to ask."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import dhtdata
from dhtdata.mirror import write_mirror
from dhtdata.store import Store
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, settled_status

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(60)]
ROWS = pa.table({"number": range(2_000), "text": [f"row {number}" * 20 for number in range(2_000)]})


@pytest.mark.parametrize("known_before", [False, True])
def test_a_mount_streams_from_a_web_seed_that_it_is_given(tmp_path: Path, known_before: bool) -> None:
    with Store.open(tmp_path / "origin" / "store") as store:
        manifest = put_dataset(store, ROWS, groups=[["number"], ["text"]])
        write_mirror(store, manifest, tmp_path / "mirror", have=b"")
    (have,) = (tmp_path / "mirror" / "v1" / "have").iterdir()
    have.unlink()
    home, url = tmp_path / "reader", (tmp_path / "mirror").as_uri()
    with peer_of(home):
        if known_before:
            with dhtdata.mount(str(manifest), home=home, web_seeds=[url], columns=["number"]) as dataset:
                assert dataset.num_rows == 2_000
        with dhtdata.mount(str(manifest), home=home, web_seeds=url, batch_size=100) as dataset:
            numbers = [number for batch in dataset for number in batch["number"].tolist()]
        assert numbers == list(range(2_000))
        assert [traffic.address for traffic in settled_status(home).traffic] == [url]
