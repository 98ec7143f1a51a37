"""Datasets as the store knows them: which one a user means, and how much of it is here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from dhtdata.cli.output import percent
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError, NotFoundError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.ticket import parse_target
from dhtdata.store import Store, name_records, version_of


@dataclass(frozen=True)
class Known:
    """A name that the store has a record of."""

    name: Name
    manifest: Digest
    stale: bool


@dataclass(frozen=True)
class Held:
    """A manifest in the store. ``contents`` is None as long as they have not arrived."""

    digest: Digest
    manifest: Manifest
    contents: Contents | None
    known: Known | None
    pinned: bool
    bytes_held: int
    bytes_total: int
    complete: bool

    @property
    def label(self) -> str:
        """What people call it."""
        return self.manifest.name

    @property
    def share(self) -> str:
        """How much of it is here; all shards without all of the small blobs that describe them is not all of it."""
        if self.contents is None:
            return "?"
        if self.bytes_held == self.bytes_total and not self.complete:
            return "shards only"
        return percent(self.bytes_held, self.bytes_total)


def known_names(store: Store) -> list[Known]:
    """Every name record of the store, by name."""
    now_s = time.time()
    return [Known(record.target, record.manifest, record.stale(now_s)) for record in name_records(store)]


def all_held(store: Store) -> Iterator[Held]:
    """Every dataset of the store's catalogue, newest first, but those whose description is lost or damaged."""
    names = {known.manifest: known for known in known_names(store)}
    for entry in sorted(store.manifests(), key=lambda entry: entry.added_s, reverse=True):
        with suppress(NotFoundError, IntegrityError, FormatError):
            yield _held(store, entry.digest, entry.pinned, names.get(entry.digest))


def held(store: Store, text: str) -> Held:
    """The dataset of the store that a user means. NotFoundError, or ConfigError if it is ambiguous."""
    digest = version_of(parse_target(text), store)
    names = {known.manifest: known for known in known_names(store)}
    entry = next((entry for entry in store.manifests() if entry.digest == digest), None)
    if entry is None:
        raise NotFoundError(f"{text[:80]} is not in this store: fetch it with dhtdata get")
    return _held(store, digest, entry.pinned, names.get(digest))


def _manifest(store: Store, digest: Digest) -> Manifest:
    return Manifest.decode(store.read(digest, limit_bytes=MAX_MANIFEST_BYTES))


def _held(store: Store, digest: Digest, pinned: bool, known: Known | None) -> Held:
    manifest = _manifest(store, digest)
    if not store.has(manifest.contents):
        return Held(digest, manifest, None, known, pinned, 0, 0, False)
    contents = Contents.decode(store.read(manifest.contents, limit_bytes=MAX_CONTENTS_BYTES))
    share = store.completeness(digest)
    return Held(digest, manifest, contents, known, pinned, share.bytes_held, share.bytes, share.complete)
