from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest, Hasher, checksum, domain_key, join, random_id, split
from dhtdata.errors import FormatError

# From the test vectors of the BLAKE3 authors: input byte i is i % 251.
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1_023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1_024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1_025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    31_744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
}
digests = st.binary(min_size=32, max_size=32).map(Digest)


@pytest.mark.parametrize("length", VECTORS)
def test_a_digest_is_blake3(length: int) -> None:
    content = bytes(i % 251 for i in range(length))
    assert str(Digest.of(content)) == VECTORS[length]


@given(parts=st.lists(st.binary(max_size=3_000)))
def test_bytes_in_pieces_have_the_digest_of_the_whole(parts: list[bytes]) -> None:
    hasher = Hasher()
    for part in parts:
        hasher.update(memoryview(part))
    assert hasher.digest() == Digest.of(bytearray(b"".join(parts)))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert Digest.of_file(tmp_path / "file") == Digest.of(content[:size])


def test_a_file_that_is_not_there_has_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        Digest.of_file(tmp_path / "nowhere")


@given(digest=digests)
def test_a_digest_is_read_back_from_its_text(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest
    assert repr(digest) == f"Digest({digest.hex()[:12]}…)"
    assert {digest: 1}[Digest.parse(digest.hex())] == 1


@given(digest=digests)
def test_a_digest_survives_pickling_and_is_its_bytes(digest: Digest) -> None:
    again = pickle.loads(pickle.dumps(digest))
    assert type(again) is Digest
    assert again == digest == bytes(digest)


@given(text=st.text(max_size=80))
def test_other_text_is_no_digest(text: str) -> None:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        with pytest.raises(FormatError, match="is not a digest"):
            Digest.parse(text)


@pytest.mark.parametrize(
    "text",
    ["AB" * 32, "ab " * 21 + "a", "ab" * 31 + "  ", " " * 64, "é" * 64, "ab" * 33, "a" * 1_000],
    ids=["upper case", "spaces", "trailing spaces", "only spaces", "not ASCII", "too long", "far too long"],
)
def test_text_that_looks_like_a_digest_is_refused_briefly(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_digest_has_32_bytes(size: int) -> None:
    with pytest.raises(FormatError, match=f"this one has {size}"):
        Digest(bytes(size))


@given(many=st.lists(digests))
def test_packed_digests_come_apart_again(many: list[Digest]) -> None:
    assert split(join(many)) == many


@pytest.mark.parametrize("size", [1, 31, 33, 63])
def test_a_part_of_a_digest_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match=f"{size} bytes are not a whole number"):
        split(bytes(size))


def test_keys_of_different_uses_differ() -> None:
    keys = {domain_key("a", b"x"), domain_key("b", b"x"), domain_key("a", b"y"), domain_key("a", b"x", b"")}
    assert len(keys) == 3, "parts are joined: callers give parts of fixed length"
    assert {len(key) for key in keys} == {20}
    assert len(domain_key("a", b"x", length=32)) == 32


def test_a_checksum_is_the_start_of_the_digest() -> None:
    assert checksum(b"x") == Digest.of(b"x")[:4]
    assert checksum(b"x", 8) == Digest.of(b"x")[:8]


def test_random_ids_differ() -> None:
    assert len({random_id() for _ in range(100)}) == 100
    assert len(random_id(5)) == 5
