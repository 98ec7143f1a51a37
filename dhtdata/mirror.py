"""Static mirrors: a folder that makes a seed of a disk, a bucket or any web server that answers range requests.

Layout, the paths of the HTTP interface::

    v1/blobs/<digest>                 every blob of the dataset
    v1/names/<publisher>/<name>       the signed name record, if the store has one
    v1/have/<contents>                the have-map: everything
    healthz                           "ok"

Files appear at their final path whole and verified (temporary file, fsync, rename); blobs come before the contents, the
contents before the manifest, the manifest before the name. Run again after an interruption, it writes what is missing.
Mirrors of several datasets may share a folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dhtdata.digest import Digest, Hasher, random_id
from dhtdata.errors import IntegrityError, NotFoundError, StoreError
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import encode_key
from dhtdata.formats.records import NameRecord
from dhtdata.store import Store
from dhtdata.store.reach import Reach, walk

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Mirror:
    """What a mirror holds of one dataset, and how many of its blobs are ``new``."""

    blobs: int
    bytes: int
    new: int


def write_mirror(
    store: Store,
    manifest: Digest,
    folder: Path,
    *,
    have: bytes,
    progress: Callable[[int, int], None] | None = None,
) -> Mirror:
    """Write a dataset that is whole in the store as a static mirror; ``have`` are the bytes of its have-map.

    NotFoundError if the store lacks a blob, StoreError if the folder cannot be written.
    """
    contents = Manifest.decode(store.read(manifest, limit_bytes=MAX_MANIFEST_BYTES)).contents
    ordered = _ordered(store, manifest, contents)
    sizes = [store.size(digest) for digest in ordered]
    total, done, new = sum(sizes), 0, 0
    try:
        blobs = folder / "v1" / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        for digest, size in zip(ordered, sizes, strict=True):
            new += _copy(store.path_of(digest), blobs / digest.hex(), digest, size)
            done += size
            if progress is not None:
                progress(done, total)
        _write(folder / "v1" / "have" / contents.hex(), have)
        for signed in store.names():
            record = signed.record
            if isinstance(record, NameRecord) and record.manifest == manifest:
                _write(folder / "v1" / "names" / encode_key(record.delegation.root) / record.name, signed.data)
        _write(folder / "healthz", b"ok\n")
    except OSError as failure:
        raise StoreError(f"mirror {folder} cannot be written: {failure}") from failure
    return Mirror(len(ordered), total, new)


def _ordered(store: Store, manifest: Digest, contents: Digest) -> list[Digest]:
    """Every blob of a dataset, what leads to others last. NotFoundError if one is not in the store."""
    if missing := store.missing_blobs(manifest):
        raise NotFoundError(
            f"{manifest} is not whole in the store (blobs missing: {len(missing)}): run dhtdata get {manifest}"
        )
    reach = Reach()
    walk(manifest, lambda digest, limit_bytes: store.read(digest, limit_bytes=limit_bytes), reach)
    leaves = sorted({*reach.sizes, *reach.small} - {manifest, contents})
    return [*map(Digest, leaves), contents, manifest]


def _copy(source: Path, target: Path, digest: Digest, size: int) -> bool:
    """Whether there was anything to copy: a file of the right size at its final path was verified on its way."""
    if target.is_file() and target.stat().st_size == size:
        return False
    hasher = Hasher()
    temporary = _temporary(target)
    try:
        with source.open("rb", buffering=0) as reader, temporary.open("xb", buffering=0) as writer:
            while piece := reader.read(_PIECE_BYTES):
                hasher.update(piece)
                writer.write(piece)
            os.fsync(writer.fileno())
        if hasher.digest() != digest:
            raise IntegrityError(f"{source} does not hold the bytes of its name: run dhtdata verify", str(source))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{random_id(4).hex()}")
