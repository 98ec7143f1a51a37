"""What a loop gets: rows and batches as numpy, torch, arrow or python.

Rows are gathered a few megabytes at a time; batches and rows are parts of that, without another copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.mount.columns import item, part
from dhtdata.mount.gather import Gatherer

VALID = "_valid"
Valid = NDArray[np.bool_] | None
Rows = NDArray[np.int64]


class Gathered(Protocol):
    """Some gathered rows, to be handed out in parts. ``valid`` adds the column `VALID`."""

    def batch(self, first: int, stop: int, valid: Valid) -> Any: ...

    def row(self, number: int, valid: Valid) -> Any: ...


class _Arrays:
    """numpy, and torch on top of it."""

    def __init__(self, columns: Mapping[str, Any], finish: Callable[[str, Any], Any]) -> None:
        self._columns = columns
        self._finish = finish

    def batch(self, first: int, stop: int, valid: Valid) -> dict[str, Any]:
        finish = self._finish
        made = {name: finish(name, part(column, first, stop)) for name, column in self._columns.items()}
        if valid is not None:
            made[VALID] = finish(VALID, valid[first:stop].copy())
        return made

    def row(self, number: int, valid: Valid) -> dict[str, Any]:
        finish = self._finish
        made = {name: finish(name, item(column, number)) for name, column in self._columns.items()}
        if valid is not None:
            made[VALID] = finish(VALID, valid[number])
        return made


class _Arrow:
    def __init__(self, rows: pa.RecordBatch, logical: pa.Schema) -> None:
        from dhtdata.tables.logical import to_logical

        self._rows = rows
        self._logical = logical
        self._to_logical = to_logical

    def batch(self, first: int, stop: int, valid: Valid) -> pa.RecordBatch:
        # Encoded anew per batch: what a dictionary holds must not depend on which batches were gathered together.
        batch = self._to_logical(self._rows.slice(first, stop - first), self._logical)
        if valid is None:
            return batch
        schema = self._logical.append(pa.field(VALID, pa.bool_(), nullable=False))
        return pa.RecordBatch.from_arrays([*batch.columns, pa.array(valid[first:stop])], schema=schema)

    def row(self, number: int, valid: Valid) -> dict[str, Any]:
        batch = self.batch(number, number + 1, valid)
        return {name: batch.column(position)[0] for position, name in enumerate(batch.schema.names)}


class _Lists:
    """python: lists of Python's own values."""

    def __init__(self, columns: Mapping[str, list[Any]]) -> None:
        self._columns = columns

    def batch(self, first: int, stop: int, valid: Valid) -> dict[str, list[Any]]:
        made = {name: values[first:stop] for name, values in self._columns.items()}
        if valid is not None:
            made[VALID] = valid[first:stop].tolist()
        return made

    def row(self, number: int, valid: Valid) -> dict[str, Any]:
        made = {name: values[number] for name, values in self._columns.items()}
        if valid is not None:
            made[VALID] = bool(valid[number])
        return made


Read = Callable[[Gatherer, Rows], Gathered]


def _as_is(_: str, value: Any) -> Any:
    return value


def _read_torch(gatherer: Gatherer, rows: Rows) -> Gathered:
    from dhtdata.torch.tensors import to_tensor

    return _Arrays(gatherer.numpy(rows), to_tensor)


FORMATS: Mapping[str, Read] = {
    "numpy": lambda gatherer, rows: _Arrays(gatherer.numpy(rows), _as_is),
    "torch": _read_torch,
    "arrow": lambda gatherer, rows: _Arrow(gatherer.stored(rows), gatherer.logical),
    "python": lambda gatherer, rows: _Lists(gatherer.python(rows)),
}


def reader_of(format: str) -> Read:
    try:
        return FORMATS[format]
    except KeyError:
        raise ConfigError(f"format: {format!r} is none of {', '.join(FORMATS)}") from None
