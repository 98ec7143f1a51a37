"""Rows taken block by block: for columns that only Arrow reads, and for Arrow's own format.

Rows are sorted once per call and cut into runs that lie in one block each; Arrow takes and joins them, and puts them
into the order asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.gather.columns import Column, Flat
from dhtdata.vault.opened import OpenShard
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.vault import Vault

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    """Rows ``rows`` of one block go to positions ``at`` of the result."""

    shard: OpenShard
    block: int
    rows: Rows | slice
    at: Rows | slice


class GroupRuns:
    """The runs of one group that hold some rows, whose blocks are all here."""

    def __init__(self, vault: Vault, group: GroupShards, rows: Rows) -> None:
        self._vault = vault
        self._count = rows.size
        self._order: Rows | None = None
        if rows.size > 1 and not (rows[-1] - rows[0] == rows.size - 1 and bool((np.diff(rows) == 1).all())):
            self._order = np.argsort(rows, kind="stable")
            rows = rows[self._order]
        self._runs = list(_runs(vault, group, rows, self._order))
        vault.ensure((run.shard, [run.block]) for run in self._runs)  # a shard may have been closed since

    def arrow(self, names: Sequence[str]) -> pa.RecordBatch:
        """These columns in their stored types."""
        chosen = list(names)
        pieces = []
        for run in self._runs:
            batch = self._vault.batch(run.shard, run.block).select(chosen)
            if isinstance(run.rows, slice):
                pieces.append(batch.slice(run.rows.start, run.rows.stop - run.rows.start))
            else:
                pieces.append(batch.take(pa.array(run.rows)))
        try:
            joined = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
            if self._order is None:
                return joined
            position = np.empty_like(self._order)
            position[self._order] = np.arange(self._order.size)
            return joined.take(pa.array(position))
        except pa.ArrowInvalid as failure:  # offsets of 32 bits reach 2 GiB
            raise ConfigError(
                f"a batch with columns {', '.join(chosen)} does not fit into one Arrow array ({failure}): "
                "mount with a smaller batch_size"
            ) from failure

    def flat(self, name: str, flat: Flat) -> Column:
        """A column of one width whose items have nulls of their own."""
        values = np.empty((self._count, *flat.shape), flat.stored)
        valid: NDArray[np.bool_] | None = None
        for run in self._runs:
            column = self._vault.batch(run.shard, run.block).column(name)
            taken, taken_valid = flat.take(column, run.rows)
            values[run.at] = taken
            if taken_valid is not None:
                valid = _deep_enough(valid, taken_valid, values)
                valid[run.at] = taken_valid.reshape(taken_valid.shape + (1,) * (valid.ndim - taken_valid.ndim))
        return flat.shown(values, valid)


def _runs(vault: Vault, group: GroupShards, rows: Rows, order: Rows | None) -> Iterator[_Run]:
    """``rows`` ascending. Without ``order`` they are one span, and runs are slices."""
    first = 0
    while first < rows.size:
        number = int(np.searchsorted(group.firsts, rows[first], "right")) - 1
        stop = int(np.searchsorted(rows, group.firsts[number + 1], "left"))
        shard = vault.shard(group, number)
        local = rows[first:stop] - group.firsts[number]
        blocks = np.searchsorted(shard.firsts, local, "right")
        cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), local.size]
        for low, high in zip(cuts, cuts[1:], strict=False):
            block = int(blocks[low])
            in_block = local[low:high] - shard.firsts[block - 1]
            if order is None:
                begin = int(in_block[0])
                yield _Run(shard, block, slice(begin, begin + high - low), slice(first + low, first + high))
            else:
                yield _Run(shard, block, in_block, order[first + low : first + high])
        first = stop


def _deep_enough(
    valid: NDArray[np.bool_] | None, taken: NDArray[np.bool_], values: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """A mask of as many dimensions as both: nulls may be of whole rows in one block, of single items in another."""
    if valid is None:
        return np.ones(values.shape[: taken.ndim], np.bool_)
    if valid.ndim >= taken.ndim:
        return valid
    wide = valid.reshape(valid.shape + (1,) * (taken.ndim - valid.ndim))
    return np.broadcast_to(wide, values.shape[: taken.ndim]).copy()
