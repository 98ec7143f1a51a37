"""One pass over the rows of a split: read, make plain, cut, encode, digest, write.

A thread reads ahead; this one fingerprints and cuts; others, one per *lane*, encode blocks, digest and write them; two
more wait for the disk. Every queue is bounded, in batches or in bytes, so that memory does not grow with the input.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.formats.blocks import MAX_ROW_BYTES
from dhtdata.formats.contents import Group, Split
from dhtdata.formats.index import encode_ranges
from dhtdata.formats.statistics import SplitStatistics
from dhtdata.publish.destination import Destination
from dhtdata.publish.pending import PendingRows
from dhtdata.publish.shards import GroupWriter, index_group
from dhtdata.tables.canonical import to_stored
from dhtdata.tables.cutting import Cut, Cutter, row_ranges
from dhtdata.tables.decoding import decodable
from dhtdata.tables.fingerprint import row_fingerprints
from dhtdata.tables.groups import GroupChooser
from dhtdata.tables.sizes import value_bytes
from dhtdata.tables.sources import OpenedSource
from dhtdata.tables.statistics import Sample, column_statistics

_BATCHES_AHEAD = 2
_BYTES_IN_LANES = 32 << 20
_COMMITTERS = 2
_RELEASE_BYTES = 64 << 20


@dataclass(frozen=True)
class Progress:
    """How far a split is. ``source_total`` is 0 where nobody knows it (a Python iterator)."""

    split: str
    rows: int
    stored_bytes: int
    source_done: int
    source_total: int


@dataclass(frozen=True)
class StoredRows:
    """Some rows in stored form, and where they came from: a file or object, and the position of the first row in it."""

    batch: pa.RecordBatch
    name: str
    first_row: int


@dataclass(frozen=True)
class PublishedSplit:
    """A split whose blobs are durable: for the contents, for the statistics, for people."""

    split: Split
    statistics: SplitStatistics
    new_shards: int
    new_bytes: int


def stored_rows(source: OpenedSource, logical: pa.Schema, stored: pa.Schema) -> Iterator[StoredRows]:
    """All rows of a source in stored form. ConfigError or FormatError name the file."""
    for rows in source.rows(logical):
        first = rows.first_row
        for batch in decodable(rows.batch):
            try:
                yield StoredRows(to_stored(batch, stored), rows.name, first)
            except ConfigError as failure:
                raise ConfigError(f"{rows.name}: after row {first}: {failure}") from failure
            first += batch.num_rows


class ReadAhead:
    """An iterator whose items are made in a thread, a few ahead."""

    def __init__(self, items: Iterator[StoredRows], executor: Executor) -> None:
        self._items = items
        self._executor = executor
        self._ahead: deque[Future[StoredRows | None]] = deque()

    def __iter__(self) -> Iterator[StoredRows]:
        self._ahead.extend(self._executor.submit(next, self._items, None) for _ in range(_BATCHES_AHEAD))
        while (item := self._ahead.popleft().result()) is not None:
            self._ahead.append(self._executor.submit(next, self._items, None))
            yield item


class Lanes:
    """Threads that handle blocks: one after another within a group, groups side by side, bytes in flight bounded."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        self._lanes = [
            stack.enter_context(_cancelled(ThreadPoolExecutor(1, f"publish-lane-{n}"))) for n in range(count)
        ]
        self._failed = threading.Event()
        self._in_flight: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0

    def submit(self, group: int, size: int, work: Callable[[], None]) -> None:
        """Run ``work``; waits until there is room. Raises what went wrong with earlier work."""
        while self._in_flight and (self._bytes + size > _BYTES_IN_LANES or self._in_flight[0][0].done()):
            self._wait()
        self._in_flight.append((self._lanes[group % len(self._lanes)].submit(self._run, work), size))
        self._bytes += size

    def drain(self) -> None:
        """Wait until all work is done."""
        while self._in_flight:
            self._wait()

    def _run(self, work: Callable[[], None]) -> None:
        if self._failed.is_set():
            return  # a block is missing: what follows it makes no shard
        try:
            work()
        except BaseException:
            self._failed.set()
            raise

    def _wait(self) -> None:
        future, size = self._in_flight.popleft()
        self._bytes -= size
        future.result()


class _GroupPass:
    """One column group on its way: cutter, waiting rows, writer."""

    def __init__(self, number: int, columns: Sequence[int], writer: GroupWriter, lanes: Lanes) -> None:
        self.columns = columns
        self.writer = writer
        self._number = number
        self._lanes = lanes
        self._cutter = Cutter()
        self._pending = PendingRows()

    def push(self, batch: pa.RecordBatch, sizes: NDArray[np.int64]) -> None:
        self._pending.push(batch)
        self._write(self._cutter.push(row_fingerprints(batch.columns), sizes))
        self._pending.settle()

    def finish(self) -> None:
        self._write(self._cutter.finish())
        self._lanes.submit(self._number, 0, self.writer.finish)

    def _write(self, cuts: list[Cut]) -> None:
        for cut in cuts:
            work = partial(self.writer.add, self._pending.take(cut.rows), cut.starts_shard)
            self._lanes.submit(self._number, cut.row_bytes, work)


class SplitPublisher:
    """Publishes splits of one dataset: same columns, same groups, same destination."""

    def __init__(self, stored: pa.Schema, destination: Destination, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self._stored = stored
        self._destination = destination
        self._max_row_bytes = max_row_bytes

    def publish(
        self, name: str, rows: Iterable[StoredRows], groups: Sequence[Group], report: Callable[[int, int], None]
    ) -> PublishedSplit:
        """Write one split; durable on return. ``report`` hears of rows and stored bytes so far."""
        sample = Sample(self._stored)
        columns = [[self._stored.get_field_index(column) for column in group.columns] for group in groups]
        with ExitStack() as stack:
            # Left in reverse: lanes stop, then open shards are dropped, then those that are finished become durable.
            committer = stack.enter_context(ThreadPoolExecutor(_COMMITTERS, "publish-commit"))
            schemas = [pa.schema([self._stored.field(column) for column in chosen]) for chosen in columns]
            writers = [GroupWriter(schema, self._destination, committer) for schema in schemas]
            for writer in writers:
                stack.callback(writer.close)
            lanes = Lanes(min(len(groups), os.cpu_count() or 1), stack)
            passes = [_GroupPass(number, columns[number], writer, lanes) for number, writer in enumerate(writers)]
            row_count = self._pass(rows, passes, sample, report)
            if row_count == 0:
                raise ConfigError(f"split {name!r} has no rows: leave it out, or check its source")
            for group_pass in passes:
                group_pass.finish()
            lanes.drain()
            return self._indexed(name, row_count, passes, sample, committer)

    def _pass(
        self,
        rows: Iterable[StoredRows],
        passes: Sequence[_GroupPass],
        sample: Sample,
        report: Callable[[int, int], None],
    ) -> int:
        row_count = stored_bytes = unreleased = 0
        for part in rows:
            sample.add(part.batch)
            sizes = [value_bytes(column) for column in part.batch.columns]
            for group_pass in passes:
                total = sum((sizes[column] for column in group_pass.columns), np.zeros(part.batch.num_rows, np.int64))
                self._check_rows(part, total, {column: sizes[column] for column in group_pass.columns})
                group_pass.push(part.batch.select(group_pass.columns), total)
                stored_bytes += int(total.sum())
            row_count += part.batch.num_rows
            report(row_count, stored_bytes)
            if stored_bytes - unreleased > _RELEASE_BYTES:
                pa.default_memory_pool().release_unused()
                unreleased = stored_bytes
        return row_count

    def _check_rows(self, part: StoredRows, total: NDArray[np.int64], sizes: dict[int, NDArray[np.int64]]) -> None:
        row = int(total.argmax())
        if total[row] > self._max_row_bytes:
            column = max(sizes, key=lambda position: int(sizes[position][row]))
            raise ConfigError(
                f"{part.name}: row {part.first_row + row} takes {total[row]} bytes, most of them in column "
                f"{self._stored.field(column).name!r}; at most {self._max_row_bytes} are allowed: split the value into "
                "several rows, or leave the row out"
            )

    def _indexed(
        self, name: str, row_count: int, passes: Sequence[_GroupPass], sample: Sample, committer: Executor
    ) -> PublishedSplit:
        written = [shard for group_pass in passes for shard in group_pass.writer.shards()]
        waiting = [committer.submit(index_group, group_pass.writer, self._destination) for group_pass in passes]
        ranges = encode_ranges(row_ranges([group_pass.writer.blocks() for group_pass in passes]))
        indexed = [future.result() for future in waiting]
        split = Split(
            name=name,
            rows=row_count,
            ranges=self._destination.put(ranges),
            groups=tuple(group.shards for group in indexed),
        )
        summaries = {
            column: summary
            for group_pass in passes
            for column, summary in zip(group_pass.columns, group_pass.writer.summary.whole, strict=True)
        }
        statistics = SplitStatistics(
            name=name,
            rows=row_count,
            sampled=sample.rows,
            columns=tuple(
                column_statistics(self._stored.field(column).name, summaries[column], sample, column)
                for column in range(len(self._stored))
            ),
            shards=tuple(group.statistics for group in indexed),
        )
        new = [shard for shard in written if shard.new]
        return PublishedSplit(split, statistics, len(new), sum(shard.entry.size for shard in new))


def choose_groups(
    rows: Iterator[StoredRows], stored: pa.Schema, inherited: Iterable[Group]
) -> tuple[tuple[Group, ...], Iterator[StoredRows]]:
    """Column groups, decided on the first rows; and an iterator that still has all of them."""
    chooser = GroupChooser(stored.names, inherited)
    seen: deque[StoredRows] = deque()
    while chooser.needs_rows and (part := next(rows, None)) is not None:
        chooser.push(part.batch)
        seen.append(part)
    return chooser.groups(), _replayed(seen, rows)


def _replayed(seen: deque[StoredRows], rest: Iterator[StoredRows]) -> Iterator[StoredRows]:
    while seen:
        yield seen.popleft()
    yield from rest


@contextmanager
def _cancelled(executor: Executor) -> Iterator[Executor]:
    """A pool that drops what waits in it when its block is left."""
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
