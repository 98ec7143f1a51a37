"""Columns that still lie in mapped blocks, and are copied once: to where they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dhtdata.gather.gatherer import Placed
from dhtdata.gather.planes import plane, unit_of

_WHOLE_TYPES = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass(frozen=True)
class Lying:
    """One column of some rows, all of one width and none of them null."""

    placed: Placed

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.placed.flat.dtype)).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.placed.units.size, *self.placed.flat.shape)

    @property
    def nbytes(self) -> int:
        return self.placed.units.size * self.placed.width

    def tensor(self) -> torch.Tensor:
        """Copied to memory of its own."""
        return torch.from_numpy(self.placed.taken())

    def copy_to(self, memory: torch.Tensor) -> None:
        """Copy all values, one behind another, to ``nbytes`` bytes of memory."""
        placed = self.placed
        width, unit = placed.width, unit_of(placed.width)
        if not placed.units.size:
            return
        if width == unit:  # values stand side by side
            item = np.dtype(f"V{width}")
            # With "raise" numpy would gather into memory of its own first; there is nothing to clip.
            plane(placed.low, placed.high, item).take(placed.units, out=memory.numpy().view(item), mode="clip")
            return
        # numpy cannot gather overlapping values into given memory; torch can, in the time of one copy.
        size = min(unit, 8)
        whole = _WHOLE_TYPES[size]
        items = torch.from_numpy(plane(placed.low, placed.high, np.dtype(f"i{size}"), read_only=False))
        rows = (items.numel() * size - width) // unit + 1
        values = items.as_strided((rows, width // size), (unit // size, 1))
        to = memory.view(whole).view(placed.units.size, width // size)
        torch.index_select(values, 0, torch.from_numpy(placed.units), out=to)
