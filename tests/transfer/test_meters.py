"""Rates as they are measured, and the least time that a fetch could have taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.transfer.meters import MAX_METERED, MEASURED_S, NOTHING, SLOT_S, WINDOW_S, Meter, Meters, lower_bound_s

MIB = 1 << 20


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[float, int]]:
    """(time, bytes), ascending: crowded, spread out and with long silences; times are exact in binary."""
    steps = draw(st.lists(st.tuples(st.sampled_from([0, 1, 3, 8, 64, 65, 700, 10**6]), st.integers(0, 1 << 40))))
    now = draw(st.integers(0, 1 << 30))
    found = []
    for step, byte_count in steps:
        now += step
        found.append((now / 64, byte_count))
    return found


def _rate(came: list[tuple[float, int]], now_s: float) -> float:
    """By the definition: what came in the last whole slots, a second of them."""
    end_s = math.floor(now_s / SLOT_S) * SLOT_S
    return sum(byte_count for at_s, byte_count in came if end_s - WINDOW_S <= at_s < end_s) / WINDOW_S


@given(came=arrivals(), later=st.integers(0, 200))
def test_a_rate_is_what_came_in_the_last_second_of_whole_slots(came: list[tuple[float, int]], later: int) -> None:
    first_s = came[0][0] if came else 0.0
    meter = Meter(first_s)
    best = 0.0
    for place, (at_s, byte_count) in enumerate(came):
        meter.add(byte_count, at_s)
        assert meter.rate_bytes_s(at_s) == _rate(came[: place + 1], at_s)
    now_s = (came[-1][0] if came else 0.0) + later / 64
    assert meter.rate_bytes_s(now_s) == _rate(came, now_s)
    assert meter.bytes == sum(byte_count for _, byte_count in came)
    ends = {math.floor(at_s / SLOT_S) * SLOT_S + SLOT_S * ahead for at_s, _ in came for ahead in (0, 1)}
    best = max((_rate(came, end_s) for end_s in ends if end_s <= now_s), default=0.0)
    assert meter.best_bytes_s == best


@given(came=arrivals())
def test_a_clock_that_goes_back_breaks_nothing(came: list[tuple[float, int]]) -> None:
    meter = Meter(came[-1][0] if came else 5.0)
    for at_s, byte_count in reversed(came):
        meter.add(byte_count, at_s)
        assert meter.rate_bytes_s(at_s) >= 0
    assert meter.bytes == sum(byte_count for _, byte_count in came)


@given(came=arrivals().filter(bool), limit=st.none() | st.integers(1, 1 << 40))
def test_a_bound_is_never_more_than_the_time_taken_nor_less_than_at_the_best_rate(
    came: list[tuple[float, int]], limit: int | None
) -> None:
    meter = Meter(came[0][0])
    for at_s, byte_count in came:
        meter.add(byte_count, at_s)
    end_s = came[-1][0] + SLOT_S
    meter.rate_bytes_s(end_s)
    elapsed_s = end_s - came[0][0]
    bound = lower_bound_s(meter.bytes, elapsed_s, meter.best_bytes_s, limit)
    if elapsed_s < MEASURED_S or not meter.bytes:
        assert bound is None
        return
    assert bound is not None and 0 < bound <= elapsed_s * (1 + 1e-9)
    if bound < elapsed_s * (1 - 1e-9):
        assert math.isclose(bound, meter.bytes / min(meter.best_bytes_s, limit or math.inf))


def test_a_steady_fetch_reaches_its_bound_and_a_pause_shows() -> None:
    meter = Meter(0.0)
    for tick in range(80):
        meter.add(MIB, tick * SLOT_S)
    meter.rate_bytes_s(10.0)
    assert lower_bound_s(80 * MIB, 10.0, meter.best_bytes_s) == 10.0
    assert lower_bound_s(80 * MIB, 20.0, meter.best_bytes_s) == 10.0
    assert lower_bound_s(80 * MIB, 20.0, meter.best_bytes_s, 4 * MIB) == 20.0


@dataclass
class _Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class _Met:
    meters: Meters[Any] = field(default_factory=Meters)
    clock: _Clock = field(default_factory=_Clock)

    def __post_init__(self) -> None:
        self.meters = Meters(self.clock)


def test_everybody_has_a_meter_and_all_together_one() -> None:
    met = _Met()
    met.meters.add("a", 10)
    met.clock.now_s = 0.5
    met.meters.add("b", 30)
    met.clock.now_s = 1.0
    assert [(who, rate.bytes_s) for who, rate in met.meters.busiest(9)] == [("b", 30.0), ("a", 10.0)]
    assert met.meters.busiest(1)[0][0] == "b"
    assert met.meters.total().bytes_s == 40.0 and met.meters.total().bytes == 40
    met.clock.now_s = 1.25
    assert met.meters.rate("a").bytes_s == 0.0 and met.meters.rate("a").bytes == 10
    assert met.meters.rate("nobody") == NOTHING


def test_who_watches_counts_what_comes_meanwhile() -> None:
    met = _Met()
    met.meters.add("a", 10)
    with met.meters.watch() as outer:
        met.meters.add("a", 20)
        with met.meters.watch() as inner:
            met.meters.add("b", 30)
        met.meters.add("b", 40)
    met.meters.add("a", 50)
    assert (outer.bytes, inner.bytes) == (90, 30)


def test_latency_is_the_time_until_the_first_piece_of_an_answer() -> None:
    met = _Met()
    heard = met.meters.asked("a")
    met.clock.now_s = 0.25
    heard(5)
    met.clock.now_s = 9.0
    heard(5)
    assert met.meters.rate("a").latency_s == 0.25 and met.meters.rate("a").bytes == 10
    heard = met.meters.asked("a")
    met.clock.now_s = 9.5
    heard(1)
    assert 0.25 < met.meters.rate("a").latency_s < 0.5


def test_whoever_was_silent_for_longest_is_forgotten() -> None:
    met = _Met()
    for who in range(MAX_METERED):
        met.meters.add(who, 1)
    met.meters.add(0, 1)
    met.meters.add("one more", 1)
    assert met.meters.rate(1) == NOTHING
    assert met.meters.rate(0).bytes == 2 and met.meters.rate("one more").bytes == 1
    assert met.meters.total().bytes == MAX_METERED + 2
