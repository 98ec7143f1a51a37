"""One rank of a training run: ``python -m benchmarks.resume_real.rank OPTIONS``.

``OPTIONS``: JSON with ``ticket`` (empty: zeros from torch's own loader instead of a dataset), ``home``, ``rank``,
``ranks``, ``workers``, ``context`` (fork or spawn), ``global_batch``, ``seed``, ``state`` (or null), ``steps`` (0: to
the end of the epoch), ``looks``: how often to look at the workers' memory on the way. Says, in the end, the row numbers
of every batch, the state, and the most private dirty memory of any worker.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import pyarrow as pa  # noqa: F401  # the baseline has it loaded, too
import torch
from torch.utils import data as torch_data

from benchmarks.mortal import die_with_parent, say
from benchmarks.resume_real.small import private_dirty

ROW_VALUES = 512
TRIVIAL_STEPS = 400
TIMEOUT_S = 120.0


class Trivial(torch_data.IterableDataset[Any]):  # type: ignore[misc]
    """Batches of zeros, of the size of those that the dataset has."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Any]:
        for _ in range(TRIVIAL_STEPS):
            numbers = torch.zeros(self._batch, dtype=torch.int64)
            yield {"number": numbers, "tokens": torch.zeros((self._batch, ROW_VALUES), dtype=torch.int32)}


def main() -> None:
    die_with_parent()
    given = json.loads(sys.argv[1])
    loader = _loader(given)
    batches: list[list[int]] = []
    worst = 0
    every = max(len(loader) // (given["looks"] + 1), 1) if given["looks"] and given["ticket"] else TRIVIAL_STEPS // 8
    for batch in islice(loader, given["steps"] or None):
        batches.append(batch["number"].tolist())
        if given["looks"] and len(batches) % every == 0:
            worst = max(worst, _worst_worker())
    state = loader.state_dict() if given["ticket"] else None
    say(batches=batches, state=state, worst_bytes=worst)


def _loader(given: dict[str, Any]) -> Any:
    batch = given["global_batch"] // given["ranks"]
    workers = {"num_workers": given["workers"]}
    if given["workers"]:
        workers["multiprocessing_context"] = given["context"]
    if not given["ticket"]:
        return torch_data.DataLoader(Trivial(batch), batch_size=None, **workers)
    import dhtdata
    from dhtdata.torch import DataLoader

    dataset = dhtdata.mount(
        given["ticket"],
        home=given["home"],
        rank=given["rank"],
        world_size=given["ranks"],
        batch_size=batch,
        shuffle=True,
        seed=given["seed"],
        lanes=1,
        timeout=TIMEOUT_S,
    )
    loader = DataLoader(dataset, **workers)
    if given["state"] is not None:
        loader.load_state_dict(given["state"])
    return loader


def _worst_worker() -> int:
    """The most private dirty memory that a worker has now; those that have had their turns are gone."""
    worst = 0
    for child in multiprocessing.active_children():
        with suppress(ProcessLookupError, FileNotFoundError):
            worst = max(worst, private_dirty(child.pid or 0))
    return worst


if __name__ == "__main__":
    main()
