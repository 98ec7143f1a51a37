"""Parcels: what a few consecutive steps take, gathered together and handed out one by one.

Gathering costs some 30 microseconds a call, handing a tensor to another process some 100, however small; a parcel pays
that once for a few megabytes. Its items are parts of it, without another copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.gather.columns import Cut, item, part
from dhtdata.gather.gatherer import Gathers
from dhtdata.gather.shaping import AS_STORED, Shaping
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
        bounds = self.bounds
        if bounds is None:
            return _zipped(self.columns, lambda column: _rows(column, self.count), self.count)
        return _zipped(self.columns, lambda column: _batches(column, bounds), len(bounds) - 1)


@dataclass(frozen=True)
class Lists:
    """Python's own values."""

    columns: Mapping[str, Sequence[Any]]
    bounds: Bounds
    count: int

    def unpack(self) -> Iterator[Any]:
        bounds = self.bounds
        if bounds is None:
            return _zipped(self.columns, lambda values: values, self.count)
        return _zipped(
            self.columns, lambda values: (values[first:stop] for first, stop in pairwise(bounds)), len(bounds) - 1
        )


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


class Skipped(Enum):
    """Stands for an item that was left out, so that who counts items counts it."""

    ITEM = 0


@dataclass(frozen=True)
class Gapped:
    """A parcel some of whose steps have no rows left: their items are `Skipped`."""

    parcel: Parcel
    has_rows: tuple[bool, ...]

    def unpack(self) -> Iterator[Any]:
        items = self.parcel.unpack()
        return (next(items) if has_rows else Skipped.ITEM for has_rows in self.has_rows)

    def pin_memory(self) -> Gapped:
        """See `dhtdata.torch.parcels.Tensors`."""
        pin = getattr(self.parcel, "pin_memory", None)
        return self if pin is None else Gapped(pin(), self.has_rows)


def with_gaps(parcel: Parcel, bounds: tuple[int, ...]) -> Parcel:
    """A parcel with an item for every step, given where the steps begin and end."""
    has_rows = tuple(first < stop for first, stop in pairwise(bounds))
    return parcel if all(has_rows) else Gapped(parcel, has_rows)


@dataclass(frozen=True)
class Reading:
    """How rows become parcels: in one of four formats; numpy and torch in the shapes that were asked for.

    ``later``: see `Gathers.numpy`; only tensors can be copied later.
    """

    format: str
    shaping: Shaping = AS_STORED
    later: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.format, str) or self.format not in FORMATS:
            raise ConfigError(f"format: {self.format!r} is none of {', '.join(FORMATS)}")

    def read(self, gatherer: Gathers, dealt: Dealt, batched: bool) -> tuple[Parcel, Dealt]:
        """Gather what was dealt, in batches or in rows; steps without rows have no item in the parcel.

        The second is what is left of what was dealt, without the rows that do not decode if such are to be skipped.
        """
        return FORMATS[self.format](gatherer, dealt, batched, self)

    def shown(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Arrays as this format has them."""
        return _tensors(columns) if self.format == "torch" else columns


def _numpy(gatherer: Gathers, dealt: Dealt, batched: bool, reading: Reading) -> tuple[Parcel, Dealt]:
    columns, dealt = reading.shaping.arrays(gatherer, dealt, batched)
    return Arrays(_marked(columns, dealt), _bounds(dealt, batched), dealt.rows.size), dealt


def _torch(gatherer: Gathers, dealt: Dealt, batched: bool, reading: Reading) -> tuple[Parcel, Dealt]:
    from dhtdata.torch.parcels import Tensors

    columns, dealt = reading.shaping.arrays(gatherer, dealt, batched, reading.later)
    return Tensors(_tensors(_marked(columns, dealt)), _bounds(dealt, batched), dealt.rows.size), dealt


def _tensors(columns: Mapping[str, Any]) -> dict[str, Any]:
    from dhtdata.torch.tensors import to_tensor

    return {name: to_tensor(name, column) for name, column in columns.items()}


def _arrow(gatherer: Gathers, dealt: Dealt, batched: bool, reading: Reading) -> tuple[Parcel, Dealt]:
    rows = gatherer.stored(dealt.rows)
    return ArrowRows(rows, gatherer.logical, _bounds(dealt, batched), dealt.valid), dealt


def _python(gatherer: Gathers, dealt: Dealt, batched: bool, reading: Reading) -> tuple[Parcel, Dealt]:
    columns = gatherer.python(dealt.rows)
    if dealt.valid is not None:
        columns[VALID] = dealt.valid.tolist()
    return Lists(columns, _bounds(dealt, batched), dealt.rows.size), dealt


FORMATS: Mapping[str, Callable[[Gathers, Dealt, bool, Reading], tuple[Parcel, Dealt]]] = {
    "numpy": _numpy,
    "torch": _torch,
    "arrow": _arrow,
    "python": _python,
}


def _bounds(dealt: Dealt, batched: bool) -> Bounds:
    """Where the batches that have rows begin and end."""
    return tuple(dict.fromkeys(dealt.bounds)) if batched else None


def _marked(columns: dict[str, Any], dealt: Dealt) -> dict[str, Any]:
    if dealt.valid is not None:
        columns[VALID] = dealt.valid
    return columns


def _zipped(columns: Mapping[str, Any], cut: Callable[[Any], Iterable[Any]], count: int) -> Iterator[Any]:
    """``count`` items as dicts, from what each column is cut into. A struct may have no fields."""
    names = list(columns)
    if not names:
        return ({} for _ in range(count))
    return (dict(zip(names, values, strict=True)) for values in zip(*map(cut, columns.values()), strict=True))


def _batches(column: Any, bounds: tuple[int, ...]) -> Iterable[Any]:
    """A column's values, batch by batch."""
    if isinstance(column, Cut):
        return column.pieces
    if isinstance(column, dict):
        return _zipped(column, lambda child: _batches(child, bounds), len(bounds) - 1)
    return (part(column, first, stop) for first, stop in pairwise(bounds))


def _rows(column: Any, count: int) -> Iterator[Any]:
    """A column's values, row by row."""
    if isinstance(column, dict):
        return _zipped(column, lambda child: _rows(child, count), count)
    if isinstance(column, np.ma.MaskedArray):
        return (item(column, row) for row in range(count))
    values: Iterator[Any] = iter(column)
    return values
