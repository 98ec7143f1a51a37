"""The envelope: golden bytes, what a signature covers, and every way to be refused."""

from __future__ import annotations

import doctest
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht import envelope
from dhtdata.dht.envelope import (
    CHALLENGE,
    COOKIE_END,
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_DATAGRAM_BYTES,
    NOTICE,
    REPLY,
    REQUEST,
    VERSION,
    Letter,
    challenge,
    knock,
    notice,
    of_network,
    seal,
    unseal,
)
from dhtdata.dht.identity import Identity, is_proven
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.records import node_id
from dhtdata.network import PUBLIC, Network
from dhtdata.signing import SigningKey
from tests.simulation.hostile import resigned

WHO = Identity.client(SigningKey(bytes(range(32))))
OTHER = SigningKey(bytes([7]) * 32)
ID = bytes(range(20))
OTHER_ID = bytes(20)
PRIVATE = Network(bytes([5]) * 32)
GOLDEN_PUBLIC = "8ebcad7fd5f99810ae71eb8a6d79816634b0f4d3e84aa3fdd5324a886fefd9c0"
GOLDEN_ADDRESSED = "74cf48a15bd23a27b1b5a571781771fa2512be3d189a0ce7fcff30a170ff316c"
GOLDEN_PRIVATE = "f3caa9216d40b07688eec31e8a57196af81caf050aae633c66efacce2b792ce4"
LETTER = Letter(REQUEST, b"12345678", b"abcdefgh", False, b"body")


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from([REQUEST, REPLY]),
    call=st.binary(min_size=8, max_size=8),
    cookie=st.binary(min_size=8, max_size=8),
    client=st.booleans(),
    body=st.binary(min_size=1, max_size=MAX_BODY_BYTES),
    to=st.sampled_from([b"", ID]),
    network=st.sampled_from([PUBLIC, PRIVATE]),
)
def test_every_letter_comes_back_with_who_sealed_it(
    kind: int, call: bytes, cookie: bytes, client: bool, body: bytes, to: bytes, network: Network
) -> None:
    letter = Letter(kind, call, cookie, client, body, to)
    datagram = seal(network, WHO, letter)
    assert len(datagram) == HEADER_BYTES + len(body) <= MAX_DATAGRAM_BYTES
    assert of_network(network, datagram)
    assert unseal(datagram, ID) == (letter, WHO.key.public, WHO.id)


def test_golden_bytes() -> None:
    """Version 2 is these bytes for ever."""
    assert Digest.of(seal(PUBLIC, WHO, LETTER)).hex() == GOLDEN_PUBLIC
    assert Digest.of(seal(PRIVATE, WHO, LETTER)).hex() == GOLDEN_PRIVATE
    assert Digest.of(seal(PUBLIC, WHO, replace(LETTER, to=ID))).hex() == GOLDEN_ADDRESSED
    assert challenge(PUBLIC, b"12345678", b"abcdefgh")[18:] == b"12345678abcdefgh"
    assert seal(PUBLIC, WHO, LETTER)[:2] == bytes([2, 0]) and notice(PUBLIC, b"12345678")[:2] == bytes([2, 3])


def test_no_byte_can_be_changed() -> None:
    """Signed are all bytes but the code of the network, which the network checks."""
    datagram = seal(PRIVATE, WHO, LETTER)
    for position in range(len(datagram)):
        changed = bytearray(datagram)
        changed[position] ^= 1
        assert not of_network(PRIVATE, bytes(changed))
        if not 2 <= position < 18:
            with pytest.raises((FormatError, IntegrityError)):
                unseal(bytes(changed), ID)


def test_what_names_a_receiver_is_for_nobody_else() -> None:
    datagram = seal(PUBLIC, WHO, replace(LETTER, to=ID))
    assert unseal(datagram, ID)[0].to == ID
    flagless = datagram[:COOKIE_END] + bytes((datagram[COOKIE_END] & 1,)) + datagram[COOKIE_END + 1 :]
    for passed_on, receiver in ((datagram, OTHER_ID), (datagram, b""), (flagless, ID), (flagless, OTHER_ID)):
        with pytest.raises(IntegrityError):
            unseal(passed_on, receiver)


def test_who_signs_anew_is_somebody_else() -> None:
    forged = resigned(seal(PUBLIC, WHO, LETTER), OTHER)
    letter, key, identifier = unseal(forged, ID)
    assert letter == LETTER and key == OTHER.public and identifier != WHO.id


def test_strangers_are_told_apart_in_both_directions() -> None:
    for ours, theirs in ((PUBLIC, PRIVATE), (PRIVATE, PUBLIC)):
        short = (challenge(ours, bytes(8), bytes(8)), notice(ours, bytes(8)), knock(ours, bytes(8)))
        for datagram in (seal(ours, WHO, LETTER), *short):
            assert of_network(ours, datagram) and not of_network(theirs, datagram)


def test_what_answers_an_unproven_address_is_no_longer_than_what_asks() -> None:
    assert len(challenge(PUBLIC, bytes(8), bytes(8))) == len(knock(PUBLIC, bytes(8))) == 34 < HEADER_BYTES + 1
    assert len(notice(PUBLIC, bytes(8))) == 26


REFUSED = {
    "empty": b"",
    "a challenge": challenge(PUBLIC, bytes(8), bytes(8)),
    "no body": seal(PUBLIC, WHO, LETTER)[:HEADER_BYTES],
    "too long": seal(PUBLIC, WHO, LETTER) + bytes(MAX_DATAGRAM_BYTES),
    "newer": bytes([VERSION + 1]) + seal(PUBLIC, WHO, LETTER)[1:],
    "older": bytes([VERSION - 1]) + seal(PUBLIC, WHO, LETTER)[1:],
    "kind of a challenge": seal(PUBLIC, WHO, Letter(CHALLENGE, bytes(8), bytes(8), False, b"x")),
    "kind of a notice": seal(PUBLIC, WHO, Letter(NOTICE, bytes(8), bytes(8), False, b"x")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_datagrams_are_refused(case: str) -> None:
    with pytest.raises(FormatError):
        unseal(REFUSED[case], ID)


def test_a_body_that_does_not_fit_is_not_sealed() -> None:
    with pytest.raises(FormatError, match="fit a datagram"):
        seal(PUBLIC, WHO, Letter(REQUEST, bytes(8), bytes(8), False, bytes(MAX_BODY_BYTES + 1)))


def test_a_proof_costs_work_and_can_be_checked() -> None:
    key = SigningKey(random.Random(1).randbytes(32))
    for bits in (0, 1, 8):
        identity = Identity.proven(key, bits)
        assert is_proven(identity.id, bits) and identity.id == node_id(key.public, identity.nonce)
        assert identity == Identity.proven(key, bits)
    unproven = sum(is_proven(bytes([number]) * 20, 8) for number in range(256))
    assert unproven < 10


def test_the_example_in_the_description_holds() -> None:
    result = doctest.testmod(envelope)
    assert result.attempted == 6 and result.failed == 0
