"""The store: verified blobs on disk, partial shards, the datasets and names that this machine knows."""

from __future__ import annotations

from dhtdata.store.blobs import BlobWriter, ScrubResult
from dhtdata.store.catalogue import ManifestEntry
from dhtdata.store.meaning import meaning_of, name_records, version_of
from dhtdata.store.packed import NotWorthPacking, PackedFile
from dhtdata.store.partial import Partial
from dhtdata.store.room import Completeness, NoRoomYet, Usage
from dhtdata.store.store import Located, Store

__all__ = [
    "BlobWriter",
    "Completeness",
    "Located",
    "ManifestEntry",
    "NoRoomYet",
    "NotWorthPacking",
    "PackedFile",
    "Partial",
    "ScrubResult",
    "Store",
    "Usage",
    "meaning_of",
    "name_records",
    "version_of",
]
