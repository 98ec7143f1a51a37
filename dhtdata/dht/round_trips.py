"""How long to wait for an answer: smoothed round trip and four deviations (RFC 6298), within bounds."""

from __future__ import annotations

FIRST_TIMEOUT_S = 1.0
MIN_TIMEOUT_S = 0.2
MIN_PATIENCE_S = 0.02
MAX_TIMEOUT_S = 2.0


class RoundTrips:
    """The round trips of one socket so far."""

    def __init__(self) -> None:
        self.smoothed_s = 0.0
        self._deviation_s = 0.0

    def measured(self, trip_s: float) -> None:
        if not self.smoothed_s:
            self.smoothed_s, self._deviation_s = trip_s, trip_s / 2
            return
        self._deviation_s += (abs(trip_s - self.smoothed_s) - self._deviation_s) / 4
        self.smoothed_s += (trip_s - self.smoothed_s) / 8

    def patience_s(self) -> float:
        """After how long an answer is late, though it may still come: something else is tried beside it."""
        if not self.smoothed_s:
            return MIN_TIMEOUT_S
        return min(MAX_TIMEOUT_S, max(MIN_PATIENCE_S, self.smoothed_s + 2 * self._deviation_s))

    def timeout_s(self, attempt: int) -> float:
        """Later attempts wait longer, so that a network that became slow is noticed at all."""
        if not self.smoothed_s:
            return FIRST_TIMEOUT_S
        patience_s = max(MIN_TIMEOUT_S, self.smoothed_s + 4 * self._deviation_s) * (1 + 2 * attempt)
        return min(MAX_TIMEOUT_S, patience_s)
