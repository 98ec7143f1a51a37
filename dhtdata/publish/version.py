"""A version of a dataset: its manifest, the version before it, and the signed name that leads to it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, IntegrityError, NotFoundError, StoreError
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents, Group
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.records import Delegation, NameRecord, sign
from dhtdata.signing import SigningKey
from dhtdata.store import Store

FRESH_S = 30 * 24 * 3600
_SECRET_WORDS = ("token", "secret", "password", "passwd", "signature", "credential", "key", "auth")
_SECRET_NAMES = ("sig", "pwd", "pass")


@dataclass(frozen=True)
class Keys:
    """The publisher's keys: the root is who publishes, the release key signs versions."""

    root: SigningKey
    release: SigningKey


@dataclass(frozen=True)
class Previous:
    """The newest known version of a name: its record, and what of it is still in the store."""

    record: NameRecord | None = None
    manifest: Manifest | None = None
    contents: Contents | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.contents.groups if self.contents is not None else ()


def load_previous(store: Store | None, publisher: bytes, name: str) -> Previous:
    """What the store knows of a name; nothing is not an error."""
    if store is None:
        return Previous()
    try:
        record = store.name_record(publisher, name).record
    except NotFoundError:
        return Previous()
    if not isinstance(record, NameRecord):
        raise StoreError(f"{store.path} holds a {type(record).__name__} under the name {name!r}: its index is damaged")
    try:
        manifest = Manifest.decode(store.read(record.manifest, limit_bytes=MAX_MANIFEST_BYTES))
        contents = Contents.decode(store.read(manifest.contents, limit_bytes=MAX_CONTENTS_BYTES))
    except (NotFoundError, IntegrityError):
        # Removed or rotten: the new version stands without it, and its groups are chosen anew.
        return Previous(record)
    return Previous(record, manifest, contents)


def with_parent(manifest: Manifest, previous: Previous) -> Manifest:
    """The manifest as a successor of the previous version; the previous one itself if nothing else changed."""
    record = previous.record
    if record is None:
        return manifest
    grandparent = previous.manifest.parent if previous.manifest is not None else record.parent
    again = manifest.with_parent(grandparent)
    return again if Digest.of(again.encode()) == record.manifest else manifest.with_parent(record.manifest)


def without_credentials(url: str) -> str:
    """The URL without user, password, and parameters whose names speak of secrets. ConfigError if it is none."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as failure:
        raise ConfigError(f"source URL is malformed: {failure}") from failure
    if not parts.scheme or not parts.netloc or not url.isprintable() or " " in url:
        raise ConfigError("source URL is malformed: expected something like https://example.org/data")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _is_secret(pair[0])]
    kept = parts.query if len(query) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(query)
    fragment = "" if any(_is_secret(name) for name, _ in parse_qsl(parts.fragment)) else parts.fragment
    return urlunsplit((parts.scheme, host + port, parts.path, kept, fragment))


def _is_secret(name: str) -> bool:
    name = name.lower()
    return name in _SECRET_NAMES or name.startswith(("x-amz-", "x-goog-")) or any(w in name for w in _SECRET_WORDS)


def release(store: Store, keys: Keys, manifest: Digest, name: str, now_s: float) -> NameRecord:
    """Sign and keep the name record that leads to a manifest; the known one if it does so already and is fresh.

    Another program may release the same name at the same time: the sequence is then taken anew.
    """
    while True:
        known = load_previous(store, keys.root.public, name).record
        if known is not None and known.manifest == manifest:
            if not known.stale(now_s):
                return known
            sequence, parent = known.sequence, known.parent
        else:
            sequence = known.sequence + 1 if known is not None else 1
            parent = known.manifest if known is not None else None
        delegation = Delegation(root=keys.root.public, number=1, release=keys.release.public).signed(keys.root)
        record = NameRecord(
            delegation=delegation,
            name=name,
            sequence=sequence,
            manifest=manifest,
            fresh_until=int(now_s) + FRESH_S,
            parent=parent,
        )
        if store.put_name_record(sign(record, keys.release)):
            return record
