"""What does the packed form save on text at 100 Mbit/s?

Rows are the source files of Python's standard library (path, text, size, package), about 30 MiB; the full run has them
four times, each time in another order and under other paths, because one pass would be over in 3 s: no block occurs
twice, and compression works within blocks, so it gains nothing by that. A seed with all of it stands at one end of a
link of 100 Mbit/s each way (`benchmarks.namespaces`; on one machine no link would be slow, and ``auto`` keeps to raw).
It gives to peers at the other end that ask for raw shards alone (``packed`` is ``never``), for packed ones alone
(``always``) and that choose (``auto``), in turns, medians of 3 (quick: 1). What the very first packed fetch took, in
which the seed may have had to pack, is told apart. Every peer has raw shards in the end: their digests are compared.

Without root or ``ip netns`` nothing is measured: the figures say ``packed_skipped`` and why.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks.dht_real.alone import alone
from benchmarks.dht_simulated.result import Result
from benchmarks.harness import Check
from benchmarks.namespaces import Host, hosts, missing
from benchmarks.peers import MIB, Dataset, Machine, Peer, fetch, private, publish_rows, seed, world

RATE_BITS_S = 100_000_000
OPTION = "packed"
RAW, PACKED, CHOOSING = "never", "always", "auto"
_SCHEMA = pa.schema([("path", pa.string()), ("text", pa.string()), ("size", pa.int64()), ("package", pa.string())])
_BATCH_ROWS = 64


def measure(quick: bool, seed_number: int) -> Result:
    if reason := missing():
        return Result({"packed_skipped": reason}, [])
    copies, repeats = (1, 1) if quick else (4, 3)
    with world() as folder, hosts(2, RATE_BITS_S) as (here, there):
        giver = Machine(folder / "giver", here.ip, {OPTION: CHOOSING}, here.enter)
        rows = pa.RecordBatchReader.from_batches(_SCHEMA, corpus(copies))
        dataset = publish_rows(giver, rows, "sources")
        seconds: dict[str, list[float]] = {RAW: [], PACKED: [], CHOOSING: []}
        with seed(giver, dataset) as peer:
            first_s = _fetched(folder / "first", there, PACKED, peer, dataset)
            for _ in range(repeats):
                for choice, taken in seconds.items():
                    os.sync()
                    taken.append(_fetched(folder / "taker", there, choice, peer, dataset))
    raw_s, packed_s, chosen_s = (statistics.median(seconds[choice]) for choice in (RAW, PACKED, CHOOSING))
    mib = dataset.byte_count / MIB
    return Result(
        figures={
            "packed_mib": mib,
            "packed_link_mib_s": RATE_BITS_S / 8 / MIB,
            "packed_raw_s": raw_s,
            "packed_raw_share_of_link": dataset.byte_count / (RATE_BITS_S / 8) / raw_s,
            "packed_s": packed_s,
            "packed_first_s": first_s,
            "packed_auto_s": chosen_s,
        },
        checks=[
            Check("packed_share_of_raw_time", packed_s / raw_s, "<=", 1 / 2.5),
            Check("packed_auto_share_of_raw_time", chosen_s / raw_s, "<=", 1 / 2.5),
        ],
    )


def corpus(copies: int) -> Iterator[pa.RecordBatch]:
    """Source files in an order drawn by lot, another one for each copy."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in folder.rglob("*.py") if "site-packages" not in path.parts and not path.is_symlink()]
    for copy in range(copies):

        def lot(path: Path, copy: int = copy) -> bytes:
            return hashlib.sha256(f"{copy}/{path.relative_to(folder)}".encode()).digest()

        rows = []
        for path in sorted(files, key=lot):
            inside = path.relative_to(folder)
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            package = inside.parts[0] if len(inside.parts) > 1 else ""
            rows.append({"path": f"{copy}/{inside}", "text": text, "size": len(text), "package": package})
            if len(rows) == _BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, _SCHEMA)
                rows.clear()
        if rows:
            yield pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _fetched(folder: Path, host: Host, choice: str, giver: Peer, dataset: Dataset) -> float:
    taker = Machine(folder, host.ip, {OPTION: choice}, host.enter)
    with private(taker):
        _, seconds = fetch(taker, giver.ticket(dataset), dataset)
    shutil.rmtree(folder)
    return seconds


if __name__ == "__main__":
    alone(measure)
