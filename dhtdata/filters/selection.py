"""Which rows of a split a filter keeps: worked out once, kept in a file, mapped by every process that reads it.

Row ranges are cut into *segments* of at most 65,536 rows. A file says of each segment how many rows are kept, and of
those segments of which some are and some are not, which ones::

    8 bytes   "dhtrows1"
    32        key: names contents, split and filter
    8, 8, 8   rows of the split, segments, rows that were looked at (little endian)
    32        digest of key, these numbers and all that follows
    4 each    kept rows by segment
    bitmaps   one bit a row, lowest bit first, whole bytes for each such segment

*Positions* number the kept rows of the whole split from 0, in source order; `Selection.rows` turns positions into rows.
The file is read through a map, so that a bitmap of a billion rows needs 125 MB of page cache that all processes share.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dhtdata.digest import Buffer, Digest, Hasher
from dhtdata.errors import FormatError, NotFoundError, StoreError
from dhtdata.store.filesystem import store_errors, sync_folder

SEGMENT_ROWS = 1 << 16
_MAGIC = b"dhtrows1"
_HEAD = struct.Struct("<8s32sQQQ32s")
_NUMBERS = struct.Struct("<QQQ")
_CACHED_BYTES = 8 << 20
_DIGESTED_BYTES = 1 << 22

Rows = NDArray[np.int64]


class Segments:
    """Row ranges, cut: ``firsts`` and ``counts`` of rows in source order, and the range of each."""

    def __init__(self, ranges: Sequence[int]) -> None:
        rows = np.asarray(ranges, np.int64)
        parts = -(-rows // SEGMENT_ROWS)
        self.of_range: Rows = np.repeat(np.arange(rows.size), parts)
        part = np.arange(self.of_range.size) - np.repeat(np.cumsum(parts) - parts, parts)
        range_firsts = np.cumsum(rows) - rows
        self.firsts: Rows = range_firsts[self.of_range] + part * SEGMENT_ROWS
        self.counts: Rows = np.minimum(rows[self.of_range] - part * SEGMENT_ROWS, SEGMENT_ROWS)
        self.rows = int(rows.sum())
        self.ranges = rows.size

    def __len__(self) -> int:
        return self.firsts.size


class Selection:
    """Kept rows of a split. Threads may share it."""

    def __init__(self, segments: Segments, kept: Rows, bitmaps: Buffer, looked_at: int) -> None:
        self._segments = segments
        self._kept = kept
        self._bits = np.frombuffer(bitmaps, np.uint8)
        self._begins: Rows = np.cumsum(kept) - kept
        partial = (kept > 0) & (kept < segments.counts)
        sizes = np.where(partial, -(-segments.counts // 8), 0)
        self._partial = partial
        self._offsets: Rows = np.cumsum(sizes) - sizes
        self._open: OrderedDict[int, NDArray[np.uint16]] = OrderedDict()
        self._open_bytes = 0
        self._lock = threading.Lock()
        self.count = int(kept.sum())
        self.looked_at = looked_at
        """Rows that the filter was asked about; statistics answered for the others."""

    @classmethod
    def of_ranges(cls, ranges: Sequence[int], chosen: NDArray[np.bool_]) -> Selection:
        """All rows of some row ranges."""
        segments = Segments(ranges)
        return cls(segments, np.where(chosen[segments.of_range], segments.counts, 0), b"", 0)

    def range_counts(self) -> tuple[int, ...]:
        """Kept rows of the row ranges that have any, in source order: the ranges of an order over positions."""
        counts = np.bincount(self._segments.of_range, self._kept, self._segments.ranges).astype(np.int64)
        return tuple(counts[counts > 0].tolist())

    def spans(self) -> Rows:
        """Source spans (first row, rows) of shape (n, 2) outside of which no row is kept, in order."""
        some = self._kept > 0
        return np.stack([self._segments.firsts[some], self._segments.counts[some]], axis=1)

    def around(self, spans: Rows) -> Rows:
        """Source spans that hold the rows at these spans of positions (first, count > 0), of shape (n, 2).

        Rounded out to whole segments, for which no bitmap is read.
        """
        first = np.searchsorted(self._begins, spans[:, 0], "right") - 1
        last = np.searchsorted(self._begins, spans[:, 0] + spans[:, 1] - 1, "right") - 1
        begins = self._segments.firsts[first]
        return np.stack([begins, self._segments.firsts[last] + self._segments.counts[last] - begins], axis=1)

    def rows(self, positions: Rows) -> Rows:
        """Source rows at these positions, in the order given. IndexError beyond the ends."""
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < self.count:
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {self.count} kept rows")
        numbers = np.searchsorted(self._begins, positions, "right") - 1
        within = positions - self._begins[numbers]
        found: Rows = self._segments.firsts[numbers] + within
        listed = np.flatnonzero(self._partial[numbers])
        if listed.size:
            listed = listed[np.argsort(numbers[listed], kind="stable")]
            cuts = np.flatnonzero(np.diff(numbers[listed])) + 1
            for places in np.split(listed, cuts):
                number = int(numbers[places[0]])
                found[places] = self._segments.firsts[number] + self._places(number)[within[places]]
        return found

    def _places(self, number: int) -> NDArray[np.uint16]:
        """Kept rows of a segment, counted from its first."""
        with self._lock:
            places = self._open.get(number)
            if places is not None:
                self._open.move_to_end(number)
                return places
            count, offset = int(self._segments.counts[number]), int(self._offsets[number])
            bits = np.unpackbits(self._bits[offset : offset - (-count // 8)], count=count, bitorder="little")
            places = self._open[number] = np.flatnonzero(bits).astype(np.uint16)
            self._open_bytes += places.nbytes
            while self._open_bytes > _CACHED_BYTES and len(self._open) > 1:
                self._open_bytes -= self._open.popitem(last=False)[1].nbytes
            return places


def open_selection(path: Path, key: Digest, ranges: Sequence[int]) -> Selection:
    """The selection in a file. NotFoundError if there is none, FormatError if it is damaged or another one's."""
    try:
        with path.open("rb") as file, store_errors(path):
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as failure:
        raise NotFoundError(f"{path}: no kept rows") from failure
    except ValueError as failure:
        raise FormatError(f"{path} is empty") from failure
    except OSError as failure:
        raise StoreError(f"{path}: {failure.strerror or failure}") from failure
    segments = Segments(ranges)
    if len(data) < _HEAD.size:
        raise FormatError(f"{path} ends within its head")
    magic, found, rows, count, looked_at, digest = _HEAD.unpack_from(data)
    if (magic, found, rows, count) != (_MAGIC, key, segments.rows, len(segments)):
        raise FormatError(f"{path} does not say which rows of this split are kept")
    body = memoryview(data)[_HEAD.size :]
    if len(body) < 4 * count or _digest(found, (rows, count, looked_at), body) != digest:
        raise FormatError(f"{path} has other bytes than were written")
    kept = np.frombuffer(body[: 4 * count], "<u4").astype(np.int64)
    return Selection(segments, kept, body[4 * count :], looked_at)


class SelectionWriter:
    """Writes a selection segment by segment, in order. Make it with `writing_selection`."""

    def __init__(self, path: Path, key: Digest, segments: Segments, descriptor: int) -> None:
        self._path = path
        self._key = key
        self._segments = segments
        self._kept = np.zeros(len(segments), "<u4")
        self._descriptor = descriptor
        self._end = self._body = _HEAD.size + self._kept.nbytes
        self._looked_at = 0

    def put(self, number: int, kept: NDArray[np.bool_]) -> None:
        """Which rows of a segment are kept; segments that are left out keep none."""
        count = int(np.count_nonzero(kept))
        self._kept[number] = count
        self._looked_at += kept.size
        if 0 < count < kept.size:
            bits = np.packbits(kept, bitorder="little").tobytes()
            with store_errors(self._path, len(bits)):
                os.pwrite(self._descriptor, bits, self._end)
            self._end += len(bits)

    def commit(self) -> None:
        """Put the file where `open_selection` looks for it, whole and durable."""
        numbers = (self._segments.rows, len(self._segments), self._looked_at)
        with store_errors(self._path, self._body):
            os.pwrite(self._descriptor, self._kept.tobytes(), _HEAD.size)
            with mmap.mmap(self._descriptor, self._end, access=mmap.ACCESS_READ) as data:
                with memoryview(data)[_HEAD.size :] as body:
                    digest = _digest(self._key, numbers, body)
            os.pwrite(self._descriptor, _HEAD.pack(_MAGIC, self._key, *numbers, digest), 0)
            os.fsync(self._descriptor)
            os.replace(_unfinished(self._path), self._path)
            sync_folder(self._path.parent)


@contextmanager
def writing_selection(path: Path, key: Digest, segments: Segments) -> Iterator[SelectionWriter]:
    """A new selection for ``path``, which only one process at a time may write; gone unless it is committed."""
    unfinished = _unfinished(path)
    with store_errors(path):
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield SelectionWriter(path, key, segments, descriptor)
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_suffix(".unfinished")


def _digest(key: bytes, numbers: tuple[int, int, int], body: Buffer) -> Digest:
    hasher = Hasher()
    hasher.update(key + _NUMBERS.pack(*numbers))
    with memoryview(body) as view:
        for first in range(0, len(view), _DIGESTED_BYTES):
            hasher.update(view[first : first + _DIGESTED_BYTES])
    return hasher.digest()
