"""Walking towards a target: ask the nearest known nodes for nearer ones until the nearest have all been asked.

Pure but for ``ask``, the network as a function. Unlike the stock crawler there are no rounds that wait for their
slowest node: whenever a call settles, the next one starts. A call that is late (``patience_s``: later than most answers
are) no longer counts against the parallel calls, and its node no longer counts among the nearest until it answers,
which it may still do; a call that timed out is repeated once. So dead nodes cost a round trip or two in one lane, not
five seconds for everybody. A walk goes on to the union: it never stops at a first value.

A walk may have several *paths*, each towards a target of its own, and disjoint (S/Kademlia, Baumgart and Mies 2007): a
node is asked once, and what it says is believed by the path that asked it alone. So a liar on one path leads that path
astray and no other. The first path gets a head start of one answer, because it is the one that somebody waits for.

Bounded against nodes that invent ever nearer ones: calls a path, hops from what we knew ourselves, candidates, and
candidates of one network (`network_group`) if ``per_group`` says so.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dhtdata.dht.routing import BUCKET_SIZE, ID_BITS, Contact, number
from dhtdata.errors import PeerError
from dhtdata.formats.addresses import network_group, scope


@dataclass(frozen=True)
class Told:
    """What a node said: contacts near the target, whether it keeps records (clients do not), how many it sent."""

    contacts: Sequence[Contact]
    keeps: bool = True
    records: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a walk, for people: ``near_bits`` leading bits of the node are those of the path's target."""

    path: int
    hop: int
    node: bytes
    address: str
    near_bits: int
    took_s: float
    outcome: str
    contacts: int
    records: int


@dataclass(frozen=True)
class Neighbourhood:
    """What a path found around its target.

    ``contacts`` answered and keep records, nearest first. ``radius`` is the distance up to which every node was met,
    dead ones included, or None if the path met fewer nodes than it may return: then these are all there are.
    """

    contacts: list[Contact]
    radius: int | None


Ask = Callable[[Contact, bytes, int], Awaitable[Told]]
"""Ask a contact about a target, attempt 0 or 1. PeerError if it does not answer or answers nonsense."""


@dataclass(frozen=True)
class Pace:
    """Bounds of each path: calls at once, calls in all, hops, how many of the nearest are asked, how many a network.

    ``at_first`` calls at once until the first answer.
    """

    parallel: int = 5
    at_first: int = 5
    calls: int = 128
    hops: int = 16
    width: int = BUCKET_SIZE
    per_group: int = 0


class _Candidate:
    """A node that some path has heard of."""

    __slots__ = ("answered", "asked", "contact", "keeps", "late", "named")

    def __init__(self, contact: Contact) -> None:
        self.contact = contact
        self.asked = False
        self.late = False
        self.keeps = False
        self.answered = False
        self.named = 0


class _Path:
    """One path: its own view of who is near its own target."""

    def __init__(self, position: int, target: bytes, pace: Pace) -> None:
        self.position = position
        self.target = target
        self.goal = number(target)
        self.entries: list[tuple[int, int, _Candidate]] = []
        self.calls_left = pace.calls
        self.began = False
        self.prompt = 0
        self._pace = pace
        self._known: set[bytes] = set()
        self._groups: Counter[str] = Counter()

    def learn(self, candidate: _Candidate, hop: int) -> None:
        contact = candidate.contact
        if hop > self._pace.hops or contact.id in self._known:
            return
        if self._pace.per_group and scope(contact.address.ip) == "global":
            group = network_group(contact.address)
            if self._groups[group] >= self._pace.per_group:
                return
            self._groups[group] += 1
        self._known.add(contact.id)
        bisect.insort(self.entries, (contact.long_id ^ self.goal, hop, candidate), key=lambda entry: entry[0])
        # The farthest that were not asked can go: met at most calls × contacts in a reply, kept far fewer.
        while len(self.entries) > 4 * self._pace.width + self._pace.calls and not self.entries[-1][2].asked:
            self.entries.pop()

    def next(self) -> tuple[_Candidate, int] | None:
        """The nearest candidate nobody asked yet, if it is among the ``width`` nearest that may still answer."""
        if self.calls_left < 1:
            return None
        ahead = 0
        for _, hop, candidate in self.entries:
            if not candidate.asked:
                return candidate, hop
            ahead += candidate.keeps or not (candidate.answered or candidate.late)
            if ahead >= self._pace.width:
                return None
        return None

    def neighbourhood(self) -> Neighbourhood:
        width = self._pace.width
        # Whoever did not answer counts if two nodes named it: a single one may have invented it.
        counted = [far for far, _, each in self.entries if each.answered or each.named > 1]
        radius = counted[width - 1] if len(counted) >= width else None
        return Neighbourhood([each.contact for _, _, each in self.entries if each.keeps][:width], radius)


class Walk:
    """One walk. ``asked`` counts the nodes that were called, ``answered`` those that replied; ``steps`` tells all."""

    def __init__(
        self,
        targets: Sequence[bytes],
        own_id: bytes,
        ask: Ask,
        pace: Pace | None = None,
        patience_s: float | None = None,
    ) -> None:
        self._ask = ask
        self._patience_s = patience_s
        self._pace = pace or Pace()
        self._own_id = own_id
        self._paths = [_Path(position, target, self._pace) for position, target in enumerate(targets)]
        self._met: dict[bytes, _Candidate] = {}
        self._running = 0
        self._settled = 0
        self._changed = asyncio.Event()
        self.asked = 0
        self.answered = 0
        self.steps: list[Step] = []

    async def run(self, seeds: Sequence[Sequence[Contact]]) -> list[Neighbourhood]:
        """Walk from each path's seeds, nearest first: what each path found."""
        for path, known in zip(self._paths, seeds, strict=True):
            for contact in known:
                if (candidate := self._meet(contact)) is not None:
                    candidate.named = 2
                    path.learn(candidate, 0)
        async with asyncio.TaskGroup() as calls:
            while True:
                for path in self._paths:
                    if path.position and self._running and not self._settled:
                        break
                    most = self._pace.parallel if self._settled else self._pace.at_first
                    while path.prompt < most and (found := path.next()) is not None:
                        self._start(path, found[0])
                        calls.create_task(self._call(path, *found))
                if not self._running and not self._help_the_stranded():
                    break
                await self._changed.wait()
                self._changed.clear()
        return [path.neighbourhood() for path in self._paths]

    def _help_the_stranded(self) -> bool:
        """Who knows few nodes at first starves all paths but one: those that got no call ask what others asked, too."""
        stranded = [path for path in self._paths if not path.began]
        for path in stranded:
            path.began = True
            for candidate in tuple(self._met.values()):
                path.learn(_Candidate(candidate.contact) if candidate.answered else candidate, 1)
        self._changed.set()
        return bool(stranded)

    def _meet(self, contact: Contact) -> _Candidate | None:
        """The one candidate of a node, whichever path hears of it; None for ourselves."""
        if contact.id == self._own_id:
            return None
        known = self._met.get(contact.id)
        if known is None:
            known = self._met[contact.id] = _Candidate(contact)
        return known

    def _start(self, path: _Path, candidate: _Candidate) -> None:
        candidate.asked = True
        path.began = True
        path.prompt += 1
        self._running += 1
        self.asked += 1

    async def _call(self, path: _Path, candidate: _Candidate, hop: int) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        told, outcome = Told(()), "was not asked again"
        late = loop.call_later(self._patience_s, self._late, path, candidate) if self._patience_s else None
        try:
            for attempt in range(2):
                if path.calls_left < 1:
                    break
                path.calls_left -= 1
                try:
                    told = await self._ask(candidate.contact, path.target, attempt)
                except PeerError as failure:
                    outcome = str(failure)
                    self._late(path, candidate)
                    continue
                outcome = "answered"
                self.answered += 1
                candidate.answered, candidate.keeps = True, told.keeps
                for contact in told.contacts:
                    if (met := self._meet(contact)) is not None:
                        met.named += 1
                        path.learn(met, hop + 1)
                break
        finally:
            if late is not None:
                late.cancel()
            self._late(path, candidate)
            self._running -= 1
            self._changed.set()
        contact = candidate.contact
        near_bits = ID_BITS - (contact.long_id ^ path.goal).bit_length()
        took_s = loop.time() - started_s
        where = str(contact.address)
        told_of, records = len(told.contacts), told.records
        self.steps.append(Step(path.position, hop, contact.id, where, near_bits, took_s, outcome, told_of, records))

    def _late(self, path: _Path, candidate: _Candidate) -> None:
        """The candidate no longer takes a lane."""
        self._settled += 1
        if not candidate.late:
            candidate.late = True
            path.prompt -= 1
            self._changed.set()
