"""What a loop will read, shard by shard: so that a store with a cache limit keeps what is needed next.

The order of an epoch is known before it begins, and the next epoch's, too. `Horizon` tells the peer which positions
read which shard, and where the loop is whenever that makes a difference: at the ends of windows. It is a request and an
answer on a Unix socket every 256 MB or so, made by the loop itself; no thread waits for it. A peer that cannot be
reached is told later, and what it dropped meanwhile is fetched again.

`Needs` says what a loop must hold at once: a window for each lane, and what is read ahead.
"""

from __future__ import annotations

import json
import logging
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, DhtDataError
from dhtdata.order import EpochOrder, Path, Pieces
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.vault import Vault

if TYPE_CHECKING:
    from dhtdata.control.reading import Reading
    from dhtdata.filters import Selection

MAX_SPANS = 1 << 18
"""What a part tells at most: about 4 TB of shards. What is needed still later goes first, as if never needed."""
TABLE_BYTES = 128
SHARD_BYTES_PER_TABLE_BYTE = 4_096
"""A block of at least 256 KiB takes less than 64 bytes of its table."""
_log = logging.getLogger("dhtdata")

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Uses:
    """Spans of an epoch's positions ``[firsts, stops)`` that read shard ``numbers`` of one group; by shard, ascending.

    Spans of one shard neither overlap nor touch.
    """

    numbers: Numbers
    firsts: Numbers
    stops: Numbers

    @classmethod
    def of(cls, group: GroupShards, order: EpochOrder, lanes: range, selection: Selection | None = None) -> Uses:
        found = [_lane_uses(group, order, lane, selection) for lane in lanes]
        numbers, firsts, stops = (np.concatenate(columns) for columns in zip(*found, strict=True))
        by_shard = np.lexsort((firsts, numbers))
        numbers, firsts, stops = numbers[by_shard], firsts[by_shard], stops[by_shard]
        # The latest end so far, of this shard alone: shards are kept apart by more than an epoch.
        apart = numbers * (order.rows + 1)
        reached = np.maximum.accumulate(stops + apart) - apart
        begins = np.flatnonzero((np.diff(numbers, prepend=-1) != 0) | (firsts > np.append(-1, reached[:-1])))
        return cls(numbers[begins], firsts[begins], reached[np.append(begins, numbers.size)[1:] - 1])

    def at(self, position: int) -> set[int]:
        """Shards that are read at this position."""
        return set(self.numbers[(self.firsts <= position) & (position < self.stops)].tolist())


def _lane_uses(
    group: GroupShards, order: EpochOrder, lane: int, selection: Selection | None
) -> tuple[Numbers, Numbers, Numbers]:
    spans, firsts, stops = order.sources(lane)
    if selection is not None:
        spans = selection.around(spans)
    lowest = np.searchsorted(group.firsts, spans[:, 0], "right") - 1
    counts = np.searchsorted(group.firsts, spans.sum(axis=1), "left") - lowest
    begins = np.cumsum(counts) - counts
    numbers = np.repeat(lowest - begins, counts) + np.arange(int(counts.sum()), dtype=np.int64)
    lanes = order.lanes
    return numbers, np.repeat(firsts * lanes + lane, counts), np.repeat((stops - 1) * lanes + lane + 1, counts)


class Horizon:
    """One loop's. Positions of all its epochs lie on one axis, an epoch of ``rows`` behind the other."""

    _told: int

    def __init__(
        self,
        vault: Vault,
        reading: Reading,
        whose: str,
        groups: Sequence[GroupShards],
        path: Path,
        selection: Selection | None = None,
    ) -> None:
        self._vault = vault
        self._reading = reading
        self._groups = groups
        self._told = -1
        self._first_epoch = path.order.epoch
        self._lanes = path.lanes
        self._name = _name_of(whose, path)
        self._selection = selection
        self._row_bytes = sum(group.byte_count / int(group.firsts[-1]) for group in groups)
        self._enter(path.order)
        self.advance(path.consumed + 1)

    def advance(self, position: int) -> None:
        """The loop works on rows up to this position of the path, and has no use for earlier windows."""
        epochs, last = divmod(position - 1, self._order.rows)
        if self._first_epoch + epochs != self._order.epoch:
            self._enter(self._order.of_epoch(self._first_epoch + epochs))
        window = int(np.searchsorted(self._bounds, last, "right"))
        if window == self._told:
            return
        self._told = window
        wanted = [uses.at(last) for uses in self._uses]
        self._vault.release(
            {
                group.entry(number).digest
                for group, numbers in zip(self._groups, wanted, strict=True)
                for number in numbers
            }
        )
        try:
            self._tell(last)
        except DhtDataError as failure:
            _log.debug("the peer was not told what the loop reads next: %s", failure)

    def close(self) -> None:
        self._reading.close()

    def _enter(self, order: EpochOrder) -> None:
        """Work on another epoch of the path."""
        self._order = order
        self._uses = [Uses.of(group, order, self._lanes, self._selection) for group in self._groups]
        ends = [ends for uses in self._uses for ends in (uses.firsts, uses.stops)]
        self._bounds = np.unique(np.concatenate(ends))
        self._told = -1

    def _tell(self, last: int) -> None:
        epoch, rows = self._order.epoch, self._order.rows
        known = self._reading.stand(self._name, epoch * rows + last, self._row_bytes)
        for number in (epoch, epoch + 1):
            if number * rows not in known:
                self._reading.learn(self._name, number * rows, (number + 1) * rows, self._part(number))

    def _part(self, epoch: int) -> dict[Digest, array[int]]:
        """What an epoch reads, by shard."""
        order = self._order if epoch == self._order.epoch else self._order.of_epoch(epoch)
        found: dict[Digest, array[int]] = {}
        offset, left = epoch * order.rows, MAX_SPANS // len(self._groups)
        for group in self._groups:
            uses = Uses.of(group, order, self._lanes, self._selection)
            chosen = np.sort(np.argsort(uses.firsts, kind="stable")[:left])
            spans = np.stack([uses.firsts, uses.stops], axis=1)[chosen] + offset
            for number, ends in zip(uses.numbers[chosen].tolist(), spans.tolist(), strict=True):
                found.setdefault(group.entry(number).digest, array("q")).extend(ends)
        return found


def _name_of(whose: str, path: Path) -> Digest:
    """The same in all processes of a machine that read the same windows."""
    parts = [whose, *path.order.every_epoch, path.lanes.start, path.lanes.stop]
    return Digest.of(json.dumps(parts).encode())


@dataclass(frozen=True)
class Needs:
    """Bytes of whole shards that loops of this machine must hold at once.

    ``piece_bytes`` are of a piece (a row range, or part of a long one) itself; ``touched_bytes`` of the shards that
    hold one, by group, at most; ``group_bytes`` of all shards of a group. ``window`` pieces are shuffled together, of
    each of ``lanes``. ``table_bytes`` are of all block tables, about, which stay once they are here.
    """

    piece_bytes: float
    touched_bytes: tuple[int, ...]
    group_bytes: tuple[int, ...]
    table_bytes: int
    window: int
    lanes: int

    @classmethod
    def of(
        cls,
        groups: Sequence[GroupShards],
        pieces: Pieces,
        window: int,
        lanes: int,
        selection: Selection | None = None,
    ) -> Needs:
        spans = np.stack([pieces.firsts, pieces.counts], axis=1)
        if selection is not None:
            spans = selection.around(spans)
        piece_rows = pieces.rows / len(pieces)
        return cls(
            piece_bytes=piece_rows * sum(group.byte_count / int(group.firsts[-1]) for group in groups),
            touched_bytes=tuple(_most_touched(group, spans) for group in groups),
            group_bytes=tuple(group.byte_count for group in groups),
            table_bytes=sum(
                TABLE_BYTES * len(group) + group.byte_count // SHARD_BYTES_PER_TABLE_BYTE for group in groups
            ),
            window=window,
            lanes=lanes,
        )

    def bytes_for(self, ahead: int) -> int:
        """With so many bytes of rows read ahead."""
        pieces = self.window * self.lanes + (math.ceil(ahead / self.piece_bytes) + 1 if ahead else 0)
        return self.table_bytes + sum(
            min(whole, pieces * touched) for touched, whole in zip(self.touched_bytes, self.group_bytes, strict=True)
        )

    def ahead(self, given: int | None, usual: int, limit_bytes: int, kept_bytes: int) -> int:
        """Bytes to read ahead: ``given`` by the user, else as many of the usual as fit under the cache limit.

        ``kept_bytes`` never make room. ConfigError says what the limit must be.
        """
        room = limit_bytes - kept_bytes
        least = self.bytes_for(given or 0)
        if least <= room and given is not None:
            return given
        if least > room:
            what = f"a window of {self.window} row ranges" + (f" for each of {self.lanes} lanes" * (self.lanes > 1))
            what += f" and predownload={given}" if given else ""
            advice = "a smaller predownload" if given and self.bytes_for(0) <= room else "a smaller shuffle_window"
            raise ConfigError(
                f"a cache limit of {limit_bytes} bytes is too small for {what}: it must be at least "
                f"{least + kept_bytes} bytes (cache_limit or DHTDATA_CACHE_LIMIT), or choose {advice}"
            )
        while usual and self.bytes_for(usual) > room:
            usual = usual // 2 if usual > self.piece_bytes / 32 else 0
        return usual


def _most_touched(group: GroupShards, spans: Numbers) -> int:
    """Bytes of the shards that hold one of these spans (first row, rows), at most."""
    sizes = np.concatenate([np.asarray(index.sizes, np.int64) for index in group.indexes])
    before = np.append(0, np.cumsum(sizes))
    low = np.searchsorted(group.firsts, spans[:, 0], "right") - 1
    high = np.searchsorted(group.firsts, spans.sum(axis=1), "left")
    return int((before[high] - before[low]).max())
