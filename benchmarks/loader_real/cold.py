"""Does training on what is not here yet keep pace with fetching it, and how soon does it begin?

A seed with 512 MiB of rows of 512 int32 (quick: 128 MiB), in a process of its own, and a private peer with an empty
store in another, both running before a clock starts, as in `benchmarks.transfer_real.one`. In turns, each with an empty
store, after what the one before left unwritten is on disk:

*loader*   a fresh process mounts the seed's ticket and takes one epoch of shuffled batches of 64 as tensors, in one
           process; from the call of ``mount`` (``import torch`` is over by then) to the first batch and to the end of
           the epoch. Every row's number must have come once; every shard's file is digested again afterwards.
*alone*    the same peer is asked for the whole dataset, and nobody reads it: finding the version and fetching.
*ceiling*  `benchmarks.ceiling`, which tells whether the fetch alone is what the transfer benchmark asks of it.
*first*    a fresh process of numpy's format, from before ``import dhtdata`` to the first batch.

Medians of 5 turns (quick: 1).
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.ceiling import digests_of, raw_server, receive_raw
from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Bars, Result
from benchmarks.harness import Check, run_child
from benchmarks.loader_real import rows as made
from benchmarks.peers import MIB, Dataset, Machine, fetch, private, publish_rows, seed, verify, world

THREADS = 2
CHILD_S = 120.0
_FIRST = """
import json, os, sys, time
home, ticket = sys.argv[1:]
started = time.perf_counter()
import dhtdata
batch = next(iter(dhtdata.mount(ticket, home=home, batch_size=64, shuffle=True, timeout=60)))
first_s = time.perf_counter() - started
print(json.dumps({"first_s": first_s, "rows": len(batch["tokens"])}), flush=True)
os._exit(0)
"""
_EPOCH = """
import json, os, sys, time
import dhtdata, dhtdata.torch
import numpy as np, torch
home, ticket = sys.argv[1:]
torch.set_num_threads(1)
first_s, numbers = 0.0, []
started = time.perf_counter()
dataset = dhtdata.mount(ticket, home=home, batch_size=64, shuffle=True, timeout=60)
mounted_s = time.perf_counter() - started
for batch in dhtdata.torch.DataLoader(dataset):
    first_s = first_s or time.perf_counter() - started
    numbers.append(batch["tokens"][:, 0].clone())
epoch_s = time.perf_counter() - started
right = bool((np.sort(torch.cat(numbers).numpy()) == np.arange(dataset.num_rows)).all())
print(json.dumps({"mounted_s": mounted_s, "first_s": first_s, "epoch_s": epoch_s, "right": right}), flush=True)
os._exit(0)
"""


def measure(quick: bool, seed_number: int) -> Result:
    mib, turns = (128, 1) if quick else (512, 5)
    with world() as folder:
        giver, taker = Machine(folder / "giver", "127.0.0.2"), Machine(folder / "taker", "127.0.0.3")
        dataset = publish_rows(giver, made.make("tokens", mib * MIB // (4 * made.WIDTH), seed_number), "tokens")
        with giver.store() as store:
            files = [store.path_of(shard.digest) for shard in dataset.shards]
        digests, sizes = digests_of(files), [shard.size for shard in dataset.shards]
        times: dict[str, list[float]] = {}
        with seed(giver, dataset) as peer, raw_server("127.0.0.2", files) as raw:
            ticket = peer.ticket(dataset)
            for _ in range(turns):
                turn = {**_loader(taker, ticket, dataset), **_alone(taker, ticket, dataset), **_first(taker, ticket)}
                turn["ceiling_s"] = receive_raw(raw, sizes, digests, folder / "raw", THREADS)
                shutil.rmtree(folder / "raw")
                os.sync()
                for name, seconds in turn.items():
                    times.setdefault(name, []).append(seconds)
    return _result(dataset, {name: statistics.median(each) for name, each in times.items()})


def _loader(taker: Machine, ticket: str, dataset: Dataset) -> dict[str, float]:
    with private(taker):
        result = _child(_EPOCH, taker, ticket)
        if not result.pop("right"):
            raise RuntimeError("the epoch was not every row once")
        verify(taker, dataset)
    _forget(taker)
    return result


def _alone(taker: Machine, ticket: str, dataset: Dataset) -> dict[str, float]:
    with private(taker):
        found_s, fetched_s = fetch(taker, ticket, dataset)
    _forget(taker)
    return {"found_s": found_s, "fetched_s": fetched_s}


def _first(taker: Machine, ticket: str) -> dict[str, float]:
    with private(taker):
        result = _child(_FIRST, taker, ticket)
    _forget(taker)
    return {"cold_process_s": result["first_s"]}


def _child(program: str, taker: Machine, ticket: str) -> dict[str, float]:
    command: list[str | Path] = [sys.executable, "-c", program, taker.folder, ticket]
    return run_child(command, timeout_s=CHILD_S).result


def _forget(taker: Machine) -> None:
    shutil.rmtree(taker.folder)
    os.sync()


def _result(dataset: Dataset, median: dict[str, float]) -> Result:
    mib = dataset.byte_count / MIB
    alone_s = median["found_s"] + median["fetched_s"]
    rates = {
        "ceiling": mib / median["ceiling_s"],
        "fetching alone": mib / alone_s,
        "training on it": mib / median["epoch_s"],
    }
    return Result(
        figures={
            "cold_mib": mib,
            "cold_loader_mib_s": mib / median["epoch_s"],
            "cold_alone_mib_s": mib / alone_s,
            "cold_ceiling_mib_s": mib / median["ceiling_s"],
            "cold_mount_s": median["mounted_s"],
        },
        checks=[
            Check("cold_of_fetch_alone", alone_s / median["epoch_s"], ">=", 0.8),
            Check("cold_fetch_alone_of_ceiling", median["ceiling_s"] / median["fetched_s"], ">=", 0.6),
            Check("cold_first_batch_s", median["first_s"], "<=", 0.5),
            Check("cold_first_batch_cold_process_s", median["cold_process_s"], "<=", 0.5),
        ],
        bars={"cold": Bars("A first epoch from a peer on loopback, MiB/s", rates)},
    )


if __name__ == "__main__":
    alone(measure)
