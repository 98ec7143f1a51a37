"""Limits on bytes per second, shared by server and fetcher, for the whole peer and for each other peer.

A `Bucket` is charged first and waited for afterwards: `Bucket.debit` says how long to wait before the next piece. So a
piece of any size passes, and what several tasks or threads send together still keeps to the rate. What was not used is
saved up for `BURST_S` at most.

Limits count bytes of blobs. Questions and their answers (have-maps, names, peers) are small and pass freely: they are
what keeps a slow peer useful.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

BURST_S = 0.1
MAX_PEERS = 1_024


@dataclass(frozen=True)
class Rates:
    """Bytes per second, for all together and for each peer; None: no limit."""

    up: int | None = None
    down: int | None = None
    peer_up: int | None = None
    peer_down: int | None = None


UNLIMITED = Rates()


class Bucket:
    """A rate in bytes per second (None: no limit), which may be changed while running. Thread-safe."""

    def __init__(self, rate_bytes_s: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = _checked(rate_bytes_s)
        self._level = 0.0
        self._filled_s = clock()

    @property
    def rate_bytes_s(self) -> int | None:
        return self._rate

    @rate_bytes_s.setter
    def rate_bytes_s(self, rate_bytes_s: int | None) -> None:
        with self._lock:
            self._fill()
            self._rate = _checked(rate_bytes_s)

    def debit(self, byte_count: int) -> float:
        """Charge this many bytes: seconds to wait before sending (or after receiving) them."""
        with self._lock:
            self._fill()
            if self._rate is None:
                return 0.0
            self._level -= byte_count
            return max(0.0, -self._level / self._rate)

    def refund(self, byte_count: int) -> None:
        """What was charged was not sent after all."""
        with self._lock:
            self._fill()
            if self._rate is not None:
                self._level += byte_count

    def owed_s(self) -> float:
        """Seconds until what was charged so far is paid: what a debit of nothing would wait."""
        return self.debit(0)

    def _fill(self) -> None:
        now_s = self._clock()
        if self._rate is None:
            self._level = 0.0
        else:
            gained = max(0.0, now_s - self._filled_s) * self._rate
            self._level = min(self._level + gained, self._rate * BURST_S)
        self._filled_s = now_s


class Limits:
    """The buckets of one peer. Those of other peers are kept for the `MAX_PEERS` that were last asked for."""

    def __init__(self, rates: Rates = UNLIMITED, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rates = rates
        self.up = Bucket(rates.up, clock)
        self.down = Bucket(rates.down, clock)
        self._peers_up: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._peers_down: OrderedDict[Hashable, Bucket] = OrderedDict()

    @property
    def rates(self) -> Rates:
        return self._rates

    @rates.setter
    def rates(self, rates: Rates) -> None:
        with self._lock:
            self._rates = rates
            self.up.rate_bytes_s = rates.up
            self.down.rate_bytes_s = rates.down
            for bucket in self._peers_up.values():
                bucket.rate_bytes_s = rates.peer_up
            for bucket in self._peers_down.values():
                bucket.rate_bytes_s = rates.peer_down

    @property
    def piece_down(self) -> int:
        """How much to take at once: about a quarter of a second at the limits, so that something comes all the time."""
        rates = [rate for rate in (self._rates.down, self._rates.peer_down) if rate is not None]
        return max(min(rates) // 4, 1) if rates else sys.maxsize

    def peer_up(self, peer: Hashable) -> Bucket:
        """What this peer may be sent."""
        with self._lock:
            return self._of(self._peers_up, peer, self._rates.peer_up)

    def peer_down(self, peer: Hashable) -> Bucket:
        """What may be taken from this peer."""
        with self._lock:
            return self._of(self._peers_down, peer, self._rates.peer_down)

    def _of(self, buckets: OrderedDict[Hashable, Bucket], peer: Hashable, rate_bytes_s: int | None) -> Bucket:
        bucket = buckets.get(peer)
        if bucket is None:
            bucket = buckets[peer] = Bucket(rate_bytes_s, self._clock)
            if len(buckets) > MAX_PEERS:
                buckets.popitem(last=False)
        buckets.move_to_end(peer)
        return bucket


def _checked(rate_bytes_s: int | None) -> int | None:
    if rate_bytes_s is not None and rate_bytes_s < 1:
        raise ValueError(f"a rate of {rate_bytes_s} bytes per second lets nothing pass")
    return rate_bytes_s
