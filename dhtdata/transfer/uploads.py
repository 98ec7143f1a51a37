"""Who may send large pieces now: slots, a fair queue for them, and when to say "busy".

A few uploads at once finish sooner than many, and a block is of use to a swarm only once it is whole. So there are
`SLOTS` slots. Who comes later waits in a queue, at most `QUEUE_S`, since whoever asks gives up soon after; then, or if
the queue is full, it is told to come back (`Refused`: 503, or 429 if it is this peer's own requests that fill it).
Whose turn it is: the peer with the fewest uploads under way, of equals the one whose last turn was longest ago. A peer
is an IPv4 address or an IPv6 /64, which is what one machine gets.

Why weights
-----------
A reader that takes little must not keep others from a line that is idle, or a few dozen such connections stop a seed.
So an upload occupies as much of a slot as it uses: its rate as a share of what a slot is worth, which is an eighth of
the line. For its first `YOUNG_S` its rate is not known, and it occupies what the peer's uploads did before. Uploads to
peers that are new here occupy all of a slot each, and of the slots that known peers could use only `NEWCOMERS`: else
whoever has many addresses would keep known readers waiting by just coming. (With none at all, a crowd that starts
together waits for those of it who were first.) What the line carries is the limit (``up``) if one is set, else the best
rate of late, halved every `FORGET_S`, and never believed to be below `LEAST_LINE_BYTES_S`. Eight uploads that fill the
line leave no room; many that are read at next to nothing leave nearly all of it. What bounds their number is the cap on
connections, and `sending` cuts those that are slower still.

With a low limit there are fewer slots, so that each gets `LEAST_BYTES_S`: those who ask give up on less.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from dhtdata.errors import PeerError
from dhtdata.transfer.rates import Limits

SLOTS = 8
NEWCOMERS = 2
QUEUE_S = 5.0
MAX_QUEUED = 256
MAX_QUEUED_OF_PEER = 96
MAX_PEERS = 1_024
YOUNG_S = 0.25
FORGET_S = 10.0
LEAST_LINE_BYTES_S = 1_000_000
LEAST_BYTES_S = 128_000
MAX_RETRY_S = 15
_MEMORY_S = 0.5
_SHORTEST_S = 0.001
_LOOK_S = 0.1
_IPV6_PEER_BITS = 64


class Refused(PeerError):
    """Come back after ``retry_s`` seconds. ``own_doing``: it is this peer's own requests that are too many."""

    def __init__(self, message: str, retry_s: int, *, own_doing: bool = False) -> None:
        super().__init__(message)
        self.retry_s = retry_s
        self.own_doing = own_doing


class Meter:
    """Bytes per second of late: each byte counts less as it gets older, over about `_MEMORY_S`."""

    __slots__ = ("_at_s", "_rate")

    def __init__(self, now_s: float) -> None:
        self._rate = 0.0
        self._at_s = now_s

    def add(self, byte_count: int, now_s: float) -> None:
        self._rate = self.rate(now_s) + byte_count / _MEMORY_S
        self._at_s = now_s

    def rate(self, now_s: float) -> float:
        return self._rate * math.exp(-max(0.0, now_s - self._at_s) / _MEMORY_S)


@dataclass
class _Peer:
    """Requests that wait, and how many uploads have a turn.

    ``usual``: the share of a slot that an upload to it was last seen to occupy; None if none was yet.
    """

    name: str
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    turns: int = 0
    usual: float | None = None


@dataclass(eq=False)
class Upload:
    """One upload under way."""

    peer: _Peer
    started_s: float
    meter: Meter

    def weight(self, now_s: float, slot_bytes_s: float) -> float:
        """The share of a slot that it occupies, 0 to 1."""
        if now_s - self.started_s >= YOUNG_S:
            self.learn(now_s, slot_bytes_s)
        return 1.0 if self.peer.usual is None else self.peer.usual

    def learn(self, now_s: float, slot_bytes_s: float) -> None:
        """Note what this peer uses. A meter that ran for a short time shows too little: so much of it is empty."""
        filled = 1 - math.exp(-max(_SHORTEST_S, now_s - self.started_s) / _MEMORY_S)
        self.peer.usual = min(1.0, self.meter.rate(now_s) / filled / slot_bytes_s)


class Uploads:
    """The slots of one server. ``busy`` counts requests that were told to come back."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.busy = 0
        self.queued = 0
        self._limits = limits
        self._clock = clock
        self._under_way: set[Upload] = set()
        self._turns = 0
        # In the order of their last turns, longest ago first.
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._meter = Meter(clock())
        self._best = 0.0
        self._best_s = clock()
        self._look: asyncio.TimerHandle | None = None

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @asynccontextmanager
    async def slot(self, peer: str) -> AsyncIterator[Upload]:
        """An upload to this peer, once it has a slot. `Refused` if that takes too long."""
        entry = self._peers.setdefault(peer, _Peer(peer))
        await self._turn(entry)
        now_s = self._clock()
        upload = Upload(entry, now_s, Meter(now_s))
        self._under_way.add(upload)
        try:
            yield upload
        finally:
            self._under_way.discard(upload)
            now_s = self._clock()
            if upload.meter.rate(now_s) > 0:
                upload.learn(now_s, self._slot_bytes_s(now_s))
            self._end(entry)

    def sent(self, upload: Upload, byte_count: int) -> None:
        now_s = self._clock()
        upload.meter.add(byte_count, now_s)
        self._meter.add(byte_count, now_s)
        self._best = max(self._line(now_s), self._meter.rate(now_s))
        self._best_s = now_s

    def check(self, peer: str) -> None:
        """`Refused` if the limits are behind by more than anybody waits."""
        owed_s = max(self._limits.up.owed_s(), self._limits.peer_up(peer).owed_s())
        if owed_s > QUEUE_S:
            raise self._refusal("the limit on uploads is used up", math.ceil(owed_s))

    def behind(self, peer: str) -> bool:
        """Whether the limits make whoever asks now wait: then all but the smallest take turns."""
        return self._limits.up.owed_s() > 0 or self._limits.peer_up(peer).owed_s() > 0

    async def pay(self, peer: str, byte_count: int) -> float:
        """Wait as the limits want it for so many bytes to a peer: the seconds that it took."""
        buckets = (self._limits.up, self._limits.peer_up(peer))
        wait_s = max([bucket.debit(byte_count) for bucket in buckets])
        if wait_s > 0:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                # The reader hung up: what it did not get must not keep others waiting.
                for bucket in buckets:
                    bucket.refund(byte_count)
                raise
        return wait_s

    def piece_bytes(self, most: int, least: int) -> int:
        """How much to send at once: about an eighth of a second at the limit, so that nobody waits long for others."""
        rates = [rate for rate in (self._limits.rates.up, self._limits.rates.peer_up) if rate is not None]
        return max(least, min([most, *(rate // 8 for rate in rates)]))

    async def _turn(self, entry: _Peer) -> None:
        """Returns when an upload to this peer may start; it is counted already."""
        if not self.queued and self._room(entry, self._loads()):
            self._start(entry)
            return
        if len(entry.waiting) >= MAX_QUEUED_OF_PEER:
            raise self._refusal("too many requests of yours are waiting", own_doing=True)
        if self.queued >= MAX_QUEUED:
            raise self._refusal("too many requests are waiting")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(turn)
        self.queued += 1
        self._admit()
        try:
            async with asyncio.timeout(QUEUE_S):
                await turn
        except TimeoutError:
            self._leave(entry, turn)
            raise self._refusal("all uploads are taken") from None
        except BaseException:
            self._leave(entry, turn)
            raise

    def _leave(self, entry: _Peer, turn: asyncio.Future[None]) -> None:
        """Whoever waited is gone, perhaps just when its turn came, or was passed over because it was gone."""
        if not turn.cancelled():
            self._end(entry)
        elif turn in entry.waiting:
            entry.waiting.remove(turn)
            self.queued -= 1

    def _admit(self) -> None:
        """Give turns while there is room; look again soon if some still wait."""
        while self.queued:
            loads = self._loads()
            able = (one for one in self._peers.values() if one.waiting and self._room(one, loads))
            entry = min(able, key=lambda one: one.turns, default=None)
            if entry is None:
                break
            turn = entry.waiting.popleft()
            self.queued -= 1
            if not turn.done():
                self._start(entry)
                turn.set_result(None)
        if self.queued and self._look is None:
            # Uploads that are read slowly get lighter by the mere passing of time.
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._admit()

    def _start(self, entry: _Peer) -> None:
        entry.turns += 1
        self._turns += 1
        self._peers.move_to_end(entry.name)
        while len(self._peers) > MAX_PEERS and (idle := self._longest_idle()) is not None:
            del self._peers[idle]

    def _end(self, entry: _Peer) -> None:
        entry.turns -= 1
        self._turns -= 1
        self._admit()

    def _longest_idle(self) -> str | None:
        return next((peer for peer, entry in self._peers.items() if not entry.waiting and not entry.turns), None)

    def _room(self, entry: _Peer, loads: tuple[float, float]) -> bool:
        """Whether one more upload, to this peer, may start."""
        peer_up = self._limits.rates.peer_up
        if peer_up is not None and entry.turns >= max(1, peer_up // LEAST_BYTES_S):
            return False
        known = entry.usual is not None
        kept = NEWCOMERS if known and self._newcomers_wait() else 0
        return loads[known] <= self._slots - 1 - kept

    def _newcomers_wait(self) -> bool:
        return any(entry.waiting and entry.usual is None for entry in self._peers.values())

    def _loads(self) -> tuple[float, float]:
        """Slots that are occupied by all uploads, and by those to peers that are known."""
        now_s = self._clock()
        slot_bytes_s = self._slot_bytes_s(now_s)
        # Those that were given a turn and have not begun yet occupy a slot each.
        everybody = known = float(self._turns - len(self._under_way))
        for upload in self._under_way:
            weight = upload.weight(now_s, slot_bytes_s)
            everybody += weight
            known += weight if upload.peer.usual is not None else 0.0
        return everybody, known

    @property
    def _slots(self) -> int:
        up = self._limits.rates.up
        return SLOTS if up is None else min(SLOTS, max(1, up // LEAST_BYTES_S))

    def _slot_bytes_s(self, now_s: float) -> float:
        """What a slot is worth."""
        up = self._limits.rates.up
        return (self._line(now_s) if up is None else up) / self._slots

    def _line(self, now_s: float) -> float:
        """Bytes per second that all uploads together have reached of late."""
        return max(LEAST_LINE_BYTES_S, self._best * math.exp2(-max(0.0, now_s - self._best_s) / FORGET_S))

    def _refusal(self, why: str, retry_s: int = 0, *, own_doing: bool = False) -> Refused:
        self.busy += 1
        waits = min(MAX_RETRY_S, max(1, retry_s or self.queued // SLOTS))
        return Refused(f"{why}: try again in {waits} s", waits, own_doing=own_doing)


@lru_cache(maxsize=4_096)
def peer_of(ip: str) -> str:
    """What counts as one peer: an IPv4 address, or the /64 of an IPv6 address."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv4Address):
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, _IPV6_PEER_BITS)))
