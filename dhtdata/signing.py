"""Ed25519 keys and signatures (RFC 8032; door of the ``cryptography`` package).

What is signed is always a domain prefix and the exact bytes that travel, never a re-encoding of a parsed value.

Behind `SigningKey` and `verify` stands a `Scheme`: Ed25519, unless a simulation has put another there (`substitute`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dhtdata.errors import ConfigError, IntegrityError, StoreError

KEY_BYTES = 32
SIGNATURE_BYTES = 64


class Signer(Protocol):
    """A private key, ready for use."""

    @property
    def public(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


class Scheme(Protocol):
    """How keys are made from 32-byte seeds, and what a 64-byte signature is."""

    def signer(self, seed: bytes) -> Signer: ...

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Whether ``public`` signed the message. False, too, for what is no key or no signature."""


class _Ed25519Signer:
    __slots__ = ("public", "sign")

    def __init__(self, seed: bytes) -> None:
        key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = key.public_key().public_bytes_raw()
        self.sign = key.sign


class Ed25519:
    def signer(self, seed: bytes) -> Signer:
        return _Ed25519Signer(seed)

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


_scheme: Scheme = Ed25519()


@contextmanager
def substitute(scheme: Scheme) -> Iterator[None]:
    """Another scheme for the whole process, until the block ends.

    For simulations, where one process plays everybody and nobody is to be fooled: there a signature only has to cost
    little and to fit one key, one domain and one message. Keys belong to the scheme under which they were made.
    """
    global _scheme
    before, _scheme = _scheme, scheme
    try:
        yield
    finally:
        _scheme = before


class SigningKey:
    """A private key; ``public`` is its 32-byte public key."""

    __slots__ = ("_seed", "_signer", "public")

    def __init__(self, seed: bytes) -> None:
        self._signer = _scheme.signer(seed)
        self._seed = bytes(seed)
        self.public = self._signer.public

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(os.urandom(KEY_BYTES))

    def sign(self, domain: str, message: bytes) -> bytes:
        """64-byte signature over the domain, a zero byte and the message."""
        return self._signer.sign(domain.encode() + b"\0" + message)

    def seed(self) -> bytes:
        return self._seed


def verify(public: bytes, signature: bytes, domain: str, message: bytes) -> None:
    """IntegrityError unless ``public`` signed the message in this domain."""
    if not _scheme.verify(public, signature, domain.encode() + b"\0" + message):
        raise IntegrityError(f"bad signature on a {domain} by key {public.hex()[:16]}…")


def load_or_create_key(path: Path) -> SigningKey:
    """The key in ``path`` (hexadecimal, mode 0600), made first if the file is not there.

    Two processes that race to make it end with the same key. StoreError if the file cannot be read or written,
    ConfigError if others may read it or it is not a key.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"key file {path} can be read by others: run chmod 600 {path}")
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise StoreError(f"key file {path} cannot be used: {failure}") from failure
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise ConfigError(f"key file {path} does not hold a key: restore it from a copy, or move it away for a new one")
    return SigningKey(seed)


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(SigningKey.generate().seed().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # link() refuses to replace: whoever came first wins, and both processes read the winner's key.
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
    finally:
        temporary.unlink()
