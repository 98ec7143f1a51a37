"""Lists of any length, end to end, and the shapes that a batch of them may have. Nothing is done row by row.

*Padded*: one array of shape (rows, longest, ...), filled up behind the end of each row; the lengths are a column of
their own. *Jagged*: a dict of ``values``, all items end to end, ``offsets``, int32 of shape (rows + 1,), and
``longest``, an int. These are the ``cu_seqlens`` and ``max_seqlen`` of flash attention (``flash_attn_varlen_func``,
``torch.nn.attention.varlen.varlen_attn``), and what ``torch.nested.nested_tensor_from_jagged(values, offsets)`` takes.
A nested tensor itself would have to be taken apart again for the former, and cannot be handed to another process.

A null list is an empty one here. Null items are marked as `columns` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.gather.columns import Array, Cut, part, plain_type, to_numpy

MAX_ITEMS = np.iinfo(np.int32).max
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Row i has the items ``values[bounds[i]:bounds[i + 1]]``; ``bounds`` starts at 0."""

    values: Array
    bounds: Rows

    @classmethod
    def of(cls, array: pa.Array, kind: pa.DataType) -> Ragged:
        """A list column in its stored form; ``kind`` is the logical type."""
        offsets = array.offsets.to_numpy().astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        items = to_numpy(array.values.slice(first, last - first), plain_type(kind).value_type)
        if not isinstance(items, np.ndarray):
            raise ValueError("its items do not lie end to end in one array")
        return cls(items, offsets - first)

    @classmethod
    def joined(cls, rows: Sequence[Any]) -> Ragged:
        """Rows that somebody else made: arrays, tensors, lists, None. ValueError if they do not go together."""
        arrays = [np.empty(0) if row is None else np.asarray(row) for row in rows]
        if any(array.ndim == 0 for array in arrays):
            raise ValueError("a row is a single value, not a list of them")
        filled = [array for array in arrays if array.size] or arrays[:1]
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(array) for array in arrays])])
        return cls(np.concatenate(filled), bounds)

    @property
    def lengths(self) -> Rows:
        return np.diff(self.bounds)

    def padded(self, batches: tuple[int, ...], fill: Any) -> Cut:
        """An array of shape (rows, longest, ...) for each batch; ``batches`` says where they begin and end."""
        lengths = self.lengths
        return Cut([self._padded(lengths[first:stop], first, stop, fill) for first, stop in pairwise(batches)])

    def jagged(self, batches: tuple[int, ...]) -> dict[str, Cut]:
        """Parts of ``values`` without a copy, offsets, and the longest row of each batch."""
        lengths = self.lengths
        values, offsets, longest = [], [], []
        for first, stop in pairwise(batches):
            begin, end = int(self.bounds[first]), int(self.bounds[stop])
            if end - begin > MAX_ITEMS:
                raise ConfigError(
                    f"a batch has {end - begin} items end to end, offsets of 32 bits reach {MAX_ITEMS}: mount with a "
                    "smaller batch_size"
                )
            values.append(part(self.values, begin, end))
            offsets.append((self.bounds[first : stop + 1] - begin).astype(np.int32))
            longest.append(int(lengths[first:stop].max(initial=0)))
        return {"values": Cut(values), "offsets": Cut(offsets), "longest": Cut(longest)}

    def _padded(self, lengths: Rows, first: int, stop: int, fill: Any) -> Array:
        values: Array = part(self.values, int(self.bounds[first]), int(self.bounds[stop]))
        longest = int(lengths.max(initial=0))
        shape = (stop - first, longest, *values.shape[1:])
        if values.shape[0] == shape[0] * longest:
            return values.reshape(shape)
        # Comparing 32 bits takes half the time, and half of it all.
        counted: np.dtype[Any] = np.dtype("i4" if longest <= MAX_ITEMS else "i8")
        filled = np.arange(longest, dtype=counted) < lengths.astype(counted)[:, None]
        if not isinstance(values, np.ma.MaskedArray):
            return _spread(values, filled, shape, fill)
        mask = _spread(np.ma.getmaskarray(values), filled, shape, False)
        return np.ma.MaskedArray(_spread(values.data, filled, shape, fill), mask=mask)


def _spread(values: Array, filled: NDArray[np.bool_], shape: tuple[int, ...], fill: Any) -> Array:
    made = np.zeros(shape, values.dtype) if fill is None else np.full(shape, fill, values.dtype)
    made[filled] = values
    return made
