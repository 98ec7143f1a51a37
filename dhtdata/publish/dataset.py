"""`publish`: from whatever a user has rows in to a name that others can mount."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from dhtdata.config import Settings, load_settings
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.codec import encode_json
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, MAX_SPLIT_NAME, MAX_SPLITS, Contents
from dhtdata.formats.manifest import MAX_SOURCES, Manifest, Provenance, Source
from dhtdata.formats.names import Name, check_name
from dhtdata.formats.statistics import Statistics
from dhtdata.formats.web_seeds import WebSeed, to_ext
from dhtdata.publish.destination import Destination, DryDestination, StoreDestination
from dhtdata.publish.splits import Progress, PublishedSplit, ReadAhead, SplitPublisher, choose_groups, stored_rows
from dhtdata.publish.version import Keys, Previous, load_previous, release, with_parent, without_credentials
from dhtdata.signing import load_or_create_key
from dhtdata.store import Store
from dhtdata.tables import cutting
from dhtdata.tables.schema import stored_schema, to_fields
from dhtdata.tables.sources import OpenedSource, agreed_schema, open_source

_SCHEMA_BYTES = MAX_CONTENTS_BYTES * 3 // 4
_NOTHING = Digest(bytes(32))


@dataclass(frozen=True)
class Published:
    """What was published, or would be (``dry_run``)."""

    name: Name | None
    """Name with its sequence; None in a dry run before the first publish, when there is no key yet."""
    manifest: Digest
    contents: Digest
    rows: int
    bytes: int
    """Bytes of all shards."""
    shards: int
    new_shards: int
    """Shards that the store did not hold before."""
    new_bytes: int
    splits: Mapping[str, int]
    """Rows of each split."""
    sequence: int
    unchanged: bool
    """Whether this version was the newest already."""
    files: int
    skipped_hidden: int
    skipped_links: int
    dry_run: bool


def publish(
    source: Any = None,
    *,
    name: str,
    split: str = "train",
    splits: Mapping[str, Any] | None = None,
    licence: str = "",
    source_url: str = "",
    card: str = "",
    web_seeds: Sequence[str] = (),
    allow_missing: bool = False,
    dry_run: bool = False,
    store: Store | Path | str | None = None,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> Published:
    """Publish a dataset into the local store under a name of this user's.

    ``source`` becomes the split ``split``; or ``splits`` maps names to sources. A source is a path, folder or glob (or
    a list of them), any object with ``__arrow_c_stream__``, or an iterator of dicts or record batches. ``card`` is text
    in Markdown. ``web_seeds`` are public URLs of mirrors, for readers to fetch from as well. ``store`` is a `Store` or
    the path of one; without it, the settings'. ``progress`` is called in this thread. A dry run digests and counts
    everything and writes nothing.

    ConfigError or FormatError name what is wrong with the input, StoreError what is wrong with the disk. Nothing of a
    publish that failed is visible; run it again to go on.
    """
    settings = settings or load_settings()
    words = _Words(name, licence, without_credentials(source_url), card, tuple(web_seeds))
    words.check()
    given = _given_splits(source, split, splits)
    opened = {key: open_source(value, allow_missing=allow_missing) for key, value in given.items()}
    logical = agreed_schema(opened.values(), allow_missing=allow_missing)
    with ExitStack() as stack:
        opened_store = _open_store(store, settings, dry_run, stack)
        keys = _keys(settings, dry_run)
        target = None if dry_run or opened_store is None or keys is None else _Target(opened_store, keys, clock)
        previous = load_previous(opened_store, keys.root.public, name) if keys is not None else Previous()
        destination = StoreDestination(target.store) if target is not None else DryDestination(opened_store)
        contents, parts = _write_rows(opened, logical, destination, previous, progress)
        version = _write_version(contents, parts, words, tuple(_files(opened)), destination, previous)
        sequence = _sequence(previous, version) if target is None else target.release(version, name)
        return Published(
            name=Name(keys.root.public, name, sequence) if keys is not None else None,
            manifest=version,
            contents=Digest.of(contents.encode()),
            rows=contents.row_count,
            bytes=contents.byte_count,
            shards=contents.shard_count,
            new_shards=sum(part.new_shards for part in parts),
            new_bytes=sum(part.new_bytes for part in parts),
            splits={part.split.name: part.split.rows for part in parts},
            sequence=sequence,
            unchanged=previous.record is not None and previous.record.manifest == version,
            files=sum(len(part.files) for part in opened.values()),
            skipped_hidden=sum(part.skipped_hidden for part in opened.values()),
            skipped_links=sum(part.skipped_links for part in opened.values()),
            dry_run=dry_run,
        )


@dataclass(frozen=True)
class _Words:
    """What people say about the dataset."""

    name: str
    licence: str
    source_url: str
    card: str
    web_seeds: tuple[str, ...]

    def check(self) -> None:
        """ConfigError unless a manifest can hold them: found out before any row is read."""
        try:
            check_name(self.name)
            self.manifest(_NOTHING, _NOTHING, ()).encode()
        except FormatError as failure:
            raise ConfigError(str(failure)) from failure
        except UnicodeEncodeError as failure:
            raise ConfigError(f"licence or card is not Unicode text ({failure}): convert it to UTF-8") from failure
        if not self.licence.isprintable():
            raise ConfigError(f"licence {self.licence[:80]!r} is no SPDX expression such as CC-BY-4.0: use one line")

    def manifest(self, contents: Digest, statistics: Digest, files: tuple[Source, ...]) -> Manifest:
        return Manifest(
            version=1,
            name=self.name,
            contents=contents,
            statistics=statistics,
            licence=self.licence,
            card=self.card,
            provenance=Provenance(files=len(files), sources=files[:MAX_SOURCES], url=self.source_url),
            ext=to_ext(map(WebSeed.parse, self.web_seeds)),
        )


@dataclass(frozen=True)
class _Target:
    """Where and by whom a real publish is released."""

    store: Store
    keys: Keys
    clock: Callable[[], float]

    def release(self, manifest: Digest, name: str) -> int:
        """List and pin a durable version, then let the name lead to it; its sequence."""
        self.store.add_manifest(manifest)
        self.store.pin(manifest)
        return release(self.store, self.keys, manifest, name, self.clock()).sequence


def _write_rows(
    opened: Mapping[str, OpenedSource],
    logical: pa.Schema,
    destination: Destination,
    previous: Previous,
    progress: Callable[[Progress], None] | None,
) -> tuple[Contents, list[PublishedSplit]]:
    """All splits, durable on return, and the contents that list them."""
    columns, metadata = to_fields(logical)
    if len(encode_json(columns)) + len(encode_json(metadata)) > _SCHEMA_BYTES:
        raise ConfigError("the schema and its metadata are too large to publish: fewer columns, or less metadata")
    stored = stored_schema(logical)
    publisher = SplitPublisher(stored, destination)
    groups = None
    parts = []
    for name, source in opened.items():
        with ThreadPoolExecutor(1, "publish-read") as executor:
            rows = iter(ReadAhead(stored_rows(source, logical, stored), executor))
            if groups is None:
                groups, rows = choose_groups(rows, stored, previous.groups)
            parts.append(publisher.publish(name, rows, groups, partial(_report, progress, name, source)))
    contents = Contents(
        version=1,
        cutting=cutting.VERSION,
        columns=columns,
        groups=groups or (),
        splits=tuple(part.split for part in parts),
        metadata=metadata,
    )
    return contents, parts


def _report(
    progress: Callable[[Progress], None] | None, name: str, source: OpenedSource, rows: int, stored_bytes: int
) -> None:
    if progress is not None:
        progress(Progress(name, rows, stored_bytes, source.done_bytes, source.byte_count))


def _write_version(
    contents: Contents,
    parts: list[PublishedSplit],
    words: _Words,
    files: tuple[Source, ...],
    destination: Destination,
    previous: Previous,
) -> Digest:
    """Statistics, contents and manifest, each durable before the next; the manifest's digest."""
    statistics = Statistics(version=1, splits=tuple(part.statistics for part in parts))
    statistics_digest = destination.put(statistics.encode_thinned())
    contents_digest = destination.put(contents.encode())
    manifest = with_parent(words.manifest(contents_digest, statistics_digest, files), previous)
    return destination.put(manifest.encode())


def _files(opened: Mapping[str, OpenedSource]) -> Iterator[Source]:
    for source in opened.values():
        yield from source.files


def _sequence(previous: Previous, manifest: Digest) -> int:
    if previous.record is None:
        return 1
    return previous.record.sequence + (previous.record.manifest != manifest)


def _given_splits(source: Any, split: str, splits: Mapping[str, Any] | None) -> dict[str, Any]:
    if (source is None) == (splits is None):
        raise ConfigError("give either a source (and the name of its split) or splits, a mapping from names to sources")
    given = dict(splits) if splits is not None else {split: source}
    if not 1 <= len(given) <= MAX_SPLITS:
        raise ConfigError(f"a dataset has 1 to {MAX_SPLITS} splits, not {len(given)}")
    for name in given:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_SPLIT_NAME or not name.isprintable() or "/" in name:
            raise ConfigError(f"{name!r} cannot be a split's name: use 1 to {MAX_SPLIT_NAME} characters and no /")
    return given


def _open_store(store: Store | Path | str | None, settings: Settings, dry_run: bool, stack: ExitStack) -> Store | None:
    """The store to publish into; None in a dry run if it is not there yet."""
    if isinstance(store, Store):
        return store
    path = Path(store) if store is not None else settings.store
    if dry_run and not (path / "index.sqlite").exists():
        return None
    return stack.enter_context(Store.open(path, cache_limit=settings.cache_limit))


def _keys(settings: Settings, dry_run: bool) -> Keys | None:
    """The user's keys, made when first needed; None in a dry run if there are none yet."""
    root, release_key = settings.keys / "root.key", settings.keys / "release.key"
    if dry_run and not root.exists():
        return None
    return Keys(load_or_create_key(root), load_or_create_key(release_key))
