"""Whatever the bytes, a decoder answers with a value whose canonical form they are, or with a FormatError."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import FormatError, IntegrityError
from dhtdata.formats.records import decode
from tests.formats.samples import HUGE, JUNK, SAMPLES, SIGNED, Sample, damaged, nested, places, replaced

each_format = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


@each_format
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes(sample: Sample, seed: int) -> None:
    bad = damaged(sample.data, random.Random(seed))
    if bad != sample.data:
        sample.holds_or_refuses(bad)


@each_format
@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes(sample: Sample, data: bytes) -> None:
    assert sample.holds_or_refuses(data)


@each_format
def test_every_prefix_is_refused(sample: Sample) -> None:
    assert all(sample.holds_or_refuses(sample.data[:length]) for length in range(len(sample.data)))


@each_format
@pytest.mark.parametrize("tail", [b"\0", b" ", b"\n", b"{}", b"\xc0"])
def test_bytes_after_the_end_are_refused(sample: Sample, tail: bytes) -> None:
    assert sample.holds_or_refuses(sample.data + tail)
    assert sample.holds_or_refuses(tail + sample.data)


@each_format
def test_every_value_replaced_by_every_kind_of_junk(sample: Sample) -> None:
    tree = sample.parsed()
    junk = JUNK + (HUGE if sample.json else [b"", b"\0" * 33])
    for path in places(tree):
        for value in junk:
            sample.holds_or_refuses(sample.packed(replaced(tree, path, value)))


@each_format
@pytest.mark.parametrize("depth", [40, 400, 5_000])
def test_deep_nesting_is_refused(sample: Sample, depth: int) -> None:
    brackets = b"[" * depth + b"]" * depth if sample.json else b"\x91" * depth + b"\x90"
    assert sample.holds_or_refuses(brackets)
    tree = sample.parsed()
    for key in tree:
        shallow = sample.packed(replaced(tree, (key,), nested(3)))
        assert sample.holds_or_refuses(shallow.replace(sample.packed(nested(3)), brackets, 1))


@each_format
def test_a_missing_key_is_refused_or_has_a_default(sample: Sample) -> None:
    tree = sample.parsed()
    for key in tree:
        sample.holds_or_refuses(sample.packed({name: value for name, value in tree.items() if name != key}))


@each_format
def test_an_unknown_key_is_refused(sample: Sample) -> None:
    assert sample.holds_or_refuses(sample.packed({**sample.parsed(), "surprise": 1}))


@each_format
def test_a_default_that_is_written_out_is_refused(sample: Sample) -> None:
    assert sample.holds_or_refuses(sample.packed({**sample.parsed(), "ext": {}}))


@each_format
def test_keys_in_another_order_are_refused(sample: Sample) -> None:
    tree = sample.parsed()
    turned = {key: tree[key] for key in sorted(tree, reverse=True)}
    packed = json.dumps(turned, separators=(",", ":")).encode() if sample.json else msgspec.msgpack.encode(turned)
    assert sample.holds_or_refuses(packed)


@each_format
def test_a_key_that_appears_twice_is_refused(sample: Sample) -> None:
    if sample.json:
        first = sample.data[1 : sample.data.index(b",") + 1]
        assert sample.holds_or_refuses(b"{" + first + sample.data[1:])
    else:
        key = msgspec.msgpack.encode(min(sample.parsed()))
        value = msgspec.msgpack.encode(sample.parsed()[min(sample.parsed())], order="sorted")
        assert sample.holds_or_refuses(bytes([sample.data[0] + 1]) + key + value + sample.data[1:])


@each_format
def test_the_ignorable_map_is_ignored_and_bounded(sample: Sample) -> None:
    tree: dict[str, Any] = sample.parsed()
    sample.decode(sample.packed({**tree, "ext": {"k": "v"}}))
    full = {f"{i:03}": "" for i in range(65)}
    # These two kinds have no room for so many: their size is refused before their map is looked at.
    name = next(name for name, each in SAMPLES.items() if each is sample)
    small = {"peer_record": "at most 400 are allowed", "provider_claim": "at most 300 are allowed"}
    with pytest.raises(FormatError, match=small.get(name, "ext has 65 entries")):
        sample.decode(sample.packed({**_shortened(tree), "ext": full}))


def _shortened(tree: dict[str, Any]) -> dict[str, Any]:
    # A record has no room for 65 entries beside 42 keys.
    return {**tree, "keys": tree["keys"][:20]} if "keys" in tree else tree


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in SIGNED])
@pytest.mark.parametrize("extra", [{}, {"new_field": [1]}], ids=["same fields", "more fields"])
def test_a_newer_version_asks_for_an_upgrade(name: str, extra: dict[str, Any]) -> None:
    sample = SAMPLES[name]
    with pytest.raises(FormatError, match="version 2, which this dhtdata does not read: upgrade dhtdata"):
        sample.decode(sample.packed({**sample.parsed(), **extra, "version": 2}))


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in SIGNED])
@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(name: str, version: int) -> None:
    sample = SAMPLES[name]
    assert sample.holds_or_refuses(sample.packed({**sample.parsed(), "version": version}))


@pytest.mark.parametrize("name", ["contents", "manifest"])
@pytest.mark.parametrize("text", [b"{ ", b"{\n", b"{\t"])
def test_white_space_in_json_is_refused(name: str, text: bytes) -> None:
    assert SAMPLES[name].holds_or_refuses(SAMPLES[name].data.replace(b"{", text, 1))


@pytest.mark.parametrize("name", ["contents", "manifest"])
def test_another_spelling_of_the_same_text_is_refused(name: str) -> None:
    assert SAMPLES[name].holds_or_refuses(SAMPLES[name].data.replace(b'"version"', b'"\\u0076ersion"', 1))
    assert SAMPLES[name].holds_or_refuses(SAMPLES[name].data.replace(b'"version":1', b'"version":1.0', 1))
    assert SAMPLES[name].holds_or_refuses(SAMPLES[name].data.replace(b'"version":1', b'"version":1e0', 1))


@pytest.mark.parametrize("name", SIGNED)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_a_damaged_record_is_refused_before_it_is_parsed(name: str, seed: int) -> None:
    bad = damaged(SIGNED[name].data, random.Random(seed))
    if bad != SIGNED[name].data:
        with pytest.raises((FormatError, IntegrityError)):
            decode(bad)
