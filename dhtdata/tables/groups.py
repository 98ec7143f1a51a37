"""Column groups: which columns are stored together, decided once and inherited by later versions.

A column whose values take 1 KiB or more on average has a group of its own; all others share one. Decided on the first
64 MiB of rows (up to and including the row that reaches them, or all rows if they are fewer), by stored size
(`dhtdata.tables.sizes`), whatever the batches. A later version keeps its parent's groups: a column that is gone leaves
its group, a column that is new joins a new group, chosen by the same rule among the new columns. So nothing moves that
did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from dhtdata.formats.contents import Group
from dhtdata.tables.sizes import value_bytes

SAMPLE_BYTES = 64 << 20
WIDE_BYTES = 1 << 10


class GroupChooser:
    """Sees the first rows of a dataset, in stored form, and decides."""

    def __init__(self, columns: Sequence[str], inherited: Iterable[Group] = ()) -> None:
        self._columns = tuple(columns)
        self._inherited = _kept(self._columns, inherited)
        self._sizes = np.zeros(len(self._columns), dtype=np.int64)
        self._rows = 0
        known = {name for group in self._inherited for name in group.columns}
        self._new = [position for position, name in enumerate(self._columns) if name not in known]

    @property
    def needs_rows(self) -> bool:
        """False once more rows could not change the groups."""
        return bool(self._new) and int(self._sizes.sum()) < SAMPLE_BYTES

    def push(self, batch: pa.RecordBatch) -> None:
        """Weigh the batch's rows, up to the one that completes the sample."""
        sizes = np.stack([value_bytes(column) for column in batch.columns])
        ends = np.cumsum(sizes.sum(axis=0)) + self._sizes.sum()
        rows = min(int(np.searchsorted(ends, SAMPLE_BYTES)) + 1, batch.num_rows)
        self._sizes += sizes[:, :rows].sum(axis=1)
        self._rows += rows

    def groups(self) -> tuple[Group, ...]:
        """Inherited groups first, then wide new columns, each alone, and the narrow ones together, in schema order."""
        wide = [position for position in self._new if self._sizes[position] >= WIDE_BYTES * max(self._rows, 1)]
        narrow = [position for position in self._new if position not in wide]
        chosen = [[position] for position in wide] + ([narrow] if narrow else [])
        chosen.sort()
        return (*self._inherited, *(Group(columns=tuple(self._columns[p] for p in positions)) for positions in chosen))


def _kept(columns: Sequence[str], inherited: Iterable[Group]) -> tuple[Group, ...]:
    present = set(columns)
    kept = (tuple(name for name in group.columns if name in present) for group in inherited)
    return tuple(Group(columns=names) for names in kept if names)
