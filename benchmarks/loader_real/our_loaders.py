"""Ours, and what the machine could do: ``python -m benchmarks.loader_real.our_loaders NAME``.

``NAME`` is one of:

*ours*   publishes the rows and mounts them, shuffled.
         ``batches``: `dhtdata.torch.DataLoader` without workers, ``batches_threads``: with two threads, ``batches_2``:
         with two worker processes; ``batches_python``: the mount itself, ``format="python"``; ``rows``: row by row.
*floor*  the same rows in memory, in a random order that is new every epoch. ``gather``: numpy takes a batch's rows of
         every column, torch wraps them. ``ready_2``: tensors that lie there ready, handed over by two worker processes
         of torch's DataLoader; ``ready_parcels_2``: the same in parcels, as ours are. ``convert*``: batches of Python
         objects out of Arrow's buffers, the barest ways that we know: slices of one buffer, or rows taken by Arrow, for
         one batch or for several at once, and converted by its own C++.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import dhtdata
import dhtdata.torch
from benchmarks.loader_real import rows as made
from benchmarks.loader_real.stopwatch import Order, Variant, serve
from dhtdata.config import load_settings
from dhtdata.mount.pipeline import GATHER_BYTES
from dhtdata.torch.arenas import Inbox, address
from dhtdata.torch.parcels import Tensors

AT_ONCE = GATHER_BYTES // (64 * 512 * 4)
"""Batches in a parcel of ours."""
THREADS = 2


def ours(order: Order) -> dict[str, Variant]:
    kind = order.kind
    settings = load_settings({"home": str(order.folder)}, environment={})
    dhtdata.publish(order.table(), name="rows", settings=settings)
    batch, key = made.BATCH[kind], made.COLUMNS[kind][0]

    def mount(**options: Any) -> dhtdata.StreamingDataset:
        return dhtdata.mount("rows", **{"batch_size": batch, "shuffle": True, "settings": settings, **options})

    def loader(workers: int) -> Any:
        return dhtdata.torch.DataLoader(mount(), num_workers=workers, persistent_workers=workers > 0)

    variants = {
        "batches": Variant(partial(loader, 0), key),
        "batches_2": Variant(partial(loader, 2), key),
        "batches_threads": Variant(lambda: dhtdata.torch.DataLoader(mount(threads=THREADS)), key),
    }
    if kind in ("binary", "text"):
        variants["batches_python"] = Variant(lambda: mount(format="python"), key)
        variants["rows"] = Variant(lambda: mount(format="python", batch_size=None), None)
        variants["rows_numpy"] = Variant(lambda: mount(batch_size=None), None)
    return variants


class Epochs:
    """Batches of row numbers in a new order every epoch, made by ``made`` from one batch's numbers."""

    def __init__(self, rows: int, batch: int, make: Callable[[NDArray[np.int64]], Iterator[Any]]) -> None:
        self._rows, self._batch, self._make, self._epoch = rows, batch, make, 0

    def __iter__(self) -> Iterator[Any]:
        self._epoch += 1
        order = np.random.default_rng(self._epoch).permutation(self._rows)
        for first in range(0, self._rows, self._batch):
            yield from self._make(order[first : first + self._batch])


class Ready(IterableDataset[Any]):  # type: ignore[misc]  # torch is not typed here
    """Parcels of ``at_once`` batches over memory that has the rows already; each is new to torch: it is handed over."""

    def __init__(self, columns: dict[str, Any], batch: int, at_once: int, inbox: int) -> None:
        self._columns, self._batch, self._at_once, self._inbox = columns, batch, at_once, inbox
        self._count = len(next(iter(columns.values())))

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        address(self._inbox)
        size = self._at_once * self._batch
        for first in range(worker.id * size, self._count, worker.num_workers * size):
            stop = min(first + size, self._count)
            ready = {name: torch.from_numpy(column[first:stop]) for name, column in self._columns.items()}
            if self._at_once == 1:
                yield ready
            else:
                yield Tensors(ready, (*range(0, stop - first, self._batch), stop - first), stop - first)


class Unpacked:
    """Batches of parcels."""

    def __init__(self, loader: Iterable[Tensors], inbox: Inbox) -> None:
        self.loader = loader
        self._inbox = inbox

    def __iter__(self) -> Iterator[Any]:
        for parcel in self.loader:
            yield from parcel.unpack()


def floor(order: Order) -> dict[str, Variant]:
    kind, table = order.kind, order.table()
    batch, key = made.BATCH[kind], made.COLUMNS[kind][0]
    epochs = partial(Epochs, table.num_rows)
    if kind in ("binary", "text"):
        ways = {
            "convert_slices": (slices(table, key), batch),
            "convert_taken": (partial(taken, table, batch), batch),
            "convert_taken_at_once": (partial(taken, table, batch), batch * AT_ONCE),
        }
        return {name: Variant(partial(epochs, size, make), key) for name, (make, size) in ways.items()}
    columns = {name: column.copy() for name, column in made.arrays(table).items()}

    def gathered(numbers: NDArray[np.int64]) -> Iterator[Any]:
        yield {name: torch.from_numpy(column[numbers]) for name, column in columns.items()}

    inbox = Inbox()

    def ready(at_once: int) -> Any:
        shuffled = np.random.default_rng(0).permutation(table.num_rows)
        rows = Ready({name: column[shuffled] for name, column in columns.items()}, batch, at_once, inbox.number)
        return DataLoader(rows, batch_size=None, num_workers=2, persistent_workers=True, collate_fn=as_is)

    return {
        "gather": Variant(partial(epochs, batch, gathered), key),
        "ready_2": Variant(partial(ready, 1), key),
        "ready_parcels_2": Variant(lambda: Unpacked(ready(AT_ONCE), inbox), key),
    }


def as_is(item: Any) -> Any:
    return item


def slices(table: pa.Table, key: str) -> Callable[[NDArray[np.int64]], Iterator[Any]]:
    """Every value a slice of one buffer of all values."""
    column = table[key].chunk(0)
    _, ends, content = column.buffers()
    offsets = np.frombuffer(ends, np.int64)
    owned = content.to_pybytes()
    text = pa.types.is_large_string(column.type)
    labels = None if text else table["label"].to_numpy()
    view = memoryview(owned)

    def make(numbers: NDArray[np.int64]) -> Iterator[Any]:
        bounds = zip(offsets[numbers].tolist(), offsets[numbers + 1].tolist(), strict=True)
        if labels is None:
            yield {key: [str(view[first:stop], "utf-8") for first, stop in bounds]}
        else:
            yield {
                key: [owned[first:stop] for first, stop in bounds],
                "label": torch.from_numpy(labels[numbers]),
            }

    return make


def taken(table: pa.Table, batch: int, numbers: NDArray[np.int64]) -> Iterator[Any]:
    """Rows of one or more batches taken by Arrow, turned into objects by its own conversion."""
    rows = table.take(pa.array(numbers))
    columns: dict[str, Any] = {}
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        values = column.chunk(0).to_numpy(zero_copy_only=False)
        columns[name] = values.tolist() if values.dtype == object else torch.from_numpy(values.copy())
    for first in range(0, numbers.size, batch):
        yield {name: column[first : first + batch] for name, column in columns.items()}


LOADERS = {each.__name__: each for each in (ours, floor)}


if __name__ == "__main__":
    serve(LOADERS[sys.argv[1]])
