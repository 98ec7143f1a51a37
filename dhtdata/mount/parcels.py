"""Parcels: what a few consecutive steps take, gathered together and handed out one by one.

Gathering costs some 30 microseconds a call, handing a tensor to another process some 100, however small; a parcel pays
that once for a few megabytes. Its items are parts of it, without another copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.mount.columns import item, part
from dhtdata.mount.gather import Gatherer
from dhtdata.order import Dealt

VALID = "_valid"
Bounds = tuple[int, ...] | None
"""Where batches begin and end; None hands out rows."""


class Parcel(Protocol):
    def unpack(self) -> Iterator[Any]:
        """The items of its steps, in order; each is made when it is asked for."""
        ...


@dataclass(frozen=True)
class Arrays:
    """numpy."""

    columns: Mapping[str, Any]
    bounds: Bounds
    count: int

    def unpack(self) -> Iterator[Any]:
        if self.bounds is None:
            return _zipped(self.columns, lambda column: _rows(column, self.count))
        bounds = self.bounds
        return _zipped(self.columns, lambda column: (part(column, first, stop) for first, stop in pairwise(bounds)))


@dataclass(frozen=True)
class Lists:
    """Python's own values."""

    columns: Mapping[str, Sequence[Any]]
    bounds: Bounds

    def unpack(self) -> Iterator[Any]:
        if self.bounds is None:
            return _zipped(self.columns, lambda values: values)
        bounds = self.bounds
        return _zipped(self.columns, lambda values: (values[first:stop] for first, stop in pairwise(bounds)))


@dataclass(frozen=True)
class ArrowRows:
    """Record batches, or dicts of Arrow scalars, of the types that were published."""

    rows: pa.RecordBatch
    logical: pa.Schema
    bounds: Bounds
    valid: NDArray[np.bool_] | None

    def unpack(self) -> Iterator[Any]:
        if self.bounds is not None:
            return (self._batch(first, stop) for first, stop in pairwise(self.bounds))
        batches = (self._batch(row, row + 1) for row in range(self.rows.num_rows))
        return (dict(zip(one.schema.names, (column[0] for column in one.columns), strict=True)) for one in batches)

    def _batch(self, first: int, stop: int) -> pa.RecordBatch:
        from dhtdata.tables.logical import to_logical

        # Encoded anew per batch: what a dictionary holds must not depend on which batches were gathered together.
        batch = to_logical(self.rows.slice(first, stop - first), self.logical)
        if self.valid is None:
            return batch
        schema = self.logical.append(pa.field(VALID, pa.bool_(), nullable=False))
        return pa.RecordBatch.from_arrays([*batch.columns, pa.array(self.valid[first:stop])], schema=schema)


@dataclass(frozen=True)
class Items:
    """Made already."""

    items: list[Any]

    def unpack(self) -> Iterator[Any]:
        return iter(self.items)


Read = Callable[[Gatherer, Dealt, bool], Parcel]
"""Gather what was dealt; the flag says whether in batches."""


def _numpy(gatherer: Gatherer, dealt: Dealt, batched: bool) -> Parcel:
    return Arrays(_marked(gatherer.numpy(dealt.rows), dealt), dealt.bounds if batched else None, dealt.rows.size)


def _torch(gatherer: Gatherer, dealt: Dealt, batched: bool) -> Parcel:
    from dhtdata.torch.parcels import Tensors
    from dhtdata.torch.tensors import to_tensor

    columns = _marked(gatherer.numpy(dealt.rows), dealt)
    tensors = {name: to_tensor(name, column) for name, column in columns.items()}
    return Tensors(tensors, dealt.bounds if batched else None)


def _arrow(gatherer: Gatherer, dealt: Dealt, batched: bool) -> Parcel:
    return ArrowRows(gatherer.stored(dealt.rows), gatherer.logical, dealt.bounds if batched else None, dealt.valid)


def _python(gatherer: Gatherer, dealt: Dealt, batched: bool) -> Parcel:
    columns = gatherer.python(dealt.rows)
    if dealt.valid is not None:
        columns[VALID] = dealt.valid.tolist()
    return Lists(columns, dealt.bounds if batched else None)


FORMATS: Mapping[str, Read] = {"numpy": _numpy, "torch": _torch, "arrow": _arrow, "python": _python}


def reader_of(format: str) -> Read:
    try:
        return FORMATS[format]
    except KeyError:
        raise ConfigError(f"format: {format!r} is none of {', '.join(FORMATS)}") from None


def _marked(columns: dict[str, Any], dealt: Dealt) -> dict[str, Any]:
    if dealt.valid is not None:
        columns[VALID] = dealt.valid
    return columns


def _zipped(columns: Mapping[str, Any], cut: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Items as dicts, from what each column is cut into."""
    names = list(columns)
    return (dict(zip(names, values, strict=True)) for values in zip(*map(cut, columns.values()), strict=True))


def _rows(column: Any, count: int) -> Iterator[Any]:
    """A column's values, row by row."""
    if isinstance(column, dict):
        return _zipped(column, lambda child: _rows(child, count))
    if isinstance(column, np.ma.MaskedArray):
        return (item(column, row) for row in range(count))
    values: Iterator[Any] = iter(column)
    return values
