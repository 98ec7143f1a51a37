"""Random access to rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.gather.parcels import Reading
from dhtdata.mount.view import View
from dhtdata.order import Dealt

Rows = NDArray[np.int64]


class MapStyleDataset:
    """A split by row number: ``[123]`` and ``[-1]`` are rows, ``[10:20]`` and ``[[3, 1, 2]]`` batches.

    Under a filter the rows that it keeps are numbered. Images are decoded and lists collated as the mount says.

    Fetches the blocks that hold what is asked for. Works as a map-style dataset of torch, with its samplers.
    """

    def __init__(self, view: View, reading: Reading) -> None:
        self._view = view
        self._reading = reading

    def __len__(self) -> int:
        return self._view.num_rows

    def __getitem__(self, key: int | slice | Sequence[int] | Rows) -> Any:
        """A row for an int, else a batch. IndexError beyond the ends, as lists have it."""
        if isinstance(key, int | np.integer):
            return next(self._gather(self._checked([int(key)]), batched=False))
        rows = np.arange(*key.indices(len(self)), dtype=np.int64) if isinstance(key, slice) else self._checked(key)
        return next(self._gather(rows, batched=True))

    def __getitems__(self, keys: Sequence[int]) -> list[Any]:
        """Rows in the order asked for, gathered at once."""
        return list(self._gather(self._checked(keys), batched=False))

    def _gather(self, rows: Rows, batched: bool) -> Iterator[Any]:
        if not rows.size:
            raise ConfigError(f"no rows are chosen: this split has rows 0 to {len(self) - 1}")
        with self._view.fetching():
            dealt = Dealt(self._view.rows(rows), (0, rows.size), None)
            return self._view.gather(dealt, self._reading, batched)[0].unpack()

    def _checked(self, keys: Sequence[int] | Rows) -> Rows:
        rows = np.asarray(keys)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ConfigError(f"{keys!r} is neither a row number, a slice nor a list of row numbers")
        beyond = (rows < -len(self)) | (rows >= len(self))
        if beyond.any():
            raise IndexError(f"row {rows[beyond][0]} of {len(self)}")
        rows = rows.astype(np.int64)
        return np.where(rows < 0, rows + len(self), rows)
