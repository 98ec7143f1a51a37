"""How far a fetch is, and its have-map in little: a strip of cells for people to look at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from dhtdata.digest import Digest

CELLS = 64
FULL = 255

Spans = Mapping[Digest, Sequence[tuple[int, int]]]
"""Verified blocks of shards that are not whole: shard → (offset, length) of each."""


class Tally:
    """Shards of a fetch in order, as they become whole. Memory: a few numbers for each that is not whole yet."""

    def __init__(self) -> None:
        self.shards = 0
        self.shards_total = 0
        self.bytes = 0
        self.bytes_total = 0
        self._ends: list[int] = []
        self._held: list[int] = []
        self._missing: dict[Digest, tuple[int, int]] = {}

    def begin(self, shards: Sequence[tuple[Digest, int]], held: set[Digest]) -> None:
        """Start anew with these shards (digest, bytes), in order, of which some are whole already."""
        self._missing = {}
        first_byte = 0
        for digest, size in shards:
            self._missing[digest] = (first_byte, size)
            first_byte += size
        self.shards_total, self.bytes_total = len(shards), first_byte
        self.shards = self.bytes = 0
        cells = min(CELLS, first_byte)
        self._ends = [(cell + 1) * first_byte // cells for cell in range(cells)]
        self._held = [0] * cells
        for digest in held:
            self.whole(digest)

    def whole(self, digest: Digest) -> None:
        """A shard is whole now; nothing new if that was known, or if it is none of these."""
        first_byte, size = self._missing.pop(digest, (0, 0))
        if size:
            self._fill(self._held, first_byte, first_byte + size)
            self.shards += 1
            self.bytes += size

    def held_bytes(self, partials: Spans) -> int:
        """Bytes of whole shards, and of ``partials`` among the others."""
        return self.bytes + sum(end - start for start, end in self._of(partials))

    def have(self, partials: Spans) -> bytes:
        """A byte for each of at most `CELLS` equal parts of the bytes: the share that is here; `FULL` only for all."""
        held = list(self._held)
        for start, end in self._of(partials):
            self._fill(held, start, end)
        starts = [0, *self._ends]
        return bytes(part * FULL // (end - start) for part, start, end in zip(held, starts, self._ends, strict=False))

    def _of(self, partials: Spans) -> Iterator[tuple[int, int]]:
        """Where these blocks stand among all bytes: half-open."""
        for digest, spans in partials.items():
            if digest in self._missing:
                first_byte, size = self._missing[digest]
                for offset, length in spans:
                    yield first_byte + min(offset, size), first_byte + min(offset + length, size)

    def _fill(self, held: list[int], start: int, end: int) -> None:
        cell = bisect_right(self._ends, start)
        while start < end:
            upto = min(end, self._ends[cell])
            held[cell] += upto - start
            start, cell = upto, cell + 1
