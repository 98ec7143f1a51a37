"""From what a user pasted to contents and indexes: in the store if they are there, else by the peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents, Split
from dhtdata.formats.index import MAX_INDEX_BYTES, MAX_RANGES_BYTES, Index, decode_ranges
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name, encode_key
from dhtdata.formats.ticket import LocalName, Target, Ticket
from dhtdata.store import Store, meaning_of, name_records, version_of

if TYPE_CHECKING:
    from dhtdata.control.client import PeerClient


@dataclass(frozen=True)
class Dataset:
    """One version, its small parts read. ``publisher`` is None if nothing here says who published it."""

    digest: Digest
    manifest: Manifest
    contents_digest: Digest
    contents: Contents
    publisher: bytes | None

    @property
    def title(self) -> str:
        """For messages: name, version, publisher."""
        by = f" by {encode_key(self.publisher)[:12]}…" if self.publisher is not None else ""
        return f"dataset {self.manifest.name} ({self.digest.hex()[:12]}…{by})"


def find_stored(target: Target, store: Store) -> Dataset:
    """The version a target means, from the store alone. NotFoundError if manifest or contents are not here."""
    if isinstance(target, Ticket):
        target = target.target
    if isinstance(target, LocalName):
        target = meaning_of(target, store)
    publisher = target.publisher if isinstance(target, Name) else None
    return read_dataset(version_of(target, store), store, publisher)


def read_dataset(digest: Digest, store: Store, publisher: bytes | None) -> Dataset:
    manifest = Manifest.decode(store.read(digest, limit_bytes=MAX_MANIFEST_BYTES))
    contents = Contents.decode(store.read(manifest.contents, limit_bytes=MAX_CONTENTS_BYTES))
    if publisher is None:
        publisher = next((record.delegation.root for record in name_records(store) if record.manifest == digest), None)
    return Dataset(digest, manifest, manifest.contents, contents, publisher)


def find_with_peer(target: Target, store: Store, client: PeerClient, timeout_s: float) -> Dataset:
    """The version a target means, as the network knows it."""
    found = client.resolve(target, timeout_s)
    return read_dataset(found.manifest, store, found.name.publisher if found.name is not None else None)


def read_indexes(
    dataset: Dataset,
    split: Split,
    groups: Sequence[int],
    store: Store,
    fetch: Callable[[list[tuple[Digest, int]]], None],
) -> tuple[tuple[int, ...], list[list[Index]]]:
    """Row ranges of a split and, for each of these groups, its indexes. ``fetch`` gets what is not stored."""
    wanted = [digest for number in groups for digest in split.groups[number].indexes]
    blobs = [(split.ranges, MAX_RANGES_BYTES), *((digest, MAX_INDEX_BYTES) for digest in dict.fromkeys(wanted))]
    if missing := [blob for blob in blobs if not store.has(blob[0])]:
        fetch(missing)
    ranges = decode_ranges(store.read(split.ranges, limit_bytes=MAX_RANGES_BYTES))
    if sum(ranges) != split.rows:
        raise FormatError(f"{dataset.title}: the row ranges of split {split.name!r} do not add up to its rows")
    indexes = {
        digest: Index.decode(store.read(digest, limit_bytes=MAX_INDEX_BYTES)) for digest in dict.fromkeys(wanted)
    }
    return ranges, [[indexes[digest] for digest in split.groups[number].indexes] for number in groups]
