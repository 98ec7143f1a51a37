"""A training run that may be killed at any time: ``python -m benchmarks.resume_real.trainer OPTIONS``.

``OPTIONS``: JSON with ``ticket``, ``home``, ``folder``, ``batch``, ``seed``, ``workers`` (of a DataLoader; 0: numpy),
``step_s``: what a step takes besides (nothing).
After each step it appends a line to ``folder/rows.PID`` (the rows, and how many the epoch has consumed), then replaces
``folder/state.json``, as a training script should: what a line says counts if a state as far as that was saved. It
begins with the state it finds, and ends when the epoch does. A byte on standard output tells of each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.mortal import die_with_parent
from benchmarks.resume_real.small import filling_of

TIMEOUT_S = 40.0


def main() -> None:
    die_with_parent()
    given = json.loads(sys.argv[1])
    import dhtdata

    dataset = dhtdata.mount(
        given["ticket"],
        home=given["home"],
        batch_size=given["batch"],
        shuffle=True,
        seed=given["seed"],
        shuffle_window=2,
        predownload=100_000,
        timeout=TIMEOUT_S,
    )
    loader: Any = dataset
    if given["workers"]:
        from dhtdata.torch import DataLoader

        loader = DataLoader(dataset, num_workers=given["workers"], multiprocessing_context="fork")
    train(loader, Path(given["folder"]), given.get("step_s", 0.0))
    os._exit(0)


def train(loader: Any, folder: Path, step_s: float) -> None:
    state = folder / "state.json"
    if state.exists():
        loader.load_state_dict(json.loads(state.read_bytes()))
    if loader.state_dict()["epoch"]:
        return  # the epoch had ended when the last run was killed
    with (folder / f"rows.{os.getpid()}").open("ab", buffering=0) as log:
        for batch in loader:
            check(batch["number"].tolist(), batch["filling"])
            at = loader.state_dict()
            log.write(json.dumps([at["epoch"], at["rows"], batch["number"].tolist()]).encode() + b"\n")
            replace(state, json.dumps(at).encode())
            sys.stdout.buffer.write(b".")
            sys.stdout.buffer.flush()
            time.sleep(step_s)


def check(numbers: list[int], fillings: Iterable[Any]) -> None:
    for number, filling in zip(numbers, fillings, strict=True):
        if bytes(filling) != filling_of(number):
            raise RuntimeError(f"row {number} has wrong values")


def replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    main()
