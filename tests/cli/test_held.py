"""Which dataset of the store a user means."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dhtdata.cli.held import all_held, held
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.manifest import VERSION, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import Delegation, NameRecord, Signed, sign
from dhtdata.formats.ticket import LocalName, Ticket, parse_target
from dhtdata.signing import SigningKey
from dhtdata.store import Store
from dhtdata.store.meaning import PREFIX_DIGITS, version_of

ROOT, OTHER, RELEASE = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def add_manifest(store: Store, name: str, licence: str = "") -> Digest:
    manifest = Manifest(
        version=VERSION, name=name, contents=Digest(b"\1" * 32), statistics=Digest(b"\2" * 32), licence=licence
    )
    digest = store.put(manifest.encode())
    store.add_manifest(digest)
    return digest


def record(root: SigningKey, name: str, manifest: Digest, sequence: int = 1, fresh_until: int = 1 << 39) -> Signed:
    delegation = Delegation(root=root.public, number=1, release=RELEASE.public).signed(root)
    made = NameRecord(delegation=delegation, name=name, sequence=sequence, manifest=manifest, fresh_until=fresh_until)
    return sign(made, RELEASE)


def test_every_way_to_write_a_dataset_means_the_same(store: Store) -> None:
    digest = add_manifest(store, "poems")
    store.put_name_record(record(ROOT, "poems", digest))
    name = Name(ROOT.public, "poems")
    ticket = str(Ticket(name))
    for text in ("poems", str(name), f"{name}@1", str(digest), digest.hex()[:PREFIX_DIGITS], ticket, f" {ticket}\n"):
        assert version_of(parse_target(text), store) == digest, text


def test_a_name_of_two_publishers_is_ambiguous_until_one_is_given(store: Store) -> None:
    first, second = add_manifest(store, "poems"), add_manifest(store, "poems", licence="MIT")
    store.put_name_record(record(ROOT, "poems", first))
    store.put_name_record(record(OTHER, "poems", second))
    with pytest.raises(ConfigError, match=str(Name(OTHER.public, "poems"))):
        version_of(LocalName("poems"), store)
    assert version_of(Name(OTHER.public, "poems"), store) == second


def test_versions_without_a_name_record_are_found_by_the_name_in_their_manifest(store: Store) -> None:
    first = add_manifest(store, "poems")
    assert version_of(LocalName("poems"), store) == first
    add_manifest(store, "poems", licence="MIT")
    with pytest.raises(ConfigError, match="give the manifest digest"):
        version_of(LocalName("poems"), store)


def test_a_sequence_that_is_not_the_one_here_is_not_found(store: Store) -> None:
    store.put_name_record(record(ROOT, "poems", add_manifest(store, "poems"), sequence=2))
    with pytest.raises(NotFoundError, match="dhtdata get"):
        version_of(Name(ROOT.public, "poems", 1), store)


@pytest.mark.parametrize("text", ["nothing", "0" * 64, "abcdef01"])
def test_what_is_not_here_is_not_found(store: Store, text: str) -> None:
    add_manifest(store, "poems")
    with pytest.raises(NotFoundError):
        held(store, text)


def test_a_dataset_without_its_contents_is_listed_as_such(store: Store) -> None:
    digest = add_manifest(store, "poems")
    [entry] = all_held(store)
    assert (entry.digest, entry.label, entry.contents, entry.complete) == (digest, "poems", None, False)


def test_a_name_past_its_promise_of_freshness_is_stale(store: Store) -> None:
    now_s = int(time.time())
    store.put_name_record(record(ROOT, "old", add_manifest(store, "old"), fresh_until=now_s - 10))
    store.put_name_record(record(ROOT, "new", add_manifest(store, "new"), fresh_until=now_s + 1000))
    assert {entry.label: entry.known.stale for entry in all_held(store) if entry.known} == {"old": True, "new": False}
