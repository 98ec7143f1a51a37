"""How soon is the first batch of a dataset of 1 TB there, on a machine that has nothing of it?

`benchmarks.terabyte`: 30,000 shards, of which those that are read first are real. A seed has it; on the mounting
machine a private peer runs over an empty store. The clock starts in a fresh process before ``import dhtdata`` and stops
when the first batch of 64 rows is there: the version found, 2.2 MB of indexes fetched and read, the first blocks
fetched and verified, the publisher's first shard checked. Over loopback, and through a proxy of 100 Mbit/s each way
(`benchmarks.proxy`); in source order and shuffled. Medians of 3 (quick: 1), each on a new store; the worse order
counts. The rows of the batch are compared with what was published.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check, run_child
from benchmarks.peers import Machine, Peer, private, seed, world
from benchmarks.proxy import link
from benchmarks.terabyte import Terabyte, publish_terabyte
from dhtdata.formats.addresses import Address

BYTES_S = 12.5e6
SHARDS = 8
LOOPBACK, LINK = "loopback", "100_mbit"
LIMITS_S = {LOOPBACK: 1.0, LINK: 2.0}
_TIMEOUT_S = 120.0
_MOUNT = """
import json, sys, time
home, ticket, shuffle = sys.argv[1:]
started = time.perf_counter()
import dhtdata
dataset = dhtdata.mount(ticket, home=home, batch_size=64, shuffle=shuffle == "True", timeout=60)
mounted = time.perf_counter()
batch = next(iter(dataset))
first = time.perf_counter()
from benchmarks.terabyte import values_of
right = bool((values_of(batch["number"]) == batch["values"]).all()) and len(batch["number"]) == 64
print(json.dumps({"mount_s": mounted - started, "first_s": first - started, "right": right}), flush=True)
import os
os._exit(0)
"""


def measure(quick: bool, seed_number: int) -> Result:
    repeats = 1 if quick else 3
    figures: dict[str, float | str] = {}
    worst: dict[str, float] = {}
    for shuffle in (False, True):
        order = "shuffled" if shuffle else "in_order"
        with world() as folder:
            giver = Machine(folder / "giver", "127.0.0.2")
            terabyte = publish_terabyte(giver, SHARDS, seed_number, shuffle=shuffle)
            figures |= {
                "mount_dataset_bytes": terabyte.byte_count,
                "mount_dataset_rows": terabyte.rows,
                "mount_index_bytes": terabyte.index_bytes,
            }
            with seed(giver) as peer:
                if peer.address is None:
                    raise RuntimeError("a seed without an address")
                with link("127.0.0.9", peer.address, bytes_s=BYTES_S) as slow:
                    for way, at in ((LOOPBACK, peer.address), (LINK, slow)):
                        times = [_mounted(folder, peer, at, terabyte, shuffle) for _ in range(repeats)]
                        mounted_s, first_s = (statistics.median(column) for column in zip(*times, strict=True))
                        figures[f"mount_{way}_{order}_s"] = mounted_s
                        figures[f"mount_{way}_{order}_first_batch_s"] = first_s
                        worst[way] = max(worst.get(way, 0.0), first_s)
    return Result(
        figures, [Check(f"mount_{way}_first_batch_s", worst[way], "<=", limit_s) for way, limit_s in LIMITS_S.items()]
    )


def _mounted(folder: Path, giver: Peer, at: Address, terabyte: Terabyte, shuffle: bool) -> tuple[float, float]:
    """Seconds until `mount` returned and until the first batch was there."""
    taker = Machine(folder / "taker", "127.0.0.3")
    os.sync()
    with private(taker):
        ticket = giver.ticket(terabyte.dataset, at)
        command: list[str | Path] = [sys.executable, "-c", _MOUNT, taker.folder, ticket, str(shuffle)]
        result = run_child(command, timeout_s=_TIMEOUT_S).result
    if not result["right"]:
        raise RuntimeError("the first batch holds wrong rows")
    shutil.rmtree(taker.folder)
    return result["mount_s"], result["first_s"]


if __name__ == "__main__":
    alone(measure)
