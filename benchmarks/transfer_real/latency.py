"""Does a link of 200 ms and 1 Gbit/s stay full?

A seed with 512 MiB (quick: 256) stands behind a proxy (`benchmarks.proxy`: a process, 100 ms and 1 Gbit/s each way
over all connections, a round trip for every new connection); the ticket names the proxy's address alone, and whatever
came from anywhere else would be refused as a result. Beside it, through a proxy of the same kind, one raw TCP stream:
a process that sends the same files, received by one thread, digested, written and fsynced as in `benchmarks.ceiling`.
Its window is what the proxy grants everybody: more than the link holds. In turns, medians of 3 (quick: 1).
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
from benchmarks.peers import MIB, Dataset, Machine, Peer, fetch, only_through, private, publish_random, seed, world
from benchmarks.proxy import link
from dhtdata.formats.addresses import Address

ONE_WAY_S = 0.1
BYTES_S = 125e6


def measure(quick: bool, seed_number: int) -> Result:
    mib, repeats = (256, 1) if quick else (512, 3)
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        dataset = publish_random(giver, mib * MIB, seed_number)
        with giver.store() as store:
            files = [store.path_of(shard.digest) for shard in dataset.shards]
        digests, sizes = digests_of(files), [shard.size for shard in dataset.shards]
        ours: list[tuple[float, float]] = []
        raws: list[float] = []
        with seed(giver, dataset) as peer, raw_server("127.0.0.2", files) as raw:
            if peer.address is None:
                raise RuntimeError("a seed without an address")
            with (
                link("127.0.0.9", peer.address, delay_s=ONE_WAY_S, bytes_s=BYTES_S) as to_peer,
                link("127.0.0.9", raw, delay_s=ONE_WAY_S, bytes_s=BYTES_S) as to_raw,
            ):
                for turn in range(repeats):
                    ours.append(_ours(folder / f"taker{turn}", peer, to_peer, dataset))
                    os.sync()
                    raws.append(receive_raw(to_raw, sizes, digests, folder / "raw", connections=1))
                    shutil.rmtree(folder / "raw")
                    os.sync()
    found_s, our_s = (statistics.median(column) for column in zip(*ours, strict=True))
    raw_s, whole_mib = statistics.median(raws), dataset.byte_count / MIB
    return Result(
        figures={
            "latency_mib": whole_mib,
            "latency_round_trip_s": 2 * ONE_WAY_S,
            "latency_link_mib_s": BYTES_S / MIB,
            "latency_mib_s": whole_mib / our_s,
            "latency_raw_mib_s": whole_mib / raw_s,
            "latency_find_s": found_s,
        },
        checks=[Check("latency_share_of_raw_stream", raw_s / our_s, ">=", 0.8)],
    )


def _ours(folder: Path, giver: Peer, through: Address, dataset: Dataset) -> tuple[float, float]:
    taker = Machine(folder, "127.0.0.3")
    with private(taker):
        seconds = fetch(taker, giver.ticket(dataset, through), dataset)
        only_through(taker, through)
    shutil.rmtree(folder)
    return seconds


if __name__ == "__main__":
    alone(measure)
