"""What does a peer cost that serves fifty clients and fetches from fifty providers, and does it grow?

One seed, a process of its own, which is measured. Fifty clients (`crowd_worker`), each with an address of its own, read
1 MiB ranges of a dataset of 64 MiB from it all the time, at 50 MiB/s together if it keeps up. Meanwhile it fetches
another dataset of 128 MiB from fifty addresses, at most 30 MB/s together: five real seeds behind them. When that is
complete it is removed and collected (as ``dhtdata rm`` and ``gc`` do), and fetched again. The first round is warming
up; then that goes on for 10 minutes (quick: 30 s). Resident memory and open descriptors are noted every 0.5 s; growth
is the median of the last fifth of what was noted less that of the first.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import cpu_s, descriptors, rss_bytes, worker
from benchmarks.peers import MIB, Dataset, Machine, Peer, publish_random, seed, verify, world
from benchmarks.transfer_real.crowd_worker import COUNT
from dhtdata.formats.addresses import Address

SEEDS = 5
SERVED_MIB, FETCHED_MIB = 64, 128
FETCH_BYTES_S = 30e6
CLIENT_BYTES_S = 1 << 20
NOTE_S = 0.5


@dataclass
class Notes:
    """What was seen of one process."""

    rss: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def measure(quick: bool, seed_number: int) -> Result:
    seconds = 30.0 if quick else 600.0
    with world() as folder, ExitStack() as running:
        sources = [Machine(folder / f"source{number}", f"127.0.1.{number + 1}") for number in range(SEEDS)]
        published = [publish_random(machine, FETCHED_MIB * MIB, seed_number, "fetched") for machine in sources]
        fetched = published[0]
        if any(other.manifest != fetched.manifest for other in published):
            raise RuntimeError("equal rows were published as different datasets")
        seeds = [running.enter_context(seed(machine, fetched)).address for machine in sources]
        givers = running.enter_context(
            worker("benchmarks.transfer_real.crowd_worker", "givers", str(FETCH_BYTES_S), *map(str, seeds))
        )
        providers = tuple(Address.parse(text) for text in givers.hear()["addresses"])
        machine = Machine(folder / "measured", "127.0.0.2", {"bootstrap": ",".join(map(str, providers))})
        served = publish_random(machine, SERVED_MIB * MIB, seed_number + 1, "served")
        peer = running.enter_context(seed(machine, served))
        blobs = [f"/v1/blobs/{shard.digest}:{shard.size}" for shard in served.shards]
        takers = running.enter_context(
            worker("benchmarks.transfer_real.crowd_worker", "takers", str(peer.address), str(CLIENT_BYTES_S), *blobs)
        )
        return _watched(peer, fetched, lambda: int(takers.ask()["bytes"]), seconds)


def _watched(peer: Peer, fetched: Dataset, taken: Callable[[], int], seconds: float) -> Result:
    pid, notes, ended = peer.process.pid, Notes(), threading.Event()

    def note() -> None:
        while not ended.wait(NOTE_S):
            notes.rss.append(rss_bytes(pid))
            notes.descriptors.append(descriptors(pid))

    watcher = threading.Thread(target=note, daemon=True)
    used, rounds = _fetch_again(peer.machine, fetched), 0
    started, before_cpu_s, taken_before = time.perf_counter(), cpu_s(pid), taken()
    watcher.start()
    while time.perf_counter() - started < seconds:
        used |= _fetch_again(peer.machine, fetched)
        rounds += 1
    ended.set()
    watcher.join()
    took_s = time.perf_counter() - started
    rss, opened = [value / MIB for value in notes.rss], [float(value) for value in notes.descriptors]
    return Result(
        figures={
            "memory_seconds": took_s,
            "memory_clients": COUNT,
            "memory_providers_used": len(used),
            "memory_rounds_fetched": rounds,
            "memory_fetched_mib_s": rounds * fetched.byte_count / MIB / took_s,
            "memory_served_mib_s": (taken() - taken_before) / MIB / took_s,
            "memory_core_share": (cpu_s(pid) - before_cpu_s) / took_s,
            "memory_rss_mib_median": statistics.median(rss),
            "memory_descriptors_most": max(opened),
        },
        checks=[
            Check("memory_rss_mib", max(rss), "<=", 250),
            Check("memory_rss_growth_mib", _growth(rss), "<=", 10),
            Check("memory_descriptor_growth", _growth(opened), "<=", 10),
        ],
    )


def _fetch_again(machine: Machine, dataset: Dataset) -> set[str]:
    """Fetch all of it, look at it, throw it away; who has delivered anything by now."""
    with machine.client() as client, machine.store() as store:
        client.resolve(str(dataset.manifest))
        client.fetch_dataset(dataset.manifest)
        verify(machine, dataset)
        used = {each.address for each in client.status().traffic if each.blocks}
        store.remove_manifest(dataset.manifest)
        store.gc(grace_s=0.0)
    return used


def _growth(values: list[float]) -> float:
    fifth = max(len(values) // 5, 1)
    return statistics.median(values[-fifth:]) - statistics.median(values[:fifth])


if __name__ == "__main__":
    alone(measure)
