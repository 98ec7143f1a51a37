from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.names import Name
from dhtdata.formats.records import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    Delegation,
    NameRecord,
    PeerRecord,
    ProviderClaim,
    Record,
    ShardClaims,
    Voucher,
    contents_key,
    decode,
    node_id,
    shard_key,
    sign,
    withdrawn,
)
from dhtdata.signing import SigningKey
from tests.formats.samples import (
    DELEGATION,
    FRESHNESS,
    NAME_RECORD,
    NODE,
    PEER_RECORD,
    PROVIDER_CLAIM,
    RELEASE,
    ROOT,
    SHARD_CLAIMS,
    SIGNED,
    named,
)

digests = st.binary(min_size=32, max_size=32).map(Digest)
times = st.integers(0, (1 << 40) - 1)
wires = st.builds(
    AddressWire,
    ip=st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    port=st.integers(1, 65_535),
)
unsigned_by_root = st.one_of(
    st.builds(PeerRecord, addresses=st.lists(wires, min_size=1, max_size=8).map(tuple), sequence=times, expires=times),
    st.builds(ProviderClaim, contents=digests, seed=st.booleans(), sequence=times, expires=times),
    st.builds(
        ShardClaims,
        keys=st.sets(st.binary(min_size=20, max_size=20), min_size=1, max_size=42).map(lambda s: b"".join(sorted(s))),
        sequence=times,
        expires=times,
    ),
)


@given(record=unsigned_by_root)
@settings(max_examples=50, deadline=None)
def test_a_signed_record_is_read_back(record: Record) -> None:
    signed = sign(record, NODE)
    assert decode(signed.data) == signed
    assert signed.signer == NODE.public
    assert len(signed.data) <= MAX_RECORD_BYTES


def test_a_record_fits_one_datagram() -> None:
    sizes = {name: len(signed.data) for name, signed in SIGNED.items()}
    assert max(sizes.values()) <= MAX_RECORD_BYTES
    assert sizes["name_record"] < 700


@pytest.mark.parametrize("name", SIGNED)
def test_every_flipped_byte_is_noticed(name: str) -> None:
    good = SIGNED[name].data
    for position in range(len(good)):
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises((IntegrityError, FormatError)):
            decode(bad)


def test_a_record_of_another_version_asks_for_an_upgrade_before_its_signature_is_checked() -> None:
    good = SIGNED["provider_claim"].data
    with pytest.raises(FormatError, match="format version 2.*: upgrade dhtdata"):
        decode(good[:1] + b"\2" + good[2:])


def test_a_record_of_unknown_kind_is_refused() -> None:
    good = SIGNED["provider_claim"].data
    for kind in (0, 5, 255):
        with pytest.raises(FormatError, match=f"unknown kind {kind}"):
            decode(bytes([kind]) + good[1:])


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES, MAX_RECORD_BYTES + 1, 1 << 16])
def test_a_record_of_an_odd_size_is_refused_unread(size: int) -> None:
    with pytest.raises(FormatError, match=f"record of {size} bytes"):
        decode(bytes(size))


def test_a_record_signed_by_another_key_is_not_believed() -> None:
    good = SIGNED["peer_record"].data
    with pytest.raises(IntegrityError, match="bad signature"):
        decode(good[:2] + RELEASE.public + good[34:])


def test_one_kind_cannot_pass_for_another() -> None:
    good = SIGNED["provider_claim"].data
    with pytest.raises(IntegrityError, match="bad signature"):
        decode(b"\4" + good[1:])


MANY = AddressWire(ip=bytes(4), port=1)
INVALID: dict[str, Record] = {
    "no address": replace(PEER_RECORD, addresses=()),
    "nine addresses": replace(PEER_RECORD, addresses=(MANY,) * 9),
    "an address of five bytes": replace(PEER_RECORD, addresses=(AddressWire(ip=bytes(5), port=1),)),
    "port 0": replace(PEER_RECORD, addresses=(AddressWire(ip=bytes(4), port=0),)),
    "port 99999": replace(PEER_RECORD, addresses=(AddressWire(ip=bytes(4), port=99_999),)),
    "a negative sequence": replace(PEER_RECORD, sequence=-1),
    "a time beyond time": replace(PROVIDER_CLAIM, expires=1 << 40),
    "a negative time": replace(PROVIDER_CLAIM, expires=-1),
    "no keys": replace(SHARD_CLAIMS, keys=b""),
    "a part of a key": replace(SHARD_CLAIMS, keys=bytes(21)),
    "too many keys": replace(SHARD_CLAIMS, keys=b"".join(bytes([i]) * 20 for i in range(43))),
    "a key twice": replace(SHARD_CLAIMS, keys=bytes(40)),
    "keys out of order": replace(SHARD_CLAIMS, keys=b"\1" * 20 + b"\0" * 20),
    "a shard claim beyond time": replace(SHARD_CLAIMS, sequence=1 << 40),
    "too large an ext": replace(PROVIDER_CLAIM, ext={str(i): "" for i in range(65)}),
    "too many bytes": replace(PROVIDER_CLAIM, ext={"x": "x" * MAX_RECORD_BYTES}),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_record_that_nobody_would_take_cannot_be_signed(case: str) -> None:
    with pytest.raises(FormatError):
        sign(INVALID[case], NODE)


def delegated(**changes: object) -> Delegation:
    return replace(DELEGATION, **changes, signature=b"").signed(ROOT)


NAME_INVALID: dict[str, tuple[NameRecord, type[Exception]]] = {
    "an odd name": (replace(NAME_RECORD, name="A B", voucher=None), FormatError),
    "sequence 0": (replace(NAME_RECORD, sequence=0, voucher=None), FormatError),
    "fresh beyond time": (replace(NAME_RECORD, fresh_until=1 << 40), FormatError),
    "too large an ext": (replace(NAME_RECORD, ext={str(i): "" for i in range(65)}), FormatError),
    "a delegation to another key": (replace(NAME_RECORD, delegation=delegated(release=NODE.public)), IntegrityError),
    "a delegation that nobody signed": (
        replace(NAME_RECORD, delegation=replace(DELEGATION, signature=bytes(64))),
        IntegrityError,
    ),
    "a delegation whose number was changed": (
        replace(NAME_RECORD, delegation=replace(DELEGATION, number=2)),
        IntegrityError,
    ),
    "delegation 0": (replace(NAME_RECORD, delegation=delegated(number=0)), FormatError),
    "a short root key": (replace(NAME_RECORD, delegation=replace(DELEGATION, root=bytes(31))), FormatError),
    "a short release key": (replace(NAME_RECORD, delegation=delegated(release=bytes(31))), FormatError),
    "a short freshness key": (replace(NAME_RECORD, delegation=delegated(freshness=bytes(31))), FormatError),
    "a voucher without a freshness key": (
        replace(NAME_RECORD, delegation=delegated(freshness=None)),
        FormatError,
    ),
    "a voucher for another sequence": (replace(NAME_RECORD, sequence=8), IntegrityError),
    "a voucher beyond time": (
        replace(NAME_RECORD, voucher=Voucher.sign(FRESHNESS, NAME_RECORD, 1 << 40)),
        FormatError,
    ),
    "a voucher by another key": (
        replace(NAME_RECORD, voucher=Voucher.sign(RELEASE, NAME_RECORD, 1_900_000_000)),
        IntegrityError,
    ),
    "a voucher whose time was changed": (
        replace(NAME_RECORD, voucher=replace(Voucher.sign(FRESHNESS, NAME_RECORD, 5), fresh_until=6)),
        IntegrityError,
    ),
}


@pytest.mark.parametrize("case", NAME_INVALID)
def test_a_name_needs_every_role_in_its_place(case: str) -> None:
    record, failure = NAME_INVALID[case]
    with pytest.raises(failure):
        sign(record, RELEASE)


def test_only_the_release_key_signs_versions() -> None:
    for key in (ROOT, FRESHNESS, NODE):
        with pytest.raises(IntegrityError, match="did not delegate"):
            sign(NAME_RECORD, key)


def test_a_name_without_freshness_key_or_voucher_is_a_name() -> None:
    record = replace(NAME_RECORD, delegation=delegated(freshness=None), voucher=None, parent=None)
    assert decode(sign(record, RELEASE).data).record == record


def test_a_name_record_points_at_its_sequence_and_ranks_by_delegation_first() -> None:
    assert NAME_RECORD.target == Name(ROOT.public, "wiki", 7)
    assert NAME_RECORD.rank == (1, 7)
    assert replace(NAME_RECORD, delegation=delegated(number=2), sequence=1).rank > NAME_RECORD.rank


def test_a_name_is_stale_when_nobody_entitled_vouches_any_more() -> None:
    plain = replace(NAME_RECORD, voucher=None)
    assert [plain.stale(now_s) for now_s in (0, 1_800_000_000, 1_800_000_001)] == [False, False, True]
    assert [NAME_RECORD.stale(now_s) for now_s in (1_800_000_001, 1_900_000_001)] == [False, True]


@pytest.mark.parametrize("record", [PEER_RECORD, PROVIDER_CLAIM, SHARD_CLAIMS])
def test_a_record_that_never_held_withdraws_what_was_said_before(record: Record) -> None:
    assert [withdrawn(replace(record, expires=expires)) for expires in (0, 1, 1 << 39)] == [True, False, False]
    gone = replace(record, expires=0)
    assert decode(sign(gone, NODE).data).record == gone


def test_a_name_is_never_withdrawn() -> None:
    assert not withdrawn(replace(NAME_RECORD, fresh_until=0, voucher=None))


def test_shard_claims_come_apart_again() -> None:
    assert b"".join(SHARD_CLAIMS.unpacked()) == SHARD_CLAIMS.keys
    assert {len(key) for key in SHARD_CLAIMS.unpacked()} == {20}


@given(ip=st.ip_addresses().filter(lambda ip: "%" not in str(ip)), port=st.integers(1, 65_535))
def test_an_address_is_read_back_from_text_and_wire(ip: ipaddress.IPv4Address, port: int) -> None:
    address = Address(str(ip), port)
    assert Address.parse(str(address)) == address
    assert AddressWire.of(address).address() == address
    assert address.url == f"http://{address}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:999999",
        "192.0.2.1:-1",
        "192.0.2.1:²",
        "192.0.2.1:٣",
        "192.0.2.1:8 0",
        "192.0.2:80",
        "0192.0.2.1:80",
        "example.org:80",
        "localhost:80",
        "http://192.0.2.1:80",
        "2001:DB8::1:80",
        "[2001:DB8::1]:80",
        "[2001:db8:0::1]:80",
        "[fe80::1%eth0]:80",
        "192.0.2.1:80\n",
        "x" * 5_000 + ":80",
    ],
)
def test_text_that_is_no_address_is_refused_briefly(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        Address.parse(text)
    assert len(str(caught.value)) < 200


def test_keys_of_the_dht_have_20_bytes_and_never_meet() -> None:
    digest = named("x")
    keys = [contents_key(digest), shard_key(digest), node_id(bytes(digest)), *Name(bytes(digest), "x").dht_keys]
    keys.append(node_id(NODE.public, b"nonce"))
    assert {len(key) for key in keys} == {20}
    assert len(set(keys)) == 7


def test_what_a_signer_adds_is_kept_and_ignored() -> None:
    record = replace(PROVIDER_CLAIM, ext={"colour": "blue"})
    assert decode(sign(record, NODE).data).record == record


def test_a_payload_that_is_signed_but_not_canonical_is_refused() -> None:
    key = SigningKey(bytes(32))
    payload = msgspec.msgpack.encode(msgspec.to_builtins(PROVIDER_CLAIM, enc_hook=bytes, builtin_types=(bytes,)))
    head = bytes([3, 1]) + key.public
    with pytest.raises(FormatError, match="not in canonical form"):
        decode(head + key.sign("dhtdata record", head + payload) + payload)
