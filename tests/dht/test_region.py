"""Where records that must not be taken over are kept, how large the network is, whose clock is wrong."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dhtdata.dht.clock import MAX_WITNESSES, ClockWatch
from dhtdata.dht.lookup import Neighbourhood
from dhtdata.dht.region import GROUP_LIMIT, QUARTERS, REGION_NODES, members, region_bits, region_targets
from dhtdata.dht.routing import Contact, number
from dhtdata.dht.size import SizeEstimate
from dhtdata.formats.addresses import Address

keys = st.binary(min_size=20, max_size=20)


@given(nodes=st.integers(1, 10**9))
def test_a_region_holds_30_to_60_nodes_or_everybody(nodes: int) -> None:
    bits = region_bits(nodes)
    assert nodes / (1 << bits) <= REGION_NODES
    assert bits == 0 or nodes / (1 << bits) > REGION_NODES / 2


@given(key=keys, bits=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_targets_are_the_key_and_a_point_in_each_other_quarter(key: bytes, bits: int, seed: int) -> None:
    targets = region_targets(key, bits, random.Random(seed))
    assert targets[0] == key and len(targets) == QUARTERS
    assert {number(each) >> (160 - bits) for each in targets} == {number(key) >> (160 - bits)}
    assert len({number(each) >> (158 - bits) for each in targets}) == QUARTERS


@given(key=keys, bits=st.integers(0, 3), seed=st.integers(0, 999), public=st.booleans())
def test_members_lie_in_the_region_and_no_network_has_more_than_two(
    key: bytes, bits: int, seed: int, public: bool
) -> None:
    draw = random.Random(seed)
    prefix = "11.0" if public else "10.0"
    found = [
        Neighbourhood(
            [
                Contact(draw.randbytes(20), Address(f"{prefix}.{draw.randrange(8)}.{draw.randrange(1, 250)}", 8470))
                for _ in range(draw.randrange(30))
            ],
            None,
        )
        for _ in range(QUARTERS)
    ]
    chosen = members(key, bits, found)
    everybody = [each for near in found for each in near.contacts]
    inside = [each for each in everybody if not (each.long_id ^ number(key)) >> (160 - bits)]
    assert len({each.id for each in chosen}) == len(chosen) <= REGION_NODES and set(chosen) <= set(inside)
    networks = [each.address.ip.rpartition(".")[0] for each in chosen]
    if public:
        assert all(networks.count(network) <= GROUP_LIMIT for network in networks)
    else:
        assert len(chosen) == min(REGION_NODES, len(inside))


def test_a_crowd_round_a_key_takes_no_more_than_its_paths_share() -> None:
    crowd = [Contact(bytes(19) + bytes([n]), Address(f"66.{n}.0.1", 8470)) for n in range(1, 100)]
    honest = [Contact(bytes([n]) * 20, Address(f"11.{n}.0.1", 8470)) for n in range(1, 34)]
    found = [Neighbourhood(crowd[:14], 20), *(Neighbourhood(honest[first : first + 11], 1) for first in (0, 11, 22))]
    chosen = members(bytes(20), 0, found)
    assert set(honest) <= set(chosen)


@given(seed=st.integers(0, 999), nodes=st.sampled_from([100, 1_000, 10_000]))
def test_the_size_of_a_network_follows_from_random_walks(seed: int, nodes: int) -> None:
    draw = random.Random(seed)
    ids = sorted(draw.getrandbits(160) for _ in range(nodes))
    estimate = SizeEstimate()
    for _ in range(9):
        target = draw.getrandbits(160)
        estimate.met(20, sorted(each ^ target for each in ids)[19])
    assert nodes / 2.5 < estimate.nodes(fallback=1) < nodes * 2.5


def test_a_crowd_at_one_point_does_not_change_the_size() -> None:
    estimate = SizeEstimate()
    for radius in [1 << 155] * 5 + [1 << 100] * 4:
        estimate.met(20, radius)
    assert estimate.nodes(fallback=1) == 19 * 32
    assert SizeEstimate().nodes(fallback=7) == 7
    small = SizeEstimate()
    small.met(4, None)
    assert small.nodes(fallback=1) == 5


def test_our_clock_is_judged_by_the_middle_of_many() -> None:
    watch = ClockWatch()
    for node in range(2):
        watch.told(bytes([node]), 1_000.0, 87_400.0)
    assert watch.ahead_s == 0.0 and not watch.wrong
    watch.told(b"third", 1_000.0, 87_400.0)
    assert watch.ahead_s == 86_400.0 and watch.wrong
    for node in range(10, 14):
        watch.told(bytes([node]), 1_000.0, 1_001.0)
    assert watch.ahead_s == 1.0 and not watch.wrong
    for node in range(200):
        watch.told(bytes([node, 1]), 0.0, 0.0)
    assert watch.witnesses == MAX_WITNESSES
    watch.forget()
    assert watch.witnesses == 0
