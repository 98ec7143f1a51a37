"""How fast does one seed's dataset spread to 1, 4 and 8 peers, beside libtorrent in the same run?

One seed with 256 MiB (quick: 48) and N peers with empty stores, every one a process of its own with a loopback address
of its own, all running before the clock starts. Ours are seeds that are told ``seed TICKET`` at the same moment: each
fetches, and serves what it has by then; the ticket names the seed alone, the others they must find by themselves. The
clock stops when the last one's last shard has its final name: verified, fsynced, renamed (looked at every 20 ms).

libtorrent's (`libtorrent_peer`) get the same files as one torrent and every other's address at the same moment; their
clock stops when the last one has verified all pieces and fsynced every file. In turns, medians of 3 (quick: 1). All
bytes of all peers are digested afterwards, on both sides.

Aggregate: bytes of all N copies / seconds. Copies sent: bytes that the seed served / bytes of the dataset.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.mortal import Worker, worker
from benchmarks.peers import MIB, Dataset, Machine, Peer, publish_random, seed, verify, world
from dhtdata.digest import Digest

CROWDS = (1, 4, 8)
LOOK_S = 0.02
SETTLE_S = 3.0
LIMIT_S = 300.0
AIM = 3.0
LIBTORRENT = Path(__file__).with_name("libtorrent_peer.py")
PYTHON = "DHTDATA_LIBTORRENT_PYTHON"


@dataclass(frozen=True)
class Spread:
    seconds: float
    copies_sent: float


def measure(quick: bool, seed_number: int) -> Result:
    mib, repeats = (48, 1) if quick else (256, 3)
    ours: dict[int, list[Spread]] = {count: [] for count in CROWDS}
    theirs: dict[int, list[Spread]] = {count: [] for count in CROWDS}
    with world() as folder:
        giver = Machine(folder / "giver", "127.0.0.2")
        dataset = publish_random(giver, mib * MIB, seed_number)
        files = _copied(giver, dataset, folder / "shards")
        for _ in range(repeats):
            for count in CROWDS:
                os.sync()
                ours[count].append(_ours(folder / "crowd", giver, dataset, count))
                os.sync()
                theirs[count].append(_libtorrent(folder / "crowd", files, dataset, count))
    return _result(ours, theirs, dataset)


def _copied(machine: Machine, dataset: Dataset, folder: Path) -> Path:
    folder.mkdir()
    with machine.store() as store:
        for shard in dataset.shards:
            shutil.copyfile(store.path_of(shard.digest), folder / shard.digest.hex())
    return folder


def _ours(folder: Path, giver: Machine, dataset: Dataset, count: int) -> Spread:
    with ExitStack() as running:
        source = running.enter_context(seed(giver, dataset))
        known = {"bootstrap": str(source.address)}
        machines = [Machine(folder / str(number), f"127.0.1.{number + 1}", known) for number in range(count)]
        for machine in machines:
            running.enter_context(seed(machine))
        ticket = source.ticket(dataset)
        for machine in machines:
            _join(machine)
        time.sleep(SETTLE_S)
        with ThreadPoolExecutor(count) as threads:
            started = time.perf_counter()
            done = [threads.submit(_follow, machine, ticket, dataset) for machine in machines]
            seconds = max(each.result() for each in done) - started
        sent = _served(source)
    for machine in machines:
        verify(machine, dataset)
    shutil.rmtree(folder)
    return Spread(seconds, sent / dataset.byte_count)


def _join(machine: Machine) -> None:
    """Returns once a peer is in the DHT: it runs already when the clock starts."""
    with machine.client() as client:
        deadline_s = time.monotonic() + LIMIT_S
        while not client.status().dht_contacts:
            if time.monotonic() > deadline_s:
                raise RuntimeError("a peer did not get into the DHT")
            time.sleep(LOOK_S)


def _follow(machine: Machine, ticket: str, dataset: Dataset) -> float:
    """When a running seed has fetched all of it. To look at the files costs the peer nothing."""
    with machine.client() as client:
        client.seed(ticket, LIMIT_S)
    blobs = machine.settings.store / "blobs"
    left = [blobs / shard.digest.hex()[:2] / shard.digest.hex() for shard in dataset.shards]
    deadline_s = time.monotonic() + LIMIT_S
    while left := [path for path in left if not path.exists()]:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a peer was not done within {LIMIT_S:.0f} s")
        time.sleep(LOOK_S)
    return time.perf_counter()


def _served(peer: Peer) -> int:
    with peer.machine.client() as client:
        return client.status().bytes_served


def _libtorrent(folder: Path, files: Path, dataset: Dataset, count: int) -> Spread:
    folder.mkdir()
    torrent = folder / "torrent"
    with ExitStack() as running:

        def start(ip: str, *arguments: Path) -> tuple[Worker, int]:
            process = running.enter_context(
                worker("", ip, *map(str, arguments), python=_python(), script=LIBTORRENT, what="a libtorrent peer")
            )
            return process, process.hear()["port"]

        source, port = start("127.0.0.2", torrent, files)
        others = [["127.0.0.2", port]]
        leechers: list[Worker] = []
        for number in range(count):
            (folder / str(number)).mkdir()
            process, port = start(f"127.0.1.{number + 1}", folder / str(number))
            leechers.append(process)
            others.append([f"127.0.1.{number + 1}", port])
        started = time.perf_counter()
        for process in leechers:
            process.tell(torrent=str(torrent), others=others)
        with ThreadPoolExecutor(count) as threads:
            done = [threads.submit(_heard, process) for process in leechers]
            seconds = max(each.result() for each in done) - started
        sent = source.ask()["sent"]
    for number in range(count):
        _verify_files(folder / str(number) / files.name, dataset)
    shutil.rmtree(folder)
    return Spread(seconds, sent / dataset.byte_count)


def _heard(process: Worker) -> float:
    process.hear(LIMIT_S + 10)
    return time.perf_counter()


def _verify_files(folder: Path, dataset: Dataset) -> None:
    for shard in dataset.shards:
        if Digest.of((folder / shard.digest.hex()).read_bytes()) != shard.digest:
            raise RuntimeError(f"libtorrent fetched {shard.digest} wrong")


def _python() -> str:
    """Of the environment that has libtorrent, which ``scripts/bench`` makes."""
    return os.environ.get(PYTHON, sys.executable)


def _result(ours: dict[int, list[Spread]], theirs: dict[int, list[Spread]], dataset: Dataset) -> Result:
    mib = dataset.byte_count / MIB
    figures: dict[str, float | str] = {"crowd_mib": mib, "crowd_aim": AIM}
    checks = []
    for count in CROWDS:
        our_s, their_s = _median_s(ours[count]), _median_s(theirs[count])
        figures |= {
            f"crowd_{count}_mib_s": count * mib / our_s,
            f"crowd_{count}_copies_sent": max(each.copies_sent for each in ours[count]),
            f"crowd_{count}_libtorrent_mib_s": count * mib / their_s,
            f"crowd_{count}_libtorrent_copies_sent": max(each.copies_sent for each in theirs[count]),
        }
        checks.append(Check(f"crowd_{count}_times_libtorrent", their_s / our_s, ">=", 2))
    most = max(CROWDS)
    checks.append(Check(f"crowd_{most}_most_copies_sent", max(each.copies_sent for each in ours[most]), "<=", 1.5))
    return Result(figures, checks)


def _median_s(spreads: Sequence[Spread]) -> float:
    return statistics.median(each.seconds for each in spreads)


if __name__ == "__main__":
    alone(measure)
