"""Mixes of what a peer has: real seeds, real fetching, real workers."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dhtdata
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.order.mixing import BATCHINGS
from dhtdata.store import Store
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed, settled_status

SIZES = (1_500, 600)
ROW_BYTES = 2_000
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(90)]


def filling_of(source: int, number: int) -> bytes:
    return (source << 15 | number).to_bytes(2, "big") * (ROW_BYTES // 2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Digest]]:
    made = []
    for source, rows in enumerate(SIZES):
        home = tmp_path_factory.mktemp(f"seed{source}")
        table = pa.table(
            {
                "number": pa.array(range(rows), pa.int64()),
                "filling": [filling_of(source, number) for number in range(rows)],
            }
        )
        with Store.open(home / "store") as store:
            made.append((home, put_dataset(store, table, name=f"s{source}", block_rows=25, range_rows=150)))
    return made


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with peer_of(tmp_path / "reader"):
        yield tmp_path / "reader"


def counts_of(mix: dhtdata.Mix) -> list[list[int]]:
    """The rows of one epoch by source, each with the filling that it must have."""
    seen: list[list[int]] = [[] for _ in SIZES]
    for batch in mix:
        rows = zip(batch["origin"].tolist(), batch["number"].tolist(), batch["filling"], strict=True)
        for source, number, filling in rows:
            assert filling == filling_of(source, number)
            seen[source].append(number)
    return seen


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_mix_streams_from_seeds_of_its_sources(
    home: Path, published: list[tuple[Path, Digest]], batching: str
) -> None:
    with seed(*published[0]) as (first, _), seed(*published[1]) as (second, _):
        mounted = partial(dhtdata.mount, home=home, batch_size=32, shuffle=True, shuffle_window=2, timeout=20)
        sources = [(mounted(first), 0.6), (mounted(second), 0.4)]
        with dhtdata.Mix(sources, batching=batching, stop="all", source_column="origin") as mix:
            for _ in range(2):
                seen = counts_of(mix)
                assert sum(map(len, seen)) == mix.num_rows
                assert [set(rows) for rows in seen] == [set(range(rows)) for rows in SIZES]
            # Every block came once, though the short source went through several epochs.
            assert settled_status(home).bytes_fetched < 1.15 * sum(SIZES) * ROW_BYTES


def test_no_more_of_each_source_is_fetched_ahead_than_was_allowed(
    home: Path, published: list[tuple[Path, Digest]]
) -> None:
    with seed(*published[0]) as (first, _), seed(*published[1]) as (second, _):
        mounted = partial(dhtdata.mount, home=home, batch_size=10, predownload=200_000, timeout=20)
        with dhtdata.Mix([(mounted(first), 9), (mounted(second), 1)], batching="stratified") as mix:
            items = iter(mix)
            next(items)
            # Of each: a stranger's first shard of 75 rows, and what was allowed, in blocks of 25 rows.
            allowed = 2 * (200_000 + 100 * (ROW_BYTES + 50) + 100_000)
            assert 400_000 < settled_status(home).bytes_fetched < allowed
            for _ in range(30):
                next(items)
            assert settled_status(home).bytes_fetched < allowed + 300 * (ROW_BYTES + 50)
            assert isinstance(items, Generator)
            items.close()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_mix_stream_through_the_one_peer(
    home: Path, published: list[tuple[Path, Digest]], context: str
) -> None:
    from dhtdata.torch import DataLoader

    with seed(*published[0]) as (first, _), seed(*published[1]) as (second, _):
        mounted = partial(dhtdata.mount, home=home, columns=["number"], batch_size=32, shuffle=True, timeout=20)
        mix = dhtdata.Mix([(mounted(first), 0.7), (mounted(second), 0.3)], source_column="origin", stop="all")
        loader = DataLoader(mix, num_workers=2, multiprocessing_context=context)
        seen = {
            pair for batch in loader for pair in zip(batch["origin"].tolist(), batch["number"].tolist(), strict=True)
        }
        assert seen == {(source, row) for source, rows in enumerate(SIZES) for row in range(rows)}
        mix.close()


def test_a_cache_limit_must_hold_the_windows_of_all_sources(home: Path, published: list[tuple[Path, Digest]]) -> None:
    # A window is a row range, which is two shards of 75 rows.
    window = 150 * (ROW_BYTES + 50)
    with seed(*published[0]) as (first, _), seed(*published[1]) as (second, _):

        def mixed(limit: int) -> dhtdata.Mix:
            mounted = partial(
                dhtdata.mount, home=home, batch_size=10, shuffle=True, shuffle_window=1, timeout=30, cache_limit=limit
            )
            return dhtdata.Mix([(mounted(first), 1), (mounted(second), 1)], source_column="origin", stop="all")

        with pytest.raises(ConfigError, match="windows of 2 sources at once.*at least") as failure:
            mixed(int(1.5 * window))
        named = re.search(r"at least (\d+) bytes", str(failure.value))
        assert named is not None and 2 * window < int(named[1]) < int(2.3 * window)
        with peer_of(home):
            pass  # the peer that was started has the old limit
        # Block tables are reckoned for blocks of 256 KiB and more; those of a few rows have larger ones.
        limit = int(named[1]) + 4_096
        with mixed(limit) as mix:
            seen: list[list[int]] = [[], []]
            for _ in range(2):
                for known, more in zip(seen, counts_of(mix), strict=True):
                    known += more
                with Store.open(home / "store") as store:
                    assert store.usage().cache_bytes <= limit
            assert sorted(seen[0]) == sorted([*range(SIZES[0])] * 2)
            counts = np.bincount(seen[1])
            assert counts.size == SIZES[1] and counts.max() - counts.min() <= 1
