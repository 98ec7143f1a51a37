"""How near the machine's limit does one provider fill a disk?

A seed with 16 shards of about 32 MiB (quick: 6) that nothing compresses, in a process of its own, and a private peer
with an empty store in another, both running before the clock starts. In turns with it, in the same minute, the ceiling
(`benchmarks.ceiling`): the same files from a process by ``sendfile``, read by two threads, digested per block of 1 MiB,
written, fsynced file by file. Medians of 5 turns (quick: 3); every turn starts with an empty folder, after what the one
before left unwritten is on disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
from pathlib import Path

from benchmarks.ceiling import digests_of, raw_server, receive_raw
from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import cpu_s
from benchmarks.peers import MIB, SHARD_BYTES, Dataset, Machine, Peer, fetch, private, publish_random, seed, world

THREADS = 2
AIM = 0.8


def measure(quick: bool, seed_number: int) -> Result:
    shards, repeats = (6, 3) if quick else (16, 5)
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        dataset = publish_random(giver, shards * SHARD_BYTES, seed_number)
        with giver.store() as store:
            files = [store.path_of(shard.digest) for shard in dataset.shards]
        digests, sizes = digests_of(files), [shard.size for shard in dataset.shards]
        ours: list[tuple[float, float, float]] = []
        ceilings: list[float] = []
        with seed(giver, dataset) as peer, raw_server("127.0.0.2", files) as raw:
            for turn in range(repeats):
                ours.append(_ours(folder / f"taker{turn}", peer, dataset))
                os.sync()
                ceilings.append(receive_raw(raw, sizes, digests, folder / "raw", THREADS))
                shutil.rmtree(folder / "raw")
                os.sync()
    return _result(ours, ceilings, dataset)


def _ours(folder: Path, giver: Peer, dataset: Dataset) -> tuple[float, float, float]:
    """Seconds to find, seconds to fetch, processor seconds of both processes."""
    taker = Machine(folder, "127.0.0.3")
    with private(taker) as peer:
        pids = (peer.process.pid, giver.process.pid)
        before_s = sum(map(cpu_s, pids))
        found_s, fetched_s = fetch(taker, giver.ticket(dataset), dataset)
        spent_s = sum(map(cpu_s, pids)) - before_s
    shutil.rmtree(folder)
    return found_s, fetched_s, spent_s


def _result(ours: list[tuple[float, float, float]], ceilings: list[float], dataset: Dataset) -> Result:
    mib = dataset.byte_count / MIB
    our_s, ceiling_s = statistics.median(each[1] for each in ours), statistics.median(ceilings)
    return Result(
        figures={
            "one_mib": mib,
            "one_shards": len(dataset.shards),
            "one_mib_s": mib / our_s,
            "one_mib_s_slowest": mib / max(each[1] for each in ours),
            "one_ceiling_mib_s": mib / ceiling_s,
            "one_ceiling_mib_s_slowest": mib / max(ceilings),
            "one_find_s": statistics.median(each[0] for each in ours),
            "one_cpu_s_per_gib": statistics.median(each[2] for each in ours) / (mib / 1024),
            "one_aim": AIM,
        },
        checks=[Check("one_share_of_ceiling", ceiling_s / our_s, ">=", 0.6)],
    )


if __name__ == "__main__":
    alone(measure)
