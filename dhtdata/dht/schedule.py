"""When which shard claims are put again: spread over the cycle, resumed after a restart, caught up after a pause.

The key space is cut into 256 slices. New keys are put at once; then every slice comes round once a cycle (11 h; claims
live for 24 h), at a time of its own, so that a seed with many shards works a little all the time and not much at once,
and so that seeds that started together drift apart. How far it came is kept as a small JSON file: a seed that restarts
goes on where it stopped, and one that was away for a day begins with what has waited longest. Pure but for the two
functions that read and write the file, which block.

``{"version": 1, "slices": [[unix seconds when due, digest of the keys that were put], …]}``, 256 entries. A slice whose
keys are not those that were put is put at once. A damaged file counts as none: everything is put again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dhtdata.dht import statefile
from dhtdata.digest import domain_key
from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.codec import Format, check_version, decode_json, encode_json
from dhtdata.formats.records import SHARD_RENEWAL_S

VERSION = 1
SLICES = 256
SLICE_BITS = 8
NODES_A_SWEEP = 40
RETRY_S = 900.0
BEHIND_S = 3_600.0
MAX_FRESH = 16_384
_JITTER = 0.05
_LIMIT_BYTES = 64 << 10


class _Wire(Format, frozen=True):
    version: int
    slices: tuple[tuple[int, str], ...]


@dataclass
class _Slice:
    """``due_s`` is 0 before anything was put; ``fresh`` are keys that never were."""

    due_s: float = 0.0
    put: str = ""
    keys: set[bytes] = field(default_factory=set)
    fresh: set[bytes] = field(default_factory=set)


class SweepSchedule:
    """Decides what to announce; whoever uses it announces, and tells how it went. ``now_s`` is Unix time."""

    def __init__(self, randomness: random.Random, cycle_s: float = SHARD_RENEWAL_S) -> None:
        self._randomness = randomness
        self._cycle_s = cycle_s
        self._slices = [_Slice() for _ in range(SLICES)]

    def want(self, keys: Iterable[bytes]) -> None:
        """These are the keys to keep announced from now on."""
        wanted: list[set[bytes]] = [set() for _ in range(SLICES)]
        for key in keys:
            wanted[key[0]].add(key)
        for place, mine in zip(self._slices, wanted, strict=True):
            if mine == place.keys:
                continue
            resumed = not place.keys and place.put == _digest(mine)
            place.fresh = (place.fresh & mine) | (set() if resumed else mine - place.keys)
            place.keys = mine

    def due(self, now_s: float, nodes_estimated: int) -> list[bytes]:
        """Keys to announce now, ascending: what is new; else the part of the space that has waited longest, if any.

        A part is as large as one exploration of a network of that size covers (some 40 nodes).
        """
        for place in self._slices:
            if place.due_s > now_s + 2 * self._cycle_s:
                # Written while the clock was wrong, or not by us.
                place.due_s = now_s
        fresh = sorted(key for place in self._slices for key in place.fresh)[:MAX_FRESH]
        if fresh:
            return fresh
        waiting = [position for position, place in enumerate(self._slices) if place.keys and place.due_s <= now_s]
        if not waiting:
            return []
        longest = min(waiting, key=lambda position: self._slices[position].due_s)
        bits = min(SLICE_BITS, max(0, nodes_estimated // NODES_A_SWEEP).bit_length())
        width = SLICES >> bits
        first = longest - longest % width
        # Neighbours that are due within the hour come along: they lie in what is explored anyway.
        soon = (place for place in self._slices[first : first + width] if place.due_s <= now_s + BEHIND_S)
        return sorted(key for place in soon for key in place.keys)

    def settle(self, asked: Collection[bytes], held: Collection[bytes], now_s: float) -> None:
        """``asked`` were announced, ``held`` of them are kept by others now; the rest is tried again in 15 minutes."""
        by_slice: dict[int, set[bytes]] = {}
        for key in asked:
            by_slice.setdefault(key[0], set()).add(key)
        for position, mine in by_slice.items():
            place = self._slices[position]
            missed = mine.difference(held)
            first_time = not place.due_s
            renewed = place.keys <= mine
            place.fresh -= mine - missed
            if missed:
                place.fresh -= missed
                place.due_s = now_s + RETRY_S
            elif first_time:
                # From now on every slice has its own time in the cycle.
                place.due_s = now_s + self._cycle_s * (position + 1) / SLICES
            elif renewed:
                place.due_s = now_s + self._cycle_s * self._randomness.uniform(1 - _JITTER, 1)
            place.put = _digest(place.keys - place.fresh - missed)

    def next_s(self, now_s: float) -> float:
        """Seconds until something is due: 0 if it is; a cycle if there is nothing to announce."""
        if any(place.fresh for place in self._slices):
            return 0.0
        return max(0.0, min((place.due_s - now_s for place in self._slices if place.keys), default=self._cycle_s))

    def behind_s(self, now_s: float) -> float:
        """How long the slice that waits longest is overdue. Over an hour means: this cannot keep up, or was away."""
        return max(0.0, max((now_s - place.due_s for place in self._slices if place.keys and place.due_s), default=0.0))

    @property
    def key_count(self) -> int:
        return sum(len(place.keys) for place in self._slices)

    def encode(self) -> bytes:
        return encode_json(
            _Wire(version=VERSION, slices=tuple((int(place.due_s), place.put) for place in self._slices))
        )

    def resume(self, data: bytes) -> None:
        """Go on from what `encode` gave. FormatError, and nothing changed, if it is something else."""
        wire = decode_json(data, _Wire, limit_bytes=_LIMIT_BYTES, what="progress of announcing")
        check_version(wire, VERSION, "progress of announcing")
        if len(wire.slices) != SLICES or any(due_s < 0 for due_s, _ in wire.slices):
            raise FormatError(f"progress of announcing: {len(wire.slices)} slices, or times that make no sense")
        for place, (due_s, put) in zip(self._slices, wire.slices, strict=True):
            place.due_s, place.put = float(due_s), put


def load(path: Path, schedule: SweepSchedule) -> None:
    """Resume from a file, if it is there and whole. StoreError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as failure:
        raise StoreError(f"{path} cannot be read: {failure.strerror}") from failure
    try:
        schedule.resume(data)
    except FormatError:
        return


def save(path: Path, encoded: bytes) -> None:
    """Replace the file. StoreError if that is not possible; the old one is then as it was."""
    try:
        statefile.replace(path, encoded)
    except OSError as failure:
        raise StoreError(f"{path} cannot be written: {failure.strerror}") from failure


def _digest(keys: Iterable[bytes]) -> str:
    return domain_key("dhtdata announced", *sorted(keys), length=8).hex()
