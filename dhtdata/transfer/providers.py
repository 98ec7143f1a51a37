"""Remote peers: how well each address serves, what it delivered, and whom to avoid for how long.

Over plain HTTP blame falls on the address, never on a key: keys are free, and somebody in the middle must not get
others banned. Everything expires. Time arrives as an argument or an injected clock.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from dhtdata.formats.web_seeds import Provider

MAX_REMOTES = 4_096
LIAR_S = 600.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_FIRST_RATE = 8 << 20
_SMOOTHING = 0.3


@dataclass
class Remote:
    """One address: verified bytes and blocks it delivered, bytes it made us throw away, and what it is doing now."""

    address: Provider
    bytes: int = 0
    blocks: int = 0
    wasted: int = 0
    outstanding_bytes: int = 0
    requests: int = 0
    rate_bytes_s: float = _FIRST_RATE
    failures: int = 0
    avoided_until_s: float = 0.0
    reason: str = ""

    @property
    def backlog_s(self) -> float:
        """When it would be done with what it was asked for."""
        return self.outstanding_bytes / self.rate_bytes_s


class Remotes:
    """Every address this peer dealt with lately; the least recently used are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._remotes: OrderedDict[Provider, Remote] = OrderedDict()
        self._clock = clock

    def at(self, address: Provider) -> Remote:
        remote = self._remotes.get(address)
        if remote is None:
            remote = self._remotes[address] = Remote(address)
            self._forget()
        self._remotes.move_to_end(address)
        return remote

    def usable(self, address: Provider) -> bool:
        """Not avoided right now."""
        remote = self._remotes.get(address)
        return remote is None or remote.avoided_until_s <= self._clock()

    def avoided(self, address: Provider) -> str:
        """Why, or an empty string."""
        return "" if self.usable(address) else self._remotes[address].reason

    def delivered(self, address: Provider, byte_count: int, blocks: int) -> None:
        """Verified bytes arrived."""
        remote = self.at(address)
        remote.bytes += byte_count
        remote.blocks += blocks
        remote.failures = 0

    def timed(self, address: Provider, byte_count: int, seconds: float) -> None:
        """A transfer took this long: a measurement of the rate."""
        remote = self.at(address)
        measured = byte_count / max(seconds, 1e-3)
        remote.rate_bytes_s += _SMOOTHING * (measured - remote.rate_bytes_s)

    def failed(self, address: Provider, reason: str) -> None:
        """It refused, hung or broke off: leave it alone for a while, longer each time."""
        remote = self.at(address)
        pause_s = min(FIRST_PAUSE_S * 2.0**remote.failures, LONGEST_PAUSE_S)
        remote.failures = min(remote.failures + 1, 16)
        remote.rate_bytes_s = max(remote.rate_bytes_s / 2, 1.0)
        self._avoid(remote, pause_s, reason)

    def lied(self, address: Provider, byte_count: int, reason: str) -> None:
        """It sent bytes that are not what they should be."""
        remote = self.at(address)
        remote.wasted += byte_count
        self._avoid(remote, LIAR_S, reason)

    def everybody(self) -> list[Remote]:
        return list(self._remotes.values())

    def _avoid(self, remote: Remote, pause_s: float, reason: str) -> None:
        until_s = self._clock() + pause_s
        if until_s > remote.avoided_until_s:
            remote.avoided_until_s = until_s
            remote.reason = reason[:200]

    def _forget(self) -> None:
        idle = (address for address, remote in self._remotes.items() if not remote.requests)
        while len(self._remotes) > MAX_REMOTES and (oldest := next(idle, None)) is not None:
            del self._remotes[oldest]
            idle = (address for address, remote in self._remotes.items() if not remote.requests)
