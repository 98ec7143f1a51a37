"""What a store knows besides bytes: datasets it lists and pins, names it has seen, shards and publishers it trusts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.names import Name
from dhtdata.formats.records import NameRecord, Signed, decode
from dhtdata.store.index import Database


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A dataset version that the store lists, whole or in part. A pinned one is never evicted."""

    digest: Digest
    pinned: bool
    added_s: float


class Catalogue:
    """Rows of the index that are not about files."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add_manifest(self, manifest: Digest) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO manifests VALUES(?, 0, ?) ON CONFLICT DO NOTHING", (manifest, self._clock())
            )

    def remove_manifest(self, manifest: Digest) -> float:
        """Unlist it; when it was listed."""
        with self._database.writing() as connection:
            removed = connection.execute("SELECT added_s FROM manifests WHERE digest = ?", (manifest,)).fetchall()
            connection.execute("DELETE FROM manifests WHERE digest = ?", (manifest,))
        _require(len(removed), manifest)
        return float(removed[0][0])

    def pin(self, manifest: Digest, pinned: bool) -> None:
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE manifests SET pinned = ? WHERE digest = ?", (int(pinned), manifest)
            ).rowcount
        _require(changed, manifest)

    def manifests(self) -> list[ManifestEntry]:
        """In the order in which they were added."""
        with self._database.reading() as connection:
            return self.read_manifests(connection)

    def read_manifests(self, connection: sqlite3.Connection) -> list[ManifestEntry]:
        """The same, as a transaction sees it."""
        rows = connection.execute("SELECT digest, pinned, added_s FROM manifests ORDER BY added_s, digest")
        return [ManifestEntry(Digest(row[0]), bool(row[1]), row[2]) for row in rows]

    def put_name_record(self, signed: Signed) -> bool:
        """Keep the record if it is newer than the one known, or says the same and is fresh for longer."""
        record = _name_record(signed)
        key = (record.delegation.root, record.name)
        with self._database.writing() as connection:
            row = connection.execute("SELECT record FROM names WHERE publisher = ? AND name = ?", key).fetchone()
            if row is not None and not _replaces(record, _name_record(decode(row[0]))):
                return False
            connection.execute("REPLACE INTO names VALUES(?, ?, ?)", (*key, signed.data))
        return True

    def name_record(self, publisher: bytes, name: str) -> Signed:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT record FROM names WHERE publisher = ? AND name = ?", (publisher, name)
            ).fetchone()
        if row is None:
            raise NotFoundError(f"{Name(publisher, name)} is not known to this store: ask a peer")
        return decode(row[0])

    def names(self) -> list[Signed]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT record FROM names ORDER BY publisher, name").fetchall()
        return [decode(row[0]) for row in rows]

    def mark_checked(self, digest: Digest, schema_digest: Digest) -> None:
        with self._database.writing() as connection:
            connection.execute("INSERT INTO checked VALUES(?, ?) ON CONFLICT DO NOTHING", (digest, schema_digest))

    def is_checked(self, digest: Digest, schema_digest: Digest) -> bool:
        return self._exists("SELECT 1 FROM checked WHERE digest = ? AND schema_digest = ?", digest, schema_digest)

    def trust_publisher(self, key: bytes) -> None:
        with self._database.writing() as connection:
            connection.execute("INSERT INTO publishers VALUES(?) ON CONFLICT DO NOTHING", (key,))

    def trusts(self, key: bytes) -> bool:
        return self._exists("SELECT 1 FROM publishers WHERE key = ?", key)

    def _exists(self, query: str, *values: bytes) -> bool:
        with self._database.reading() as connection:
            return connection.execute(query, values).fetchone() is not None


def _require(changed: int, manifest: Digest) -> None:
    if not changed:
        raise NotFoundError(f"manifest {manifest} is not listed in this store: see dhtdata ls")


def _name_record(signed: Signed) -> NameRecord:
    if not isinstance(signed.record, NameRecord):
        raise ConfigError(f"a {type(signed.record).__name__} is not a name record")
    return signed.record


def _replaces(new: NameRecord, known: NameRecord) -> bool:
    if new.rank == known.rank and new.manifest == known.manifest:
        return _vouched_until(new) > _vouched_until(known)
    return new.rank > known.rank


def _vouched_until(record: NameRecord) -> int:
    return max(record.fresh_until, record.voucher.fresh_until if record.voucher else 0)
