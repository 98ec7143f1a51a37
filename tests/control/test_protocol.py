from __future__ import annotations

import typing
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata import errors
from dhtdata.control import foreseeing, protocol
from dhtdata.control.protocol import HEADER_BYTES, MAX_FRAME_BYTES, Failure, Message, body_length, pack, unpack
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError

KINDS = [errors.FormatError, errors.NotFoundError, errors.PeerError, errors.StoreError, errors.ConfigError]
st.register_type_strategy(Digest, st.binary(min_size=32, max_size=32).map(Digest))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(int, st.integers(-(1 << 62), 1 << 62))


@given(st.sampled_from(typing.get_args(Message)).flatmap(st.from_type))
def test_every_message_round_trips(message: Message) -> None:
    frame = pack(message)
    assert body_length(frame[:HEADER_BYTES]) == len(frame) - HEADER_BYTES
    assert unpack(frame[HEADER_BYTES:]) == message


@given(st.binary(max_size=200))
def test_garbage_is_a_format_error(garbage: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(garbage)


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_frames_of_impossible_length_are_refused(length: int) -> None:
    with pytest.raises(FormatError):
        body_length(length.to_bytes(HEADER_BYTES, "big"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_over_as_its_own_class(kind: type[DhtDataError]) -> None:
    sent = unpack(pack(protocol.to_failure(kind("what happened")))[HEADER_BYTES:])
    assert isinstance(sent, Failure)
    received = protocol.to_error(sent)
    assert type(received) is kind
    assert str(received) == "what happened"


def test_blame_comes_over_too_and_unknown_classes_become_the_base() -> None:
    received = protocol.to_error(protocol.to_failure(IntegrityError("wrong", culprit="192.0.2.1:5")))
    assert isinstance(received, IntegrityError)
    assert received.culprit == "192.0.2.1:5"
    for kind in ("NoSuchError", "annotations", "Exception", "__name__"):
        assert type(protocol.to_error(Failure(kind=kind, message="x"))) is DhtDataError


@given(st.dictionaries(st.from_type(Digest), st.lists(st.integers(0, 1 << 56), max_size=4).map(lambda ends: ends * 2)))
def test_what_a_loop_will_read_comes_over(spans: dict[Digest, list[int]]) -> None:
    sent = foreseeing.packed(Digest(bytes(32)), 0, 1 << 57, {shard: array("q", ends) for shard, ends in spans.items()})
    received = unpack(pack(sent)[HEADER_BYTES:])
    assert isinstance(received, foreseeing.Learn)
    assert {shard: ends.tolist() for shard, ends in received.by_shard().items()} == spans


@pytest.mark.parametrize(
    ("shards", "counts", "spans"),
    [(31, [1], 2), (32, [1, 1], 4), (32, [1], 1), (32, [2], 2), (64, [1, 1 << 31], 4)],
)
def test_what_a_loop_will_read_is_refused_if_its_lengths_contradict_each_other(
    shards: int, counts: list[int], spans: int
) -> None:
    message = foreseeing.Learn(
        order=Digest(bytes(32)), first=0, stop=1,
        shards=bytes(shards), counts=array("I", counts).tobytes(), spans=bytes(8 * spans),
    )  # fmt: skip
    with pytest.raises(FormatError):
        message.by_shard()
    cut_off = foreseeing.Learn(
        order=Digest(bytes(32)), first=0, stop=1, shards=bytes(32), counts=bytes(3), spans=bytes(16)
    )
    with pytest.raises(FormatError, match="cut off"):
        cut_off.by_shard()
