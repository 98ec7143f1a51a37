"""Parcels of tensors: handed to another process or pinned as a whole, then cut into batches or rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Tensors:
    """Columns as tensors, lists where no tensor can be, and dicts of these. ``bounds`` None hands out rows."""

    columns: Mapping[str, Any]
    bounds: tuple[int, ...] | None

    def unpack(self) -> list[Any]:
        return self._cut(self.columns)

    def pin_memory(self) -> Tensors:
        """The same in page-locked memory: torch's DataLoader asks for it under ``pin_memory=True``."""
        return Tensors(_pinned(self.columns), self.bounds)

    def _cut(self, column: Any) -> list[Any]:
        if isinstance(column, Mapping):
            names = list(column)
            parts = zip(*map(self._cut, column.values()), strict=True)
            return [dict(zip(names, values, strict=True)) for values in parts]
        if isinstance(column, torch.Tensor):
            if self.bounds is None:
                return list(column.unbind())
            return list(column.split([stop - first for first, stop in pairwise(self.bounds)]))
        if self.bounds is None:
            return list(column)
        return [column[first:stop] for first, stop in pairwise(self.bounds)]


def _pinned(column: Any) -> Any:
    if isinstance(column, Mapping):
        return {name: _pinned(child) for name, child in column.items()}
    return column.pin_memory() if isinstance(column, torch.Tensor) else column
