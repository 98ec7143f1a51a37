"""Shares: weights as whole parts, dealt out as evenly as whole numbers allow.

Weights become ``parts`` of a whole of Q (0.7 and 0.3: 7 and 3 of 10), the smallest Q up to `MAX_PARTS` that gives them
exactly, else the Q whose parts come nearest. A *pattern* of Q turns has each source as often as it has parts, and
repeats for ever. After any number t of turns a source with share w has had w·t, give or take less than one: the
pattern is R. Tijdeman's answer to the chairman assignment problem (Discrete Mathematics 32, 1980, p. 323), whose
error is at most 1 - 1 / (2n - 2) with n sources. One period is kept, so counting and finding turns take O(log Q)
however far away they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError

MAX_PARTS = 1 << 16
MAX_SOURCES = 1 << 10
_EXACT = 1e-12

Counts = NDArray[np.int64]
Sources = NDArray[np.uint16]


def parts_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, with no common divisor if they are exact.

    ConfigError if a weight is not positive, or less than about 1 / `MAX_PARTS` of all.
    """
    for number, weight in enumerate(weights):
        if not (weight > 0 and math.isfinite(weight)):
            raise ConfigError(f"the weight of source {number} is {weight}: weights are positive numbers")
    total = math.fsum(weights)
    wholes = np.arange(1, MAX_PARTS + 1, dtype=np.float64)
    left = wholes.copy()
    error = np.zeros(MAX_PARTS)
    for share in (weight / total for weight in weights):
        parts = np.rint(wholes * share)
        left -= parts
        error[parts < 1] = np.inf
        np.maximum(error, np.abs(parts / wholes - share) / share, out=error)
    error[left != 0] = np.inf
    exact = np.flatnonzero(error < _EXACT)
    best = int(exact[0]) if exact.size else int(np.argmin(error))
    if not np.isfinite(error[best]):
        least = min(range(len(weights)), key=lambda number: weights[number])
        raise ConfigError(
            f"the weight of source {least}, {weights[least]} of {total:g}, is too small: a source needs about "
            f"1/{MAX_PARTS} of a mix"
        )
    return tuple(round((best + 1) * (weight / total)) for weight in weights)


class Pattern:
    """The endless sequence of turns: ``parts[i]`` of every ``sum(parts)`` are source i's."""

    def __init__(self, parts: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self.period = sum(parts)
        if not 2 <= len(parts) <= MAX_SOURCES or min(parts) < 1 or self.period > MAX_PARTS:
            raise ConfigError(f"a mix has 2 to {MAX_SOURCES} sources and at most {MAX_PARTS} parts")
        self._turns = _even(self.parts)
        self._places = [np.flatnonzero(self._turns == source) for source in range(len(parts))]

    def sources(self, first: int, stop: int) -> Sources:
        """Whose turns ``[first, stop)`` are."""
        return self._turns.take(np.arange(first, stop) % self.period)

    def before(self, turn: int) -> list[int]:
        """How many of the first ``turn`` turns each source has."""
        whole, rest = divmod(turn, self.period)
        return [
            whole * part + int(np.searchsorted(places, rest))
            for part, places in zip(self.parts, self._places, strict=True)
        ]

    def place(self, source: int, number: int) -> int:
        """The source's turn of that number, counted from 0, among all turns."""
        whole, rest = divmod(number, self.parts[source])
        return whole * self.period + int(self._places[source][rest])


def _even(parts: tuple[int, ...]) -> Sources:
    """One period. In units of 1 / (period (2n - 2)), so that all but the last comparison is in whole numbers."""
    period, scale = sum(parts), 2 * len(parts) - 2
    latest = (scale - 1) * period
    due = [0] * len(parts)
    turns = np.empty(period, np.uint16)
    for turn in range(period):
        chosen, soonest = -1, math.inf
        for source, part in enumerate(parts):
            due[source] += scale * part
            if due[source] >= period and (slack := (latest - due[source]) / part) < soonest:
                chosen, soonest = source, slack
        due[chosen] -= scale * period
        turns[turn] = chosen
    return turns
