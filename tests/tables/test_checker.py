from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from dhtdata.errors import FormatError
from dhtdata.formats.blocks import BlockTable
from dhtdata.tables.check import Checker, check_blocks
from tests.tables.shards import write_shard

Shard = tuple[Path, BlockTable, pa.Schema]


@pytest.fixture
def checker() -> Iterator[Checker]:
    made = Checker()
    yield made
    made.close()


@pytest.fixture
def given_shard(tmp_path: Path) -> Shard:
    batches = [pa.RecordBatch.from_pydict({"n": [first, first + 1], "t": ["a", "bc"]}) for first in range(0, 8, 2)]
    return write_shard(tmp_path, batches)


def only(shard: Shard, positions: set[int]) -> None:
    """Make of a shard's file what it is before the other blocks have come: zeros."""
    path, table, _ = shard
    body = bytearray(path.read_bytes())
    for position, block in enumerate(table.blocks):
        if position not in positions:
            body[block.offset : block.offset + block.length] = bytes(block.length)
    path.write_bytes(body)


@pytest.mark.parametrize("position", range(6))
def test_a_block_passes_alone_and_only_if_it_is_there(given_shard: Shard, checker: Checker, position: int) -> None:
    path, table, stored = given_shard
    only(given_shard, {position})
    for check in (checker.check, check_blocks):
        check(path, table, stored, [position])
        with pytest.raises(FormatError, match=path.name):
            check(path, table, stored, [position, (position + 1) % len(table.blocks)])


def test_one_process_checks_many_and_a_refusal_does_not_end_it(given_shard: Shard, checker: Checker) -> None:
    path, table, stored = given_shard
    checker.check(path, table, stored)
    first = checker._child
    only(given_shard, {1})
    with pytest.raises(FormatError):
        checker.check(path, table, stored)
    checker.check(path, table, stored, [1])
    assert first is not None
    assert checker._child is first


def test_after_a_crash_the_next_shard_gets_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_shard: Shard
) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(crashing))
        checker = Checker()
    try:
        with pytest.raises(FormatError, match="died of signal 11"):
            checker.check(*given_shard)
        checker.check(*given_shard)
    finally:
        checker.close()


def test_a_forked_process_leaves_its_parents_checker_alone(given_shard: Shard, checker: Checker) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            checker.check(*given_shard)
            checker.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    checker.check(*given_shard)
