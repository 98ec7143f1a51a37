from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.transfer.rates import BURST_S, MAX_PEERS, Bucket, Limits, Rates

RATES = st.integers(1_000, 10**9)
PIECES = st.lists(st.integers(1, 1 << 20), min_size=1, max_size=60)


class Clock:
    """Seconds that pass when we say so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(rate=RATES, pieces=PIECES, idle_s=st.floats(0, 100))
def test_who_waits_as_told_keeps_to_the_rate_and_loses_nothing_of_it(
    rate: int, pieces: list[int], idle_s: float
) -> None:
    clock = Clock()
    bucket = Bucket(rate, clock)
    clock.now_s += idle_s
    started_s = clock.now_s
    for piece in pieces:
        clock.now_s += bucket.debit(piece)
    taken_s, total = clock.now_s - started_s, sum(pieces)
    burst = min(idle_s, BURST_S) * rate
    assert total <= rate * taken_s + burst + 1
    assert taken_s <= total / rate + 1e-6


@given(rate=RATES, workers=st.lists(PIECES, min_size=1, max_size=8))
def test_several_that_share_a_bucket_keep_to_its_rate_together(rate: int, workers: list[list[int]]) -> None:
    """Each goes on when its wait is over; whose wait is over first goes first."""
    clock = Clock()
    bucket = Bucket(rate, clock)
    due = [(clock.now_s, number, 0) for number in range(len(workers))]
    sent: list[tuple[float, int]] = []
    while due:
        due.sort()
        at_s, number, place = due.pop(0)
        clock.now_s = max(clock.now_s, at_s)
        piece = workers[number][place]
        ready_s = clock.now_s + bucket.debit(piece)
        sent.append((ready_s, piece))
        if place + 1 < len(workers[number]):
            due.append((ready_s, number, place + 1))
    last_s = max(at_s for at_s, _ in sent)
    assert last_s - 100.0 == pytest.approx(sum(piece for _, piece in sent) / rate, rel=1e-6, abs=1e-6)


@given(first=RATES, second=RATES, byte_count=st.integers(1, 1 << 30))
def test_a_debt_is_paid_at_the_rate_that_holds_now(first: int, second: int, byte_count: int) -> None:
    clock = Clock()
    bucket = Bucket(first, clock)
    bucket.debit(byte_count)
    bucket.rate_bytes_s = second
    assert bucket.owed_s() == pytest.approx(byte_count / second)
    bucket.rate_bytes_s = None
    assert bucket.debit(byte_count) == 0
    bucket.rate_bytes_s = second
    assert bucket.owed_s() == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    clock = Clock()
    bucket = Bucket(1_000, clock)
    bucket.debit(1_000)
    clock.now_s -= 50
    assert bucket.owed_s() == 1.0
    clock.now_s += 1
    assert bucket.owed_s() == 0


def test_threads_that_share_a_bucket_are_all_charged() -> None:
    clock = Clock()
    bucket = Bucket(1_000, clock)
    threads = [threading.Thread(target=lambda: [bucket.debit(3) for _ in range(1_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.owed_s() == pytest.approx(24.0)


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_lets_nothing_pass_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="lets nothing pass"):
        Bucket(rate)


def test_new_limits_hold_at_once_for_everybody() -> None:
    limits = Limits(Rates(peer_up=5_000))
    first, other = limits.peer_up("a"), limits.peer_down("a")
    assert limits.peer_up("a") is first
    assert (limits.up.rate_bytes_s, first.rate_bytes_s, other.rate_bytes_s) == (None, 5_000, None)
    limits.rates = Rates(up=1, down=2, peer_up=3, peer_down=4)
    buckets = (limits.up, limits.down, first, other, limits.peer_up("b"), limits.peer_down("b"))
    assert [bucket.rate_bytes_s for bucket in buckets] == [1, 2, 3, 4, 3, 4]


def test_however_many_peers_come_their_buckets_take_bounded_room() -> None:
    limits = Limits(Rates(peer_up=1_000))
    kept = limits.peer_up("kept")
    for number in range(2 * MAX_PEERS):
        limits.peer_up(number)
        assert limits.peer_up("kept") is kept
    first = limits.peer_up(0)
    assert first.owed_s() == 0
    assert sum(limits.peer_up(number).owed_s() == 0 for number in range(10)) == 10


def test_what_is_taken_at_once_lasts_a_quarter_of_a_second_at_the_lowest_limit() -> None:
    assert Limits().piece_down > 1 << 30
    assert Limits(Rates(down=64_000)).piece_down == 16_000
    assert Limits(Rates(up=1, down=1 << 30, peer_down=128_000)).piece_down == 32_000
    assert Limits(Rates(down=1)).piece_down == 1
