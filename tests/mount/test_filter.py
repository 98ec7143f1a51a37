"""Mounts with a filter, against the rows that plain Arrow keeps."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import dhtdata
from dhtdata.config import load_settings
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.mount import StreamingDataset
from dhtdata.store import Store
from tests.mount.conftest import ROWS, sample_table
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed, settled_status

TEXT = "label >= 2 and not endswith(text, '3')"
KEPT = [row for row in range(ROWS) if row % 7 and row % 5 >= 2 and row % 10 != 3]


def mounted(made: str, home: Path, **arguments: Any) -> StreamingDataset:
    return dhtdata.mount(made, home=home, filter=TEXT, **arguments)


def numbers_of(dataset: StreamingDataset) -> list[int]:
    """Rows that count, in the order of the loop."""
    found = []
    for batch in dataset:
        valid = batch.get("_valid", np.ones(len(batch["number"]), np.bool_))
        found += batch["number"][valid].tolist()
    return found


def test_only_kept_rows_are_shown_in_source_order(made: str, home: Path) -> None:
    with mounted(made, home, batch_size=7) as dataset:
        assert numbers_of(dataset) == KEPT
        assert dataset.num_rows == len(KEPT) and len(dataset) == -(-len(KEPT) // 7)
        expected = sample_table().take(KEPT)
        assert dataset.to_arrow().equals(expected)
        rows = dataset.map_style()
        assert len(rows) == len(KEPT) and rows[-1]["number"] == KEPT[-1]
        assert rows[[3, 0]]["text"].tolist() == [f"row {KEPT[3]}", f"row {KEPT[0]}"]


@pytest.mark.parametrize("format", ["numpy", "arrow", "python"])
def test_formats_show_the_rows_in_the_same_order(made: str, home: Path, format: str) -> None:
    with mounted(made, home, batch_size=9, shuffle=True, seed=3) as dataset:
        expected = numbers_of(dataset)
    with mounted(made, home, batch_size=9, shuffle=True, seed=3, format=format) as dataset:
        found = [np.asarray(batch["number"]).tolist() for batch in dataset]
    assert [number for batch in found for number in batch] == expected and sorted(expected) == KEPT


def test_columns_of_the_filter_need_not_be_mounted(made: str, home: Path) -> None:
    with mounted(made, home, columns=["number"], batch_size=16, threads=2) as dataset:
        assert numbers_of(dataset) == KEPT and dataset.schema.names == ["number"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("remainder", ["pad", "uneven", "drop"])
def test_ranks_share_the_kept_rows_exactly(made: str, home: Path, ranks: int, remainder: str) -> None:
    found: list[int] = []
    steps = set()
    for rank in range(ranks):
        arguments = {"rank": rank, "world_size": ranks, "lanes": 2, "remainder": remainder}
        with mounted(made, home, batch_size=3, shuffle=True, shuffle_window=2, **arguments) as dataset:
            steps.add(len(dataset))
            found += numbers_of(dataset)
    if remainder == "drop":
        assert len(found) == len(set(found)) == len(KEPT) // (3 * ranks) * 3 * ranks and set(found) <= set(KEPT)
    else:
        assert sorted(found) == KEPT
    assert len(steps) == 1 or remainder == "uneven"


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_state_goes_on_exactly_with_other_ranks(made: str, home: Path, stop: int) -> None:
    with mounted(made, home, batch_size=6, shuffle=True) as dataset:
        items = iter(dataset)
        seen = [number for _ in range(stop) for number in next(items)["number"].tolist()]
        state = json.loads(json.dumps(dataset.state_dict()))
    assert len(json.dumps(state)) <= 1_000
    for rank in range(3):
        with mounted(made, home, batch_size=2, shuffle=True, rank=rank, world_size=3, lanes=1) as dataset:
            dataset.load_state_dict(state)
            seen += numbers_of(dataset)
    assert sorted(seen) == KEPT


def test_a_state_of_another_filter_is_refused_by_name(made: str, home: Path) -> None:
    with mounted(made, home, batch_size=6) as dataset:
        state = dataset.state_dict()
    long = f"number in [{', '.join(map(str, range(600)))}]"
    for other in (None, "number < 9", long, pc.field("number") < 9):
        with dhtdata.mount(made, home=home, filter=other, batch_size=6) as dataset:
            with pytest.raises(ConfigError, match=r"saved with filter=\"label >= 2 and not endswith\(text, '3'\)\""):
                dataset.load_state_dict(state)
            assert len(json.dumps(dataset.state_dict())) <= 1_000
    with dhtdata.mount(made, home=home, filter=f"({TEXT})  ", batch_size=6) as dataset:
        dataset.load_state_dict(state)


def test_an_expression_keeps_the_same_rows(made: str, home: Path) -> None:
    expression = (pc.field("label") >= 2) & ~pc.ends_with(pc.field("text"), pattern="3")
    with dhtdata.mount(made, home=home, filter=expression, batch_size=7) as dataset:
        assert numbers_of(dataset) == KEPT


def test_a_filter_that_keeps_nothing_says_how_much_was_looked_at(made: str, home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"filter number > 1000 keeps none of the 230 rows of split 'train': 230 were"
    ):
        dhtdata.mount(made, home=home, filter="number > 1000")


def test_a_bad_filter_is_refused_before_anything_is_read(made: str, home: Path) -> None:
    for bad, reason in (("nope > 3", "no column 'nope'"), ("text > 3", "cannot be compared"), ("number >", "invalid")):
        with pytest.raises(ConfigError, match=reason):
            dhtdata.mount(made, home=home, filter=bad)
    assert not (home / "store" / "filters").exists()


def test_too_few_kept_rows_for_a_batch_are_named(made: str, home: Path) -> None:
    with pytest.raises(ConfigError, match="3 rows that filter number < 3 keeps, fewer than one global batch of 4"):
        dhtdata.mount(made, home=home, filter="number < 3", batch_size=4, remainder="drop")


def kept_files(home: Path) -> list[Path]:
    return list((home / "store" / "filters").glob("*.rows"))


def test_the_result_is_kept_and_a_damaged_one_is_worked_out_again(
    made: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dhtdata"):
        mounted(made, home).close()
        assert "row ranges to look at" in caplog.text
        caplog.clear()
        mounted(made, home).close()
        assert caplog.text == ""
        (path,) = kept_files(home)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with mounted(made, home, batch_size=7) as dataset:
            assert numbers_of(dataset) == KEPT
        assert "worked out again" in caplog.text and "row ranges to look at" in caplog.text


def test_a_process_that_finds_no_result_works_it_out_itself(made: str, home: Path) -> None:
    """As a spawned worker does whose parent's result was removed meanwhile."""
    with mounted(made, home, batch_size=7, shuffle=True) as dataset:
        copied = pickle.dumps(dataset)
        expected = numbers_of(dataset)
        (path,) = kept_files(home)
        path.unlink()
        with pickle.loads(copied) as copy:
            assert numbers_of(copy) == expected
        assert kept_files(home) == [path]


def test_types_that_are_stored_as_others_are_filtered_by_value(home: Path) -> None:
    words = pa.array(["a", "b", None, "a"] * 20).dictionary_encode()
    days = pa.array(range(80), pa.timestamp("us", "UTC"))
    table = pa.table({"word": words, "at": days, "number": range(80)})
    with Store.open(home / "store") as store:
        made = str(put_dataset(store, table))
    text = "word == 'a' and at < timestamp('1970-01-01T00:00:00.00002')"
    with dhtdata.mount(made, home=home, filter=text, batch_size=5, format="arrow") as dataset:
        kept = dataset.to_arrow()
    assert kept["number"].to_pylist() == [row for row in range(20) if row % 4 in (0, 3)]
    assert kept.schema.field("word").type == words.type


_RACE = """
import json, sys, dhtdata
home, made, text = sys.argv[1:]
with dhtdata.mount(made, home=home, filter=text, batch_size=64) as dataset:
    print(json.dumps([number for batch in dataset for number in batch["number"].tolist()]))
"""


@pytest.mark.timeout(120)
def test_processes_that_start_at_once_share_one_result(made: str, home: Path) -> None:
    command = [sys.executable, "-c", _RACE, str(home), made, TEXT]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0 and json.loads(output) == KEPT
    assert len(kept_files(home)) == 1
    assert not list((home / "store" / "filters").glob("*.unfinished"))


_HELD = """
import sys, time
from pathlib import Path
from dhtdata.digest import Digest
from dhtdata.filters import kept_selection
def work(writer):
    print("holding", flush=True)
    time.sleep(600)
kept_selection(Path(sys.argv[1]), Digest.parse(sys.argv[2]), [4], work)
"""


@pytest.mark.timeout(60)
def test_a_process_that_is_killed_while_it_works_the_result_out_blocks_nobody(home: Path) -> None:
    from dhtdata.filters import kept_selection

    key = Digest.of(b"any")
    command = [sys.executable, "-c", _HELD, str(home), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        os.kill(process.pid, signal.SIGKILL)
    found = kept_selection(home, key, [4], lambda writer: writer.put(0, np.array([True, False, False, True])))
    assert found.rows(np.arange(2)).tolist() == [0, 3]


def sorted_table(rows: int) -> pa.Table:
    generator = np.random.default_rng(0)
    return pa.table(
        {
            "number": np.arange(rows),
            "other": generator.integers(0, 100, rows),
            "filling": [generator.bytes(2_000) for _ in range(rows)],
        }
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digest]:
    """6 MB with statistics, as publishing makes them; wide values in blocks and shards of a few rows."""
    home = tmp_path_factory.mktemp("seed")
    table = sorted_table(3_000)
    with Store.open(home / "store") as store:
        return home, put_dataset(
            store, table, groups=[["number", "other"], ["filling"]], block_rows=10, range_rows=100, statistics=True
        )


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("shuffle", [False, True])
def test_what_the_filter_leaves_out_is_not_fetched(
    tmp_path: Path, published: tuple[Path, Digest], shuffle: bool
) -> None:
    home = tmp_path / "reader"
    with peer_of(home), seed(*published) as (ticket, _):
        text = "1000 <= number < 1150 and other < 50"
        with dhtdata.mount(ticket, home=home, filter=text, batch_size=10, shuffle=shuffle, timeout=20) as dataset:
            table = sorted_table(3_000)
            expected = table.filter(
                (pc.field("number") >= 1000) & (pc.field("number") < 1150) & (pc.field("other") < 50)
            )
            found = {int(n): f for batch in dataset for n, f in zip(batch["number"], batch["filling"], strict=True)}
            assert found == dict(zip(expected["number"].to_pylist(), expected["filling"].to_pylist(), strict=True))
            # 150 rows of 2 KB; the first shard of a stranger is fetched whole.
            assert settled_status(home).bytes_fetched < 700_000


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_a_store_smaller_than_what_is_kept_does(tmp_path: Path, published: tuple[Path, Digest]) -> None:
    """Eviction by next use knows which shards the kept rows lie in."""
    home = tmp_path / "reader"
    with peer_of(home), seed(*published) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, filter="other < 90", batch_size=10, shuffle=True, shuffle_window=2, predownload=0,
            cache_limit=3_000_000, timeout=20,
        ) as dataset:  # fmt: skip
            expected = sorted_table(3_000).filter(pc.field("other") < 90)["number"].to_pylist()
            for _ in range(2):
                assert sorted(numbers_of(dataset)) == expected
            assert settled_status(home).bytes_fetched > 3_000_000


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_of_wide_rows_only_the_kept_ones_are_fetched(tmp_path: Path) -> None:
    """A row a block: between kept rows lie blocks that nobody needs."""
    table = sorted_table(600)
    with Store.open(tmp_path / "seed" / "store") as store:
        digest = put_dataset(
            store, table, groups=[["number", "other"], ["filling"]], block_rows=1, shard_blocks=60, range_rows=200
        )
    home = tmp_path / "reader"
    with peer_of(home), seed(tmp_path / "seed", digest) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, filter="number % 20 == 7", batch_size=5, shuffle=True, timeout=20
        ) as dataset:
            assert sorted(n for batch in dataset for n in batch["number"].tolist()) == list(range(7, 600, 20))
            # 30 of 600 rows of 2 KB, the narrow group, and the wide group's first shard.
            assert settled_status(home).bytes_fetched < 1_200_000 * 0.4


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_the_result_and_no_thread_is_left_when_they_fork(
    tmp_path: Path, published: tuple[Path, Digest], context: str
) -> None:
    import threading

    from dhtdata.torch import DataLoader

    home = tmp_path / "reader"
    with peer_of(home), seed(*published) as (ticket, _):
        dataset = dhtdata.mount(
            ticket, home=home, filter="other < 50", columns=["number"], batch_size=16, shuffle=True, timeout=20
        )
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dhtdata")] == []
        loader = DataLoader(dataset, num_workers=2, multiprocessing_context=context)
        seen = sorted(number for batch in loader for number in batch["number"].tolist())
        table = sorted_table(3_000)
        assert seen == table.filter(pc.field("other") < 50)["number"].to_pylist()
        dataset.close()


def test_a_published_dataset_has_the_statistics_that_prune(tmp_path: Path) -> None:
    """Through the front door: cut, summarised and stored as users' datasets are."""
    rows = 5_000
    table = pa.table({"number": np.arange(rows), "text": [f"row {number:05d}" for number in range(rows)]})
    dhtdata.publish(table, name="sorted", settings=load_settings({"home": tmp_path}, environment={}))
    with dhtdata.mount("sorted", home=tmp_path, filter="number >= 4990", batch_size=4) as dataset:
        assert numbers_of(dataset) == list(range(4_990, rows))
        assert dataset.stats()["number"].min == 0
    for beyond in ("number >= 5000", "text < 'row 00000'", "number < 0 or text is None"):
        with pytest.raises(ConfigError, match="keeps none of the 5,000 rows of split 'train': 0 were looked at"):
            dhtdata.mount("sorted", home=tmp_path, filter=beyond)
