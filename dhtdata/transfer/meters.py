"""How fast bytes come and go: over the last second, at the best second, by whom. Time is injected, memory bounded.

Bytes count when they arrive, not when their block is verified: on a slow link a block takes many seconds, and a meter
fed with whole blocks would jump between nothing and far too much.

*Lower bound* of one fetch (`lower_bound_s`): the bytes that it fetched, over the rate of its best second, or over the
limit of this peer's downloads if that is less. It is how long the fetch would have taken had every second been as good
as its best one; searching, waiting, bytes thrown away and writing to disk all count against what was achieved. The sum
of the best rates of single providers would be a sharper bound only where the link has room for all of them at once,
which nobody knows; a rate that was never reached in a whole second is not promised.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

# Exact in binary, so that slots of a time that is counted in eighths begin where they should.
SLOT_S = 0.125
SLOTS = 8
WINDOW_S = SLOT_S * SLOTS
MAX_METERED = 1_024
MEASURED_S = 2.0
_SMOOTHING = 0.3
_K = TypeVar("_K")


class Meter:
    """Bytes by time. Rates are of the last `SLOTS` whole slots, so a byte shows after `SLOT_S` at the latest."""

    __slots__ = ("_current", "_recent", "_slot", "_window", "best_bytes_s", "bytes", "latency_s")

    def __init__(self, now_s: float) -> None:
        self.bytes = 0
        self.best_bytes_s = 0.0
        self.latency_s = 0.0
        self._slot = int(now_s / SLOT_S)
        self._current = 0
        self._recent = deque([0] * SLOTS, maxlen=SLOTS)
        self._window = 0

    def add(self, byte_count: int, now_s: float) -> None:
        """So many bytes came just now."""
        self._advance(now_s)
        self.bytes += byte_count
        self._current += byte_count

    def answered(self, waited_s: float) -> None:
        """The first byte of an answer came so long after its request: smoothed into ``latency_s`` (0: not known)."""
        self.latency_s += (_SMOOTHING if self.latency_s else 1.0) * (waited_s - self.latency_s)

    def rate_bytes_s(self, now_s: float) -> float:
        """Over the last second."""
        self._advance(now_s)
        return self._window / WINDOW_S

    def _advance(self, now_s: float) -> None:
        slot = int(now_s / SLOT_S)
        # After this many nothing is left of what was counted, however long nobody looked.
        for _ in range(min(slot - self._slot, SLOTS + 1)):
            self._window += self._current - self._recent[0]
            self._recent.append(self._current)
            self._current = 0
            self.best_bytes_s = max(self.best_bytes_s, self._window / WINDOW_S)
        self._slot = max(self._slot, slot)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a meter says now. ``latency_s`` is 0 if not known."""

    bytes: int
    bytes_s: float
    latency_s: float


NOTHING = Rate(0, 0.0, 0.0)


class Meters(Generic[_K]):
    """A meter for everybody met lately, and one for all of them together. Threads may share it.

    At most `MAX_METERED` are kept; whoever was silent for longest is forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._meters: OrderedDict[_K, Meter] = OrderedDict()
        self._all = Meter(clock())
        self._watching: set[Meter] = set()

    def add(self, who: _K, byte_count: int) -> None:
        """Bytes came from, or went to, somebody."""
        now_s = self._clock()
        with self._lock:
            for meter in (self._of(who, now_s), self._all, *self._watching):
                meter.add(byte_count, now_s)

    def asked(self, who: _K) -> Callable[[int], None]:
        """A request goes out now: call what this returns with the length of each piece of the answer's body."""
        asked_s = self._clock()
        answered = False

        def heard(byte_count: int) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self.answered(who, self._clock() - asked_s)
            self.add(who, byte_count)

        return heard

    def answered(self, who: _K, waited_s: float) -> None:
        """The first byte of an answer came so long after its request."""
        with self._lock:
            self._of(who, self._clock()).answered(waited_s)

    def rate(self, who: _K) -> Rate:
        with self._lock:
            meter = self._meters.get(who)
            return NOTHING if meter is None else self._read(meter)

    def total(self) -> Rate:
        """Of everybody together."""
        with self._lock:
            return self._read(self._all)

    def busiest(self, count: int) -> list[tuple[_K, Rate]]:
        """Those with the highest rates, then with the most bytes."""
        with self._lock:
            rates = [(who, self._read(meter)) for who, meter in self._meters.items()]
        return sorted(rates, key=lambda one: (-one[1].bytes_s, -one[1].bytes))[:count]

    @contextmanager
    def watch(self) -> Iterator[Meter]:
        """A meter of all bytes from now on, until the block ends."""
        meter = Meter(self._clock())
        with self._lock:
            self._watching.add(meter)
        try:
            yield meter
        finally:
            with self._lock:
                self._watching.discard(meter)

    def _of(self, who: _K, now_s: float) -> Meter:
        meter = self._meters.get(who)
        if meter is None:
            meter = self._meters[who] = Meter(now_s)
            while len(self._meters) > MAX_METERED:
                self._meters.popitem(last=False)
        self._meters.move_to_end(who)
        return meter

    def _read(self, meter: Meter) -> Rate:
        return Rate(meter.bytes, meter.rate_bytes_s(self._clock()), meter.latency_s)


def lower_bound_s(
    byte_count: int, elapsed_s: float, best_bytes_s: float, limit_bytes_s: int | None = None
) -> float | None:
    """Least time in which a fetch could have got these bytes, never more than ``elapsed_s``: see the module.

    None while nothing came, and before `MEASURED_S`: one second is not the best of several.
    """
    if elapsed_s < MEASURED_S or byte_count <= 0:
        return None
    capable = best_bytes_s if limit_bytes_s is None else min(best_bytes_s, limit_bytes_s)
    return byte_count / max(capable, byte_count / elapsed_s)
