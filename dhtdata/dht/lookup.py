"""Walking towards a target: ask the nearest known nodes for nearer ones until the nearest have all been asked.

Pure but for ``ask``, the network as a function. Unlike the stock crawler there are no rounds that wait for their
slowest node: whenever a call settles, the next one starts. A call that timed out once is repeated, but no longer counts
against the parallel calls, and its node no longer counts among the nearest until it answers: so dead nodes cost
one short time-out in one of five lanes, not five seconds for everybody. The walk goes on to the union: it never stops
at the first value.

Bounded against nodes that invent ever nearer ones: calls, hops from what we knew ourselves, candidates.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dhtdata.dht.routing import BUCKET_SIZE, Contact, number
from dhtdata.errors import PeerError


@dataclass(frozen=True)
class Answer:
    """What a node said: contacts it knows near the target, and whether it keeps records (clients do not)."""

    contacts: Sequence[Contact]
    keeps: bool = True


@dataclass(frozen=True)
class Neighbourhood:
    """What a walk found around its target.

    ``contacts`` answered and keep records, nearest first. ``radius`` is the distance up to which every node was met,
    dead ones included, or None if the walk met fewer nodes than it may return: then these are all there are.
    """

    contacts: list[Contact]
    radius: int | None


Ask = Callable[[Contact, int], Awaitable[Answer]]
"""Ask a contact, attempt 0 or 1. PeerError if it does not answer or answers nonsense."""


@dataclass(frozen=True)
class Pace:
    """Bounds of a walk: calls at once, calls in all, hops, and how many of the nearest are asked."""

    parallel: int = 5
    calls: int = 128
    hops: int = 16
    width: int = BUCKET_SIZE


@dataclass(order=True)
class _Candidate:
    distance: int
    contact: Contact = field(compare=False)
    hop: int = field(compare=False)
    asked: bool = field(default=False, compare=False)
    late: bool = field(default=False, compare=False)
    keeps: bool = field(default=False, compare=False)
    answered: bool = field(default=False, compare=False)


class Walk:
    """One walk. ``asked`` counts the nodes that were called, ``answered`` those that replied."""

    def __init__(self, target: bytes, own_id: bytes, ask: Ask, pace: Pace | None = None) -> None:
        self._target = number(target)
        self._ask = ask
        self._pace = pace or Pace()
        self._met = {own_id}
        self._candidates: list[_Candidate] = []
        self._calls_left = self._pace.calls
        self._prompt = 0
        self._running = 0
        self._changed = asyncio.Event()
        self.asked = 0
        self.answered = 0

    async def run(self, seeds: Sequence[Contact]) -> Neighbourhood:
        """Walk from the seeds: at most ``width`` contacts."""
        self._learn(seeds, hop=0)
        async with asyncio.TaskGroup() as calls:
            while True:
                while self._prompt < self._pace.parallel and (candidate := self._next()) is not None:
                    self._start(candidate)
                    calls.create_task(self._call(candidate))
                if not self._running:
                    break
                self._changed.clear()
                await self._changed.wait()
        width = self._pace.width
        radius = self._candidates[width - 1].distance if len(self._candidates) >= width else None
        return Neighbourhood([each.contact for each in self._candidates if each.keeps][:width], radius)

    def _next(self) -> _Candidate | None:
        """The nearest candidate not asked yet, if it is among the ``width`` nearest that may still answer."""
        if self._calls_left < 1:
            return None
        ahead = 0
        for candidate in self._candidates:
            if not candidate.asked:
                return candidate
            ahead += candidate.keeps or not (candidate.answered or candidate.late)
            if ahead >= self._pace.width:
                return None
        return None

    def _start(self, candidate: _Candidate) -> None:
        candidate.asked = True
        self._running += 1
        self._prompt += 1
        self.asked += 1

    async def _call(self, candidate: _Candidate) -> None:
        try:
            for attempt in range(2):
                if self._calls_left < 1:
                    break
                self._calls_left -= 1
                try:
                    answer = await self._ask(candidate.contact, attempt)
                except PeerError:
                    self._late(candidate)
                    continue
                self.answered += 1
                candidate.answered = True
                candidate.keeps = answer.keeps
                self._learn(answer.contacts, candidate.hop + 1)
                break
        finally:
            self._late(candidate)
            self._running -= 1
            self._changed.set()

    def _late(self, candidate: _Candidate) -> None:
        """The candidate no longer takes a lane."""
        if not candidate.late:
            candidate.late = True
            self._prompt -= 1
            self._changed.set()

    def _learn(self, contacts: Sequence[Contact], hop: int) -> None:
        if hop > self._pace.hops:
            return
        for contact in contacts:
            if contact.id not in self._met:
                self._met.add(contact.id)
                bisect.insort(self._candidates, _Candidate(contact.long_id ^ self._target, contact, hop))
        # The farthest that were not asked can go: met at most calls × contacts in a reply, kept far fewer.
        while len(self._candidates) > 4 * self._pace.width + self._pace.calls and not self._candidates[-1].asked:
            self._candidates.pop()
