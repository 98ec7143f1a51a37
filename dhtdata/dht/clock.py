"""Whose clock is wrong: ours, if many nodes agree that it is.

Claims expire by Unix time, so a node whose clock is off by more than the tolerance announces in vain. Every reply says
the time; the median over the nodes that answered last cannot be moved by a few liars.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict

from dhtdata.formats.records import CLOCK_TOLERANCE_S

MIN_WITNESSES = 3
MAX_WITNESSES = 64


class ClockWatch:
    """The clocks of the 64 nodes that answered last, relative to ours."""

    def __init__(self) -> None:
        self._offsets_s: OrderedDict[bytes, float] = OrderedDict()

    def told(self, node: bytes, their_s: float, our_s: float) -> None:
        self._offsets_s[node] = our_s - their_s
        self._offsets_s.move_to_end(node)
        if len(self._offsets_s) > MAX_WITNESSES:
            self._offsets_s.popitem(last=False)

    def forget(self) -> None:
        """Our clock was set, or we slept."""
        self._offsets_s.clear()

    @property
    def witnesses(self) -> int:
        return len(self._offsets_s)

    @property
    def ahead_s(self) -> float:
        """How far our clock is ahead of the others' (negative: behind); 0 with fewer than three witnesses."""
        if len(self._offsets_s) < MIN_WITNESSES:
            return 0.0
        return statistics.median(self._offsets_s.values())

    @property
    def wrong(self) -> bool:
        """Whether others refuse what we sign."""
        return abs(self.ahead_s) > CLOCK_TOLERANCE_S
