"""What does each of eight nodes fetch for one epoch?

A seed with 4 GiB in about 128 row ranges (quick: 512 MiB in 16). Eight nodes of one rank each (``RANK``,
``WORLD_SIZE=8``, ``LOCAL_WORLD_SIZE=1``, as torchrun sets them), each with an empty store and a private peer of its
own, two at a time, mount the seed's ticket and take one shuffled epoch of batches of 64. What a node fetched is
what its peer received in blobs, verified or thrown away. All ranks' rows together must be every row exactly once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check, run_child
from benchmarks.peers import MIB, ROW_BYTES, Dataset, Machine, private, publish_rows, seed, world
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_RANGES_BYTES, decode_ranges

NODES = 8
AT_ONCE = 2
CHILD_S = 150.0
_BATCH_ROWS = 8_192
_EPOCH = """
import json, os, sys, time
import dhtdata
import numpy as np
home, ticket, numbers = sys.argv[1:]
dataset = dhtdata.mount(ticket, home=home, batch_size=64, shuffle=True, timeout=60)
seen = [batch["row"][:, 0].copy()[batch["_valid"]] for batch in dataset]
np.save(numbers, np.concatenate(seen))
print(json.dumps({"steps": len(seen)}), flush=True)
os._exit(0)
"""


def measure(quick: bool, seed_number: int) -> Result:
    rows = (512 if quick else 4_096) * MIB // ROW_BYTES
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        dataset = publish_rows(giver, _reader(rows, seed_number), "rows")
        ranges = _ranges(giver, dataset)
        with seed(giver, dataset) as peer, ThreadPoolExecutor(AT_ONCE) as lanes:
            ticket = peer.ticket(dataset)
            nodes = list(lanes.map(lambda rank: _node(folder, rank, ticket), range(NODES)))
        numbers = np.concatenate([np.load(folder / f"numbers{rank}.npy") for rank in range(NODES)])
    if not np.array_equal(np.sort(numbers), np.arange(rows)):
        raise RuntimeError("the eight ranks together did not see every row once")
    shares = [fetched / dataset.byte_count * NODES for fetched in nodes]
    return Result(
        figures={
            "nodes_mib": dataset.byte_count / MIB,
            "nodes_row_ranges": ranges,
            "nodes_fetched_least_of_an_eighth": min(shares),
            "nodes_fetched_mib_most": max(shares) * dataset.byte_count / NODES / MIB,
        },
        checks=[Check("nodes_fetched_most_of_an_eighth", max(shares), "<=", 1.15)],
    )


def _reader(rows: int, seed_number: int) -> pa.RecordBatchReader:
    """Rows of 4 KiB as 1,024 int32, the first of which is the row's number; the rest repeats after 32 MiB."""
    width = ROW_BYTES // 4
    values = np.random.default_rng(seed_number).integers(0, 1 << 31, (_BATCH_ROWS, width), dtype=np.int32)
    schema = pa.schema([("row", pa.list_(pa.int32(), width))])

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, _BATCH_ROWS):
            content = values[: min(_BATCH_ROWS, rows - first)].copy()
            content[:, 0] = np.arange(first, first + len(content))
            array = pa.FixedSizeListArray.from_arrays(pa.array(content.reshape(-1)), width)
            yield pa.RecordBatch.from_arrays([array], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _ranges(machine: Machine, dataset: Dataset) -> int:
    """How many row ranges it has."""
    with machine.store() as store:
        listed = Contents.decode(store.read(dataset.contents, limit_bytes=MAX_CONTENTS_BYTES))
        return len(decode_ranges(store.read(listed.splits[0].ranges, limit_bytes=MAX_RANGES_BYTES)))


def _node(folder: Path, rank: int, ticket: str) -> int:
    """Bytes that one node's peer received."""
    taker = Machine(folder / f"node{rank}", f"127.0.1.{rank + 1}")
    crew = {"RANK": str(rank), "WORLD_SIZE": str(NODES), "LOCAL_WORLD_SIZE": "1"}
    command: list[str | Path] = [sys.executable, "-c", _EPOCH, taker.folder, ticket, str(folder / f"numbers{rank}.npy")]
    with private(taker):
        run_child(command, timeout_s=CHILD_S, environment=crew)
        with taker.client() as client:
            status = client.status()
    shutil.rmtree(taker.folder)
    os.sync()
    return status.bytes_fetched + sum(each.wasted for each in status.traffic)


if __name__ == "__main__":
    alone(measure)
