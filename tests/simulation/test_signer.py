"""The stand-in for Ed25519 and how it is put in and taken out."""

from __future__ import annotations

import pytest

from dhtdata.errors import IntegrityError
from dhtdata.signing import KEY_BYTES, SIGNATURE_BYTES, SigningKey, substitute, verify
from tests.simulation.signer import FastScheme

SEED = bytes(range(KEY_BYTES))


def test_shapes_are_those_of_ed25519_and_values_depend_on_everything() -> None:
    with substitute(FastScheme()):
        key, other = SigningKey(SEED), SigningKey(bytes(KEY_BYTES))
        signature = key.sign("domain", b"message")
        assert (len(key.public), len(signature), key.seed()) == (KEY_BYTES, SIGNATURE_BYTES, SEED)
        assert SigningKey(SEED).sign("domain", b"message") == signature
        verify(key.public, signature, "domain", b"message")
        flipped = bytes([signature[0] ^ 1]) + signature[1:]
        for public, signed, domain, message in [
            (other.public, signature, "domain", b"message"),
            (key.public[:-1], signature, "domain", b"message"),
            (b"", signature, "domain", b"message"),
            (key.public, flipped, "domain", b"message"),
            (key.public, signature[:-1], "domain", b"message"),
            (key.public, signature, "domains", b"message"),
            (key.public, signature, "domain", b"massage"),
        ]:
            with pytest.raises(IntegrityError, match="bad signature"):
                verify(public, signed, domain, message)
        with pytest.raises(ValueError, match="32 bytes"):
            SigningKey(b"short")
