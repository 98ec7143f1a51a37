from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.codec import (
    Format,
    check_ext,
    check_version,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)


class Sample(Format, frozen=True):
    version: int
    digest: Digest
    text: str = ""
    numbers: tuple[int, ...] = ()
    ratio: float = 0.0
    ext: dict[str, str] = {}


class Path(msgspec.Struct):
    """A struct whose field is of a type that no format has."""

    value: complex


samples = st.builds(
    Sample,
    version=st.integers(1, 9),
    digest=st.binary(min_size=32, max_size=32).map(Digest),
    text=st.text(),
    numbers=st.lists(st.integers(-(1 << 63), (1 << 64) - 1)).map(tuple),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    ext=st.dictionaries(st.text(), st.text(), max_size=5),
)
KIND = {"limit_bytes": 1 << 20, "what": "sample"}
DIGEST = Digest.of(b"")


@given(sample=samples)
def test_a_value_is_read_back_from_its_bytes(sample: Sample) -> None:
    assert decode_json(encode_json(sample), Sample, limit_bytes=1 << 20, what="sample") == sample
    assert decode_msgpack(encode_msgpack(sample), Sample, limit_bytes=1 << 20, what="sample") == sample


@given(sample=samples)
def test_a_digest_is_text_in_json_and_bytes_in_msgpack(sample: Sample) -> None:
    assert msgspec.json.decode(encode_json(sample))["digest"] == str(sample.digest)
    assert msgspec.msgpack.decode(encode_msgpack(sample))["digest"] == bytes(sample.digest)


def test_equal_values_have_equal_bytes_whatever_the_order_of_their_maps() -> None:
    one = Sample(version=1, digest=DIGEST, ext={"a": "1", "b": "2"})
    two = Sample(version=1, digest=DIGEST, ext={"b": "2", "a": "1"})
    assert encode_json(one) == encode_json(two)
    assert encode_msgpack(one) == encode_msgpack(two)


def test_bytes_over_the_limit_are_refused_before_they_are_parsed() -> None:
    for decode in (decode_json, decode_msgpack):
        with pytest.raises(FormatError, match="sample has 11 bytes, at most 10 are allowed"):
            decode(b"\xff" * 11, Sample, limit_bytes=10, what="sample")


def test_a_digest_of_the_wrong_size_or_kind_is_refused() -> None:
    for digest in ("ab", "AB" * 32, 5, None, [1]):
        with pytest.raises(FormatError, match="sample is malformed"):
            decode_json(encode_json({"version": 1, "digest": digest}), Sample, limit_bytes=999, what="sample")
    for value in (b"short", "text" * 8, 5):
        with pytest.raises(FormatError, match="sample is malformed"):
            decode_msgpack(encode_msgpack({"digest": value, "version": 1}), Sample, limit_bytes=999, what="sample")


@pytest.mark.parametrize("version", [2, 99, 1 << 70])
def test_a_newer_version_is_named_even_if_its_fields_are_unknown(version: int) -> None:
    data = b'{"version":%d,"zebra":[]}' % version
    with pytest.raises(FormatError, match=f"format version {version}, .*: upgrade dhtdata"):
        decode_json(data, Sample, limit_bytes=999, what="sample")


def test_bytes_without_a_version_are_malformed() -> None:
    for data in (b'{"zebra":[]}', b"{", b'{"version":"2"}', b'{"version":1,"zebra":1}', b"[]", b""):
        with pytest.raises(FormatError, match="sample is malformed"):
            decode_json(data, Sample, limit_bytes=999, what="sample")


@pytest.mark.parametrize("version", [0, -1, 2])
def test_only_versions_up_to_the_newest_are_read(version: int) -> None:
    check_version(Sample(version=1, digest=DIGEST), 1, "sample")
    with pytest.raises(FormatError, match=f"format version {version}"):
        check_version(Sample(version=version, digest=DIGEST), 1, "sample")


def test_the_ignorable_map_has_at_most_64_entries() -> None:
    check_ext({str(i): "" for i in range(64)}, "sample")
    with pytest.raises(FormatError, match="ext has 65 entries"):
        check_ext({str(i): "" for i in range(65)}, "sample")


@pytest.mark.parametrize("value", [complex(1), object(), Path(complex(1))])
def test_what_no_format_holds_cannot_be_encoded(value: Any) -> None:
    with pytest.raises(TypeError, match="no JSON form"):
        encode_json(value)
    with pytest.raises(TypeError, match="no msgpack form"):
        encode_msgpack(value)


def test_a_field_of_a_type_that_no_format_has_is_refused() -> None:
    with pytest.raises(FormatError, match="expected complex"):
        decode_json(b'{"value":"1j"}', Path, limit_bytes=999, what="path")
