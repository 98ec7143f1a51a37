"""A fast stand-in for Ed25519, for simulations: the same shapes at a fortieth of the cost.

A public key is BLAKE3 of the seed, a signature 64 bytes of BLAKE3 keyed with the *public* key. So anybody can forge
anybody's signature. In a simulation one process plays everybody and nobody is to be fooled: what remains true is that
each signature fits exactly one key, one domain and one message, and that a flipped bit anywhere is noticed.

>>> from dhtdata.signing import SigningKey, substitute, verify
>>> with substitute(FastScheme()):
...     key = SigningKey(bytes(32))
...     verify(key.public, key.sign("domain", b"message"), "domain", b"message")
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from dhtdata.signing import KEY_BYTES, SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class FastSigner:
    seed: bytes
    public: bytes

    def sign(self, message: bytes) -> bytes:
        return blake3(message, key=self.public).digest(length=SIGNATURE_BYTES)


class FastScheme:
    def signer(self, seed: bytes) -> FastSigner:
        """ValueError unless the seed has 32 bytes."""
        if len(seed) != KEY_BYTES:
            raise ValueError(f"a seed has {KEY_BYTES} bytes, this one has {len(seed)}")
        return FastSigner(seed, blake3(seed).digest())

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        return len(public) == KEY_BYTES and blake3(message, key=public).digest(length=SIGNATURE_BYTES) == signature
