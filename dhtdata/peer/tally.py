"""How far a fetch is, shard by shard, and its have-map in little: a strip of cells for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dhtdata.digest import Digest

CELLS = 64
FULL = 255


class Tally:
    """Shards of a fetch in order, as they become whole. Memory: a few numbers for each that is not whole yet."""

    def __init__(self) -> None:
        self.shards = 0
        self.shards_total = 0
        self.bytes = 0
        self.bytes_total = 0
        self._cells: list[int] = []
        self._held: list[int] = []
        self._missing: dict[Digest, tuple[int, int]] = {}

    def begin(self, shards: Sequence[tuple[Digest, int]], held: set[Digest]) -> None:
        """Start anew with these shards (digest, bytes), in order, of which some are whole already."""
        cells = min(CELLS, len(shards))
        self.shards_total, self.bytes_total = len(shards), sum(size for _, size in shards)
        self.shards = self.bytes = 0
        self._cells, self._held, self._missing = [0] * cells, [0] * cells, {}
        for place, (digest, size) in enumerate(shards):
            cell = place * cells // len(shards)
            self._cells[cell] += size
            self._missing[digest] = (cell, size)
        for digest in held:
            self.whole(digest)

    def whole(self, digest: Digest) -> None:
        """A shard is whole now; nothing new if that was known, or if it is none of these."""
        cell, size = self._missing.pop(digest, (0, 0))
        if size:
            self._held[cell] += size
            self.shards += 1
            self.bytes += size

    def held_bytes(self, partials: Mapping[Digest, int]) -> int:
        """Bytes of whole shards and of ``partials`` (shard → bytes of verified blocks) among the others."""
        return self.bytes + sum(min(partials[digest], self._missing[digest][1]) for digest in self._of(partials))

    def have(self, partials: Mapping[Digest, int]) -> bytes:
        """A byte for each of at most `CELLS` runs of shards: the share that is here, `FULL` only if all of it is."""
        held = list(self._held)
        for digest in self._of(partials):
            cell, size = self._missing[digest]
            held[cell] += min(partials[digest], size)
        return bytes(part * FULL // whole for part, whole in zip(held, self._cells, strict=True))

    def _of(self, partials: Mapping[Digest, int]) -> list[Digest]:
        return [digest for digest in partials if digest in self._missing]
