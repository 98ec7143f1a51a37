"""Which blobs a manifest leads to: manifest → contents → indexes → shards and block tables; row ranges; statistics.

A walk uses what is stored and notes what is not: a blob that is missing is itself in the reach, what it would lead to
is not yet known. Digests stay packed bytes and sets of them, so that 30,000 shards cost milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from dhtdata.digest import DIGEST_BYTES, Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.index import MAX_INDEX_BYTES, Index
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.statistics import MAX_STATISTICS_BYTES, Statistics

Read = Callable[[Digest, int], bytes]


@dataclass
class Reach:
    """Blobs that a manifest leads to, as far as is known.

    ``sizes`` are those of its shards by digest; ``sequence`` their digests by ordinal (a shard may appear twice).
    ``whole`` if nothing on the way was missing, ``mapped`` if at least every shard is known.
    """

    small: set[bytes] = field(default_factory=set)
    sizes: dict[bytes, int] = field(default_factory=dict)
    sequence: list[bytes] = field(default_factory=list)
    shard_count: int = 0
    byte_count: int = 0
    mapped: bool = True
    whole: bool = True

    def __contains__(self, digest: bytes) -> bool:
        return digest in self.sizes or digest in self.small


def walk(manifest: Digest, read: Read, reach: Reach) -> None:
    """Fill ``reach`` as far as the store can. FormatError if a blob on the way is not what it should be."""
    if (encoded := _read(reach, read, manifest, MAX_MANIFEST_BYTES)) is None:
        reach.mapped = False
        return
    parsed = Manifest.decode(encoded)
    if (encoded := _read(reach, read, parsed.contents, MAX_CONTENTS_BYTES)) is None:
        reach.mapped = False
    else:
        _walk_contents(reach, read, Contents.decode(encoded))
    _walk_statistics(reach, read, parsed.statistics)


def find_table(manifest: Digest, shard: Digest, read: Read) -> Digest:
    """Digest of the block table that a manifest's indexes give a shard. NotFoundError if none that is here lists it."""
    contents = Contents.decode(read(Manifest.decode(read(manifest, MAX_MANIFEST_BYTES)).contents, MAX_CONTENTS_BYTES))
    for digest in (digest for split in contents.splits for group in split.groups for digest in group.indexes):
        with suppress(NotFoundError, IntegrityError):
            index = Index.decode(read(digest, MAX_INDEX_BYTES))
            listed = index.digests()
            if shard in listed:
                return index[listed.index(shard)].table
    raise NotFoundError(f"no index of manifest {manifest} that is here lists shard {shard}")


def _walk_contents(reach: Reach, read: Read, contents: Contents) -> None:
    reach.shard_count = contents.shard_count
    reach.byte_count = contents.byte_count
    for split in contents.splits:
        reach.small.add(split.ranges)
        for digest in (digest for group in split.groups for digest in group.indexes):
            if (encoded := _read(reach, read, digest, MAX_INDEX_BYTES)) is None:
                reach.mapped = False
                continue
            index = Index.decode(encoded)
            shards = _packed(index.shards)
            reach.small.update(_packed(index.tables))
            reach.sizes.update(zip(shards, index.sizes, strict=True))
            reach.sequence += shards


def _walk_statistics(reach: Reach, read: Read, root: Digest) -> None:
    if (encoded := _read(reach, read, root, MAX_STATISTICS_BYTES)) is None:
        return
    # Nobody needs statistics to read rows: what they lead to is kept, and who looks at them is told if they are wrong.
    with suppress(FormatError):
        for split in Statistics.decode(encoded).splits:
            reach.small.update(digest for group in split.shards for digest in group)


def _read(reach: Reach, read: Read, digest: Digest, limit_bytes: int) -> bytes | None:
    reach.small.add(digest)
    try:
        return read(digest, limit_bytes)
    except (NotFoundError, IntegrityError):
        reach.whole = False
        return None


def _packed(digests: bytes) -> list[bytes]:
    return [digests[first : first + DIGEST_BYTES] for first in range(0, len(digests), DIGEST_BYTES)]
