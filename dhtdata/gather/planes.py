"""This process's memory as arrays: one index then reaches values of many maps at once.

Shards are mapped wherever the system puts them, and numpy gathers from one array at a time. An array for each block
would mean a call for each block and column, and a second copy to put the rows into the order asked for: 0.05 of a
gather from memory, measured with batches of 64 rows of 2 KB. A *plane* is one array that spans all maps and the gaps
between them; whoever indexes it answers for touching nothing but mapped bytes, as `chart` does: it knows the address of
every block that it has opened, and keeps its map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhtdata.tables.ipc import ALIGNMENT

WIDE_BYTES = 1 << 16


@dataclass(frozen=True)
class _Memory:
    """What numpy asks of whoever exposes memory: https://numpy.org/doc/stable/reference/arrays.interface.html."""

    __array_interface__: dict[str, Any]


def unit_of(width: int) -> int:
    """The largest step, in bytes, that reaches every item of ``width`` bytes behind an aligned address.

    Buffers are aligned in a shard's file (`dhtdata.tables.ipc`), and files are mapped by pages.
    """
    return gcd(ALIGNMENT, width)


def plane(low: int, high: int, dtype: np.dtype[Any], *, read_only: bool = True) -> NDArray[Any]:
    """Items of ``dtype`` at ``low`` and every `unit_of` its width behind it, below ``high``.

    Nobody may write to it, and it says so unless that would keep others (torch) from reading it.

    Items overlap where the unit is less than the width. ``low`` is aligned. What an array of it is made of stays
    valid as long as the maps do; indexing it copies.
    """
    unit = unit_of(dtype.itemsize)
    count = max(high - low - dtype.itemsize, 0) // unit + 1
    described = {"version": 3, "data": (low, read_only), "typestr": dtype.str, "shape": (count,), "strides": (unit,)}
    return np.asarray(_Memory(described))


def values_at(low: int, high: int, stored: np.dtype[Any], shape: tuple[int, ...], units: NDArray[np.int64]) -> Any:
    """Values of ``stored`` and ``shape`` at these units behind ``low``: a new array of shape (len(units), *shape)."""
    width = stored.itemsize * int(np.prod(shape, dtype=np.int64))
    if width == 0 or units.size == 0:
        return np.empty((units.size, *shape), stored)
    if not shape:
        return plane(low, high, stored).take(units)
    if width > WIDE_BYTES:  # a plane of such items would be larger than numpy counts
        memory = plane(low, high, np.dtype(np.uint8))
        starts = (units * unit_of(width)).tolist()
        return np.stack([memory[start : start + width] for start in starts]).view(stored).reshape(units.size, *shape)
    # One item of ``width`` bytes a row: copied as a whole, several times faster than item by item.
    rows = plane(low, high, np.dtype(f"V{width}"))
    taken = rows.take(units) if rows.flags.c_contiguous else rows[units]
    return taken.view(stored).reshape(units.size, *shape)


def bits_at(low: int, high: int, bits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bits behind ``low``, least significant first."""
    taken: NDArray[np.uint8] = plane(low, high, np.dtype(np.uint8)).take(bits >> 3)
    taken >>= (bits & 7).astype(np.uint8)
    taken &= 1
    return taken.view(np.bool_)
