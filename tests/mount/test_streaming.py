"""Mounting what a peer has: real seeds, real fetching, real workers."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import dhtdata
from dhtdata.config import load_settings
from dhtdata.control.client import PeerClient
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.store import Store
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed, settled_status

ROWS = 3_000
BLOCK_ROWS = 25
ROW_BYTES = 2_008
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(60)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with peer_of(tmp_path / "reader"):
        yield tmp_path / "reader"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digest]:
    """A seed's home and a manifest: 6 MB in 120 blocks of 40 shards, and as many small ones of another group."""
    home = tmp_path_factory.mktemp("seed")
    table = pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "filling": pa.array([number.to_bytes(2, "big") * 1_000 for number in range(ROWS)], pa.binary(2_000)),
            "text": [f"row {number}" for number in range(ROWS)],
        }
    )
    with Store.open(home / "store") as store:
        digest = put_dataset(
            store, table, groups=[["number", "filling"], ["text"]], block_rows=BLOCK_ROWS, range_rows=300
        )
    return home, digest


def check(batch: Mapping[str, NDArray[Any]]) -> None:
    for number, filling, text in zip(batch["number"], batch["filling"], batch["text"], strict=True):
        assert filling == int(number).to_bytes(2, "big") * 1_000 and text == f"row {number}"


def test_an_epoch_streams_from_a_seed_and_the_next_needs_nobody(home: Path, published: tuple[Path, Digest]) -> None:
    with seed(*published) as (ticket, process):
        dataset = dhtdata.mount(ticket, home=home, batch_size=64, shuffle=True, shuffle_window=2, timeout=20)
        seen = []
        for batch in dataset:
            check(batch)
            seen += batch["number"].tolist()
        assert seen != sorted(seen) and sorted(seen) == list(range(ROWS))
        process.kill()
        process.wait()
    again = [number for batch in dataset for number in batch["number"].tolist()]
    assert again != seen and sorted(again) == list(range(ROWS))
    dataset.close()
    with peer_of(home):
        pass  # the private peer ends
    with dhtdata.mount(str(published[1]), home=home, batch_size=500) as dataset:
        for batch in dataset:
            check(batch)
        with Store.open(home / "store") as store, pytest.raises(NotFoundError, match="no peer runs"):
            PeerClient.connect(store, load_settings({"home": home}, environment={}), start=False)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_stream_through_the_one_peer(home: Path, published: tuple[Path, Digest], context: str) -> None:
    from dhtdata.torch import DataLoader

    with seed(*published) as (ticket, _):
        dataset = dhtdata.mount(
            ticket, home=home, batch_size=64, shuffle=True, shuffle_window=2, timeout=20, columns=["number", "text"]
        )
        loader = DataLoader(dataset, num_workers=2, multiprocessing_context=context)
        seen = [number for batch in loader for number in batch["number"].tolist()]
        assert sorted(seen) == list(range(ROWS))
        shards = sum(group.byte_count for group in dataset._view.groups)
        # Every shard came once, though two processes asked for it.
        assert settled_status(home).bytes_fetched < 1.1 * shards
        dataset.close()


def test_columns_that_are_stored_apart_are_not_fetched(home: Path, published: tuple[Path, Digest]) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(ticket, home=home, columns=["text"], batch_size=500, timeout=20) as dataset:
            assert [text for batch in dataset for text in batch["text"]] == [f"row {n}" for n in range(ROWS)]
            assert settled_status(home).bytes_fetched < 300_000


@pytest.mark.parametrize("predownload", [0, 400_000])
def test_no_more_is_fetched_ahead_than_was_allowed(
    home: Path, published: tuple[Path, Digest], predownload: int
) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, columns=["number", "filling"], batch_size=10, predownload=predownload, timeout=20
        ) as dataset:
            items = iter(dataset)
            next(items)
            fetched = settled_status(home).bytes_fetched
            # The first shard of a stranger is fetched whole; then what the step needs, and what was allowed.
            allowed = 3 * BLOCK_ROWS * (ROW_BYTES + 50) + predownload + 100_000
            assert fetched <= allowed
            if predownload:
                assert fetched > predownload
            for _ in range(40):
                next(items)
            assert settled_status(home).bytes_fetched <= allowed + 40 * 10 * 8 * ROW_BYTES
            assert isinstance(items, Generator)
            items.close()


def test_a_window_is_fetched_whole_and_nothing_of_the_next(home: Path, published: tuple[Path, Digest]) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, columns=["number", "filling"], batch_size=16, shuffle=True, shuffle_window=1,
            predownload=0, timeout=20,
        ) as dataset:  # fmt: skip
            items = iter(dataset)
            for _ in range(250 // 16):
                next(items)
            # One row range of 300 rows, rounded to blocks at its ends, and the stranger's first shard.
            assert settled_status(home).bytes_fetched <= (300 + 6 * BLOCK_ROWS) * (ROW_BYTES + 50) + 100_000
            assert isinstance(items, Generator)
            items.close()


def test_random_access_fetches_the_blocks_it_reads(home: Path, published: tuple[Path, Digest]) -> None:
    with seed(*published) as (ticket, _):
        view = dhtdata.mount(ticket, home=home, columns=["number", "filling"], timeout=20).map_style()
        assert view[[1500, 7]]["number"].tolist() == [1500, 7]
        assert settled_status(home).bytes_fetched < 500_000
        assert len(view[0:ROWS]["number"]) == ROWS
        table = dhtdata.mount(str(published[1]), home=home).to_arrow()
        assert table["number"].to_pylist() == list(range(ROWS))


def test_when_all_providers_are_gone_it_waits_and_then_says_what_is_missing(
    home: Path, published: tuple[Path, Digest], caplog: pytest.LogCaptureFixture
) -> None:
    with seed(*published) as (ticket, process):
        dataset = dhtdata.mount(ticket, home=home, batch_size=16, predownload=100_000, timeout=3)
        items = iter(dataset)
        next(items)
        process.kill()
        process.wait()
        with caplog.at_level(logging.WARNING, "dhtdata"), pytest.raises(NotFoundError) as failure:
            for _ in items:
                pass
        assert "of dataset made" in str(failure.value) and "within 3 s" in str(failure.value)
        assert "127.0.0.1" in str(failure.value)
        assert any("waiting up to" in record.message for record in caplog.records)
        dataset.close()


def test_an_interrupted_mount_goes_on_when_a_provider_is_back(home: Path, published: tuple[Path, Digest]) -> None:
    mounted = partial(dhtdata.mount, home=home, batch_size=16, shuffle=True, predownload=100_000, timeout=20)
    with seed(*published) as (ticket, _):
        dataset = mounted(ticket)
        items = iter(dataset)
        seen = [number for _ in range(8) for number in next(items)["number"].tolist()]
        state = dataset.state_dict()
        assert isinstance(items, Generator)
        items.close()
        dataset.close()
    with seed(*published) as (ticket, _):
        with mounted(ticket) as dataset:
            dataset.load_state_dict(state)
            seen += np.concatenate([batch["number"] for batch in dataset]).tolist()
    assert sorted(seen) == list(range(ROWS))


def test_a_shard_that_rots_between_epochs_is_fetched_again(home: Path, published: tuple[Path, Digest]) -> None:
    with seed(*published) as (ticket, _):
        with dhtdata.mount(ticket, home=home, batch_size=500, timeout=20) as dataset:
            assert len(list(dataset)) == len(dataset)
            rotten = next(dataset._view.groups[0].digests())
            with Store.open(home / "store") as store:
                path = store.path_of(rotten)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.unlink()
            path.write_bytes(content)
        with dhtdata.mount(ticket, home=home, batch_size=500, timeout=20) as dataset:
            for batch in dataset:
                check(batch)
        assert path.read_bytes() != bytes(content)


def test_without_anybody_to_ask_a_ticket_is_asked_for_at_once(home: Path) -> None:
    with pytest.raises((ConfigError, NotFoundError), match="ticket"):
        dhtdata.mount("ab" * 32, home=home, timeout=20)
