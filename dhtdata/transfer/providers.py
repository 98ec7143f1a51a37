"""Remote providers: how well each serves, what it delivered, and whom to avoid for how long.

A provider is whoever blobs can be had from: a peer's address or a web seed. Over plain HTTP blame falls on it, never on
a key: keys are free, and somebody in the middle must not get others banned. Everything expires. Time arrives as an
argument or an injected clock.

**Measuring.** The rate is that of all transfers of a provider together, over the time in which at least one body is
arriving; the wait for the first byte is measured apart, as latency. So a rate is not understated because a request was
short or had to queue, and who asks adds the two up.

**Trust.** Until a block of a provider was verified it gets one block in one transfer, then sixteen times as many bytes
as it delivered since, up to what its rate and latency are good for (`Remote.window_bytes`). A lie or a failure
takes it all away, and failures are forgiven only after many good blocks: who breaks off before the end of each block
wastes at most one a pause, and pauses double.
So no run is much larger than what the rate was measured by: a small block may come at once out of some queue's burst.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MAX_REMOTES = 4_096
LIAR_S = 600.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MAX_WINDOW_BYTES = 64 << 20
PIPELINE_S = 0.5
"""What is on its way should last this long beyond the round trips: shorter starves fast links, longer ties
blocks up."""

_FIRST_RATE = 8 << 20
_FIRST_LATENCY_S = 0.1
_LONGEST_PATH_S = 0.5
_CREDIT = 16
_FORGIVEN_BLOCKS = 32
_FASTER = 0.5
_SLOWER = 0.25
_SAMPLE_S = 0.2
_SHORTEST_SAMPLE_S = 1e-3
_SMALLEST_SAMPLE = 64 << 10
_LATENCY_SMOOTHING = 0.3
_FLOOR_DRIFT = 0.05


class Provider(Protocol):
    """Whoever has blobs at ``<url>/v1/blobs/<digest>``: an `Address`, a `WebSeed`, or a peer of a simulation."""

    @property
    def url(self) -> str: ...

    def __hash__(self) -> int: ...


@dataclass
class _Sample:
    """Bytes since when, while ``bodies`` transfers are receiving. ``taken``: one was taken since they began."""

    bodies: int = 0
    taken: bool = False
    bytes: int = 0
    since_s: float = 0.0


@dataclass
class Remote:
    """One provider: verified bytes and blocks it delivered, bytes it made us throw away, and what it is doing now.

    ``outstanding_bytes``: asked for and not received. ``rate_bytes_s``: all its transfers together, a guess until
    ``measured``. ``latency_s``: from a request to its first byte, queueing included; ``path_s``: the shortest lately,
    0 until one began. ``credit_bytes``: how much may be outstanding by trust; 0 before the first verified block.
    ``failures`` in a row, with fewer than `_FORGIVEN_BLOCKS` verified blocks in between.
    """

    provider: Provider
    bytes: int = 0
    blocks: int = 0
    wasted: int = 0
    outstanding_bytes: int = 0
    requests: int = 0
    rate_bytes_s: float = _FIRST_RATE
    latency_s: float = _FIRST_LATENCY_S
    path_s: float = 0.0
    measured: bool = False
    credit_bytes: int = 0
    failures: int = 0
    since_failure: int = 0
    avoided_until_s: float = 0.0
    reason: str = ""
    _sample: _Sample = field(default_factory=_Sample, repr=False)

    @property
    def backlog_s(self) -> float:
        """When it would be done with what it was asked for."""
        return self.outstanding_bytes / self.rate_bytes_s

    @property
    def window_bytes(self) -> int:
        """How much to have outstanding, so that its link stays full and blocks are still done soon."""
        return min(int(self.rate_bytes_s * (2 * self.path_s + PIPELINE_S)), self.credit_bytes, MAX_WINDOW_BYTES)

    def done_in_s(self, byte_count: int) -> float:
        """Until it would have sent this many bytes more, asked now."""
        return self.latency_s + (self.outstanding_bytes + byte_count) / self.rate_bytes_s

    def asked(self, byte_count: int) -> None:
        self.requests += 1
        self.outstanding_bytes += byte_count

    def began(self, waited_s: float, now_s: float) -> None:
        """The first byte of a body is here."""
        if self.path_s:
            self.latency_s += _LATENCY_SMOOTHING * (waited_s - self.latency_s)
            self.path_s = min(waited_s, self.path_s + _FLOOR_DRIFT * (waited_s - self.path_s), _LONGEST_PATH_S)
        else:
            self.latency_s, self.path_s = waited_s, min(waited_s, _LONGEST_PATH_S)
        if self._sample.bodies == 0:
            self._sample = _Sample(since_s=now_s)
        self._sample.bodies += 1

    def received(self, byte_count: int, now_s: float) -> None:
        """More of its bodies arrived."""
        self.outstanding_bytes -= byte_count
        self._sample.bytes += byte_count
        if now_s - self._sample.since_s >= _SAMPLE_S:
            self._measure(now_s)

    def ended(self, left_bytes: int, now_s: float, *, began: bool) -> None:
        """A transfer is over; ``left_bytes`` of it never came."""
        self.requests -= 1
        self.outstanding_bytes -= left_bytes
        if began:
            self._sample.bodies -= 1
            if self._sample.bodies == 0 and not self._sample.taken:
                # What is left after a whole sample is too little to say anything.
                self._measure(now_s)

    def verified(self, byte_count: int) -> None:
        """A block of it is what it should be."""
        self.bytes += byte_count
        self.blocks += 1
        self.since_failure += 1
        if self.since_failure >= _FORGIVEN_BLOCKS:
            self.failures = 0
        self.credit_bytes = min(self.credit_bytes + byte_count * _CREDIT, MAX_WINDOW_BYTES)

    def _measure(self, now_s: float) -> None:
        sample = self._sample
        seconds = max(now_s - sample.since_s, _SHORTEST_SAMPLE_S)
        if sample.bytes >= _SMALLEST_SAMPLE or seconds >= _SAMPLE_S:
            rate = max(sample.bytes / seconds, 1.0)
            weight = _FASTER if rate > self.rate_bytes_s else _SLOWER
            self.rate_bytes_s += (weight if self.measured else 1.0) * (rate - self.rate_bytes_s)
            self.measured = True
        sample.bytes, sample.since_s, sample.taken = 0, now_s, True


class Remotes:
    """Every provider this peer dealt with lately; the oldest are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._remotes: dict[Provider, Remote] = {}
        self._clock = clock

    def at(self, provider: Provider) -> Remote:
        remote = self._remotes.get(provider)
        if remote is None:
            self._forget()
            remote = self._remotes[provider] = Remote(provider)
        return remote

    def usable(self, provider: Provider) -> bool:
        """Not avoided right now."""
        remote = self._remotes.get(provider)
        return remote is None or remote.avoided_until_s <= self._clock()

    def avoided(self, provider: Provider) -> str:
        """Why, or an empty string."""
        return "" if self.usable(provider) else self._remotes[provider].reason

    def failed(self, provider: Provider, reason: str) -> None:
        """It refused, hung or broke off: leave it alone for a while, longer each time."""
        remote = self.at(provider)
        if remote.failures and not self.usable(provider):
            # Several transfers die together when a peer does: that is one failure.
            return
        pause_s = min(FIRST_PAUSE_S * 2.0**remote.failures, LONGEST_PAUSE_S)
        remote.failures = min(remote.failures + 1, 16)
        remote.since_failure = remote.credit_bytes = 0
        remote.rate_bytes_s = max(remote.rate_bytes_s / 2, 1.0)
        self._avoid(remote, pause_s, reason)

    def lied(self, provider: Provider, byte_count: int, reason: str) -> None:
        """It sent bytes that are not what they should be; ``byte_count`` of them were thrown away."""
        remote = self.at(provider)
        remote.wasted += byte_count
        remote.credit_bytes = 0
        self._avoid(remote, LIAR_S, reason)

    def busy(self, provider: Provider, retry_s: float) -> None:
        """It said that it has too much to do: leave it alone that long, without blame."""
        self._avoid(self.at(provider), min(max(retry_s, 0.0), LONGEST_PAUSE_S), "busy")

    def everybody(self) -> list[Remote]:
        return list(self._remotes.values())

    def _avoid(self, remote: Remote, pause_s: float, reason: str) -> None:
        until_s = self._clock() + pause_s
        if until_s > remote.avoided_until_s:
            remote.avoided_until_s = until_s
            remote.reason = reason[:200]

    def _forget(self) -> None:
        """Make room for one more: who serves now stays, and who is avoided as long as others can go."""
        if len(self._remotes) < MAX_REMOTES:
            return
        now_s = self._clock()
        idle = [provider for provider, remote in self._remotes.items() if not remote.requests]
        if idle:
            del self._remotes[next((each for each in idle if self._remotes[each].avoided_until_s <= now_s), idle[0])]
