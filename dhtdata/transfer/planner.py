"""Which provider to ask for which blocks next. Pure: no I/O; the clock and randomness are passed in.

`Planner.next` is called whenever something changed, until it answers None, and again after `Planner.look_again_s`. In
this order it gives out:

1. **What somebody waits for**, earliest turn first, to the provider that will have sent it first: least (outstanding
   bytes + block) / rate, plus latency. If that one has no room now, the block goes to another that will not be clearly
   later, else it waits for the fast one. What is late is asked of one more provider.
2. **Background**: the rarest blocks, random among equals, from the provider with the least backlog. Adjacent blocks
   make one run.
3. **The end game**: nothing unasked is left, so blocks that one provider is slow with are asked of another with room,
   too. Before the end only who has fallen silent is overtaken.

**One block is asked of two at most**, and of a second only if it would be there in less than half the time that the
first still needs. That time is estimated from the order's own progress, and grows with its silence: whoever stalls is
overtaken, whoever is only slow too, when others have nothing better to do. An order that should have begun by now waits
in somebody's queue: its blocks are open to one other, and whichever begins last is `redundant`.

**A crowd at one seed.** Where few are complete, they are asked for what no partial member holds or is fetching: so
everybody brings something else into the crowd, and the seed sends little more than one copy. What partial members have
is fetched from them, and an order in the seed's queue is `redundant` as soon as one of them has the block; only who
would otherwise nearly idle (`_DEAR`) asks a seed for it. Who cannot be reached (`Planner.spreads`) brings nothing into
the crowd and leaves the seed to those who can.

**How much at once.** Per provider what `Remote.window_bytes` says: one block for a stranger, one or two on slow links,
so that they are done soon and spread, up to 64 MiB on long fast ones, in at most `TRANSFERS_PER_PROVIDER` transfers, a
few more over a long way, where each waits most of its time (`MORE_TRANSFERS`). In all `MAX_TRANSFERS` and
`MAX_OUTSTANDING_BYTES`, and in the background no more than will have come in `HORIZON_S`.

Measured in `benchmarks.swarm_simulated`, eight peers at one seed, 100 Mbit/s each, 256 MiB, five seeds of chance: done
after 1.14 to 1.18 times the lower bound with 1.00 to 1.02 copies sent by the seed; with half of them unable to upload,
1.13 to 1.14 times and 1.05 to 1.08 copies (before those left new blocks to others: 1.20 to 1.24, 1.9 copies). With
have-maps every 3 s instead of every 0.5 s 1.24 to 1.26 times; without blocks on their way in them 1.2 copies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from heapq import merge
from itertools import islice
from operator import or_

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.transfer.availability import Crowd
from dhtdata.transfer.masks import Copies, any_of
from dhtdata.transfer.orders import STALL_S, Order, Orders
from dhtdata.transfer.picker import Run, Wanted
from dhtdata.transfer.providers import Provider, Remote, Remotes

MAX_TRANSFERS = 32
MAX_OUTSTANDING_BYTES = 96 << 20
TRANSFERS_PER_PROVIDER = 4
MORE_TRANSFERS = 4
LONG_PATH_S = 0.05
MAX_RUN_BYTES = 16 << 20
RUN_S = 0.5
URGENT_RUN_S = 0.25
HORIZON_S = 4.0
MIN_PIPELINE_BYTES = 16 << 20
LOOK_AGAIN_S = 1.0
HEDGE_AGAIN_S = 0.25

_UNPROVEN_RATE = 1 << 20
_CLEARLY = 2.0
_WORTH_S = 0.1
_DEAR = 32.0
"""Of a seed a crowd fetches what it has already only if that is there so many times sooner: 8 and 32 were equally fast,
with 3.2 and 2.5 copies sent to 250 peers."""
_HUNGRY_S = 0.04
_URGENT_SCAN = 32
_TYPICAL_BYTES = 1 << 20


@dataclass(eq=False, slots=True)
class _Helper:
    """A provider that may be asked now. ``idle``: it has nothing of what nobody is being asked for."""

    provider: Provider
    remote: Remote
    crowd: Crowd
    stalled: bool
    idle: bool = True


@dataclass(eq=False, slots=True)
class _Offer:
    """Open blocks of one shard, and who has some of it in one crowd."""

    want: Wanted
    open: int
    holders: Mapping[Provider, int]
    copies: Copies


class Planner:
    """Gives out orders. Touched by the event loop's thread only.

    ``spreads``: whether others can fetch from this peer, set by the caller; ``orders``: those on their way, which the
    caller tells how they go.
    """

    def __init__(self, remotes: Remotes, chance: random.Random) -> None:
        self.spreads = True
        self.orders = Orders()
        self._remotes = remotes
        self._chance = chance
        self._wants: dict[Digest, Wanted] = {}

    def open(self, shard: Digest, table: BlockTable) -> Wanted:
        """Begin with a shard. The caller sets ``turns`` and ``crowds`` of what it gets."""
        want = self._wants[shard] = Wanted(shard, table)
        return want

    def close(self, shard: Digest) -> None:
        """Nothing more of it is wanted; what is on its way becomes redundant."""
        want = self._wants.pop(shard, None)
        if want is not None:
            want.turns = {}

    def next(self, now_s: float) -> Order | None:
        """What to ask whom now, registered as outstanding; None if there is nothing to do until something happens."""
        if len(self.orders) >= MAX_TRANSFERS or self.orders.reserved_bytes >= MAX_OUTSTANDING_BYTES:
            return None
        wants = [want for want in self._wants.values() if want.missing]
        if not wants:
            return None
        helpers = self._helpers(wants, now_s)
        urgent = any(want.urgent for want in wants)
        chosen = self._urgent(wants, helpers, now_s) if urgent else None
        if chosen is None:
            # One transfer of each provider is kept free for what somebody waits for.
            free = [helper for helper in helpers if _room(helper, kept_free=urgent)]
            chance = self._chance.random
            free.sort(key=lambda helper: helper.remote.done_in_s(_TYPICAL_BYTES) * (1 + chance()))
            chosen = self._background(wants, free, now_s) or self._end_game(free, now_s)
        if chosen is None:
            return None
        helper, want, run = chosen
        reserved = self.orders.reserved_bytes
        if reserved and reserved + run.length > MAX_OUTSTANDING_BYTES:
            return None
        return self.orders.register(helper.provider, helper.remote, helper.crowd, want, run, now_s)

    def look_again_s(self, now_s: float) -> float | None:
        """Seconds until `next` may have something new although nothing happened; None if it cannot."""
        if not any(want.missing for want in self._wants.values()):
            return None
        if any(asked.want.urgent for asked in self.orders):
            return HEDGE_AGAIN_S
        return LOOK_AGAIN_S

    def _helpers(self, wants: Sequence[Wanted], now_s: float) -> list[_Helper]:
        """Providers that may be asked for something, once for every crowd."""
        stalled = self.orders.stalled(now_s)
        helpers = []
        for crowd in {crowd: None for want in wants for crowd in want.crowds}:
            for provider in crowd.usable():
                remote = self._remotes.at(provider)
                if remote.avoided_until_s <= now_s:
                    helpers.append(_Helper(provider, remote, crowd, provider in stalled))
        return helpers

    def _pipeline_bytes(self) -> float:
        """How much to have outstanding in the background: what will come soon, or what one provider is good for."""
        widest = max((asked.remote.window_bytes for asked in self.orders), default=0)
        return max(self.orders.rate_bytes_s * HORIZON_S, widest, MIN_PIPELINE_BYTES)

    def _urgent(
        self, wants: Sequence[Wanted], helpers: Sequence[_Helper], now_s: float
    ) -> tuple[_Helper, Wanted, Run] | None:
        waiting: dict[Provider, int] = {}
        offers: dict[Digest, list[tuple[_Helper, int]]] = {}
        for want in wants:
            offers[want.shard] = []
            for helper in helpers if want.urgent else ():
                if helper.crowd in want.crowds and not helper.stalled:
                    offered = helper.crowd.have.held(helper.provider, want.shard) & want.urgent_mask
                    if offered and helper.remote.requests:
                        offered &= ~self.orders.busy(helper.provider, want)
                    if offered:
                        offers[want.shard].append((helper, offered))
        for position, want in self._by_turn(wants, offers, now_s):
            length = want.table.blocks[position].length
            soonest: tuple[float, _Helper] | None = None
            free: tuple[float, _Helper, int] | None = None
            for helper, mask in offers[want.shard]:
                if not mask >> position & 1:
                    continue
                done_s = _cautious_s(helper.remote, length + waiting.get(helper.provider, 0))
                if soonest is None or done_s < soonest[0]:
                    soonest = done_s, helper
                if (free is None or done_s < free[0]) and _room(helper):
                    free = done_s, helper, mask
            if soonest is None:
                continue
            if want.asked >> position & 1:
                if free is not None and _worth(free[0], self.orders.needs_s(want, position, now_s)):
                    return free[1], want, want.run(position, 0, 0)
            elif free is not None and free[0] <= soonest[0] * _CLEARLY + _WORTH_S:
                among = (free[2] & want.open) >> position << position
                return free[1], want, self._urgent_run(want, position, among, free[1].remote, len(helpers))
            else:
                waiting[soonest[1].provider] = waiting.get(soonest[1].provider, 0) + length
        return None

    def _by_turn(
        self, wants: Sequence[Wanted], offers: Mapping[Digest, Sequence[tuple[_Helper, int]]], now_s: float
    ) -> Iterator[tuple[int, Wanted]]:
        """Urgent blocks on offer, open or late, soonest first; only so many: what is behind them can wait."""
        late = self.orders.late(now_s)
        maybe = []
        for want in wants:
            offered = reduce(or_, (mask for _, mask in offers[want.shard]), 0)
            maybe.append(offered & (want.open | late.get(want.shard, 0) & ~want.twice))

        def turns(place: int) -> Iterator[tuple[int, int, int]]:
            for turn, position in wants[place].urgent:
                if maybe[place] >> position & 1:
                    yield turn, place, position

        for _, place, position in islice(merge(*map(turns, range(len(wants)))), _URGENT_SCAN):
            yield position, wants[place]

    def _urgent_run(self, want: Wanted, position: int, among: int, remote: Remote, helper_count: int) -> Run:
        """With the urgent blocks right behind it, as long as it is no gain to give those to others."""
        share = among.bit_count() * want.mean_bytes // helper_count
        return want.run(position, among, self._limit_bytes(remote, URGENT_RUN_S, share))

    def _limit_bytes(self, remote: Remote, seconds: float, share: int) -> int:
        """How long a run may be. One block (that is, 0) for who never delivered any."""
        if not remote.credit_bytes:
            return 0
        room = max(remote.window_bytes - remote.outstanding_bytes, 0)
        left = MAX_OUTSTANDING_BYTES - self.orders.reserved_bytes
        return min(int(remote.rate_bytes_s * seconds), share, room, left, MAX_RUN_BYTES)

    def _background(
        self, wants: Sequence[Wanted], free: Sequence[_Helper], now_s: float
    ) -> tuple[_Helper, Wanted, Run] | None:
        """What the crowd lacks most, of whoever has it and least to do; also marks who has nothing that is open."""
        offers: dict[Crowd, list[_Offer]] = {}
        queued, queued_bytes = self.orders.queued(now_s)
        for want in wants:
            if left := (want.open | queued.get(want.shard, 0) & ~want.twice) & ~want.urgent_mask & want.missing:
                for crowd in want.crowds:
                    have = crowd.have
                    offer = _Offer(want, left, have.holders(want.shard), have.copies(want.shard))
                    offers.setdefault(crowd, []).append(offer)
        if not offers:
            return None
        full = self.orders.outstanding_bytes - queued_bytes >= self._pipeline_bytes()
        dear: list[tuple[_Helper, list[tuple[Wanted, int]]]] = []
        for helper in free:
            if helper.crowd not in offers:
                continue
            have = helper.crowd.have
            scarce = _scarce(helper)
            everything, best, others = self._rarest(helper, offers[helper.crowd], now_s, only_new=scarce)
            if scarce and not self.spreads:
                best = []
            helper.idle = not everything
            if best and not full:
                # Of what falls to others one block at a time: they may be about to ask for the rest.
                return helper, *self._run(best, helper, offers[helper.crowd], 0 if others else len(free))
            if everything and scarce:
                dear.append((helper, everything))
        if full or not dear:
            return None
        soon_s = self.orders.lasts_s(now_s)
        for helper, everything in dear:
            if not soon_s or _cautious_s(helper.remote, 0) * _DEAR < soon_s:
                return helper, *self._run(everything, helper, offers[helper.crowd], 0)
        return None

    def _rarest(
        self, helper: _Helper, offers: Sequence[_Offer], now_s: float, *, only_new: bool
    ) -> tuple[list[tuple[Wanted, int]], list[tuple[Wanted, int]], bool]:
        """The rarest of all open blocks that this provider has, by shard; and those that it should be asked for.

        With ``only_new`` these are what nobody else has or is fetching, first what falls to us; else they are the same.
        Last, whether they fall to others.
        """
        best: list[tuple[Wanted, int]] = []
        ours: list[tuple[Wanted, int]] = []
        fewest = 1 << 30
        for offer in offers:
            if not (offered := self._offered(helper, offer)):
                continue
            count, rarest = offer.copies.rarest(offered)
            if count < fewest:
                fewest, best = count, [(offer.want, rarest)]
            elif count == fewest:
                best.append((offer.want, rarest))
            if not count and (mine := rarest & ~helper.crowd.have.falls_elsewhere(offer.want.shard)):
                ours.append((offer.want, mine))
        if not only_new:
            return best, best, False
        # What falls to others may be there by now, as far as we know: only who has little to do takes it over.
        take_over = not fewest and not ours and self.orders.lasts_s(now_s) < _HUNGRY_S
        return best, best if take_over else ours, take_over

    def _offered(self, helper: _Helper, offer: _Offer) -> int:
        """Open blocks of a shard that a provider has and is not being asked for."""
        have, provider = helper.crowd.have, helper.provider
        complete = have.is_complete(provider)
        held = have.held(provider, offer.want.shard) if complete else offer.holders.get(provider, 0)
        offered = offer.open & held
        return offered & ~self.orders.busy(provider, offer.want) if offered and helper.remote.requests else offered

    def _run(
        self, best: Sequence[tuple[Wanted, int]], helper: _Helper, offers: Sequence[_Offer], helper_count: int
    ) -> tuple[Wanted, Run]:
        """One of the rarest, with its neighbours: one request for many costs little more than for one.

        In a crowd a random one, and of a complete member only with those that are as rare. Alone if ``helper_count``,
        among whom the rest is shared, is 0.
        """
        if helper.crowd.have.crowded:
            weights = [rarest.bit_count() for _, rarest in best]
            want, rarest = best[0] if len(best) == 1 else self._chance.choices(best, weights)[0]
            first = any_of(rarest, self._chance)
        else:
            # Nobody waits for what we have: a few shards after the others, so that whole ones are settled meanwhile;
            # each transfer in one of its own, since those who write into one file wait for each other.
            busy = Counter(asked.want.shard for asked in self.orders)
            want, rarest = min(best, key=lambda entry: (busy[entry[0].shard], entry[0].missing.bit_count()))
            first = want.first_large(rarest)
        left = sum(offer.open.bit_count() * offer.want.mean_bytes for offer in offers)
        limit = self._limit_bytes(helper.remote, RUN_S, left // helper_count) if helper_count else 0
        among = rarest
        if not _scarce(helper):
            among = next(self._offered(helper, offer) for offer in offers if offer.want is want)
        return want, want.run(first, among, limit)

    def _end_game(self, free: Sequence[_Helper], now_s: float) -> tuple[_Helper, Wanted, Run] | None:
        """The block that takes longest to come, if somebody with nothing else to do would bring it clearly sooner."""
        able = [helper for helper in free if helper.idle]
        if not able or not self.orders:
            return None
        able.sort(key=lambda helper: _cautious_s(helper.remote, 0))
        soonest_s = _cautious_s(able[0].remote, 0)
        unasked = any(want.open for want in self._wants.values())
        slow = []
        for asked in self.orders:
            if unasked and now_s - asked.last_s <= STALL_S:
                continue
            if asked.left & asked.want.missing & ~asked.want.twice:
                needs_s = asked.needs_s(asked.order.run.positions[-1], now_s)
                if _worth(soonest_s, needs_s):
                    slow.append((needs_s, asked))
        slow.sort(key=lambda entry: -entry[0])
        for longest_s, asked in slow:
            want = asked.want
            once = asked.left & want.missing & ~want.twice
            for helper in able:
                if not _worth(_cautious_s(helper.remote, 0), longest_s):
                    break
                offered = 0
                if helper.crowd in want.crowds:
                    offered = helper.crowd.have.held(helper.provider, want.shard) & once
                if offered and helper.remote.requests:
                    offered &= ~self.orders.busy(helper.provider, want)
                if offered:
                    position = offered.bit_length() - 1
                    done_s = _cautious_s(helper.remote, want.table.blocks[position].length)
                    if _scarce(helper):
                        done_s *= _DEAR / _CLEARLY
                    if _worth(done_s, asked.needs_s(position, now_s)):
                        return helper, want, want.run(position, 0, 0)
        return None


def _room(helper: _Helper, kept_free: int = 0) -> bool:
    """Whether it may be asked for another run. In a crowd a long wait is somebody's queue, not a long way."""
    remote = helper.remote
    if remote.requests == 0:
        return True
    limit = TRANSFERS_PER_PROVIDER - kept_free
    if not helper.crowd.have.crowded:
        limit += min(int(remote.path_s / LONG_PATH_S), MORE_TRANSFERS)
    return not helper.stalled and remote.requests < limit and remote.outstanding_bytes < remote.window_bytes


def _scarce(helper: _Helper) -> bool:
    """Whether it is one of the few from whom a crowd gets all it has: others are asked first."""
    have = helper.crowd.have
    return have.scarce and have.is_complete(helper.provider)


def _worth(done_s: float, needs_s: float) -> bool:
    """Whether it is worth asking a second one, who would be done then, for what the first still needs that long for."""
    return done_s * _CLEARLY < needs_s and needs_s - done_s > _WORTH_S


def _cautious_s(remote: Remote, byte_count: int) -> float:
    """When it would be done with this much more; of who never delivered anything little is expected."""
    if remote.measured:
        return remote.done_in_s(byte_count)
    return remote.latency_s + (remote.outstanding_bytes + byte_count) / _UNPROVEN_RATE
