"""Who a node is: a key, and a proof that its identifier cost work.

The identifier is BLAKE3("dhtdata node" ‖ public key ‖ nonce)[:20]. It counts as *proven* if BLAKE3 of the identifier
starts with as many zero bits as the network asks (`Network.difficulty_bits`; 16 in the public one): a nonce that does
takes 65,536 tries, a tenth of a second once for an honest node, and as much for every single identifier of somebody who
wants to stand next to a key. That is friction, not defence; the defence is placement over a region (`region`).

Only who wants to enter the tables of others needs a proof: clients do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from dhtdata.digest import domain_key
from dhtdata.formats.records import node_id
from dhtdata.signing import SigningKey

NONCE_BYTES = 8


@dataclass(frozen=True)
class Identity:
    """A node's key, the nonce of its proof, and the 20-byte identifier that follows from both."""

    key: SigningKey
    nonce: bytes
    id: bytes

    @classmethod
    def client(cls, key: SigningKey) -> Identity:
        """Without proof: for who only asks."""
        return cls(key, bytes(NONCE_BYTES), node_id(key.public, bytes(NONCE_BYTES)))

    @classmethod
    def proven(cls, key: SigningKey, difficulty_bits: int) -> Identity:
        """With the first nonce that does. Blocking for about 2 µs × 2^difficulty_bits: call it in a thread.

        Counting from zero, the same key has the same identifier at every start.
        """
        tries = 0
        while True:
            nonce = tries.to_bytes(NONCE_BYTES, "big")
            identifier = node_id(key.public, nonce)
            if is_proven(identifier, difficulty_bits):
                return cls(key, nonce, identifier)
            tries += 1


def is_proven(identifier: bytes, difficulty_bits: int) -> bool:
    """Whether the identifier shows the work."""
    if not difficulty_bits:
        return True
    return int.from_bytes(domain_key("", identifier, length=8), "big") >> (64 - difficulty_bits) == 0
