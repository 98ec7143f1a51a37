"""Parcels of tensors: handed to another process or pinned as a whole, then cut into batches or rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch._utils import ExceptionWrapper

from dhtdata.errors import StoreError
from dhtdata.gather.columns import Cut
from dhtdata.torch.arenas import ALIGNMENT, Passed, open_passed, outbox
from dhtdata.torch.lying import Lying


@dataclass(frozen=True)
class Tensors:
    """Columns as tensors, lists where no tensor can be, and dicts of these. ``bounds`` None hands out rows.

    In a worker columns may be `Lying` still.
    """

    columns: Mapping[str, Any]
    bounds: tuple[int, ...] | None
    count: int

    def unpack(self) -> Iterator[Any]:
        """Each item is made when it is asked for."""
        return iter(self._cut(self.columns))

    def pin_memory(self) -> Tensors:
        """The same in page-locked memory: torch's DataLoader asks for it under ``pin_memory=True``."""
        return Tensors(_mapped(self.columns, lambda tensor: tensor.pin_memory()), self.bounds, self.count)

    def __reduce__(self) -> tuple[Any, ...]:
        """Written into an arena of the worker, one behind another, or the error that says why not.

        torch would pass a descriptor for each tensor, with a handshake of 0.3 ms whatever its size. It pickles in a
        thread that prints an error and drops what it was given, and the loop would wait for ever.
        """
        try:
            return self._written()
        except (OSError, MemoryError, RuntimeError) as failure:
            told = StoreError(
                f"a worker cannot hand over {self.count} rows ({failure}): give the process more memory, open files "
                "(ulimit -n) or a smaller batch_size"
            )
            return as_is, (ExceptionWrapper((StoreError, told, None), "in a worker of the DataLoader"),)

    def _written(self) -> tuple[Any, ...]:
        tensors: list[torch.Tensor | Lying] = []
        places = _mapped(self.columns, lambda tensor: _Place.of(tensors, tensor))
        starts = [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)]
        memory, passed = outbox().place(starts[-1])
        for start, tensor in zip(starts, tensors, strict=False):
            place = memory[start : start + tensor.nbytes]
            if isinstance(tensor, Lying):
                tensor.copy_to(place)
            else:
                place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return _unpacked, (passed, starts, places, self.bounds, self.count)

    def _cut(self, column: Any) -> Any:
        """What each item gets of a column, one after another."""
        if isinstance(column, Cut):
            return column.pieces
        if isinstance(column, Mapping):
            names = list(column)
            if not names:  # a struct without fields
                return [{} for _ in range(self.count if self.bounds is None else len(self.bounds) - 1)]
            parts = zip(*map(self._cut, column.values()), strict=True)
            return (dict(zip(names, values, strict=True)) for values in parts)
        if isinstance(column, Lying):
            column = column.tensor()
        if isinstance(column, torch.Tensor):
            if self.bounds is None:
                return column.unbind()
            return column.split([stop - first for first, stop in pairwise(self.bounds)])
        if self.bounds is None:
            return column
        return (column[first:stop] for first, stop in pairwise(self.bounds))


@dataclass(frozen=True)
class _Place:
    """A tensor in an arena: the ``number``-th."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensors: list[torch.Tensor | Lying], tensor: torch.Tensor | Lying) -> _Place:
        tensors.append(tensor)
        return cls(len(tensors) - 1, tensor.dtype, tuple(tensor.shape))

    def found(self, arena: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
        start = starts[self.number]
        size = self.dtype.itemsize * torch.Size(self.shape).numel()
        return arena[start : start + size].view(self.dtype).view(self.shape)


def as_is(item: Any) -> Any:
    return item


def _unpacked(
    passed: Passed, starts: Sequence[int], places: Any, bounds: tuple[int, ...] | None, count: int
) -> Tensors | ExceptionWrapper:
    found = open_passed(passed)
    if found is None:  # an error for whoever looks, though nobody should
        told = StoreError("a worker's batch came for an iteration that was given up: begin a new one")
        return ExceptionWrapper((StoreError, told, None), "in an iteration that was given up")
    arena = torch.from_numpy(found)
    return Tensors(_mapped(places, lambda place: place.found(arena, starts)), bounds, count)


def _mapped(column: Any, change: Callable[[Any], Any]) -> Any:
    """A column with its tensors, or places of tensors, changed; lists are walked, too."""
    if isinstance(column, Cut):
        return Cut(_mapped(column.pieces, change))
    if isinstance(column, Mapping):
        return {name: _mapped(child, change) for name, child in column.items()}
    if isinstance(column, torch.Tensor | Lying | _Place):
        return change(column)
    if isinstance(column, list):
        first = next((child for child in column if child is not None), None)  # the others are of its kind
        if isinstance(first, torch.Tensor | Lying | _Place | list | Mapping):
            return [_mapped(child, change) for child in column]
    return column
