"""Ordinals: where each shard stands in its contents, so that a have-map is a bitmap.

Splits in order, within them groups in order, within them indexes and their entries in order. The first ordinal of every
group is known from the contents alone; the digests behind ordinals are known as far as the indexes are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_INDEX_BYTES, MAX_SHARDS, Index, ShardEntry
from dhtdata.store import Store
from dhtdata.transfer.answers import MAX_ORDINALS


@dataclass(frozen=True, slots=True)
class IndexSpan:
    """One index: its shards have ordinals ``[first, first + shards)``."""

    digest: Digest
    first: int
    shards: int


class Layout:
    """Shards of some contents, by ordinal and by digest."""

    def __init__(self, digest: Digest, contents: Contents) -> None:
        if contents.shard_count > MAX_ORDINALS:
            raise FormatError(f"contents {digest}: {contents.shard_count} shards are more than a dataset may have")
        self.digest = digest
        self.contents = contents
        self.spans = tuple(_spans(contents))
        self._ordinals: dict[Digest, int] = {}
        self._placed: set[int] = set()

    @classmethod
    def load(cls, store: Store, digest: Digest) -> Layout:
        """From the store, with whatever indexes it holds. NotFoundError if the contents are not there."""
        layout = cls(digest, Contents.decode(store.read(digest, limit_bytes=MAX_CONTENTS_BYTES)))
        layout.place_stored(store)
        return layout

    @property
    def shard_count(self) -> int:
        return self.contents.shard_count

    @property
    def placed(self) -> bool:
        """Whether every index has been taken up."""
        return len(self._placed) == len(self.spans)

    def place_stored(self, store: Store) -> None:
        """Take up indexes that have come into the store since."""
        for position, span in enumerate(self.spans):
            if position not in self._placed:
                try:
                    entries = read_index(store, span)
                except NotFoundError:
                    continue
                for place, shard in enumerate(entries.digests()):
                    self._ordinals.setdefault(shard, span.first + place)
                self._placed.add(position)

    @property
    def complete(self) -> bool:
        """Whether every index was stored when last looked for."""
        return len(self._placed) == len(self.spans)

    def ordinal(self, shard: Digest) -> int | None:
        """None while the index that lists the shard is not stored."""
        return self._ordinals.get(shard)

    def known(self) -> dict[Digest, int]:
        """A copy, for other threads."""
        return dict(self._ordinals)

    def select(self, splits: Sequence[str], columns: Sequence[str]) -> list[IndexSpan]:
        """Indexes that these splits and columns need (all if empty). ConfigError names what does not exist."""
        contents = self.contents
        for split in splits:
            if all(split != known.name for known in contents.splits):
                raise ConfigError(f"no split {split!r}: there are {', '.join(known.name for known in contents.splits)}")
        names = {name for group in contents.groups for name in group.columns}
        for column in columns:
            if column not in names:
                raise ConfigError(f"no column {column!r}: there are {', '.join(sorted(names)[:32])}")
        chosen: list[IndexSpan] = []
        position = 0
        for split_of in contents.splits:
            for group, shards in zip(contents.groups, split_of.groups, strict=True):
                spans = self.spans[position : position + len(shards.indexes)]
                position += len(shards.indexes)
                if (not splits or split_of.name in splits) and (not columns or set(columns) & set(group.columns)):
                    chosen.extend(spans)
        return chosen


def read_index(store: Store, span: IndexSpan) -> Index:
    """A stored index. FormatError if it does not list as many shards as the contents say."""
    index = Index.decode(store.read(span.digest, limit_bytes=MAX_INDEX_BYTES))
    if len(index) != span.shards:
        raise FormatError(f"index {span.digest} lists {len(index)} shards, its contents say {span.shards}")
    return index


def entries_of(store: Store, spans: Sequence[IndexSpan]) -> Iterator[ShardEntry]:
    """Shards of stored indexes, in order."""
    for span in spans:
        index = read_index(store, span)
        for place in range(len(index)):
            yield index[place]


def _spans(contents: Contents) -> Iterator[IndexSpan]:
    first = 0
    for split in contents.splits:
        for group in split.groups:
            left = group.shards
            for index in group.indexes:
                shards = min(left, MAX_SHARDS)
                yield IndexSpan(index, first, shards)
                first += shards
                left -= shards
