"""What a search makes of the replies of many holders."""

from __future__ import annotations

import random

import pytest

from dhtdata.dht.search import MAX_RECORDS_READ, Findings, Found
from dhtdata.formats.addresses import Address, AddressWire
from dhtdata.formats.records import PeerRecord, ProviderClaim, contents_key, decode, node_id, sign
from tests.dht.test_holdings import CONTENTS, KEYS, START_S, claim, name, peer, shards

KEY = contents_key(CONTENTS)
HERE = (Address("10.0.0.1", 8470),)


def findings(key: bytes = KEY) -> Findings:
    return Findings(key, START_S)


def elsewhere_of(sequence: int) -> bytes:
    wire = AddressWire.of(Address("10.0.0.2", 8470))
    return sign(PeerRecord(addresses=(wire,), sequence=sequence, expires=START_S + 60), KEYS[0]).data


def lie_about(number: int) -> bytes:
    wire = AddressWire.of(Address(f"10.9.9.{number}", 8470))
    return sign(PeerRecord(addresses=(wire,), sequence=100 + number, expires=START_S + 60), KEYS[0]).data


def test_a_record_is_told_once_with_the_addresses_before_it() -> None:
    one = findings()
    assert one.take(b"holder", [peer(KEYS[0]), claim(KEYS[0])]) == [Found(decode(claim(KEYS[0])), HERE)]
    assert one.take(b"holder", [peer(KEYS[0]), claim(KEYS[0])]) == []


def test_addresses_that_come_later_or_change_are_told_again() -> None:
    one = findings()
    told = decode(claim(KEYS[0]))
    assert one.take(b"holder", [claim(KEYS[0])]) == [Found(told, ())]
    assert one.take(b"holder", [peer(KEYS[0])]) == [Found(told, HERE)]
    assert one.take(b"holder", [peer(KEYS[0], sequence=2)]) == []
    elsewhere = Address("10.0.0.2", 8470)
    assert one.take(b"holder", [elsewhere_of(1)]) == [Found(told, (*HERE, elsewhere))]
    assert one.take(b"holder", [elsewhere_of(3)]) == []
    assert one.take(b"holder", [claim(KEYS[0], 2)]) == [Found(decode(claim(KEYS[0], 2)), (elsewhere, *HERE))]


def test_addresses_that_most_holders_told_come_first() -> None:
    one = findings()
    invented = [lie_about(number) for number in range(1, 12)]
    one.take(b"liar", [*invented, peer(KEYS[0])])
    one.take(b"honest", [peer(KEYS[0])])
    (found,) = one.take(b"third", [claim(KEYS[0])])
    assert found.addresses[0] == HERE[0] and len(found.addresses) == 8


def test_a_withdrawal_is_told_to_nobody_and_hides_what_it_withdraws() -> None:
    one = findings()
    assert one.take(b"holder", [claim(KEYS[1])]) == [Found(decode(claim(KEYS[1])), ())]
    withdrawal = ProviderClaim(contents=CONTENTS, seed=False, sequence=5, expires=0)
    assert one.take(b"holder", [sign(withdrawal, KEYS[0]).data, claim(KEYS[0], 4), peer(KEYS[0])]) == []
    assert one.take(b"holder", [claim(KEYS[0], 6)]) == [Found(decode(claim(KEYS[0], 6)), HERE)]


def test_a_newer_record_is_told_and_an_older_one_is_not() -> None:
    one = findings()
    assert one.take(b"holder", [claim(KEYS[0], 2), claim(KEYS[0], 1)]) == [Found(decode(claim(KEYS[0], 2)), ())]
    assert one.take(b"holder", [claim(KEYS[0], 3), claim(KEYS[1], 1)]) == [
        Found(decode(claim(KEYS[0], 3)), ()),
        Found(decode(claim(KEYS[1], 1)), ()),
    ]


def test_names_of_any_release_key_compare_by_rank() -> None:
    one = findings(name(1).record.target.dht_keys[0])  # type: ignore[union-attr]  # a NameRecord
    told = one.take(b"holder", [name(2).data, name(1).data, name(3).data])
    assert [found.record for found in told] == [name(2), name(3)]


def test_a_peer_record_is_told_under_its_node() -> None:
    one = findings(node_id(KEYS[0].public))
    assert one.take(b"holder", [peer(KEYS[0])]) == [Found(decode(peer(KEYS[0])), HERE)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 300,
        claim(KEYS[0])[:-1] + b"\x00",
        claim(KEYS[0], lives_s=-10_000),
        claim(KEYS[0], lives_s=1_000_000),
        shards(KEYS[0], [1]),
    ],
)
def test_forged_expired_and_misplaced_records_are_left_out(data: bytes) -> None:
    assert findings().take(b"holder", [data, claim(KEYS[1])]) == [Found(decode(claim(KEYS[1])), ())]


def test_what_is_read_is_bounded() -> None:
    one = findings()
    randomness = random.Random(1)
    one.take(b"holder", [randomness.randbytes(20) for _ in range(MAX_RECORDS_READ + 10)])
    assert len(one._read) == MAX_RECORDS_READ
    assert one.take(b"holder", [claim(KEYS[0])]) == []
