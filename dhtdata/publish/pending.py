"""Rows of one column group that wait for their block to be full."""

from __future__ import annotations

from collections import deque

import pyarrow as pa

_MANY = 64


class PendingRows:
    """A queue of rows in slices of record batches."""

    def __init__(self) -> None:
        self._slices: deque[pa.RecordBatch] = deque()
        self._settled = 0

    def push(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._slices.append(batch)

    def take(self, rows: int) -> list[pa.RecordBatch]:
        """The first ``rows`` rows, as the slices in which they lie."""
        taken = []
        while rows:
            first = self._slices.popleft()
            self._settled = max(0, self._settled - 1)
            if first.num_rows > rows:
                self._slices.appendleft(first.slice(rows))
                self._settled += 1
                first = first.slice(0, rows)
            taken.append(first)
            rows -= first.num_rows
        return taken

    def settle(self) -> None:
        """Copy what waits, so that it keeps no larger buffer alive than its own.

        A narrow group may wait for its block while gigabytes of wide columns go by that share buffers with it. Every
        row is copied a few times at most: slices are merged when there are many.
        """
        unsettled = [self._slices.pop() for _ in range(len(self._slices) - self._settled)]
        for batch in reversed(unsettled):
            self._slices.append(pa.concat_batches([batch]))
        if len(self._slices) > _MANY:
            merged = pa.concat_batches(list(self._slices))
            self._slices = deque([merged])
        self._settled = len(self._slices)
