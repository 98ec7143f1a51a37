"""Delays, loss, reordering and duplication against their parameters."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from tests.simulation.links import (
    LAN,
    WAN,
    Constant,
    Distribution,
    Exponential,
    Links,
    LogNormal,
    Uniform,
    draw,
)

COUNT = 40_000


def arrivals(links: Links, pair: Callable[[int], int] = lambda position: 1) -> list[tuple[float, ...]]:
    randomness = random.Random(1)
    return [links.arrivals(pair(position), randomness) for position in range(COUNT)]


def near(share: float, count: int = COUNT) -> float:
    """Five standard deviations of a share that was counted."""
    return 5 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize(
    ("distribution", "low", "median", "high"),
    [
        (Constant(3.0), 3.0, 3.0, 3.0),
        (Uniform(1.0, 3.0), 1.1, 2.0, 2.9),
        (LogNormal(3.0, 0.6), 1.118, 3.0, 8.049),
        (Exponential(60.0), 4.440, 60.0, 259.3),
    ],
)
def test_quantiles_are_those_of_the_distribution(
    distribution: Distribution, low: float, median: float, high: float
) -> None:
    assert [distribution.quantile(share) for share in (0.05, 0.5, 0.95)] == pytest.approx([low, median, high], rel=1e-3)
    randomness = random.Random(2)
    drawn = [draw(distribution, randomness) for _ in range(COUNT)]
    assert statistics.median(drawn) == pytest.approx(median, rel=0.03)


def test_jitter_is_drawn_for_every_datagram() -> None:
    delays = [delay for (delay,) in arrivals(LAN)]
    assert min(delays) >= 0.005 and max(delays) <= 0.04
    assert statistics.mean(delays) == pytest.approx(0.0225, rel=0.02)
    assert statistics.quantiles(delays, n=4) == pytest.approx([0.01375, 0.0225, 0.03125], rel=0.02)


def test_the_base_delay_belongs_to_the_pair() -> None:
    links = Links(base=Uniform(0.01, 0.1))
    assert len({delay for (delay,) in arrivals(links)}) == 1
    bases = [delay for (delay,) in arrivals(links, pair=lambda position: position * 2_654_435_761 >> 7)]
    assert statistics.mean(bases) == pytest.approx(0.055, rel=0.02)


def test_the_wan_has_a_median_round_trip_of_80_ms_and_a_long_tail() -> None:
    randomness = random.Random(3)
    trips = []
    for _ in range(COUNT):
        pair = randomness.getrandbits(24)
        trips.append(WAN.arrivals(pair, randomness)[0] + WAN.arrivals(pair, randomness)[0])
    cuts = statistics.quantiles(trips, n=1_000)
    assert statistics.median(trips) == pytest.approx(0.080, abs=0.002)
    assert 0.19 < cuts[949] < 0.24
    assert 0.4 < cuts[998] < 0.7


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_losses_are_as_many_as_asked_for(share: float) -> None:
    lost = sum(not each for each in arrivals(Links(lost=share)))
    assert lost / COUNT == pytest.approx(share, abs=near(share))


def test_everything_or_nothing_is_lost() -> None:
    assert not any(arrivals(Links(lost=1.0)))
    assert all(arrivals(Links(lost=0.0)))


def test_reordered_datagrams_are_late_by_their_detour() -> None:
    delays = [delay for (delay,) in arrivals(Links(jitter=Constant(0.01), reordered=0.05, detour=Uniform(0.1, 0.2)))]
    late = [delay for delay in delays if delay > 0.01]
    assert len(late) / COUNT == pytest.approx(0.05, abs=near(0.05))
    assert min(late) >= 0.11 and max(late) <= 0.21


def test_duplicates_arrive_twice_with_jitters_of_their_own() -> None:
    twice = [each for each in arrivals(Links(jitter=Uniform(0.0, 1.0), duplicated=0.1)) if len(each) == 2]
    assert len(twice) / COUNT == pytest.approx(0.1, abs=near(0.1))
    assert sum(first == second for first, second in twice) < len(twice) / 100


def test_fates_are_independent() -> None:
    links = Links(lost=0.2, reordered=0.1, detour=Constant(9.0), duplicated=0.1)
    got = arrivals(links)
    there = [each for each in got if each]
    assert len(there) / COUNT == pytest.approx(0.8, abs=near(0.8))
    assert sum(len(each) == 2 for each in there) / len(there) == pytest.approx(0.1, abs=near(0.1, len(there)))
    assert sum(each[0] >= 9 for each in there) / len(there) == pytest.approx(0.1, abs=near(0.1, len(there)))


@pytest.mark.parametrize("name", ["lost", "reordered", "duplicated"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_what_is_no_share_is_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=name):
        Links(**{name: share})  # type: ignore[arg-type]


def test_losing_keeps_everything_else() -> None:
    assert WAN.losing(0.2) == Links(base=WAN.base, jitter=WAN.jitter, lost=0.2)
