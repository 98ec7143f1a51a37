"""Blocks of whole shards are found again and copied, verified."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.store import Store
from tests.store.samples import Shard, shard


def _made_of(*parts: tuple[Shard, range]) -> Shard:
    """A shard of blocks that others have: first block of the first, some batches, last block of the last."""
    batches = [sample.blocks[position] for sample, positions in parts for position in positions]
    return Shard([parts[0][0].blocks[0], *batches, parts[-1][0].blocks[-1]])


def _fill(store: Store, sample: Shard) -> None:
    partial = store.partial(sample.digest, sample.table)
    for position in partial.missing():
        partial.accept(position, sample.blocks[position])
    partial.finish()


@given(picked=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_block_that_some_whole_shard_holds_is_copied(tmp_path: Path, picked: list[tuple[int, int]]) -> None:
    samples = [shard(number) for number in (1, 2, 3)]
    with Store.open(Path(tempfile.mkdtemp(dir=tmp_path))) as store:
        for sample in samples[:2]:
            _fill(store, sample)
        mixed = _made_of(*((samples[which], range(position, position + 1)) for which, position in picked))
        held = {block.digest for sample in samples[:2] for block in sample.table.blocks}
        if store.has(mixed.digest):
            return
        partial = store.partial(mixed.digest, mixed.table)
        copied = store.reuse(partial)
        expected = [place for place, block in enumerate(mixed.table.blocks) if block.digest in held]
        assert sorted(copied) == expected
        assert [place for place in range(len(mixed.table.blocks)) if partial.has(place)] == expected
        for position in partial.missing():
            partial.accept(position, mixed.blocks[position])
        assert partial.finish().read_bytes() == mixed.content


def test_a_shard_that_is_gone_or_spoilt_gives_nothing(tmp_path: Path) -> None:
    first, second = shard(1), shard(2)
    mixed = _made_of((first, range(1, 4)), (second, range(4, 7)))
    with Store.open(tmp_path) as store:
        _fill(store, first)
        _fill(store, second)
        path = store.path_of(first.digest)
        os.chmod(path, 0o600)
        path.write_bytes(bytes(len(first.content)))
        os.unlink(store.path_of(second.digest))
        partial = store.partial(mixed.digest, mixed.table)
        assert store.reuse(partial) == []
        assert partial.missing() == list(range(len(mixed.table.blocks)))


def test_places_go_with_their_shard(tmp_path: Path) -> None:
    sample = shard(1)
    with Store.open(tmp_path) as store:
        _fill(store, sample)
        with sqlite3.connect(tmp_path / "index.sqlite") as index:
            assert index.execute("SELECT count(*) FROM places").fetchone() == (len(sample.table.blocks),)
        store.gc(grace_s=0)
        assert not store.has(sample.digest)
        with sqlite3.connect(tmp_path / "index.sqlite") as index:
            assert index.execute("SELECT count(*) FROM places").fetchone() == (0,)
            assert index.execute("SELECT count(*) FROM placed").fetchone() == (0,)


def test_a_store_of_an_earlier_version_learns_from_now_on(tmp_path: Path) -> None:
    old, new = shard(1), shard(2)
    with Store.open(tmp_path) as store:
        _fill(store, old)
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.executescript("DROP TABLE places; DROP TABLE placed; PRAGMA user_version=2;")
    with Store.open(tmp_path) as store:
        _fill(store, new)
        mixed = _made_of((old, range(1, 3)), (new, range(3, 5)))
        copied = store.reuse(store.partial(mixed.digest, mixed.table))
        new_blocks = {block.digest for block in new.table.blocks}
        assert {mixed.table.blocks[position].digest for position in copied} <= new_blocks
        assert {3, 4, 5} <= set(copied)
