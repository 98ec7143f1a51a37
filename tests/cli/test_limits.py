"""Limits of real peers, from the command line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.machine import Machine

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
NONE = {"up": None, "down": None, "peer_up": None, "peer_down": None}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, "m")
    pq.write_table(pa.table({"id": range(1_000)}), made.work / "rows.parquet")
    yield made
    made.stop_private_peer()


def test_limits_of_a_running_seed_are_shown_and_changed(machine: Machine) -> None:
    with machine.seeding("publish", "rows.parquet", "--name", "rows", "--seed", "--up", "50MB/s"):
        assert machine.document("limit") == NONE | {"up": 50_000_000}
        assert machine.document("limit", "--up", "2MiB/s", "--peer-down", "1MB") == NONE | {
            "up": 2 << 20,
            "peer_down": 1_000_000,
        }
        assert machine.document("limit", "--up", "unlimited") == NONE | {"peer_down": 1_000_000}
        # Adding to a seed that runs says what shall hold from then on.
        machine.document("seed", "rows", "--up", "4MB/s", "--down", "3MB/s")
        status = machine.document("status")
        limits = {"up": 4_000_000, "down": 3_000_000, "peer_up": None, "peer_down": 1_000_000}
        assert status["limits"] == {"type": "limits"} | limits
        assert (status["uploads"], status["uploads_waiting"]) == (0, 0)
        assert "up 4MB/s, down 3MB/s, each peer up unlimited, down 1MB/s" in machine.run("status").out


def test_the_peer_of_a_fetch_starts_with_the_limits_of_environment_and_flags(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path, "other")
    other.home.mkdir()
    (other.home / "config.toml").write_text('up = "9MB/s"\npeer_down = "8MB/s"\n')
    with machine.seeding("publish", "rows.parquet", "--name", "rows", "--seed") as (published, _):
        other.document("get", published["ticket"], "--up", "unlimited", "--peer-up", "70KB/s")
        assert other.document("limit") == NONE | {"peer_up": 70_000, "peer_down": 8_000_000}
        other.stop_private_peer()


def test_a_block_that_takes_longer_than_the_timeout_arrives_as_long_as_bytes_do(
    machine: Machine, tmp_path: Path
) -> None:
    other = Machine(tmp_path, "other")
    pq.write_table(pa.table({"big": [random.Random(1).randbytes(200_000)]}), machine.work / "big.parquet")
    with machine.seeding("publish", "big.parquet", "--name", "big", "--seed") as (published, _):
        done = other.document("get", published["ticket"], "--down", "64KB/s", "--timeout", "2")
        assert done["fetched"] > 200_000 and done["wasted"] == 0
        other.stop_private_peer()


@pytest.mark.parametrize("rate", ["0", "0MB/s", "10KB/s", "fast", "50MB/h"])
def test_a_limit_that_makes_no_sense_is_refused_by_name(machine: Machine, rate: str) -> None:
    for command in (["limit"], ["seed", "rows"], ["get", "rows"], ["publish", "rows.parquet", "--name", "rows"]):
        said = machine.fails(2, *command, "--up", rate)
        assert said.startswith("--up: ") and "unlimited" in said


def test_a_limit_without_a_value_leads_to_the_help_of_its_command(machine: Machine) -> None:
    assert machine.fails(2, "limit", "--up").endswith("see dhtdata limit --help")
    assert machine.fails(2, "dht", "status", "--store").endswith("see dhtdata dht status --help")


def test_limits_need_a_peer_that_runs(machine: Machine) -> None:
    assert "dhtdata seed" in machine.fails(5, "limit", "--up", "1MB/s")
