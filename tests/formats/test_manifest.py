from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dhtdata.digest import Digest
from dhtdata.errors import FormatError
from dhtdata.formats.manifest import MAX_CARD_BYTES, MAX_MANIFEST_BYTES, Manifest, Provenance, Source
from tests.formats.samples import MANIFEST, named

digests = st.binary(min_size=32, max_size=32).map(Digest)
manifests = st.builds(
    Manifest,
    version=st.just(1),
    name=st.text(min_size=1, max_size=64),
    contents=digests,
    statistics=digests,
    parent=st.none() | digests,
    licence=st.text(max_size=128),
    card=st.text(max_size=500),
    provenance=st.builds(
        Provenance,
        files=st.integers(0, 1 << 40),
        sources=st.lists(st.builds(Source, name=st.text(max_size=9), bytes=st.integers(0, 1 << 50)), max_size=3).map(
            tuple
        ),
        url=st.text(max_size=99),
    ),
)


@given(manifest=manifests)
def test_a_manifest_is_read_back(manifest: Manifest) -> None:
    assert Manifest.decode(manifest.encode()) == manifest


def test_a_manifest_can_become_the_successor_of_another() -> None:
    later = MANIFEST.with_parent(named("other"))
    assert later.parent == named("other")
    assert later.with_parent(MANIFEST.parent) == MANIFEST
    assert Manifest.decode(later.with_parent(None).encode()).parent is None


SOURCE = Source(name="a", bytes=1)
ALLOWED = {
    "the longest card": replace(MANIFEST, card="é" * (MAX_CARD_BYTES // 2)),
    "as many sources as are listed": replace(MANIFEST, provenance=Provenance(files=999, sources=(SOURCE,) * 256)),
    "the longest licence": replace(MANIFEST, licence="x" * 128),
}
REFUSED = {
    "no name": (replace(MANIFEST, name=""), "1 to 64 characters"),
    "too long a name": (replace(MANIFEST, name="x" * 65), "1 to 64 characters"),
    "too long a card": (replace(MANIFEST, card="é" * (MAX_CARD_BYTES // 2) + "x"), "card has more than"),
    "too long a licence": (replace(MANIFEST, licence="x" * 129), "licence or the source URL"),
    "too long a URL": (replace(MANIFEST, provenance=Provenance(url="x" * 2_049)), "licence or the source URL"),
    "too many sources": (replace(MANIFEST, provenance=Provenance(sources=(SOURCE,) * 257)), "more than 256 sources"),
    "fewer files than none": (replace(MANIFEST, provenance=Provenance(files=-1)), "makes no sense"),
    "more bytes than there are": (
        replace(MANIFEST, provenance=Provenance(sources=(Source(name="a", bytes=1 << 63),))),
        "makes no sense",
    ),
    "another version": (replace(MANIFEST, version=2), "upgrade dhtdata"),
    "too large an ext": (replace(MANIFEST, ext={str(i): "" for i in range(65)}), "ext has 65"),
    "too many bytes": (replace(MANIFEST, ext={"x": "x" * MAX_MANIFEST_BYTES}), "shorten the card"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_lies_within_the_limits_is_read_back(case: str) -> None:
    assert Manifest.decode(ALLOWED[case].encode()) == ALLOWED[case]


@pytest.mark.parametrize("case", REFUSED)
def test_what_lies_outside_is_refused_on_the_way_out(case: str) -> None:
    manifest, complaint = REFUSED[case]
    with pytest.raises(FormatError, match=complaint):
        manifest.encode()
