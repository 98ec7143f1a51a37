"""Training through a store that is smaller than the dataset: real seeds, real peers, real workers."""

from __future__ import annotations

import gc
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dhtdata
from dhtdata.errors import ConfigError, StoreError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_INDEX_BYTES, Index
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.mount.dataset import StreamingDataset
from dhtdata.order import EpochOrder, Pieces
from dhtdata.store import Store
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed, settled_status

SHARDS = 20
SHARD_ROWS = 75
ROWS = SHARDS * SHARD_ROWS
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(90)]


@dataclass(frozen=True)
class Published:
    """``kept_bytes``: of what says where rows are. Every row range is one shard, of ``shard_bytes`` at most."""

    home: Path
    target: Any
    kept_bytes: int
    shard_bytes: int

    def limit(self, shards: int) -> int:
        """With a little more for block tables, whose size a mount only reckons."""
        return self.kept_bytes + shards * self.shard_bytes + self.shard_bytes // 8


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    home = tmp_path_factory.mktemp("seed")
    table = pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "filling": pa.array([number.to_bytes(2, "big") * 10_000 for number in range(ROWS)], pa.binary(20_000)),
        }
    )
    with Store.open(home / "store") as store:
        digest = put_dataset(store, table, block_rows=25, shard_blocks=3, range_rows=SHARD_ROWS)
        manifest = Manifest.decode(store.read(digest, limit_bytes=MAX_MANIFEST_BYTES))
        contents = Contents.decode(store.read(manifest.contents, limit_bytes=MAX_CONTENTS_BYTES))
        index = Index.decode(store.read(contents.splits[0].groups[0].indexes[0], limit_bytes=MAX_INDEX_BYTES))
        return Published(home, digest, store.kept_bytes(), max(index.sizes))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with peer_of(tmp_path / "reader"):
        yield tmp_path / "reader"


def epoch_of(dataset: StreamingDataset) -> list[int]:
    seen = []
    for batch in dataset:
        for number, filling in zip(batch["number"].tolist(), batch["filling"], strict=True):
            assert bytes(filling) == number.to_bytes(2, "big") * 10_000
            seen.append(number)
    return seen


def shards_read(epochs: int) -> list[int]:
    """Shard after shard, as these epochs with windows of one range read them."""
    pieces = Pieces([SHARD_ROWS] * SHARDS)
    read: list[int] = []
    for epoch in range(epochs):
        order = EpochOrder(pieces, seed=3, epoch=epoch, shuffle=True, window=1)
        spans, firsts, _ = order.sources(0)
        read += (spans[np.argsort(firsts, kind="stable"), 0] // SHARD_ROWS).tolist()
    return read


def fetches_of_lru(read: Sequence[int], room: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    fetches = 0
    for shard in read:
        fetches += shard not in held
        held[shard] = None
        held.move_to_end(shard)
        if len(held) > room:
            held.popitem(last=False)
    return fetches


def fetches_of_belady(read: Sequence[int], room: int) -> int:
    """The fewest that any cache of this size needs: drop what is read last."""
    held: set[int] = set()
    fetches = 0
    for place, shard in enumerate(read):
        if shard in held:
            continue
        fetches += 1
        if len(held) == room:
            after = list(read[place:])
            held.remove(max(held, key=lambda each: after.index(each) if each in after else len(after)))
        held.add(shard)
    return fetches


@pytest.mark.parametrize("room", [4, 12])
def test_epochs_are_exact_and_fetch_hardly_more_than_the_best_cache_would(
    home: Path, published: Published, room: int
) -> None:
    epochs = 3
    with seed(published.home, published.target) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, batch_size=SHARD_ROWS, shuffle=True, seed=3, shuffle_window=1, predownload=0, timeout=30,
            cache_limit=published.limit(room),
        ) as dataset:  # fmt: skip
            for _ in range(epochs):
                assert sorted(epoch_of(dataset)) == list(range(ROWS))
                with Store.open(home / "store") as store:
                    assert store.usage().cache_bytes <= published.limit(room)
            fetched = settled_status(home).bytes_fetched - published.kept_bytes
    read = shards_read(epochs)
    best, lru = fetches_of_belady(read, room), fetches_of_lru(read, room)
    assert best < lru
    assert fetched / published.shard_bytes <= best + 1
    assert fetched / published.shard_bytes < lru


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_a_store_that_holds_no_more_than_a_window(home: Path, published: Published, context: str) -> None:
    from dhtdata.torch import DataLoader

    with seed(published.home, published.target) as (ticket, _):
        dataset = dhtdata.mount(
            ticket, home=home, batch_size=10, shuffle=True, shuffle_window=2, predownload=0, timeout=30,
            cache_limit=published.limit(2),
        )  # fmt: skip
        loader = DataLoader(dataset, num_workers=2, multiprocessing_context="fork")
        for _ in range(2):
            assert sorted(number for batch in loader for number in batch["number"].tolist()) == list(range(ROWS))
        dataset.close()


def test_the_usual_look_ahead_gives_way_to_the_limit(home: Path, published: Published) -> None:
    with seed(published.home, published.target) as (ticket, _):
        with dhtdata.mount(
            ticket, home=home, batch_size=25, shuffle=True, shuffle_window=2, timeout=30,
            cache_limit=published.limit(5),
        ) as dataset:  # fmt: skip
            gc.disable()
            try:
                for _ in range(3):
                    assert sorted(epoch_of(dataset)) == list(range(ROWS))
            finally:
                gc.enable()
            # What the store has dropped takes room on the disk as long as anybody has it mapped.
            maps = Path("/proc/self/maps").read_text().splitlines()
            dropped = {line.split()[5] for line in maps if str(home) in line and line.endswith("(deleted)")}
            assert len(dropped) <= 5


def test_a_limit_that_is_too_small_names_the_least_that_is_not(home: Path, published: Published) -> None:
    mounted = partial(dhtdata.mount, home=home, batch_size=25, shuffle=True, shuffle_window=3, timeout=30)
    with seed(published.home, published.target) as (ticket, _):
        with pytest.raises(ConfigError, match="cache limit") as failure:
            mounted(ticket, cache_limit=published.limit(2))
        named = re.search(r"at least (\d+) bytes", str(failure.value))
        assert named is not None
        with peer_of(home):
            pass  # the peer that was started has the old limit
        with pytest.raises(ConfigError, match="a smaller predownload"):
            mounted(ticket, cache_limit=int(named[1]), predownload=4 * published.shard_bytes)
        with mounted(ticket, cache_limit=int(named[1])) as dataset:
            assert sorted(epoch_of(dataset)) == list(range(ROWS))


def test_two_loops_in_different_orders_share_a_store_that_holds_both_their_windows(
    home: Path, published: Published
) -> None:
    mounted = partial(
        dhtdata.mount, home=home, batch_size=25, shuffle=True, shuffle_window=1, predownload=0, timeout=30,
        cache_limit=published.limit(3),
    )  # fmt: skip
    with seed(published.home, published.target) as (ticket, _):
        with mounted(ticket, seed=1) as first, mounted(ticket, seed=2) as second:
            seen: list[list[int]] = [[], []]
            for batches in zip(first, second, strict=True):
                for numbers, batch in zip(seen, batches, strict=True):
                    numbers += batch["number"].tolist()
            assert sorted(seen[0]) == sorted(seen[1]) == list(range(ROWS)) and seen[0] != seen[1]


def test_two_loops_that_do_not_fit_lose_no_row_and_one_that_gives_up_says_what_the_limit_must_be(
    home: Path, published: Published
) -> None:
    mounted = partial(
        dhtdata.mount, home=home, batch_size=25, shuffle=True, shuffle_window=2, predownload=0,
        cache_limit=published.limit(2),
    )  # fmt: skip
    with seed(published.home, published.target) as (ticket, _):
        with mounted(ticket, seed=1, timeout=30) as first, mounted(ticket, seed=2, timeout=3) as second:
            items = iter(first)
            seen = [number for _ in range(5) for number in next(items)["number"].tolist()]
            # Who is behind goes first: the second loop gets on as long as what the first holds may go.
            try:
                assert sorted(epoch_of(second)) == list(range(ROWS))
            except StoreError as failure:
                assert re.search(r"within 3 s: .* with at least \d+ bytes", str(failure))
            seen += [number for batch in items for number in batch["number"].tolist()]
            assert sorted(seen) == list(range(ROWS))


def test_a_loop_that_was_killed_keeps_nothing(home: Path, published: Published, tmp_path: Path) -> None:
    import json
    import subprocess
    import sys

    program = tmp_path / "loop.py"
    program.write_text(
        "import dhtdata, json, sys, time\n"
        "home, ticket, limit = sys.argv[1:]\n"
        "dataset = dhtdata.mount(ticket, home=home, batch_size=25, shuffle=True, shuffle_window=2, predownload=0,\n"
        "                        timeout=30, cache_limit=int(limit))\n"
        "items = iter(dataset)\n"
        "for _ in range(9):\n"
        "    next(items)\n"
        "print(json.dumps(dataset.state_dict()), flush=True)\n"
        "time.sleep(60)\n"
    )
    with seed(published.home, published.target) as (ticket, _):
        command = [sys.executable, str(program), str(home), ticket, str(published.limit(2))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                state = json.loads(process.stdout.readline())
            finally:
                process.kill()
        # The two shards of its window are all that there is room for: another order needs both at once.
        with dhtdata.mount(
            ticket, home=home, batch_size=25, shuffle=True, shuffle_window=2, seed=9, predownload=0, timeout=10,
            cache_limit=published.limit(2),
        ) as dataset:  # fmt: skip
            assert sorted(epoch_of(dataset)) == list(range(ROWS))
        assert state["rows"] == 225
