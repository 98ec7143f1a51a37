"""How datagrams travel: delays, loss, reordering, duplication. Pure values; randomness is an argument.

A datagram between two hosts takes the pair's *base* delay, the same in both directions at all times, plus *jitter*
drawn for it alone. Real paths are like that: distance is stable, queues are not. Delays are drawn from tables of 4,096
equally likely values (quantiles of the distribution): one look-up a datagram, and the last 1/8,192 of a tail is cut.

>>> WAN.arrivals(pair=1, randomness=random.Random(1)) == WAN.arrivals(pair=1, randomness=random.Random(1))
True
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

_DRAWS = 4_096
_NORMAL = NormalDist()


class Distribution(Protocol):
    """Of durations, in seconds. Frozen and hashable."""

    def quantile(self, share: float) -> float:
        """The duration that ``share`` of all are below; 0 < share < 1."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Constant:
    seconds: float

    def quantile(self, share: float) -> float:
        del share
        return self.seconds


@dataclass(frozen=True)
class Uniform:
    """Between shortest and longest."""

    shortest_s: float
    longest_s: float

    def quantile(self, share: float) -> float:
        return self.shortest_s + share * (self.longest_s - self.shortest_s)


@dataclass(frozen=True)
class LogNormal:
    """Half are shorter than the median; ``spread`` is the standard deviation of the logarithm (0.6: one in twenty
    takes 2.7 times the median, one in a thousand 6.4 times)."""

    median_s: float
    spread: float

    def quantile(self, share: float) -> float:
        return self.median_s * math.exp(self.spread * _NORMAL.inv_cdf(share))


@dataclass(frozen=True)
class Exponential:
    """Memoryless: how long is left does not depend on how long it has lasted."""

    median_s: float

    def quantile(self, share: float) -> float:
        return -self.median_s * math.log2(1.0 - share)


def draw(distribution: Distribution, randomness: random.Random) -> float:
    """One duration."""
    return distribution.quantile(max(randomness.random(), 1e-12))


@lru_cache(maxsize=64)
def _table(distribution: Distribution) -> tuple[float, ...]:
    return tuple(distribution.quantile((position + 0.5) / _DRAWS) for position in range(_DRAWS))


NOTHING = Constant(0.0)


@dataclass(frozen=True)
class Links:
    """``lost``, ``reordered`` and ``duplicated`` are shares of all datagrams. A reordered one arrives ``detour`` later
    than it would have, so others overtake it; a duplicate has a jitter and fate of its own, but is never lost."""

    base: Distribution = NOTHING
    jitter: Distribution = NOTHING
    lost: float = 0.0
    reordered: float = 0.0
    detour: Distribution = Uniform(0.05, 0.5)
    duplicated: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lost", "reordered", "duplicated"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be a share from 0 to 1, not {getattr(self, name)}")
        # Hashing the distributions for every datagram would cost more than the draw.
        object.__setattr__(self, "_base", _table(self.base))
        object.__setattr__(self, "_jitter", _table(self.jitter))
        object.__setattr__(self, "_plain", not (self.lost or self.reordered or self.duplicated))

    _base: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _jitter: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)

    def losing(self, share: float) -> Links:
        """The same links, but this share of all datagrams is lost."""
        return replace(self, lost=share)

    def arrivals(self, pair: int, randomness: random.Random) -> tuple[float, ...]:
        """Seconds until a datagram arrives: none if it is lost, two if it is duplicated.

        ``pair`` is any number that stands for the two hosts, well mixed, whichever of them sends.
        """
        chance = randomness.random
        once = self._base[pair & (_DRAWS - 1)] + self._jitter[int(chance() * _DRAWS)]
        if self._plain:
            return (once,)
        if chance() < self.lost:
            return ()
        if self.reordered and chance() < self.reordered:
            once += draw(self.detour, randomness)
        if self.duplicated and chance() < self.duplicated:
            again = self._base[pair & (_DRAWS - 1)] + self._jitter[int(chance() * _DRAWS)]
            if self.reordered and chance() < self.reordered:
                again += draw(self.detour, randomness)
            return (once, again)
        return (once,)


LAN = Links(jitter=Uniform(0.005, 0.04))
"""5 to 40 ms one way, drawn anew for every datagram. (A slow one: tests want delays that matter.)"""

WAN = Links(base=LogNormal(0.0365, 0.6), jitter=LogNormal(0.002, 1.2))
"""The Internet between homes: median round trip 80 ms, one pair in twenty over 200 ms, one in a thousand over 450 ms;
queues add some 4 ms each way and now and then 100."""
