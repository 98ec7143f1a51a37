"""A split of which a filter keeps some rows: statistics rule out row ranges, the rest is fetched and looked at.

The columns of the filter are fetched for that whether they are mounted or not, and only of row ranges that may match.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.filters import Segments, Selection, SelectionWriter, kept_selection, read_filter, selection_key
from dhtdata.filters.bounds import ShardBounds, join_bounds, range_bounds, shard_bounds, unknown_shards
from dhtdata.filters.prune import may_match
from dhtdata.filters.tree import tree_of
from dhtdata.formats.statistics import MAX_SHARD_STATISTICS_BYTES, ShardStatistics
from dhtdata.mount.resolve import read_indexes
from dhtdata.mount.scanning import scanning
from dhtdata.mount.view import View
from dhtdata.tables.schema import stored_schema, to_arrow
from dhtdata.vault.shards import GroupShards, needed_groups

_log = logging.getLogger("dhtdata")


class FilteredView(View):
    """Columns of the rows that a filter keeps. ``filter`` is a text or an expression; else as `View`.

    Which rows these are is kept in the store: every process of the machine finds it there.
    """

    def __init__(self, *arguments: Any, filter: str | pc.Expression) -> None:
        super().__init__(*arguments)
        self._filter = read_filter(filter, stored_schema(to_arrow(self.dataset.contents.columns, {})))
        self.filter_key = self._filter.key

    def selection(self) -> Selection:
        if self._selected is None:
            store = self._open_store()
            ranges, _ = read_indexes(self.dataset, self.split, [], store, self._fetch)
            key = selection_key(self.dataset.contents_digest, self.split.name, self._filter.digest)
            self._selected = kept_selection(store.path, key, ranges, lambda writer: self._work_out(writer, ranges))
            if not self._selected.count:
                raise ConfigError(
                    f"filter {self.filter_key} keeps none of the {self.split.rows:,} rows of split "
                    f"{self.split.name!r}: {self._selected.looked_at:,} were looked at, statistics rule out the others"
                )
        return self._selected

    def _work_out(self, writer: SelectionWriter, ranges: Sequence[int]) -> None:
        with self.beside(self._filter.columns) as scan:
            scan.filter_key = f"looked at for {self.filter_key}"
            scan.lay_out()
            chosen = self._hopeful(scan, ranges)
            segments = Segments(ranges)
            numbers = np.flatnonzero(chosen[segments.of_range])
            if not numbers.size:
                return
            scan.show(Selection.of_ranges(ranges, chosen))
            ends = np.cumsum(segments.counts[numbers])
            cuts = zip((ends - segments.counts[numbers]).tolist(), ends.tolist(), strict=True)
            with scanning(f"filter {self.filter_key}", int(ends[-1])) as tell:
                for batch, number, end in zip(scan.stored(cuts), numbers.tolist(), ends.tolist(), strict=True):
                    writer.put(number, self._filter.matches(batch))
                    tell(end)

    def _hopeful(self, scan: View, ranges: Sequence[int]) -> NDArray[np.bool_]:
        """Row ranges that statistics do not rule out."""
        rows = np.asarray(ranges, np.int64)
        bounds = {}
        for group, known in zip(scan.groups, self._shard_statistics(scan), strict=True):
            for name in group.columns:
                kind = group.stored.field(name).type
                bounds[name] = range_bounds(_shard_bounds(group, known, name, kind), group.firsts, rows)
        chosen = may_match(tree_of(self._filter.expression), bounds, rows.size)
        _log.info(
            "filter %s: statistics leave %d of %d row ranges to look at", self.filter_key, chosen.sum(), rows.size
        )
        return chosen

    def _shard_statistics(self, scan: View) -> list[list[ShardStatistics | None]]:
        """Of each group that the scan reads, for each of its indexes; None if the publisher kept none."""
        store = self._open_store()
        found = [split.shards for split in self.statistics().splits if split.name == self.split.name]
        listed = found[0] if found and len(found[0]) == len(self.split.groups) else None
        numbers = needed_groups(self.dataset.contents, self._filter.columns)
        if listed is None:
            return [[None] * len(group.indexes) for group in scan.groups]
        digests = [digest for number in numbers for digest in listed[number]]
        if missing := [(digest, MAX_SHARD_STATISTICS_BYTES) for digest in digests if not store.has(digest)]:
            self._fetch(missing)
        return [
            [
                ShardStatistics.decode(store.read(digest, limit_bytes=MAX_SHARD_STATISTICS_BYTES))
                for digest in listed[number]
            ]
            for number in numbers
        ]


def _shard_bounds(
    group: GroupShards, known: Sequence[ShardStatistics | None], name: str, kind: pa.DataType
) -> ShardBounds:
    if len(known) != len(group.indexes):
        return unknown_shards(len(group), kind)
    parts = []
    for index, statistics in zip(group.indexes, known, strict=True):
        columns = statistics.columns if statistics is not None and statistics.shards == len(index) else ()
        column = next((column for column in columns if column.name == name), None)
        parts.append(unknown_shards(len(index), kind) if column is None else shard_bounds(column, kind, index.rows))
    return join_bounds(parts)
