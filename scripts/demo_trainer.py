"""The demo's trainer: mounts a dataset by name, trains for one epoch, prints lines of JSON.

``packages`` and ``providers`` first; ``loss`` now and then; ``third`` a third into the epoch, after which it waits for
a line on standard input; ``end``.

The rows were published in an order drawn by lot, so they are read as they stand: what is to come is then what is not
here yet, however small the dataset, and the death of a provider matters.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

from demo_model import NextByte

import dhtdata
from dhtdata.config import load_settings
from dhtdata.control.client import PeerClient
from dhtdata.formats.names import Name
from dhtdata.store import Store

BATCH_ROWS = 16
PREDOWNLOAD_BYTES = 64 << 10
SEED = 7
LOSS_LINES = 12
PROVIDERS = 2
FIND_S = 20.0


def main(name: str) -> None:
    begun_s = time.monotonic()
    packages = _packages(name)
    _tell("packages", count=len(packages), seconds=round(time.monotonic() - begun_s, 3))
    _tell("providers", providers=_providers(name))
    dataset = dhtdata.mount(
        name,
        split="train",
        columns=["path", "text"],
        batch_size=BATCH_ROWS,
        format="python",
        predownload=PREDOWNLOAD_BYTES,
        remainder="uneven",
    )
    model = NextByte(SEED)
    seen: list[tuple[str, str]] = []
    losses: list[float] = []
    first_batch_s = paused_s = 0.0
    waited = False
    total = dataset.num_rows
    for batch in dataset:
        first_batch_s = first_batch_s or time.monotonic() - begun_s
        losses.append(model.step(batch["text"]))
        pairs = zip(batch["path"], batch["text"], strict=True)
        seen += [(path, hashlib.sha256(text.encode()).hexdigest()) for path, text in pairs]
        if len(losses) % max(1, total // BATCH_ROWS // LOSS_LINES) == 1:
            _tell("loss", rows=len(seen), loss=_mean(losses[-8:]))
        if not waited and 3 * len(seen) >= total:
            waited = True
            pause_s = time.monotonic()
            _tell("third", **_traffic())
            sys.stdin.readline()
            paused_s = time.monotonic() - pause_s
    spent_s = time.monotonic() - begun_s - first_batch_s - paused_s
    _tell(
        "end",
        rows=len(seen),
        seen=seen,
        first_batch_s=round(first_batch_s, 3),
        rows_s=round(len(seen) / spent_s, 1),
        loss_first=round(losses[0], 4),
        loss_last=round(_mean(losses[-8:]), 4),
        **_traffic(),
    )


def _packages(name: str) -> set[str]:
    """Every package there is: one small column, stored apart from the texts, so only its shards are fetched."""
    with dhtdata.mount(name, columns=["package"], batch_size=BATCH_ROWS, format="python") as column:
        return {package for batch in column for package in batch["package"]}


def _providers(name: str) -> list[dict[str, Any]]:
    """Who provides the dataset, and how that was found out; waits until there are two to choose from."""
    settings = load_settings()
    deadline_s = time.monotonic() + FIND_S
    with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=False) as peer:
        contents = peer.resolve(Name.parse(name)).contents
        while True:
            found = peer.providers(contents)
            if len(found) >= PROVIDERS or time.monotonic() > deadline_s:
                return [{"address": entry.address, "source": entry.source} for entry in found]
            time.sleep(0.1)


def _traffic() -> dict[str, Any]:
    """What this machine's peer has received, from whom, and what is not here yet."""
    settings = load_settings()
    with Store.open(settings.store) as store, PeerClient.connect(store, settings, start=False) as peer:
        status = peer.status()
        whole = sum(store.completeness(entry.digest).bytes for entry in store.manifests())
    return {
        "providers": {entry.address: entry.bytes for entry in status.traffic if entry.bytes},
        "bytes": sum(entry.bytes for entry in status.traffic),
        "blocks_verified": status.blocks_verified,
        "outstanding": max(0, whole - status.bytes_fetched),
    }


def _tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main(sys.argv[1])
