"""Virtual time and the flow of bytes: uplinks and downlinks that are shared, upload slots that are queued for.

A transfer runs at the smaller of two equal shares: its sender's uplink over all that it sends now, and its receiver's
downlink over all that it receives now. What one of the two leaves unused is not given to others, so the model is
somewhat slower than TCP would be, never faster. Rates change with every transfer that begins or ends at either side.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

SLOTS = 8
MAX_WAITING = 32
RETRY_S = 2.0
_ALMOST = 1e-6


class Engine:
    """Calls things at their time. Same calls, same order, every time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._timers: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def after(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        heappush(self._timers, (self.now_s + delay_s, next(self._sequence), function, args))

    def run(self, finished: Callable[[], bool], limit_s: float) -> None:
        """Until finished, or nothing is left to happen before the limit."""
        while self._timers and not finished() and self._timers[0][0] <= limit_s:
            self.now_s, _, function, args = heappop(self._timers)
            self.events += 1
            function(*args)


class Receiver(Protocol):
    """Where a transfer reports."""

    def begins(self, transfer: Transfer) -> None: ...

    def arrives(self, transfer: Transfer) -> None:
        """Another boundary was reached."""

    def refused(self, transfer: Transfer, retry_s: float) -> None: ...


@dataclass(eq=False)
class Link:
    """Access of one machine to the network, bytes per second each way."""

    up_bytes_s: float
    down_bytes_s: float
    sending: list[Transfer] = field(default_factory=list)
    receiving: list[Transfer] = field(default_factory=list)
    sent_bytes: float = 0.0


@dataclass(eq=False)
class Transfer:
    """Bytes from a sender to a link; ``ends`` are the offsets at which the receiver hears of it, ascending."""

    receiver: Receiver
    source: Uploads
    sink: Link
    ends: list[int]
    what: Any
    reached: int = 0
    bytes: float = 0.0
    rate_bytes_s: float = 0.0
    since_s: float = 0.0
    heard_s: float = 0.0
    ticket: int = 0
    running: bool = False
    over: bool = False


class Uploads:
    """Slots of one sender. Who waits is served in turn, requester by requester; the queue is bounded."""

    def __init__(self, engine: Engine, link: Link) -> None:
        self.link = link
        self.alive = True
        self._engine = engine
        self._slots = SLOTS
        self._waiting: OrderedDict[Receiver, deque[Transfer]] = OrderedDict()
        self._count = 0

    def request(self, transfer: Transfer) -> None:
        """Serve it now or later, or refuse it. The dead say nothing."""
        if not self.alive or transfer.over:
            return
        if len(self.link.sending) < self._slots:
            self._begin(transfer)
        elif self._count < MAX_WAITING:
            self._waiting.setdefault(transfer.receiver, deque()).append(transfer)
            self._count += 1
        else:
            transfer.receiver.refused(transfer, RETRY_S)

    def end(self, transfer: Transfer) -> None:
        """It is complete, or one side has gone away."""
        if transfer.over:
            return
        transfer.over = True
        if transfer.running:
            _settle(transfer, self._engine.now_s)
            transfer.running = False
            self.link.sending.remove(transfer)
            transfer.sink.receiving.remove(transfer)
            self._share(self.link.sending)
            self._share(transfer.sink.receiving)
            self._next()

    def die(self) -> list[Transfer]:
        """Stop serving. What was on its way falls silent."""
        self.alive = False
        silent = list(self.link.sending)
        for transfer in silent:
            self.end(transfer)
        self._waiting.clear()
        self._count = 0
        return silent

    def _next(self) -> None:
        while self.alive and self._waiting and len(self.link.sending) < self._slots:
            receiver, queue = self._waiting.popitem(last=False)
            transfer = queue.popleft()
            self._count -= 1
            if queue:
                self._waiting[receiver] = queue
            if not transfer.over:
                self._begin(transfer)

    def _begin(self, transfer: Transfer) -> None:
        transfer.running = True
        transfer.since_s = transfer.heard_s = self._engine.now_s
        self.link.sending.append(transfer)
        transfer.sink.receiving.append(transfer)
        self._share(self.link.sending)
        self._share(transfer.sink.receiving)
        self._engine.after(0.0, transfer.receiver.begins, transfer)

    def _share(self, transfers: list[Transfer]) -> None:
        """Give every one of these its rate anew."""
        now_s = self._engine.now_s
        for transfer in transfers:
            source, sink = transfer.source.link, transfer.sink
            rate = min(source.up_bytes_s / len(source.sending), sink.down_bytes_s / len(sink.receiving))
            before = transfer.rate_bytes_s
            if rate != before:
                _settle(transfer, now_s)
                transfer.rate_bytes_s = rate
                # A slower one is looked at when it would have been done, and then once more.
                if rate > before:
                    transfer.ticket += 1
                    self._look_later(transfer)

    def _look_later(self, transfer: Transfer) -> None:
        left = transfer.ends[transfer.reached] - transfer.bytes
        self._engine.after(max(left, 0.0) / transfer.rate_bytes_s, self._look, transfer, transfer.ticket)

    def _look(self, transfer: Transfer, ticket: int) -> None:
        if transfer.over or ticket != transfer.ticket:
            return
        _settle(transfer, self._engine.now_s)
        if transfer.bytes >= transfer.ends[transfer.reached] - _ALMOST * transfer.ends[-1]:
            transfer.bytes = float(transfer.ends[transfer.reached])
            transfer.reached += 1
            transfer.heard_s = self._engine.now_s
            if transfer.reached == len(transfer.ends):
                transfer.source.end(transfer)
            transfer.receiver.arrives(transfer)
        if not transfer.over:
            self._look_later(transfer)


def _settle(transfer: Transfer, now_s: float) -> None:
    """Account for what came at the rate until now."""
    more = transfer.rate_bytes_s * (now_s - transfer.since_s)
    transfer.bytes += more
    transfer.source.link.sent_bytes += more
    transfer.since_s = now_s
