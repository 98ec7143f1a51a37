"""Manifest: one version of a dataset. Its digest *is* the version.

Canonical JSON, at most 256 KB: the digest of the contents, of the statistics, of the parent version, and what people
say about it: name, licence, card (Markdown), provenance. It holds no time of day, so publishing the same input twice
gives the same version. Its ``ext`` may name web seeds (`dhtdata.formats.web_seeds`).
"""

from __future__ import annotations

from msgspec.structs import replace

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.codec import Format, check_ext, check_version, decode_json, encode_json
from dhtdata.formats.web_seeds import WebSeed, from_ext

VERSION = 1
MAX_MANIFEST_BYTES = 256_000
MAX_CARD_BYTES = 128_000
MAX_SOURCES = 256
_MAX_COUNT = 1 << 63


class Source(Format, frozen=True):
    """One input file, by its last path component."""

    name: str
    bytes: int


class Provenance(Format, frozen=True):
    """Where the rows came from. ``files`` counts all inputs; ``sources`` lists the first 256."""

    files: int = 0
    sources: tuple[Source, ...] = ()
    url: str = ""


class Manifest(Format, frozen=True):
    version: int
    name: str
    contents: Digest
    statistics: Digest
    parent: Digest | None = None
    licence: str = ""
    card: str = ""
    provenance: Provenance = Provenance()
    ext: dict[str, str] = {}

    @property
    def web_seeds(self) -> tuple[WebSeed, ...]:
        """Mirrors that hold this dataset, as its publisher says; those that this program understands."""
        return from_ext(self.ext)

    def with_parent(self, parent: Digest | None) -> Manifest:
        """The same version as the successor of another."""
        return replace(self, parent=parent)

    def encode(self) -> bytes:
        """Canonical bytes. FormatError if they would be refused by `decode`."""
        _check(self)
        data = encode_json(self)
        if len(data) > MAX_MANIFEST_BYTES:
            raise FormatError(
                f"manifest of {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed: shorten the card"
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        manifest = decode_json(data, cls, limit_bytes=MAX_MANIFEST_BYTES, what="manifest")
        _check(manifest)
        return manifest


def _check(manifest: Manifest) -> None:
    what = "manifest"
    check_version(manifest, VERSION, what)
    check_ext(manifest.ext, what)
    if not 1 <= len(manifest.name) <= 64:
        raise FormatError(f"{what}: the name must have 1 to 64 characters")
    if len(manifest.card.encode()) > MAX_CARD_BYTES:
        raise FormatError(f"{what}: the card has more than {MAX_CARD_BYTES} bytes")
    if len(manifest.licence) > 128 or len(manifest.provenance.url) > 2_048:
        raise FormatError(f"{what}: the licence or the source URL is too long")
    if len(manifest.provenance.sources) > MAX_SOURCES:
        raise FormatError(f"{what}: more than {MAX_SOURCES} sources are listed")
    counts = (manifest.provenance.files, *(source.bytes for source in manifest.provenance.sources))
    if not all(0 <= count < _MAX_COUNT for count in counts):
        raise FormatError(f"{what}: a number of files or bytes makes no sense")
