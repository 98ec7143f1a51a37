"""The routing table against a full sort, and its rules of entry and eviction."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.routing import BUCKET_SIZE, MAX_MISSES, MAX_PER_GROUP, Contact, RoutingTable, identifier, number
from dhtdata.errors import FormatError
from dhtdata.formats.addresses import Address

# Identifiers that share long prefixes as well as spread ones: deep splits happen only among near neighbours.
identifiers = st.one_of(
    st.binary(min_size=20, max_size=20),
    st.integers(0, 255).map(identifier),
    st.integers(0, 159).map(lambda bit: identifier(1 << bit)),
)


def contact(node_id: bytes, port: int = 1) -> Contact:
    """A node of a private network, at a machine of its own."""
    host = (number(node_id) ^ number(node_id) >> 40) % (1 << 120)
    return Contact(node_id, Address(str(IPv6Address(0xFD << 120 | host)), port))


def by_distance(contacts: list[Contact], target: bytes) -> list[Contact]:
    return sorted(contacts, key=lambda each: each.long_id ^ number(target))


@settings(max_examples=200, deadline=None)
@given(
    own=identifiers,
    met=st.lists(identifiers, unique=True, max_size=80),
    target=identifiers,
    bucket_size=st.integers(1, 8),
    count=st.integers(0, 30),
)
def test_closest_agrees_with_a_full_sort(
    own: bytes, met: list[bytes], target: bytes, bucket_size: int, count: int
) -> None:
    table = RoutingTable(own, bucket_size=bucket_size)
    for node_id in met:
        table.answered(contact(node_id), now_s=0.0)
    assert table.closest(target, count) == by_distance(list(table), target)[:count]
    assert len(table) == len(list(table)) <= len(met)


@settings(max_examples=200, deadline=None)
@given(
    own=identifiers,
    steps=st.lists(st.tuples(identifiers, st.integers(1, 2), st.booleans()), max_size=120),
    bucket_size=st.integers(1, 5),
)
def test_buckets_always_tile_the_space_and_stay_bounded(
    own: bytes, steps: list[tuple[bytes, int, bool]], bucket_size: int
) -> None:
    table = RoutingTable(own, bucket_size=bucket_size)
    for now_s, (node_id, port, answers) in enumerate(steps):
        (table.answered(contact(node_id, port), now_s) if answers else table.missed(contact(node_id, port)))
    position = 0
    remembered: set[bytes] = set()
    for bucket in table.buckets:
        assert bucket.first == position and bucket.first % bucket.width == 0
        assert len(bucket.nodes) <= bucket_size and len(bucket.replacement_nodes) <= bucket_size
        everyone = [*bucket.nodes.values(), *bucket.replacement_nodes.values()]
        assert all(bucket.has_in_range(each) for each in everyone)
        assert bucket.nodes or not bucket.replacement_nodes
        remembered.update(each.id for each in everyone)
        position += bucket.width
    assert position == 1 << 160
    assert set(table._seen) == remembered
    assert own not in remembered


@settings(max_examples=50, deadline=None)
@given(own=st.binary(min_size=20, max_size=20), seed=st.integers(0, 1 << 32))
def test_the_nearest_bucketful_is_always_known(own: bytes, seed: int) -> None:
    randomness = random.Random(seed)
    met = [contact(randomness.randbytes(20)) for _ in range(300)]
    table = RoutingTable(own)
    for each in met:
        table.answered(each, now_s=0.0)
    assert table.closest(own, BUCKET_SIZE) == by_distance(met, own)[:BUCKET_SIZE]


def test_a_contact_is_evicted_by_three_misses_in_a_row_and_the_oldest_replacement_moves_up() -> None:
    table = RoutingTable(identifier(0), bucket_size=2)
    for value in (1, 2):
        table.answered(contact(identifier(value)), 0.0)
    far = [contact(identifier((1 << 159) + value)) for value in range(4)]
    for each in far:
        table.answered(each, 0.0)
    assert [each in table for each in far] == [True, True, False, False]
    for _ in range(MAX_MISSES - 1):
        table.missed(far[0])
    table.answered(far[0], 1.0)
    for _ in range(MAX_MISSES - 1):
        table.missed(far[0])
    assert far[0] in table
    table.missed(far[0])
    assert [each in table for each in far] == [False, True, True, False]


def test_a_flood_of_newcomers_displaces_neither_contacts_nor_replacements() -> None:
    table = RoutingTable(identifier(0), bucket_size=2)
    far = [contact(identifier((1 << 159) + value)) for value in range(50)]
    for value in (1, 2):
        table.answered(contact(identifier(value)), 0.0)
    for each in far:
        table.answered(each, 0.0)
    for each in far[:2]:
        for _ in range(MAX_MISSES):
            table.missed(each)
    assert table.closest(identifier(1 << 159), 10)[:2] == far[2:4]
    assert len(table._seen) == 4


def test_a_known_identifier_moves_to_a_new_address_only_after_the_old_one_missed_a_call() -> None:
    table = RoutingTable(identifier(0))
    old, new = contact(identifier(7), 1), contact(identifier(7), 2)
    table.answered(old, 0.0)
    table.answered(new, 0.0)
    assert old in table and new not in table
    table.missed(new)
    table.answered(new, 0.0)
    assert old in table
    table.missed(old)
    table.answered(new, 0.0)
    assert new in table and len(table) == 1


def test_only_silent_ranges_and_contacts_are_named_for_upkeep() -> None:
    table = RoutingTable(identifier(0), bucket_size=1)
    near, far = contact(identifier(1)), contact(identifier(1 << 159))
    table.answered(near, 0.0)
    table.answered(far, 10.0)
    (target,) = [each for each in table.stale(11.0, 5.0, random.Random(1)) if number(each) >= 1 << 158] or [b""]
    assert target == b""
    assert table.silent(11.0, 5.0, 10) == [near]
    assert {number(each) >> 159 for each in table.stale(20.0, 10.0, random.Random(1))} == {0, 1}


def test_the_estimate_of_the_networks_size_is_of_the_right_order() -> None:
    randomness = random.Random(5)
    for nodes in (5, 20, 200, 2_000):
        table = RoutingTable(randomness.randbytes(20))
        for _ in range(nodes - 1):
            table.answered(contact(randomness.randbytes(20)), 0.0)
        assert nodes / 2 < table.estimated_nodes() < nodes * 2


def test_the_own_identifier_never_enters() -> None:
    table = RoutingTable(identifier(5))
    table.answered(contact(identifier(5)), 0.0)
    assert len(table) == 0


@pytest.mark.parametrize("length", [0, 19, 21])
def test_identifiers_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(FormatError, match="20 bytes"):
        contact(bytes(length))


public = st.tuples(st.integers(11, 13), st.integers(0, 2), st.integers(1, 4)).map(
    lambda ip: f"{ip[0]}.0.{ip[1]}.{ip[2]}"
)


@settings(max_examples=200, deadline=None)
@given(
    own=identifiers,
    steps=st.lists(st.tuples(identifiers, public, st.integers(0, 3)), max_size=150),
    bucket_size=st.integers(1, 6),
)
def test_no_public_address_or_network_takes_more_than_its_share(
    own: bytes, steps: list[tuple[bytes, str, int]], bucket_size: int
) -> None:
    table = RoutingTable(own, bucket_size=bucket_size)
    for now_s, (node_id, ip, action) in enumerate(steps):
        met = Contact(node_id, Address(ip, 8470))
        if action == 0:
            table.missed(met)
        elif action == 1:
            table.remove(met)
        elif action == 2:
            table.heard(met, now_s)
        else:
            table.answered(met, now_s)
    everybody = [
        each for bucket in table.buckets for each in (*bucket.nodes.values(), *bucket.replacement_nodes.values())
    ]
    assert len({each.address.ip for each in everybody}) == len(everybody)
    assert table._by_place == {each.address.ip: each for each in everybody}
    for bucket in table.buckets:
        there = [*bucket.nodes.values(), *bucket.replacement_nodes.values()]
        groups = [each.address.ip.rpartition(".")[0] for each in there]
        assert all(groups.count(group) <= MAX_PER_GROUP for group in groups)


def test_a_thousand_identifiers_on_five_addresses_are_five_contacts() -> None:
    randomness = random.Random(6)
    table = RoutingTable(randomness.randbytes(20))
    for number_of in range(100):
        table.answered(Contact(randomness.randbytes(20), Address(f"11.0.{number_of}.1", 8470)), 0.0)
    hostile = [Contact(randomness.randbytes(20), Address(f"66.6.{place}.6", 8000)) for place in range(5)] * 200
    for each in hostile:
        table.answered(Contact(randomness.randbytes(20), each.address), 1.0)
    assert sum(each.address.ip.startswith("66.") for each in table) <= 5


def test_who_only_asks_enters_but_calls_it_missed_stay_missed() -> None:
    table = RoutingTable(identifier(0))
    one = contact(identifier(7))
    table.heard(one, 1.0)
    assert one in table and table.seen_s(one) == 1.0
    for now_s in range(2, 2 + MAX_MISSES - 1):
        table.missed(one)
        table.heard(one, now_s)
    assert one in table and table.seen_s(one) == MAX_MISSES
    table.missed(one)
    assert one not in table
    table.heard(one, 9.0)
    table.missed(one)
    table.answered(one, 10.0)
    for _ in range(MAX_MISSES - 1):
        table.missed(one)
    assert one in table


def test_somebody_at_a_contacts_socket_renews_neither_the_range_nor_what_was_missed() -> None:
    table = RoutingTable(identifier(0))
    one, stranger = contact(identifier(7)), contact(identifier(8))
    table.answered(one, 1.0)
    table.missed(one)
    table.present(one, 100.0)
    table.present(stranger, 100.0)
    assert table.seen_s(one) == 100.0 and table.answered_s(one) == 1.0 and stranger not in table
    assert len(table.stale(100.0, 50.0, random.Random(1))) == 1
    for _ in range(MAX_MISSES - 1):
        table.missed(one)
    assert one not in table


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.1", "11.0.0.1", "2001:db9::1"])
def test_another_identifier_at_a_known_socket_ends_the_one_that_was_there(ip: str) -> None:
    table = RoutingTable(identifier(0))
    before, after, beside = (
        Contact(identifier(value), Address(ip, port)) for value, port in ((7, 8470), (1 << 99, 8470), (9, 8471))
    )
    table.answered(before, 0.0)
    table.answered(beside, 0.0)
    assert before in table and (beside in table) == (ip in ("127.0.0.1", "10.0.0.1"))
    table.heard(after, 1.0)
    assert after in table and before not in table


def test_after_sleep_every_contact_counts_as_silent() -> None:
    table = RoutingTable(identifier(0))
    met = [contact(identifier(value)) for value in (1, 2, 3)]
    for each in met:
        table.answered(each, 100.0)
    table.suspect_all(100.5)
    assert set(table.silent(101.0, 600.0, 10)) == set(met)
