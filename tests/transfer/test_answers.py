from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address
from dhtdata.transfer.answers import (
    MAX_EXCHANGED,
    MAX_PARTIALS,
    HaveMap,
    PartialShard,
    PeerExchange,
    ProviderRecord,
    ProviderRecords,
    bit,
    pack_bits,
)

CONTENTS = Digest.of(b"contents")
addresses = st.builds(
    Address,
    st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)),
    st.integers(1, 65_535),
)
partials = st.builds(PartialShard, ordinal=st.integers(0, 1_000), blocks=st.binary(max_size=512))
have_maps = st.builds(
    HaveMap,
    version=st.just(2),
    contents=st.just(CONTENTS),
    revision=st.integers(0, 1 << 62),
    complete=st.booleans(),
    unchanged=st.booleans(),
    shards=st.binary(max_size=64),
    partials=st.lists(partials, max_size=5).map(tuple),
)


@given(have_maps)
def test_a_have_map_round_trips(have: HaveMap) -> None:
    assert HaveMap.decode(have.encode()) == have


@given(st.lists(addresses, max_size=MAX_EXCHANGED))
def test_exchanged_addresses_round_trip(exchanged: list[Address]) -> None:
    assert PeerExchange.decode(PeerExchange.of(exchanged).encode()) == tuple(exchanged)


@given(st.lists(st.builds(ProviderRecord, st.binary(max_size=1_000), st.lists(addresses, max_size=8).map(tuple))))
def test_provider_records_round_trip(records: list[ProviderRecord]) -> None:
    assert ProviderRecords.decode(ProviderRecords.of(records).encode()) == records[:64]


@given(st.binary(max_size=300))
def test_garbage_is_a_format_error(garbage: bytes) -> None:
    for decode in (HaveMap.decode, PeerExchange.decode, ProviderRecords.decode):
        with pytest.raises(FormatError):
            decode(garbage)


@given(have_maps, st.data())
def test_a_damaged_have_map_is_a_format_error_or_another_valid_one(have: HaveMap, data: st.DataObject) -> None:
    encoded = bytearray(have.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert HaveMap.decode(bytes(encoded)).encode() == bytes(encoded)
    except FormatError as failure:
        assert "have-map" in str(failure)


@pytest.mark.parametrize(
    "have",
    [
        HaveMap(version=3, contents=CONTENTS, revision=1),
        HaveMap(version=2, contents=CONTENTS, revision=-1),
        HaveMap(version=2, contents=CONTENTS, revision=1, partials=(PartialShard(ordinal=-1, blocks=b""),)),
        HaveMap(version=2, contents=CONTENTS, revision=1, partials=(PartialShard(ordinal=0, blocks=bytes(600)),)),
        HaveMap(
            version=2,
            contents=CONTENTS,
            revision=1,
            partials=(PartialShard(ordinal=0, blocks=b""),) * (MAX_PARTIALS + 1),
        ),
    ],
)
def test_a_have_map_that_cannot_be_is_refused(have: HaveMap) -> None:
    with pytest.raises(FormatError):
        HaveMap.decode(have.encode())


@given(st.sets(st.integers(0, 99)))
def test_bits_are_read_as_they_were_packed(positions: set[int]) -> None:
    packed = pack_bits(positions, 100)
    assert {position for position in range(200) if bit(packed, position)} == positions
