"""Cookies, what is remembered of those we call, and rates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.dht.cookies import COOKIE_LIFE_S, MAX_ACQUAINTANCES, ROTATION_S, Acquaintances, CookieJar
from dhtdata.dht.envelope import NO_COOKIE
from dhtdata.dht.rates import SourceLimits, TokenBucket
from dhtdata.formats.addresses import Address

START_S = 1_000.0


@given(later_s=st.floats(0, 4 * ROTATION_S))
def test_a_cookie_lives_for_one_to_two_rotations(later_s: float) -> None:
    jar = CookieJar(START_S)
    cookie = jar.give("10.0.0.1", 8470, START_S)
    rotations = int((START_S + later_s) // ROTATION_S) - int(START_S // ROTATION_S)
    assert jar.knows(cookie, "10.0.0.1", 8470, START_S + later_s) == (rotations < 2)


def test_a_cookie_is_worth_nothing_elsewhere() -> None:
    jar, other = CookieJar(START_S), CookieJar(START_S)
    cookie = jar.give("10.0.0.1", 8470, START_S)
    assert jar.knows(cookie, "10.0.0.1", 8470, START_S)
    assert not jar.knows(cookie, "10.0.0.1", 8471, START_S) and not jar.knows(cookie, "10.0.0.2", 8470, START_S)
    assert not other.knows(cookie, "10.0.0.1", 8470, START_S)
    assert not jar.knows(NO_COOKIE, "10.0.0.1", 8470, START_S)


def test_after_long_silence_old_cookies_are_worth_nothing() -> None:
    jar = CookieJar(START_S)
    cookies = [jar.give("10.0.0.1", 8470, START_S + step * ROTATION_S) for step in range(3)]
    assert not any(jar.knows(cookie, "10.0.0.1", 8470, START_S + 100 * ROTATION_S) for cookie in cookies)


def test_what_is_remembered_of_others_is_bounded_and_the_latest() -> None:
    known = Acquaintances()
    addresses = [Address(f"10.{number >> 8}.{number & 255}.1", 8470) for number in range(MAX_ACQUAINTANCES + 10)]
    for address in addresses:
        known.gave(address, b"cookie42", START_S)
        known.said(address, bytes(4))
        known.called(address, START_S)
    assert known.cookie(addresses[-1], START_S + COOKIE_LIFE_S - 1) == b"cookie42"
    assert known.cookie(addresses[-1], START_S + COOKIE_LIFE_S) == NO_COOKIE
    assert known.saw_us_at(addresses[-1]) == bytes(4)
    assert known.cookie(addresses[0], START_S) == NO_COOKIE and known.saw_us_at(addresses[0]) == b""
    assert known.called_within(addresses[-1], START_S + 10, 10) and not known.called_within(addresses[0], START_S, 10)
    assert not known.called_within(addresses[-1], START_S + 11, 10)


@given(steps=st.lists(st.floats(0, 5), max_size=80), rate=st.integers(1, 20), burst=st.integers(1, 10))
def test_a_bucket_never_gives_more_than_its_rate_and_burst(steps: list[float], rate: int, burst: int) -> None:
    bucket, now_s, given_out = TokenBucket(rate, burst, 0.0), 0.0, 0
    for step_s in steps:
        now_s += step_s
        given_out += bucket.take(now_s)
        assert given_out <= burst + rate * now_s + 1e-6
    assert bucket.take(now_s + burst / rate + 1)


def test_sources_do_not_share_a_bucket_and_the_table_is_bounded() -> None:
    limits = SourceLimits(rate=1, burst=2, capacity=3)
    assert [limits.take("a", 0.0) for _ in range(4)] == [True, True, False, False]
    assert limits.take("b", 0.0) and limits.take("a", 1.0)
    for source in range(100):
        limits.take(source, 0.0)
    assert len(limits._buckets) == 3
