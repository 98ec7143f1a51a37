"""What a record says of itself: where it belongs, what is newer, how long it lives. Holders and searchers agree."""

from __future__ import annotations

from dhtdata.errors import FormatError
from dhtdata.formats.addresses import FIRST_PORT, Address, packed
from dhtdata.formats.records import (
    CLOCK_TOLERANCE_S,
    PROVIDER_LIFETIME_S,
    SHARD_LIFETIME_S,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    Record,
    ShardClaims,
    Signed,
    contents_key,
    node_id,
    withdrawn,
)

NAME_KEPT_S = 48 * 3600
PEER_LIFETIME_S = SHARD_LIFETIME_S
# Kinds, as records begin.
NAME, PEER = b"\x01", b"\x02"
CLAIMS = (b"\x03", b"\x04")
_LIFETIME_S: dict[type[Record], int] = {
    PeerRecord: PEER_LIFETIME_S,
    ProviderClaim: PROVIDER_LIFETIME_S,
    ShardClaims: SHARD_LIFETIME_S,
}


def keys_of(signed: Signed) -> list[bytes]:
    """The 20-byte keys under which a record belongs in the DHT."""
    record = signed.record
    match record:
        case NameRecord():
            return [*record.target.dht_keys]
        case PeerRecord():
            return [node_id(signed.signer)]
        case ProviderClaim():
            return [contents_key(record.contents)]
        case ShardClaims():
            return record.unpacked()


def version_of(record: Record) -> tuple[int, ...]:
    """Orders records of one kind, key and signer (any release key, for names): later ones compare higher."""
    if isinstance(record, NameRecord):
        return (*record.rank, max(record.fresh_until, record.voucher.fresh_until if record.voucher else 0))
    return (record.sequence, record.expires)


def check_lifetime(record: Record, now_s: float) -> None:
    """FormatError if the record has expired or claims to live longer than its kind may.

    Names do neither, nor do withdrawals.
    """
    if isinstance(record, NameRecord) or withdrawn(record):
        return
    left_s = record.expires - now_s
    if left_s <= -CLOCK_TOLERANCE_S or left_s > _LIFETIME_S[type(record)] + CLOCK_TOLERANCE_S:
        raise FormatError(f"{type(record).__name__} expires in {left_s:.0f} s: too late, or too long ago")


def kept_until(record: Record, received_s: float) -> float:
    """When a holder forgets a record that it received then: Unix seconds."""
    if isinstance(record, NameRecord):
        return received_s + NAME_KEPT_S
    if withdrawn(record):
        # What it takes back expires a lifetime and a tolerance from now at the latest, and is accepted up to one
        # tolerance later still.
        return received_s + _LIFETIME_S[type(record)] + 2 * CLOCK_TOLERANCE_S
    return record.expires + CLOCK_TOLERANCE_S


def check_addresses(record: PeerRecord, source: Address) -> None:
    """FormatError if a PeerRecord leads elsewhere than to its sender, or to a port of the system."""
    for wire in record.addresses:
        if wire.ip != packed(source.ip) or wire.port < FIRST_PORT:
            raise FormatError(f"PeerRecord from {source} leads to {wire.address()}, which it did not prove to be")
