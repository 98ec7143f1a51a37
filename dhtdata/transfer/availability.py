"""What every provider of one dataset holds and is fetching, block by block, and how many copies there are.

Kept as masks (`dhtdata.transfer.masks`), so that the planner asks about a whole shard at once. A have-map speaks of all
shards of a dataset, but only those that are being fetched matter: masks are looked up when a shard is first asked about
and kept until the next have-map.

Providers that hold everything are no copies: they are where a crowd gets its copies from. Who was never told about
holds nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dhtdata.digest import Digest
from dhtdata.transfer.masks import Copies
from dhtdata.transfer.providers import Provider

MAX_SHARDS = 256
EVERY_BLOCK = -1
PARTIAL_TO_COMPLETE = 1

Look = Callable[[Digest], tuple[int, int]]
"""Masks of one shard, by a have-map: (held, on their way)."""


class _Shard:
    """Masks of one shard by provider, partial ones only."""

    def __init__(self) -> None:
        self.held: dict[Provider, int] = {}
        self.coming: dict[Provider, int] = {}
        self.copies: Copies | None = None
        self.elsewhere: int | None = None


class Availability:
    """Who has which blocks of one dataset. Touched by the event loop's thread only.

    ``elsewhere``: blocks of a shard that fall to others (`dhtdata.transfer.members`).
    """

    def __init__(self, elsewhere: Callable[[Digest], int] = lambda _: 0) -> None:
        self._elsewhere = elsewhere
        self._complete: set[Provider] = set()
        self._looks: dict[Provider, Look] = {}
        self._lacks: dict[Provider, dict[Digest, int]] = {}
        self._shards: OrderedDict[Digest, _Shard] = OrderedDict()

    def told(self, provider: Provider, look: Look) -> None:
        """A have-map of a partial provider is here. It is looked into later as well, until the next one."""
        self._complete.discard(provider)
        self._lacks.pop(provider, None)
        self._looks[provider] = look
        for digest, shard in self._shards.items():
            _update(shard, provider, *look(digest))

    def complete(self, provider: Provider) -> None:
        """It holds everything, or nothing is known of it and it is worth being asked for anything."""
        self.forget(provider)
        self._complete.add(provider)

    def lacks(self, provider: Provider, shard: Digest, mask: int) -> None:
        """It said no to these blocks, whatever it told before; forgotten with the next word of it."""
        lacks = self._lacks.setdefault(provider, {})
        lacks[shard] = lacks.get(shard, 0) | mask
        kept = self._shards.get(shard)
        if kept is not None and provider in kept.held:
            _update(kept, provider, kept.held[provider] & ~mask, kept.coming[provider] & ~mask)

    def forget(self, provider: Provider) -> None:
        """It is not a provider any more."""
        self._complete.discard(provider)
        self._lacks.pop(provider, None)
        if self._looks.pop(provider, None) is not None:
            for shard in self._shards.values():
                del shard.held[provider], shard.coming[provider]
                shard.copies = None

    def is_complete(self, provider: Provider) -> bool:
        return provider in self._complete

    def held(self, provider: Provider, shard: Digest) -> int:
        """Blocks of a shard that it is worth being asked for."""
        if provider in self._complete:
            lacks = self._lacks.get(provider)
            return EVERY_BLOCK if lacks is None else EVERY_BLOCK & ~lacks.get(shard, 0)
        return self._shard(shard).held.get(provider, 0)

    def holders(self, shard: Digest) -> Mapping[Provider, int]:
        """What every partial provider holds of a shard."""
        return self._shard(shard).held

    @property
    def scarce(self) -> bool:
        """Whether few hold everything, so that they should be asked for what nobody else has."""
        return len(self._looks) >= PARTIAL_TO_COMPLETE * len(self._complete)

    @property
    def crowded(self) -> bool:
        """Whether others fetch, too."""
        return bool(self._looks)

    def copies(self, shard: Digest) -> Copies:
        """How many partial providers hold each block or are fetching it."""
        kept = self._shard(shard)
        if kept.copies is None:
            kept.copies = Copies()
            for provider, held in kept.held.items():
                kept.copies.add(held | kept.coming[provider])
        return kept.copies

    def falls_elsewhere(self, shard: Digest) -> int:
        """Blocks that others are to fetch first."""
        kept = self._shard(shard)
        if kept.elsewhere is None:
            kept.elsewhere = self._elsewhere(shard)
        return kept.elsewhere

    def share_anew(self) -> None:
        """Others fetch now, or we fetch something else: what falls to whom has changed."""
        for shard in self._shards.values():
            shard.elsewhere = None

    def _shard(self, digest: Digest) -> _Shard:
        shard = self._shards.get(digest)
        if shard is None:
            shard = self._shards[digest] = _Shard()
            for provider, look in self._looks.items():
                lacks = self._lacks.get(provider, {}).get(digest, 0)
                held, coming = look(digest)
                shard.held[provider], shard.coming[provider] = held & ~lacks, coming & ~lacks
            if len(self._shards) > MAX_SHARDS:
                self._shards.popitem(last=False)
        return shard


class Crowd(Protocol):
    """The providers of one dataset. ``have``: what they hold."""

    @property
    def have(self) -> Availability: ...

    def usable(self) -> Sequence[Provider]:
        """Those that may be asked now."""
        ...


def _update(shard: _Shard, provider: Provider, held: int, coming: int) -> None:
    """New masks of one provider. What is added is added to the counts; what is gone makes them be counted anew."""
    before = shard.held.get(provider, 0) | shard.coming.get(provider, 0)
    after = held | coming
    shard.held[provider], shard.coming[provider] = held, coming
    if shard.copies is not None:
        if before & ~after:
            shard.copies = None
        else:
            shard.copies.add(after & ~before)
