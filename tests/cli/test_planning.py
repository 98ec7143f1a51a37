"""``dhtdata plan`` on a machine that published the dataset itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.machine import Machine

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
RUN = ("--nodes", "4", "--ranks", "8", "--global-batch", "512", "--bandwidth", "100Mbit/s")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One dataset: 50 MB, its text apart from the numbers."""
    made = Machine(tmp_path_factory.mktemp("m"), "one")
    draw = np.random.Generator(np.random.Philox(2))
    rows = pa.table({"number": range(24_000), "text": [draw.bytes(1_000).hex() for _ in range(24_000)]})
    pq.write_table(rows, made.work / "rows.parquet")
    made.document("publish", "rows.parquet", "--name", "rows")
    yield made
    made.stop_private_peer()


def test_figures_agree_with_each_other(machine: Machine) -> None:
    plan = machine.document("plan", "rows", *RUN)
    assert plan["rows"] == 24_000 and plan["steps"] == 47
    assert len(plan["node_bytes"]) == len(plan["described_bytes"]) == 4
    assert sum(plan["node_bytes"]) >= 0.99 * plan["bytes"]
    assert plan["cache_least_bytes"] <= plan["cache_peak_bytes"] <= plan["cache_epoch_bytes"]
    assert plan["stall_seconds"] is None and plan["shards_known"] > 0 == plan["shards_estimated"]
    most = max(map(sum, zip(plan["node_bytes"], plan["described_bytes"], strict=True)))
    assert plan["network_seconds"] >= most / 12_500_000
    assert plan["network_rows_per_second"] == pytest.approx(24_000 / plan["network_seconds"])
    one = machine.document("plan", "rows")
    assert one["node_bytes"] == [one["bytes"]] and (one["ranks"], one["global_batch"]) == (1, 64)


def test_a_pace_is_given_by_step_or_by_row_and_shows_stalls(machine: Machine) -> None:
    by_step = machine.document("plan", "rows", *RUN, "--step-time", "20ms")
    by_row = machine.document("plan", "rows", *RUN, "--rows-per-second", "25600")
    assert by_row == by_step and by_step["stall_seconds"] > 0
    slow = machine.document("plan", "rows", *RUN, "--step-time", "2s")
    assert slow["stall_seconds"] == 0
    shown = machine.run("plan", "rows", *RUN, "--step-time", "2s")
    assert shown.code == 0 and "stalls" in shown.out and "none in an epoch" in shown.out
    assert any(line.startswith("loop     ") and "█" * 60 in line for line in shown.out.splitlines())


def test_without_a_pace_the_picture_shows_the_nodes(machine: Machine) -> None:
    lines = machine.run("plan", "rows", *RUN).out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("node ")] == ["0", "1", "2", "3"]


def test_a_cache_limit_is_judged(machine: Machine) -> None:
    low = machine.run("plan", "rows", *RUN, "--cache-limit", "1MB").out
    assert "too small: give at least" in low
    assert machine.document("plan", "rows", *RUN, "--cache-limit", "1MB")["cache_limit_suffices"] is False
    assert "holds all that a node fetches" in machine.run("plan", "rows", *RUN, "--cache-limit", "1GB").out


def test_columns_that_are_stored_apart_and_source_order_are_reckoned(machine: Machine) -> None:
    numbers = machine.document("plan", "rows", *RUN, "--columns", "number", "--no-shuffle")
    assert numbers["bytes"] < 1_000_000 and set(numbers["node_bytes"]) == {numbers["bytes"]}
    assert "every node reads all" in machine.run("plan", "rows", *RUN, "--no-shuffle").out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--nodes", "3"), "take 6 or 9 ranks"),
        (("--global-batch", "100"), "take 96 or 104 rows"),
        (("--bandwidth", "1Gb/s"), "1Gbit/s"),
        (("--step-time", "soon"), "0.2s"),
        (("--step-time", "1s", "--rows-per-second", "5"), "give one of them"),
        (("--split", "test"), "'test'"),
        (("--columns", "number,colour"), "'colour'"),
        (("--predownload", "much"), "'much' is not a size"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_sentence(machine: Machine, wrong: tuple[str, ...], told: str) -> None:
    assert told in machine.fails(2, "plan", "rows", *RUN, *wrong)
