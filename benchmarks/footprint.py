"""How small is it when it does nothing, and how fast does it start?

Idle seed: resident memory, and processor time over 20 s (quick: 10 s), of ``dhtdata seed`` with one dataset and nobody
asking. Start: ``import dhtdata``, and ``mount`` of a stored dataset to its first shuffled batch, each in fresh
processes (medians; interpreter start left out; the very first mount, which also checks shards, is told apart). A
dataset of 1 TB, simulated: the real formats with 30,000 shards of 32 MiB in 4 groups, sizes of its metadata and time
to parse and check all of it.
"""

from __future__ import annotations

import os
import random
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Check, arguments, draw_bars, report, run_child, temporary_folder
from dhtdata import publish
from dhtdata.config import load_settings
from dhtdata.digest import Digest
from dhtdata.formats.contents import Contents, Group, GroupShards, Split
from dhtdata.formats.index import MAX_SHARDS, Index, ShardEntry, decode_ranges, encode_ranges
from dhtdata.formats.manifest import MAX_CARD_BYTES, Manifest
from dhtdata.formats.schema import Field

SEED = 20
SHARDS = 30_000
GROUPS = 4
SHARD_BYTES = 32 << 20
START_S = 60.0
_IMPORT = """
import json, time
started = time.perf_counter()
import dhtdata
print(json.dumps({"seconds": time.perf_counter() - started}))
"""
_MOUNT = """
import json, sys, time
started = time.perf_counter()
import dhtdata
dataset = dhtdata.mount("footprint", home=sys.argv[1], batch_size=64, shuffle=True)
batch = next(iter(dataset))
seconds = time.perf_counter() - started
right = all((batch["values"] == batch["number"][:, None]).all(axis=1))
print(json.dumps({"seconds": seconds, "rows": len(batch["number"]), "right": bool(right)}))
"""


def main() -> None:
    given = arguments(__doc__ or "")
    repeats = 5 if given.quick else 15
    with temporary_folder() as folder:
        put_dataset(folder, megabytes=32 if given.quick else 256)
        imported = statistics.median(fresh(_IMPORT) for _ in range(repeats))
        first_mounted = fresh(_MOUNT, folder)
        mounted = statistics.median(fresh(_MOUNT, folder) for _ in range(repeats))
        rss_bytes, cpu_share = idle_seed(folder, watch_s=10.0 if given.quick else 20.0)
    sizes, parse_s = simulated_terabyte(repeats)
    figures = {
        "import_s": imported,
        "mount_first_batch_s": mounted,
        "very_first_mount_s": first_mounted,
        "idle_rss_mib": rss_bytes / (1 << 20),
        "idle_core_share": cpu_share,
        **{f"terabyte_{name}_bytes": float(size) for name, size in sizes.items()},
        "terabyte_parse_s": parse_s,
    }
    checks = [
        Check("import_s", imported, "<=", 0.15),
        Check("mount_first_batch_s", mounted, "<=", 0.7),
        Check("idle_rss_mib", rss_bytes / (1 << 20), "<=", 120),
        Check("idle_core_share", cpu_share, "<=", 0.01),
        Check("terabyte_manifest_bytes", sizes["manifest"], "<=", 256_000),
        Check("terabyte_contents_bytes", sizes["contents"], "<=", 256_000),
        Check("terabyte_indexes_bytes", sizes["indexes"], "<=", 3_000_000),
        Check("terabyte_parse_s", parse_s, "<=", 0.1),
    ]
    if given.plot is not None:
        times = {"import": imported, "mount to first batch": mounted, "1 TB of metadata": parse_s}
        draw_bars(given.plot, "footprint", "Start-up, seconds", times)
    report("footprint", SEED, repeats, figures, checks, given.json)


def put_dataset(home: Path, megabytes: int) -> None:
    """Publish rows of 1 KiB that say which row they are of."""
    rows = megabytes << 10
    numbers = np.arange(rows, dtype=np.int64)
    values = np.repeat(numbers.astype(np.float32), 250)
    table = pa.table({"number": numbers, "values": pa.FixedSizeListArray.from_arrays(values, 250)})
    publish(table, name="footprint", settings=load_settings({"home": home}, environment={}))


def fresh(code: str, *values: Path) -> float:
    """Seconds that a new process reports, once its batch has been found right."""
    result = run_child([sys.executable, "-c", code, *values], timeout_s=START_S).result
    if result.get("right") is False:
        raise RuntimeError("the first batch holds wrong rows")
    return float(result["seconds"])


def idle_seed(home: Path, watch_s: float) -> tuple[int, float]:
    """Resident bytes and share of a core of a seed that nobody asks."""
    with seed_process(home) as pid:
        time.sleep(2.0)  # what it does once, when it starts, is not idling
        before_s, started = cpu_s(pid), time.perf_counter()
        time.sleep(watch_s)
        share = (cpu_s(pid) - before_s) / (time.perf_counter() - started)
        return rss_bytes_of(pid), share


@contextmanager
def seed_process(home: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "dhtdata", "seed", "footprint", "--json", "--home", str(home)]
    command += ["--listen", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if process.stdout is None or not select.select([process.stdout], [], [], START_S)[0]:
                raise RuntimeError(f"the seed said nothing for {START_S:.0f} s")
            if not process.stdout.readline():
                process.kill()
                raise RuntimeError(f"the seed ended: {process.communicate()[1].decode()[-2000:]}")
            yield process.pid
        finally:
            process.kill()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no resident size")


def simulated_terabyte(repeats: int) -> tuple[dict[str, int], float]:
    """Sizes of the metadata, and the median time to parse and check all of it."""
    draw = random.Random(SEED)
    per_group = SHARDS // GROUPS
    indexes: list[list[bytes]] = []
    rows = [draw.randrange(20_000, 40_000) for _ in range(per_group)]
    for _ in range(GROUPS):
        entries = [
            ShardEntry(
                Digest(draw.randbytes(32)), Digest(draw.randbytes(32)), count, SHARD_BYTES + draw.randrange(1 << 20)
            )
            for count in rows
        ]
        pieces = [entries[first : first + MAX_SHARDS] for first in range(0, per_group, MAX_SHARDS)]
        indexes.append([Index.build(piece).encode() for piece in pieces])
    ranges = encode_ranges([sum(rows) // SHARDS] * (SHARDS - 1) + [sum(rows) - sum(rows) // SHARDS * (SHARDS - 1)])
    columns = tuple(Field(name=f"column_{number}", type="large_binary") for number in range(50))
    contents = Contents(
        version=1,
        cutting=1,
        columns=columns,
        groups=tuple(Group(columns=tuple(field.name for field in columns[number::GROUPS])) for number in range(GROUPS)),
        splits=(
            Split(
                name="train",
                rows=sum(rows),
                ranges=Digest.of(ranges),
                groups=tuple(
                    GroupShards(
                        indexes=tuple(map(Digest.of, of_group)), shards=per_group, bytes=per_group * SHARD_BYTES
                    )
                    for of_group in indexes
                ),
            ),
        ),
    ).encode()
    manifest = Manifest(
        version=1,
        name="terabyte",
        contents=Digest.of(contents),
        statistics=Digest(draw.randbytes(32)),
        card="x" * MAX_CARD_BYTES,
    ).encode()
    encoded = [data for of_group in indexes for data in of_group]
    sizes = {
        "manifest": len(manifest),
        "contents": len(contents),
        "indexes": sum(map(len, encoded)),
        "ranges": len(ranges),
    }

    def parse() -> float:
        started = time.perf_counter()
        for data in (manifest, contents, ranges, *encoded):
            Digest.of(data)
        Manifest.decode(manifest)
        parsed = Contents.decode(contents)
        counted = sum(len(Index.decode(data)) for data in encoded)
        total = sum(decode_ranges(ranges))
        if counted != parsed.shard_count or total != parsed.row_count:
            raise RuntimeError("the simulated dataset does not add up")
        return time.perf_counter() - started

    return sizes, statistics.median(parse() for _ in range(repeats))


if __name__ == "__main__":
    main()
