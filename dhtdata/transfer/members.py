"""Who of one dataset's providers has what, as they say themselves; pure.

A have-map is a promise, not a proof. What a member said is kept as far as the layout of the dataset reaches, so that a
stranger's map of shards that do not exist takes no memory. Until the layout is known, everybody may have everything.

Those who fetch at the same time share the work without a word about it: every missing block *falls to* one of them,
the one with the highest score for it (rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to
increase hit rates", 1998). Of a seed everybody asks for what falls to himself first, then for what nobody
has yet. Who knows other members reckons otherwise; that costs a block sent twice, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dhtdata.digest import Digest
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.web_seeds import Provider, WebSeed
from dhtdata.transfer.answers import MAX_PARTIALS, HaveMap, bit, set_bits
from dhtdata.transfer.availability import EVERY_BLOCK, Availability
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.picker import Run

MAX_MEMBERS = 256
TOGETHER = 4
"""Neighbours go to the same one, who asks for them in one request, and so do those who then ask it."""
_GROUP = (1 << TOGETHER) - 1
_MASK = (1 << 64) - 1


@dataclass(eq=False)
class Member:
    """One provider of some contents. ``revision``: of its have-map; None before the first. ``key``: `HaveMap.fetcher`.

    ``doubtful``: it has no have-map of these contents. A plain web server never has one; a peer that lacks all of it
    has none either. ``blocks`` and ``coming``: masks of partial shards by ordinal.
    """

    provider: Provider
    source: str
    revision: int | None = None
    key: bytes = b""
    complete: bool = False
    doubtful: bool = False
    denials: int = 0
    heard_s: float = float("-inf")
    asked_s: float = float("-inf")
    exchanged_s: float = float("-inf")
    misses: int = 0
    asking: bool = False
    shards: bytearray = field(default_factory=bytearray)
    blocks: dict[int, int] = field(default_factory=dict)
    coming: dict[int, int] = field(default_factory=dict)

    @property
    def fetches(self) -> bool:
        """Whether it is known to fetch, as we do: blocks may fall to it."""
        return self.revision is not None and not self.complete and bool(self.key)

    @property
    def web_seed(self) -> bool:
        return isinstance(self.provider, WebSeed)

    @property
    def answered(self) -> bool:
        """Whether it has said what it has."""
        return self.complete or self.revision is not None

    @property
    def shard_count(self) -> int:
        """Whole shards that it has, unless it has everything; -1 if it has not said."""
        return -1 if self.revision is None else int.from_bytes(self.shards, "little").bit_count()


class Members:
    """The members of one swarm, by provider. Touched by the event loop's thread only.

    ``have``: what they hold and are fetching, as the planner wants to know it.
    """

    def __init__(self, own: bytes = b"") -> None:
        self.layout: Layout | None = None
        self.have = Availability(self._elsewhere)
        self._own = _short(own) if own else None
        self._members: dict[Provider, Member] = {}
        self._whole: Counter[int] = Counter()
        self._fetched: dict[Digest, list[int]] = {}
        self._rivals: dict[Provider, int] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, provider: Provider) -> bool:
        return provider in self._members

    def get(self, provider: Provider) -> Member | None:
        return self._members.get(provider)

    def add(self, provider: Provider, source: str) -> bool:
        """Whether it is new and there is room for it. Nothing is known of it yet: it may have everything."""
        if provider in self._members or len(self._members) >= MAX_MEMBERS:
            return False
        self._members[provider] = Member(provider, source)
        self.have.complete(provider)
        return True

    def drop(self, member: Member) -> None:
        if self._members.pop(member.provider, None) is not None:
            self._unlearn(member)
            self.have.forget(member.provider)
            self._rivals.pop(member.provider, None)

    def denied(self, member: Member) -> None:
        """It has no have-map of this dataset: it has nothing of it, or is a plain web server, which may have all."""
        self._unlearn(member)
        member.doubtful, member.misses = True, 0
        member.denials += 1

    def learned(self, member: Member, have: HaveMap) -> None:
        """It sent its have-map, or what has changed in it."""
        member.doubtful, member.denials, member.misses = False, 0, 0
        if have.unchanged:
            self._tell(member)
            return
        if have.base and have.base != member.revision:
            # An answer to another question than the last: the next map is a whole one.
            self._unlearn(member)
            return
        if not have.base:
            self._unlearn(member)
        member.revision, member.complete, member.key = have.revision, have.complete, have.fetcher
        if self.layout is not None and not have.complete:
            self._note(member, have, self.layout.shard_count)
        elif not have.complete:
            # Nothing can be kept of it: the next map is a whole one.
            member.revision = None
        self._tell(member)

    def refused(self, provider: Provider, run: Run) -> None:
        """It said that it has not got these blocks, whatever it said before. A web seed has whole shards or nothing."""
        if (member := self._members.get(provider)) is not None:
            self.have.lacks(provider, run.shard, EVERY_BLOCK if member.web_seed else run.mask)

    def shard_copies(self, shard: Digest) -> int:
        """How many members have a shard, or some of it, beside those that have everything."""
        ordinal = self.layout.ordinal(shard) if self.layout is not None else None
        if ordinal is None:
            return 0
        begun = sum(ordinal in member.blocks or ordinal in member.coming for member in self._members.values())
        return self._whole[ordinal] + begun

    def fetch(self, shard: Digest, table: BlockTable) -> None:
        """We fetch this shard now: its missing blocks fall to us or to others, `TOGETHER` neighbours at a time."""
        self._fetched[shard] = [_short(block.digest) for block in table.blocks[::TOGETHER]]
        self.have.share_anew()

    def fetched(self, shard: Digest) -> None:
        """We do not fetch it any more."""
        self._fetched.pop(shard, None)

    def _note(self, member: Member, have: HaveMap, count: int) -> None:
        """What it has, as far as there are shards."""
        if not have.base:
            member.shards = bytearray((count + 7) // 8)
            for ordinal in set_bits(have.shards):
                self._gain(member, ordinal, count)
        for ordinal in have.gained:
            self._gain(member, ordinal, count)
        for partial in have.partials:
            if partial.ordinal < count and not bit(member.shards, partial.ordinal):
                member.blocks[partial.ordinal] = int.from_bytes(partial.blocks, "little")
                member.coming[partial.ordinal] = int.from_bytes(partial.coming, "little")
        if len(member.blocks) > MAX_PARTIALS:
            self._unlearn(member)

    def _gain(self, member: Member, ordinal: int, count: int) -> None:
        if ordinal < count and not bit(member.shards, ordinal):
            member.shards[ordinal >> 3] |= 1 << (ordinal & 7)
            member.blocks.pop(ordinal, None)
            member.coming.pop(ordinal, None)
            self._whole[ordinal] += 1

    def _unlearn(self, member: Member) -> None:
        self._whole.subtract(set_bits(member.shards))
        self._whole = +self._whole
        member.revision, member.complete, member.shards = None, False, bytearray()
        member.blocks.clear()
        member.coming.clear()
        self._tell(member)

    def _tell(self, member: Member) -> None:
        if member.complete or member.revision is None:
            self.have.complete(member.provider)
        else:
            self.have.told(member.provider, lambda shard: self._masks(member, shard))
        rival = _short(member.key) if member.fetches else None
        if rival != self._rivals.get(member.provider):
            self._rivals.pop(member.provider, None)
            if rival is not None:
                self._rivals[member.provider] = rival
            self.have.share_anew()

    def _masks(self, member: Member, shard: Digest) -> tuple[int, int]:
        """Blocks of a shard that a member has, and that are on their way to it."""
        ordinal = self.layout.ordinal(shard) if self.layout is not None else None
        if ordinal is None:
            return EVERY_BLOCK, 0
        if bit(member.shards, ordinal):
            return EVERY_BLOCK, 0
        return member.blocks.get(ordinal, 0), member.coming.get(ordinal, 0)

    def _elsewhere(self, shard: Digest) -> int:
        """Blocks of a shard that fall to another than us."""
        blocks = self._fetched.get(shard, ()) if self._rivals else ()
        mask = 0
        for position, block in enumerate(blocks):
            own = -1 if self._own is None else _score(block, self._own)
            if any(_score(block, rival) > own for rival in self._rivals.values()):
                mask |= _GROUP << TOGETHER * position
        return mask


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _score(block: int, fetcher: int) -> int:
    """The same on every peer; splits blocks evenly, whoever takes part (the finaliser of MurmurHash3, one round)."""
    mixed = block ^ fetcher
    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _MASK
    return mixed ^ mixed >> 33
