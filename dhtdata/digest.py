"""Digests: 32-byte BLAKE3 values that name bytes (door of the ``blake3`` package).

BLAKE3 as specified in "BLAKE3: one function, fast everywhere" (2020), default mode, 32-byte output. Keys of the DHT
and identifiers are cut from a digest of a domain prefix and the bytes, so that no two uses ever collide.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from blake3 import blake3

from dhtdata.errors import FormatError

Buffer = bytes | bytearray | memoryview
DIGEST_BYTES = 32
_READ_BYTES = 1 << 20


class Digest(bytes):
    """32 bytes that name a blob. Prints as 64 hexadecimal digits."""

    __slots__ = ()

    def __new__(cls, value: bytes | bytearray | memoryview) -> Self:
        if len(value) != DIGEST_BYTES:
            raise FormatError(f"a digest has {DIGEST_BYTES} bytes, this one has {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, data: Buffer) -> Self:
        """Digest of bytes in memory. Releases the GIL for large inputs."""
        return cls(blake3(data).digest())

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Digest of a whole file, read in 1 MiB pieces. OSError if it cannot be read."""
        hasher = Hasher()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                hasher.update(piece)
        return cls(hasher.digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """From 64 hexadecimal digits. FormatError otherwise."""
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b""
        if len(text) != 2 * DIGEST_BYTES or len(value) != DIGEST_BYTES or text != text.lower():
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise FormatError(f"{shown!r} is not a digest: expected {2 * DIGEST_BYTES} lower-case hexadecimal digits")
        return cls(value)

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Digest({self.hex()[:12]}…)"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return (type(self), (bytes(self),))


class Hasher:
    """Digest of bytes that arrive in pieces."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = blake3()

    def update(self, data: Buffer) -> None:
        self._state.update(data)

    def digest(self) -> Digest:
        return Digest(self._state.digest())


def domain_key(domain: str, *parts: Buffer, length: int = 20) -> bytes:
    """First ``length`` bytes of BLAKE3(domain ‖ parts): DHT keys and node ids."""
    state = blake3(domain.encode())
    for part in parts:
        state.update(part)
    return state.digest()[:length]


def keyed(key: bytes, *parts: Buffer, length: int = 16) -> bytes:
    """First ``length`` bytes of BLAKE3 keyed with 32 bytes: a message authentication code."""
    state = blake3(key=key)
    for part in parts:
        state.update(part)
    return state.digest(length)


def checksum(data: Buffer, length: int = 4) -> bytes:
    """Short digest that catches typing and truncation errors, not attacks."""
    return blake3(data).digest()[:length]


def join(digests: Iterable[Digest]) -> bytes:
    """Digests packed end to end, 32 bytes each."""
    return b"".join(digests)


def split(packed: bytes) -> list[Digest]:
    """Inverse of `join`. FormatError unless the length is a multiple of 32."""
    if len(packed) % DIGEST_BYTES:
        raise FormatError(f"{len(packed)} bytes are not a whole number of digests")
    # Past the check of each one's length: an index of a terabyte has 30,000 of them.
    make = bytes.__new__
    return [make(Digest, packed[first : first + DIGEST_BYTES]) for first in range(0, len(packed), DIGEST_BYTES)]


def random_id(length: int = 16) -> bytes:
    """Fresh identifier from the operating system's entropy."""
    return os.urandom(length)
