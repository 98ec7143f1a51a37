from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.formats.names import PUBLISHER_CHARACTERS, Name, check_name, decode_key, encode_key

keys = st.binary(min_size=32, max_size=32)
plain_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
KEY = encode_key(bytes(range(32)))


@given(name=st.builds(Name, publisher=keys, name=plain_names, sequence=st.none() | st.integers(1, 10**18 - 1)))
def test_a_name_is_read_back_from_its_text(name: Name) -> None:
    assert Name.parse(str(name)) == name
    check_name(name.name)


@given(key=keys)
def test_a_key_is_read_back_from_its_text(key: bytes) -> None:
    text = encode_key(key)
    assert decode_key(text) == key
    assert len(text) == PUBLISHER_CHARACTERS


@given(text=st.text())
def test_any_text_is_a_name_that_prints_the_same_or_is_refused(text: str) -> None:
    for candidate in (text, f"dhtdata://{text}", f"dhtdata://{KEY}/{text}", f"dhtdata://{KEY}/x@{text}"):
        try:
            assert str(Name.parse(candidate)) == candidate
        except FormatError:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dhtdata://",
        f"dhtdata://{KEY}",
        f"dhtdata://{KEY}/",
        f"dhtdata://{KEY}/x/",
        f"dhtdata://{KEY}/x@",
        f"dhtdata://{KEY}/x@0",
        f"dhtdata://{KEY}/x@01",
        f"dhtdata://{KEY}/x@-1",
        f"dhtdata://{KEY}/x@{10**18}",
        f"dhtdata://{KEY}/X",
        f"dhtdata://{KEY}/.x",
        f"dhtdata://{KEY}/x y",
        f"dhtdata://{KEY}/é",
        f"dhtdata://{KEY}/x\n",
        f" dhtdata://{KEY}/x",
        f"dhtdata://{KEY}/{'x' * 64}",
        f"dhtdata://{KEY[:-1]}/x",
        f"dhtdata://{KEY}a/x",
        f"dhtdata://{KEY.upper()}/x",
        f"dhtdata://{KEY[:-1]}b/x",
        f"DHTDATA://{KEY}/x",
        f"https://{KEY}/x",
        "x" * 10_000,
    ],
)
def test_text_that_is_no_name_is_refused_briefly(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        Name.parse(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "a" * 51, "a" * 53, "1" * 52, "é" * 52, "b" * 52, "A" * 52, "=" * 52])
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="is not a key"):
        decode_key(text)


@pytest.mark.parametrize("name", ["", "-x", "_x", ".x", "X", "a b", "a/b", "a@1", "é", "x" * 64, "x\n", "a\0"])
def test_odd_characters_are_no_dataset_name(name: str) -> None:
    with pytest.raises(FormatError, match="cannot be a dataset's name"):
        check_name(name)


def test_every_sequence_of_a_name_has_one_key() -> None:
    name = Name(bytes(32), "wiki")
    assert name.dht_keys == Name(bytes(32), "wiki", 5).dht_keys
    others = [Name(bytes(32), "wikj"), Name(b"\1" * 32, "wiki")]
    assert len({key for each in (name, *others) for key in each.dht_keys}) == 9
    assert {len(key) for key in name.dht_keys} == {20}
