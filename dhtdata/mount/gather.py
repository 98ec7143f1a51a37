"""Rows of a split, gathered by column out of mapped blocks into one copy. Nothing is done row by row in Python.

Rows are sorted once per call, cut into runs that lie in one block each, and every column copies its runs. Columns of
one width go straight into a numpy array; the others are taken by Arrow, joined and put into the order asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.mount.columns import Column, Flat, held, to_numpy
from dhtdata.mount.shards import GroupShards
from dhtdata.mount.vault import OpenShard, Vault

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    """Rows ``rows`` of one block go to positions ``at`` of the result."""

    shard: OpenShard
    block: int
    rows: Rows | slice
    at: Rows | slice


class Gatherer:
    """Reads columns of a split. ``logical`` is the schema of the chosen columns, in the order asked for."""

    def __init__(self, vault: Vault, groups: Sequence[GroupShards], logical: pa.Schema) -> None:
        self._vault = vault
        self._groups = groups
        self.logical = logical
        self._flat: Mapping[str, Flat | None] = {field.name: Flat.of(field.type) for field in logical}

    def numpy(self, rows: Rows) -> dict[str, Column]:
        """Columns as `columns` maps them, in the order of ``rows``."""
        found: dict[str, Column] = {}
        for group, runs, order in self._located(rows):
            others = [name for name in group.columns if self._flat[name] is None]
            for name in group.columns:
                flat = self._flat[name]
                if flat is not None:
                    found[name] = self._flat_column(name, flat, runs, rows.size)
            if others:
                batch = self._arrow_columns(others, runs, order)
                for name in others:
                    kind = self.logical.field(name).type
                    with held(name, kind):
                        found[name] = to_numpy(batch.column(name), kind)
        return {name: found[name] for name in self.logical.names}

    def stored(self, rows: Rows) -> pa.RecordBatch:
        """Columns in their stored types, in the order of ``rows``."""
        found: dict[str, pa.Array] = {}
        for group, runs, order in self._located(rows):
            batch = self._arrow_columns(group.columns, runs, order)
            found |= dict(zip(group.columns, batch.columns, strict=True))
        return pa.RecordBatch.from_arrays([found[name] for name in self.logical.names], self.logical.names)

    def _located(self, rows: Rows) -> list[tuple[GroupShards, list[_Run], Rows | None]]:
        """Per group the runs that hold the rows; all their blocks are here afterwards."""
        order = None
        if rows.size > 1 and not (rows[-1] - rows[0] == rows.size - 1 and bool((np.diff(rows) == 1).all())):
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
        located = [(group, list(self._runs(group, rows, order)), order) for group in self._groups]
        wanted: dict[int, tuple[OpenShard, list[int]]] = {}
        for _, runs, _ in located:
            for run in runs:
                wanted.setdefault(id(run.shard), (run.shard, []))[1].append(run.block)
        self._vault.ensure(wanted.values())
        return located

    def _runs(self, group: GroupShards, rows: Rows, order: Rows | None) -> Iterator[_Run]:
        """``rows`` ascending. Without ``order`` they are one span, and runs are slices."""
        first = 0
        while first < rows.size:
            number = int(np.searchsorted(group.firsts, rows[first], "right")) - 1
            stop = int(np.searchsorted(rows, group.firsts[number + 1], "left"))
            shard = self._vault.shard(group, number)
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

    def _flat_column(self, name: str, flat: Flat, runs: Sequence[_Run], count: int) -> Column:
        values = np.empty((count, *flat.shape), flat.stored)
        valid: NDArray[np.bool_] | None = None
        for run in runs:
            view = self._view(run, name, flat)
            if view is not None:
                values[run.at] = view[run.rows]
                continue
            taken, taken_valid = flat.take(self._column(run, name), run.rows)
            values[run.at] = taken
            if taken_valid is not None:
                valid = _deep_enough(valid, taken_valid, values)
                valid[run.at] = taken_valid.reshape(taken_valid.shape + (1,) * (valid.ndim - taken_valid.ndim))
        return flat.shown(values, valid)

    def _arrow_columns(self, names: Sequence[str], runs: Sequence[_Run], order: Rows | None) -> pa.RecordBatch:
        chosen = list(names)
        pieces = []
        for run in runs:
            batch = self._vault.batch(run.shard, run.block).select(chosen)
            if isinstance(run.rows, slice):
                pieces.append(batch.slice(run.rows.start, run.rows.stop - run.rows.start))
            else:
                pieces.append(batch.take(pa.array(run.rows)))
        try:
            joined = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
            if order is None:
                return joined
            position = np.empty_like(order)
            position[order] = np.arange(order.size)
            return joined.take(pa.array(position))
        except pa.ArrowInvalid as failure:  # offsets of 32 bits reach 2 GiB
            raise ConfigError(
                f"a batch with columns {', '.join(chosen)} does not fit into one Arrow array ({failure}): "
                "mount with a smaller batch_size"
            ) from failure

    def _view(self, run: _Run, name: str, flat: Flat) -> NDArray[Any] | None:
        views = run.shard.views
        key = (run.block, name)
        if key not in views:
            views[key] = flat.view(self._column(run, name))
        return views[key]

    def _column(self, run: _Run, name: str) -> pa.Array:
        return self._vault.batch(run.shard, run.block).column(name)


def _deep_enough(valid: NDArray[np.bool_] | None, taken: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[np.bool_]:
    """A mask of as many dimensions as both: nulls may be of whole rows in one block, of single items in another."""
    if valid is None:
        return np.ones(values.shape[: taken.ndim], np.bool_)
    if valid.ndim >= taken.ndim:
        return valid
    wide = valid.reshape(valid.shape + (1,) * (taken.ndim - valid.ndim))
    return np.broadcast_to(wide, values.shape[: taken.ndim]).copy()
