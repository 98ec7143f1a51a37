"""Names: ``dhtdata://<publisher>/<name>[@<sequence>]``.

The publisher is its root public key (Ed25519, 32 bytes) in lower-case base32 without padding: 52 characters, so a name
certifies itself. The name has 1 to 63 of ``a-z 0-9 . _ -`` and starts with a letter or digit. Without a sequence it
means the newest version known.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from dhtdata.digest import domain_key
from dhtdata.errors import FormatError

SCHEME = "dhtdata://"
PUBLISHER_CHARACTERS = 52
RENDEZVOUS = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_URI = re.compile(r"dhtdata://([a-z2-7]{52})/([a-z0-9][a-z0-9._-]{0,62})(?:@([1-9][0-9]{0,17}))?")


@dataclass(frozen=True, slots=True)
class Name:
    """A publisher's name for a dataset; ``sequence`` is None for the newest."""

    publisher: bytes
    name: str
    sequence: int | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """FormatError says what is wrong with the text."""
        if len(text) > 256 or (match := _URI.fullmatch(text)) is None:
            shown = text if len(text) <= 120 else text[:117] + "..."
            raise FormatError(
                f"{shown!r} is not a dataset name: expected dhtdata://PUBLISHER/NAME or .../NAME@SEQUENCE"
            )
        publisher, name, sequence = match.groups()
        return cls(decode_key(publisher), name, int(sequence) if sequence else None)

    def __str__(self) -> str:
        at = f"@{self.sequence}" if self.sequence is not None else ""
        return f"{SCHEME}{encode_key(self.publisher)}/{self.name}{at}"

    @property
    def dht_keys(self) -> tuple[bytes, ...]:
        """Three keys of 20 bytes, far apart, under each of which the name's record is kept, whatever its sequence.

        Who wants to make a name vanish has to take over three regions of the DHT, not one.
        """
        return tuple(
            domain_key("dhtdata name", bytes((place,)), self.publisher, self.name.encode())
            for place in range(RENDEZVOUS)
        )


def check_name(name: str) -> None:
    """FormatError unless ``name`` can stand in a dataset's name."""
    if _NAME.fullmatch(name) is None:
        raise FormatError(
            f"{name[:80]!r} cannot be a dataset's name: use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit"
        )


def encode_key(key: bytes) -> str:
    """32 bytes as 52 base32 characters."""
    return base64.b32encode(key).decode().lower().rstrip("=")


def decode_key(text: str) -> bytes:
    """Inverse of `encode_key`; refuses text that is not the encoding of its own bytes."""
    try:
        key = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        key = b""
    if len(key) != 32 or encode_key(key) != text:
        raise FormatError(f"{text[:80]!r} is not a key: expected {PUBLISHER_CHARACTERS} base32 characters")
    return key
