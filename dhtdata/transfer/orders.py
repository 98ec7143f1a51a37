"""Orders on their way: who is being asked for which blocks, how far each has come, and when it will be done.

Pure: no I/O; the clock is passed in. `dhtdata.transfer.planner` gives orders out and asks here; whoever carries them
out tells how they go, with `Orders.began`, `progress`, `delivered` and `ended`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.transfer.availability import Crowd
from dhtdata.transfer.picker import Run, Wanted
from dhtdata.transfer.providers import Provider, Remote

STALL_S = 2.0
_LATE_FACTOR = 1.5
_LATE_S = 0.25
_METER_S = 0.5
_METER_WEIGHT = 0.3
_SHORTEST_S = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """One run asked of one provider; equal only to itself."""

    provider: Provider
    run: Run


@dataclass(eq=False)
class Asked:
    """An order on its way. ``left``: blocks of it that were not delivered. ``due_s``: from then on it is late.

    ``new``: a complete member was asked because nobody else had it.
    """

    order: Order
    want: Wanted
    remote: Remote
    since_s: float
    due_s: float
    last_s: float
    left: int
    crowd: Crowd
    new: bool
    began_s: float | None = None
    received: int = 0

    def needs_s(self, position: int, now_s: float) -> float:
        """How long until this block of it is here, by its own progress; grows with silence."""
        block = self.want.table.blocks[position]
        left_bytes = max(block.offset + block.length - self.order.run.offset - self.received, 0)
        share = self.remote.rate_bytes_s / max(self.remote.requests, 1)
        silence_s = now_s - self.last_s
        if self.began_s is None:
            return max(self.remote.latency_s + left_bytes / share - silence_s, 2 * silence_s - self.remote.latency_s)
        if self.received and now_s - self.began_s > _LATE_S:
            share = self.received / (now_s - self.began_s)
        return max(left_bytes / share, 2 * silence_s)


@dataclass
class _Meter:
    """How fast everything together arrives."""

    rate_bytes_s: float = 0.0
    bytes: int = 0
    since_s: float = 0.0

    def restart(self, now_s: float) -> None:
        """Nothing was on its way until now."""
        self.bytes, self.since_s = 0, now_s

    def add(self, byte_count: int, now_s: float) -> None:
        self.bytes += byte_count
        if now_s - self.since_s >= _METER_S:
            self.read(now_s)

    def read(self, now_s: float) -> None:
        """Take what came since the last reading for the rate."""
        rate = self.bytes / max(now_s - self.since_s, _SHORTEST_S)
        self.rate_bytes_s += _METER_WEIGHT * (rate - self.rate_bytes_s) if self.rate_bytes_s else rate
        self.restart(now_s)


class Orders:
    """All orders on their way. ``reserved_bytes``: their lengths; ``outstanding_bytes``: what of them has not come."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self.outstanding_bytes = 0
        self._asked: dict[Order, Asked] = {}
        self._meter = _Meter()

    def __len__(self) -> int:
        return len(self._asked)

    def __iter__(self) -> Iterator[Asked]:
        return iter(self._asked.values())

    @property
    def rate_bytes_s(self) -> float:
        """How fast everything together arrives."""
        return self._meter.rate_bytes_s

    def register(self, provider: Provider, remote: Remote, crowd: Crowd, want: Wanted, run: Run, now_s: float) -> Order:
        """A run is asked of a provider, which is a member of a crowd."""
        order = Order(provider, run)
        new = crowd.have.is_complete(provider) and not crowd.have.copies(run.shard).any & run.mask
        due_s = now_s + _LATE_FACTOR * remote.done_in_s(run.length) + _LATE_S
        if not self._asked:
            self._meter.restart(now_s)
        self._asked[order] = Asked(order, want, remote, now_s, due_s, now_s, run.mask, crowd, new)
        self.reserved_bytes += run.length
        self.outstanding_bytes += run.length
        remote.asked(run.length)
        self._recount(want)
        return order

    def began(self, order: Order, now_s: float) -> None:
        """The first byte of the body is here."""
        asked = self._asked[order]
        if asked.began_s is None:
            asked.began_s = asked.last_s = now_s
            asked.remote.began(now_s - asked.since_s, now_s)

    def progress(self, order: Order, byte_count: int, now_s: float) -> None:
        """So many bytes of the body arrived in all, not verified yet."""
        asked = self._asked[order]
        self.began(order, now_s)
        more = min(byte_count, order.run.length) - asked.received
        if more > 0:
            asked.received += more
            asked.last_s = now_s
            self.outstanding_bytes -= more
            asked.remote.received(more, now_s)
            self._meter.add(more, now_s)

    def delivered(self, order: Order, position: int, now_s: float) -> None:
        """A block of it was verified and written."""
        asked = self._asked[order]
        block = asked.want.table.blocks[position]
        self.progress(order, block.offset + block.length - order.run.offset, now_s)
        asked.left &= ~(1 << position)
        asked.remote.verified(block.length)
        asked.want.arrived(position)

    def ended(self, order: Order, now_s: float) -> None:
        """It is over, whatever came of it; blocks that were not delivered are open again."""
        asked = self._asked.pop(order)
        left_bytes = order.run.length - asked.received
        self.reserved_bytes -= order.run.length
        self.outstanding_bytes -= left_bytes
        asked.remote.ended(left_bytes, now_s, began=asked.began_s is not None)
        if not self._asked and self._meter.bytes:
            self._meter.read(now_s)
        self._recount(asked.want)

    def redundant(self, order: Order) -> bool:
        """Whether it is of no use: nothing of it is missing, or it has not begun and can be had of others by now."""
        asked = self._asked.get(order)
        if asked is None or not asked.left:
            # It ends by itself; to break it off now would cost its connection.
            return False
        useful = asked.left & asked.want.missing
        if asked.began_s is None and useful:
            for other in self._asked.values() if useful & asked.want.twice else ():
                if other.want is asked.want and other is not asked and other.began_s is not None:
                    useful &= ~other.left
            have = asked.crowd.have
            if asked.new and have.scarce:
                useful &= ~have.copies(asked.want.shard).any
        return not useful

    def busy(self, provider: Provider, want: Wanted) -> int:
        """Blocks that this provider is being asked for already."""
        mask = 0
        for asked in self._asked.values():
            if asked.want is want and asked.order.provider == provider:
                mask |= asked.order.run.mask
        return mask

    def stalled(self, now_s: float) -> set[Provider]:
        """Who has been silent for long."""
        return {asked.order.provider for asked in self._asked.values() if now_s - asked.last_s > STALL_S}

    def late(self, now_s: float) -> dict[Digest, int]:
        """Blocks that should be here by now, by shard."""
        masks: dict[Digest, int] = {}
        for asked in self._asked.values():
            if now_s >= asked.due_s:
                masks[asked.want.shard] = masks.get(asked.want.shard, 0) | asked.left
        return masks

    def queued(self, now_s: float) -> tuple[dict[Digest, int], int]:
        """Blocks and bytes of orders that should have begun by now: others may be asked for them."""
        masks: dict[Digest, int] = {}
        byte_count = 0
        for asked in self._asked.values():
            if asked.began_s is None and now_s >= asked.due_s:
                masks[asked.want.shard] = masks.get(asked.want.shard, 0) | asked.left
                byte_count += asked.order.run.length
        return masks, byte_count

    def needs_s(self, want: Wanted, position: int, now_s: float) -> float:
        """How long the one who was asked for a block still needs."""
        times_s = [
            asked.needs_s(position, now_s)
            for asked in self._asked.values()
            if asked.want is want and asked.left >> position & 1
        ]
        return min(times_s, default=0.0)

    def lasts_s(self, now_s: float) -> float:
        """How long what is on its way will go on coming; who stalls does not count."""
        lively = [asked for asked in self._asked.values() if now_s - asked.last_s < STALL_S]
        left_bytes = sum(asked.order.run.length - asked.received for asked in lively)
        return left_bytes / max(
            sum({asked.remote.provider: asked.remote.rate_bytes_s for asked in lively}.values()), 1.0
        )

    def _recount(self, want: Wanted) -> None:
        want.asked = want.twice = 0
        for asked in self._asked.values():
            if asked.want is want:
                want.twice |= want.asked & asked.left
                want.asked |= asked.left
