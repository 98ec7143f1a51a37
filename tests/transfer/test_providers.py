from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.formats.addresses import Address
from dhtdata.transfer.providers import (
    FIRST_PAUSE_S,
    LIAR_S,
    LONGEST_PAUSE_S,
    MAX_REMOTES,
    MAX_WINDOW_BYTES,
    Remote,
    Remotes,
)

PEER = Address("192.0.2.1", 8_470)
OTHER = Address("192.0.2.2", 8_470)
BLOCK = 1 << 20


class _Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _serve(remote: Remote, rate_bytes_s: float, latency_s: float, blocks: int) -> None:
    """It delivers blocks one by one at that rate."""
    now_s = 0.0
    for _ in range(blocks):
        remote.asked(BLOCK)
        now_s += latency_s
        remote.began(latency_s, now_s)
        for _ in range(16):
            now_s += BLOCK / 16 / rate_bytes_s
            remote.received(BLOCK // 16, now_s)
        remote.ended(0, now_s, began=True)
        remote.verified(BLOCK)


def test_a_liar_is_avoided_for_a_while_and_nobody_else_is() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    remotes.lied(PEER, 1_000, "wrong bytes")
    assert not remotes.usable(PEER)
    assert remotes.usable(OTHER)
    assert remotes.avoided(PEER) == "wrong bytes"
    assert remotes.at(PEER).wasted == 1_000
    clock.now_s += LIAR_S
    assert remotes.usable(PEER)
    assert remotes.avoided(PEER) == ""


def test_pauses_grow_with_failures_and_are_forgiven_after_many_verified_blocks() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    pauses = []
    for _ in range(10):
        remotes.failed(PEER, "refused")
        pauses.append(remotes.at(PEER).avoided_until_s - clock.now_s)
        clock.now_s += pauses[-1]
        assert remotes.usable(PEER)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    for _ in range(100):
        remotes.at(PEER).verified(10)
    remotes.failed(PEER, "refused")
    assert remotes.at(PEER).avoided_until_s - clock.now_s == FIRST_PAUSE_S


def test_who_breaks_off_again_and_again_is_left_alone_for_longer_and_trusted_with_less() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    pauses = []
    for _ in range(8):
        _serve(remotes.at(PEER), 1e8, 0.01, 3)
        assert remotes.at(PEER).window_bytes > BLOCK
        remotes.failed(PEER, "broke off just before the end of a block")
        assert remotes.at(PEER).window_bytes == 0
        pauses.append(remotes.at(PEER).avoided_until_s - clock.now_s)
        clock.now_s += pauses[-1]
    assert pauses == [min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(8)]


def test_transfers_that_die_together_are_one_failure() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    for _ in range(4):
        remotes.failed(PEER, "gone")
    assert remotes.at(PEER).avoided_until_s - clock.now_s == FIRST_PAUSE_S
    assert remotes.at(PEER).failures == 1


def test_a_failure_does_not_shorten_what_a_lie_costs() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    remotes.lied(PEER, 1, "wrong bytes")
    remotes.failed(PEER, "refused")
    assert remotes.at(PEER).avoided_until_s == clock.now_s + LIAR_S
    assert remotes.avoided(PEER) == "wrong bytes"


@pytest.mark.parametrize(("retry_s", "pause_s"), [(5.0, 5.0), (-3.0, 0.0), (1e9, LONGEST_PAUSE_S)])
def test_the_busy_are_left_alone_as_long_as_they_ask_for_without_blame(retry_s: float, pause_s: float) -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    remotes.busy(PEER, retry_s)
    assert remotes.at(PEER).avoided_until_s == max(clock.now_s + pause_s, 0.0)
    assert remotes.at(PEER).failures == 0


def test_memory_is_bounded_and_busy_peers_are_kept() -> None:
    remotes = Remotes(_Clock())
    remotes.at(PEER).requests = 1
    for number in range(MAX_REMOTES + 50):
        remotes.at(Address(f"10.0.{number >> 8}.{number & 255}", 1))
    assert len(remotes.everybody()) == MAX_REMOTES
    assert any(remote.provider == PEER for remote in remotes.everybody())


@given(rate_mib_s=st.floats(0.05, 2_000), latency_s=st.floats(0.001, 0.4))
def test_rate_and_latency_are_measured_apart(rate_mib_s: float, latency_s: float) -> None:
    remote = Remote(PEER)
    _serve(remote, rate_mib_s * BLOCK, latency_s, 30)
    assert remote.outstanding_bytes == remote.requests == 0
    assert remote.rate_bytes_s == pytest.approx(min(rate_mib_s, 1_000) * BLOCK, rel=0.15)
    assert remote.latency_s == pytest.approx(latency_s, rel=0.05)
    assert remote.path_s == pytest.approx(latency_s, rel=0.05)
    assert remote.done_in_s(BLOCK) == pytest.approx(latency_s + BLOCK / remote.rate_bytes_s, rel=0.05)


def test_transfers_at_the_same_time_are_measured_together() -> None:
    remote = Remote(PEER)
    for _ in range(4):
        remote.asked(BLOCK)
        remote.began(0.01, 0.0)
    for step in range(1, 17):
        for _ in range(4):
            remote.received(BLOCK // 16, step / 16)
    for _ in range(4):
        remote.ended(0, 1.0, began=True)
    assert remote.rate_bytes_s == pytest.approx(4 * BLOCK, rel=0.1)


def test_the_window_is_nothing_for_a_stranger_and_grows_to_what_the_link_is_good_for() -> None:
    remote = Remote(PEER)
    assert remote.window_bytes == 0
    windows = []
    for _ in range(4):
        _serve(remote, 125e6, 0.2, 1)
        windows.append(remote.window_bytes)
    assert windows == [16 * BLOCK, 32 * BLOCK, 48 * BLOCK, MAX_WINDOW_BYTES]
    slow = Remote(OTHER)
    _serve(slow, 1e6, 0.05, 10)
    assert 0 < slow.window_bytes <= 2 * BLOCK


def test_a_liar_begins_anew_when_its_ban_is_over() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    _serve(remotes.at(PEER), 1e8, 0.01, 5)
    remotes.lied(PEER, 1, "wrong bytes")
    clock.now_s += LIAR_S
    assert remotes.usable(PEER)
    assert remotes.at(PEER).window_bytes == 0
