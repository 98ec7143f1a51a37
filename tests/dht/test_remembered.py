"""Contacts on disk: round trip, damage, failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.remembered import MAX_REMEMBERED, load, save
from dhtdata.dht.routing import Contact, identifier
from dhtdata.errors import StoreError
from dhtdata.formats.addresses import Address

CONTACTS = [Contact(identifier(n), Address("10.0.0.1" if n % 2 else "2001:db8::1", n + 1)) for n in range(200)]


def test_the_nearest_contacts_come_back_and_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "contacts.json"
    assert load(path) == []
    save(path, CONTACTS[:3])
    save(path, CONTACTS)
    assert load(path) == CONTACTS[:MAX_REMEMBERED]
    assert [each.name for each in path.parent.iterdir()] == ["contacts.json"]


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 10_000), position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_counts_as_contacts_or_as_none(
    tmp_path_factory: pytest.TempPathFactory, cut: int, position: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "contacts.json"
    save(path, CONTACTS[:5])
    text = bytearray(path.read_bytes())
    text[position % len(text)] = byte
    path.write_bytes(text[: cut + 1])
    assert all(isinstance(each, Contact) for each in load(path))


@pytest.mark.parametrize(
    "text",
    [
        '{"contacts":[],"version":2}',
        '{"contacts":[{"address":"localhost:1","id":"' + "00" * 20 + '"}],"version":1}',
        '{"contacts":[{"address":"10.0.0.1:99999","id":"' + "00" * 20 + '"}],"version":1}',
        '{"contacts":[{"address":"10.0.0.1:1","id":"zz"}],"version":1}',
        "[" * 10_000,
        "{" + " " * 100_000,
    ],
)
def test_nonsense_counts_as_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contacts.json"
    path.write_text(text)
    assert load(path) == []


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="file/contacts.json"):
        save(blocked / "contacts.json", CONTACTS[:1])
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path)
