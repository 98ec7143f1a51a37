from __future__ import annotations

from dhtdata.formats.addresses import Address
from dhtdata.transfer.providers import FIRST_PAUSE_S, LIAR_S, LONGEST_PAUSE_S, MAX_REMOTES, Remotes

PEER = Address("192.0.2.1", 8_470)
OTHER = Address("192.0.2.2", 8_470)


class _Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


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


def test_pauses_grow_with_failures_and_end_with_a_delivery() -> None:
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
    remotes.delivered(PEER, 10, 1)
    remotes.failed(PEER, "refused")
    assert remotes.at(PEER).avoided_until_s - clock.now_s == FIRST_PAUSE_S


def test_a_failure_does_not_shorten_what_a_lie_costs() -> None:
    clock = _Clock()
    remotes = Remotes(clock)
    remotes.lied(PEER, 1, "wrong bytes")
    remotes.failed(PEER, "refused")
    assert remotes.at(PEER).avoided_until_s == clock.now_s + LIAR_S
    assert remotes.avoided(PEER) == "wrong bytes"


def test_memory_is_bounded_and_busy_peers_are_kept() -> None:
    remotes = Remotes(_Clock())
    remotes.at(PEER).requests = 1
    for number in range(MAX_REMOTES + 50):
        remotes.at(Address(f"10.0.{number >> 8}.{number & 255}", 1))
    assert len(remotes.everybody()) == MAX_REMOTES
    assert any(remote.address == PEER for remote in remotes.everybody())


def test_the_slower_peer_has_the_longer_backlog() -> None:
    remotes = Remotes(_Clock())
    for address, seconds in ((PEER, 0.1), (OTHER, 2.0)):
        for _ in range(20):
            remotes.timed(address, 1 << 20, seconds)
        remotes.at(address).outstanding_bytes = 1 << 20
    assert remotes.at(PEER).backlog_s < remotes.at(OTHER).backlog_s
