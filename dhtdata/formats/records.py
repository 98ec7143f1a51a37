"""Records and claims: small signed values that live in the DHT.

Bytes, at most 1,000 (a PeerRecord 400, a ProviderClaim 300)::

    offset  size  field
    0       1     kind: 1 NameRecord, 2 PeerRecord, 3 ProviderClaim, 4 ShardClaims
    1       1     format version (1)
    2       32    public key of the signer
    34      64    Ed25519 signature by that key over "dhtdata record" ‖ 0 ‖ bytes[0:34] ‖ payload
    98      …     payload: canonical msgpack map

`decode` checks the size, then the signature over the exact bytes, then parses: nothing unsigned is ever parsed.
Sequences order versions, never clocks; times are Unix seconds.

| record | signer | key in the DHT | lives |
|---|---|---|---|
| NameRecord | release key, delegated by the root key | `Name.dht_key` | until replaced; *stale* after ``fresh_until`` |
| PeerRecord | node key | node id | until ``expires`` |
| ProviderClaim | node key | `contents_key` | 2 h, renewed every 45 min |
| ShardClaims | node key | each of its up to 42 `shard_key`s | 24 h, renewed every 11 h |

A peer record or claim with ``expires`` 0 is a *withdrawal*: it says that what its signer said before, with lower
sequences, holds no more (`withdrawn`). It is kept and passed on like any record, so that those do not come back.

Roles of a name, after TUF: the *root* key is the publisher's identity and may be kept offline; it delegates to a
*release* key, which signs versions, and optionally to a *freshness* key on an always-on machine, which can only vouch
that a version is still the newest (a `Voucher` extends ``fresh_until``; it cannot introduce a manifest). Delegations
are numbered; a reader never goes back to a lower number.

Addresses are IP literals and ports, never host names or URLs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dhtdata.digest import Digest, domain_key
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import MAX_ADDRESSES, AddressWire
from dhtdata.formats.codec import Format, check_ext, decode_msgpack, encode_msgpack
from dhtdata.formats.names import Name, check_name
from dhtdata.signing import KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify

VERSION = 1
MAX_RECORD_BYTES = 1_000
HEADER_BYTES = 2 + KEY_BYTES + SIGNATURE_BYTES
SHARD_KEY_BYTES = 20
MAX_SHARD_KEYS = 42
PROVIDER_LIFETIME_S = 2 * 3600
PROVIDER_RENEWAL_S = 45 * 60
SHARD_LIFETIME_S = 24 * 3600
SHARD_RENEWAL_S = 11 * 3600
CLOCK_TOLERANCE_S = 600
_MAX_TIME = 1 << 40
_RECORD_DOMAIN = "dhtdata record"
_DELEGATION_DOMAIN = "dhtdata delegation"
_VOUCHER_DOMAIN = "dhtdata voucher"


class Delegation(Format, frozen=True):
    """Root key → release key (and freshness key). ``signature`` covers the canonical form of the other fields."""

    root: bytes
    number: int
    release: bytes
    freshness: bytes | None = None
    signature: bytes = b""

    def signed(self, root: SigningKey) -> Delegation:
        return Delegation(
            root=self.root,
            number=self.number,
            release=self.release,
            freshness=self.freshness,
            signature=root.sign(_DELEGATION_DOMAIN, self._message()),
        )

    def check(self) -> None:
        if len(self.root) != KEY_BYTES or len(self.release) != KEY_BYTES or self.number < 1:
            raise FormatError("delegation: malformed keys or number")
        if self.freshness is not None and len(self.freshness) != KEY_BYTES:
            raise FormatError("delegation: malformed freshness key")
        verify(self.root, self.signature, _DELEGATION_DOMAIN, self._message())

    def _message(self) -> bytes:
        return encode_msgpack([self.root, self.number, self.release, self.freshness or b""])


class Voucher(Format, frozen=True):
    """The freshness key's word that a sequence is still the newest, until ``fresh_until``."""

    fresh_until: int
    signature: bytes

    @classmethod
    def sign(cls, freshness: SigningKey, record: NameRecord, fresh_until: int) -> Voucher:
        return cls(
            fresh_until=fresh_until,
            signature=freshness.sign(_VOUCHER_DOMAIN, record.voucher_message(fresh_until)),
        )


class NameRecord(Format, frozen=True):
    """Name → manifest, sequence n. Higher sequence wins; within one delegation number, always."""

    delegation: Delegation
    name: str
    sequence: int
    manifest: Digest
    fresh_until: int
    parent: Digest | None = None
    voucher: Voucher | None = None
    ext: dict[str, str] = {}

    @property
    def target(self) -> Name:
        """The name at this record's sequence."""
        return Name(self.delegation.root, self.name, self.sequence)

    @property
    def rank(self) -> tuple[int, int]:
        """Later records have higher ranks: delegation number, then sequence."""
        return (self.delegation.number, self.sequence)

    def stale(self, now_s: float) -> bool:
        """Whether nobody entitled has vouched for it lately. Still stored, served and usable."""
        vouched = self.voucher.fresh_until if self.voucher else 0
        return now_s > max(self.fresh_until, vouched)

    def voucher_message(self, fresh_until: int) -> bytes:
        return encode_msgpack([self.delegation.root, self.name, self.sequence, bytes(self.manifest), fresh_until])

    def check(self, signer: bytes) -> None:
        self.delegation.check()
        if signer != self.delegation.release:
            raise IntegrityError("name record: signed by a key that the root did not delegate to")
        check_name(self.name)
        _check_counts("name record", self.sequence, self.fresh_until)
        if self.sequence < 1:
            raise FormatError("name record: sequences start at 1")
        if self.voucher is not None:
            if self.delegation.freshness is None:
                raise FormatError("name record: a voucher without a freshness key")
            _check_counts("voucher", self.voucher.fresh_until)
            verify(
                self.delegation.freshness,
                self.voucher.signature,
                _VOUCHER_DOMAIN,
                self.voucher_message(self.voucher.fresh_until),
            )
        check_ext(self.ext, "name record")


class PeerRecord(Format, frozen=True):
    """Where a node can be reached. Put once per holder."""

    addresses: tuple[AddressWire, ...]
    sequence: int
    expires: int
    ext: dict[str, str] = {}

    def check(self, signer: bytes) -> None:
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise FormatError(f"peer record: {len(self.addresses)} addresses, expected 1 to {MAX_ADDRESSES}")
        for wire in self.addresses:
            wire.address()
        _check_counts("peer record", self.sequence, self.expires)
        check_ext(self.ext, "peer record")


class ProviderClaim(Format, frozen=True):
    """The signer serves these contents: all of them (``seed``) or a part."""

    contents: Digest
    seed: bool
    sequence: int
    expires: int
    ext: dict[str, str] = {}

    def check(self, signer: bytes) -> None:
        _check_counts("provider claim", self.sequence, self.expires)
        check_ext(self.ext, "provider claim")


class ShardClaims(Format, frozen=True):
    """The signer serves the shards under these keys (n keys of 20 bytes, packed and ascending)."""

    keys: bytes
    sequence: int
    expires: int
    ext: dict[str, str] = {}

    def unpacked(self) -> list[bytes]:
        return [self.keys[i : i + SHARD_KEY_BYTES] for i in range(0, len(self.keys), SHARD_KEY_BYTES)]

    def check(self, signer: bytes) -> None:
        if len(self.keys) % SHARD_KEY_BYTES or not 1 <= len(self.keys) // SHARD_KEY_BYTES <= MAX_SHARD_KEYS:
            raise FormatError(f"shard claims: expected 1 to {MAX_SHARD_KEYS} keys of {SHARD_KEY_BYTES} bytes")
        keys = self.unpacked()
        if any(later <= earlier for earlier, later in zip(keys, keys[1:], strict=False)):
            raise FormatError("shard claims: keys are not ascending")
        _check_counts("shard claims", self.sequence, self.expires)
        check_ext(self.ext, "shard claims")


Record = NameRecord | PeerRecord | ProviderClaim | ShardClaims
_KINDS: dict[int, type[Record]] = {1: NameRecord, 2: PeerRecord, 3: ProviderClaim, 4: ShardClaims}
# Padded ones would fill the pages of an answer, and hide the others at their key.
_MOST_BYTES = {2: 400, 3: 300}
_NUMBERS: dict[type[Record], int] = {kind: number for number, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Signed:
    """A verified record, its signer and the exact bytes that were signed."""

    record: Record
    signer: bytes
    data: bytes


def sign(record: Record, key: SigningKey) -> Signed:
    """Sign with the node key (peer record, claims) or the release key (name record). FormatError if it is invalid."""
    record.check(key.public)
    head = bytes([_NUMBERS[type(record)], VERSION]) + key.public
    payload = encode_msgpack(record)
    data = head + key.sign(_RECORD_DOMAIN, head + payload) + payload
    most_bytes = _MOST_BYTES.get(data[0], MAX_RECORD_BYTES)
    if len(data) > most_bytes:
        raise FormatError(f"record of {len(data)} bytes, at most {most_bytes} are allowed")
    return Signed(record, key.public, data)


def decode(data: bytes) -> Signed:
    """Size, signature, typed parse, in that order. FormatError or IntegrityError."""
    if not HEADER_BYTES < len(data) <= MAX_RECORD_BYTES:
        raise FormatError(f"record of {len(data)} bytes, expected {HEADER_BYTES + 1} to {MAX_RECORD_BYTES}")
    kind, version = data[0], data[1]
    if version != VERSION:
        raise FormatError(f"record has format version {version}, which this dhtdata does not read: upgrade dhtdata")
    if kind not in _KINDS:
        raise FormatError(f"record of unknown kind {kind}")
    if len(data) > _MOST_BYTES.get(kind, MAX_RECORD_BYTES):
        raise FormatError(f"record of kind {kind} with {len(data)} bytes, at most {_MOST_BYTES[kind]} are allowed")
    head = data[: 2 + KEY_BYTES]
    signer = head[2:]
    payload = data[HEADER_BYTES:]
    verify(signer, data[2 + KEY_BYTES : HEADER_BYTES], _RECORD_DOMAIN, head + payload)
    record = decode_msgpack(payload, _KINDS[kind], limit_bytes=MAX_RECORD_BYTES, what=_KINDS[kind].__name__)
    record.check(signer)
    return Signed(record, signer, bytes(data))


def withdrawn(record: Record) -> bool:
    """Whether the record takes back what its signer put before. Names cannot be withdrawn."""
    return not isinstance(record, NameRecord) and record.expires == 0


def node_id(public: bytes, nonce: bytes = b"") -> bytes:
    """20-byte identifier of a node in the DHT."""
    return domain_key("dhtdata node", public, nonce)


def contents_key(contents: Digest) -> bytes:
    """DHT key under which providers of a dataset are found."""
    return domain_key("dhtdata contents", contents)


def shard_key(shard: Digest) -> bytes:
    """DHT key under which holders of one shard are found, whatever dataset it belongs to."""
    return domain_key("dhtdata shard", shard)


def _check_counts(what: str, *values: int) -> None:
    for value in values:
        if not 0 <= value < _MAX_TIME:
            raise FormatError(f"{what}: a sequence or time of {value} makes no sense")
