"""How many nodes the network has, from walks to random targets.

The k nearest nodes to a random point lie within a distance that says how dense the space is; the median over several
points does not care who crowds round one of them, such as round a key under attack, or round us.
"""

from __future__ import annotations

import statistics
from collections import deque

from dhtdata.dht.routing import ID_BITS

SAMPLES = 9
_SPACE = 1 << ID_BITS


class SizeEstimate:
    """The median of the last 9 samples."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def met(self, count: int, radius: int | None) -> None:
        """A walk to a random target met ``count`` nodes within ``radius``; None: these were all there are."""
        if radius is None:
            self._samples.append(count + 1)
        elif count > 1:
            self._samples.append((count - 1) * _SPACE / max(1, radius))

    def __len__(self) -> int:
        return len(self._samples)

    def nodes(self, fallback: int) -> int:
        """The estimate, ourselves included; ``fallback`` while there are no samples."""
        return max(1, round(statistics.median(self._samples))) if self._samples else fallback
