from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.addresses import AddressWire
from dhtdata.formats.records import Delegation, NameRecord, PeerRecord, Signed, Voucher, sign
from dhtdata.signing import SigningKey
from dhtdata.store import Store
from tests.store.samples import Clock

ROOT, RELEASE, FRESHNESS = (SigningKey(bytes([i]) * 32) for i in (1, 2, 3))


def name_record(
    sequence: int, *, number: int = 1, name: str = "wiki", says: bytes = b"", fresh_until: int = 100, vouched: int = 0
) -> Signed:
    delegation = Delegation(root=ROOT.public, number=number, release=RELEASE.public, freshness=FRESHNESS.public)
    record = NameRecord(
        delegation=delegation.signed(ROOT),
        name=name,
        sequence=sequence,
        manifest=Digest.of(says or bytes([sequence])),
        fresh_until=fresh_until,
    )
    if vouched:
        voucher = Voucher.sign(FRESHNESS, record, vouched)
        fields = {field: getattr(record, field) for field in record.__struct_fields__}
        record = NameRecord(**(fields | {"voucher": voucher}))
    return sign(record, RELEASE)


@given(ranks=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_highest_record_seen_wins_whatever_the_order(tmp_path: Path, ranks: Sequence[tuple[int, int]]) -> None:
    best = (0, 0)
    with Store.open(tmp_path) as store:
        with store._database.writing() as connection:
            connection.execute("DELETE FROM names")
        for number, sequence in ranks:
            taken = store.put_name_record(name_record(sequence, number=number))
            assert taken == ((number, sequence) > best)
            best = max(best, (number, sequence))
            found = store.name_record(ROOT.public, "wiki").record
            assert isinstance(found, NameRecord)
            assert found.rank == best


def test_a_record_is_remembered_byte_for_byte(tmp_path: Path) -> None:
    signed = name_record(3)
    with Store.open(tmp_path) as store:
        assert store.put_name_record(signed)
    with Store.open(tmp_path) as store:
        assert store.name_record(ROOT.public, "wiki") == signed
        assert store.names() == [signed]
        assert not store.put_name_record(signed)


def test_the_same_version_may_be_vouched_for_longer_but_never_for_less(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert store.put_name_record(name_record(1, fresh_until=100))
        assert store.put_name_record(name_record(1, fresh_until=100, vouched=300))
        assert not store.put_name_record(name_record(1, fresh_until=200))
        assert store.put_name_record(name_record(1, fresh_until=400))


def test_of_two_manifests_with_one_sequence_the_first_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert store.put_name_record(name_record(1, says=b"first"))
        assert not store.put_name_record(name_record(1, says=b"second", fresh_until=900))


def test_only_name_records_are_names(tmp_path: Path) -> None:
    record = PeerRecord(addresses=(AddressWire(ip=b"\x7f\0\0\1", port=80),), sequence=1, expires=1)
    with Store.open(tmp_path) as store, pytest.raises(ConfigError, match="PeerRecord is not a name record"):
        store.put_name_record(sign(record, RELEASE))


def test_an_unknown_name_is_not_found(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, pytest.raises(NotFoundError, match="/wiki is not known"):
        store.name_record(ROOT.public, "wiki")


def test_manifests_are_listed_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    clock = Clock()
    digests = [Digest.of(bytes([i])) for i in range(4)]
    with Store.open(tmp_path, clock=clock) as store:
        for digest in digests:
            clock.now_s += 1
            store.add_manifest(digest)
        store.pin(digests[2])
        clock.now_s += 1
        store.add_manifest(digests[2])
        store.add_manifest(digests[0])
        entries = store.manifests()
    assert [entry.digest for entry in entries] == digests
    assert [entry.pinned for entry in entries] == [False, False, True, False]
    assert entries[0].added_s == 1_000_001.0
    with Store.open(tmp_path) as store:
        store.unpin(digests[2])
        store.remove_manifest(digests[0])
        assert [(entry.digest, entry.pinned) for entry in store.manifests()] == [(d, False) for d in digests[1:]]


def test_what_is_not_listed_cannot_be_pinned_unpinned_or_removed(tmp_path: Path) -> None:
    digest = Digest.of(b"x")
    with Store.open(tmp_path) as store:
        for act in (store.pin, store.unpin, store.remove_manifest):
            with pytest.raises(NotFoundError, match="not listed"):
                act(digest)


def test_a_check_is_remembered_for_a_shard_under_one_schema(tmp_path: Path) -> None:
    shard, schema, other = (Digest.of(text) for text in (b"shard", b"schema", b"other"))
    with Store.open(tmp_path) as store:
        assert not store.is_checked(shard, schema)
        store.mark_checked(shard, schema)
        store.mark_checked(shard, schema)
    with Store.open(tmp_path) as store:
        assert store.is_checked(shard, schema)
        assert not store.is_checked(shard, other)
        assert not store.is_checked(other, schema)


def test_trust_in_a_publisher_is_remembered(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert not store.trusts(ROOT.public)
        store.trust_publisher(ROOT.public)
        store.trust_publisher(ROOT.public)
    with Store.open(tmp_path) as store:
        assert store.trusts(ROOT.public)
        assert not store.trusts(RELEASE.public)
