"""What is known of the providers of a dataset: what they say themselves, told whole or by what has changed."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhtdata.formats.addresses import Address
from dhtdata.store import Partial, Store
from dhtdata.transfer.answers import MAX_PARTIALS, HaveMap, PartialShard, pack_bits
from dhtdata.transfer.availability import EVERY_BLOCK
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.layout import Layout
from dhtdata.transfer.members import MAX_MEMBERS, Members
from dhtdata.transfer.picker import Run
from tests.peer.worlds import World, make_world
from tests.transfer.swarming import NewStore, run

WORLD = make_world(shards=4, blocks=6)
BLOCKS = len(WORLD.shards[0].table.blocks)
OTHER = Address("192.0.2.1", 8_470)
steps = st.lists(
    st.tuples(st.sampled_from(["block", "coming", "gone", "ask"]), st.integers(0, 3), st.integers(0, BLOCKS - 1)),
    max_size=40,
)


def _members(world: World, store: Store, own: bytes = b"") -> Members:
    members = Members(own)
    members.layout = Layout.load(store, world.contents)
    return members


@given(steps=steps, begun=st.sets(st.integers(0, 3)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_asks_what_has_changed_knows_as_much_as_who_asks_for_all(
    tmp_path: Path, steps: list[tuple[str, int, int]], begun: set[int]
) -> None:
    async def main(store: Store, partials: dict[int, Partial]) -> None:
        holdings = Holdings(store)
        coming: dict[int, list[int]] = {place: [] for place in partials}
        finished: set[int] = set()
        following, fresh = members_of_both
        for members in (following, fresh):
            members.add(OTHER, "test")
        member = following.get(OTHER)
        assert member is not None
        for place in begun:
            holdings.opened(partials[place])
        for what, place, position in [*steps, ("ask", 0, 0)]:
            partial, shard = partials[place], WORLD.shards[place]
            if what == "ask":
                following.learned(member, await holdings.have(WORLD.contents, member.revision))
                again = fresh.get(OTHER)
                assert again is not None
                fresh.learned(again, await holdings.have(WORLD.contents))
                for each in WORLD.shards:
                    seen = [members.have.held(OTHER, each.digest) for members in (following, fresh)]
                    assert seen[0] == seen[1]
                    copies = [members.have.copies(each.digest) for members in (following, fresh)]
                    assert [copies[0].of(p) for p in range(BLOCKS)] == [copies[1].of(p) for p in range(BLOCKS)]
                    assert following.shard_copies(each.digest) == fresh.shard_copies(each.digest)
                continue
            if place not in begun or place in finished:
                continue
            if what == "block" and not partial.has(position):
                block = shard.table.blocks[position]
                body = shard.body[block.offset : block.offset + block.length]
                await asyncio.to_thread(partial.accept, position, body)
                holdings.changed(shard.digest)
                if partial.complete:
                    await asyncio.to_thread(partial.finish)
                    holdings.finished(shard.digest)
                    finished.add(place)
            elif what == "coming":
                coming[place].append(position)
                holdings.coming(shard.digest, [position])
            elif what == "gone" and coming[place]:
                holdings.not_coming(shard.digest, [coming[place].pop()])

    with Store.open(Path(tempfile.mkdtemp(dir=tmp_path))) as store:
        WORLD.publish_small(store)
        members_of_both = (_members(WORLD, store), _members(WORLD, store))
        made = {place: store.partial(shard.digest, shard.table) for place, shard in enumerate(WORLD.shards)}
        asyncio.run(main(store, made))


def test_a_whole_shard_comes_as_one_number(new_store: NewStore) -> None:
    store = new_store("a")
    WORLD.publish_small(store)
    for shard in WORLD.shards[:2]:
        store.put(shard.body)

    async def main() -> None:
        holdings = Holdings(store)
        first = await holdings.have(WORLD.contents)
        await asyncio.to_thread(store.put, WORLD.shards[2].body)
        holdings.finished(WORLD.shards[2].digest)
        change = await holdings.have(WORLD.contents, first.revision)
        assert (change.base, change.gained, change.shards, change.partials) == (first.revision, (2,), b"", ())

    run(main())


def test_who_names_a_revision_that_is_too_old_gets_all(new_store: NewStore) -> None:
    store = new_store("a")
    WORLD.publish_small(store)

    async def main() -> None:
        holdings = Holdings(store)
        first = await holdings.have(WORLD.contents)
        partial = await asyncio.to_thread(store.partial, WORLD.shards[0].digest, WORLD.shards[0].table)
        holdings.opened(partial)
        assert (await holdings.have(WORLD.contents, first.revision)).base == first.revision
        holdings.closed(partial.digest)
        for since in (first.revision, 1, first.revision + 1_000_000):
            assert (await holdings.have(WORLD.contents, since)).base == 0

    run(main())


def test_an_answer_to_another_question_is_forgotten_and_asked_again(new_store: NewStore) -> None:
    store = new_store("a")
    WORLD.publish_small(store)
    members = _members(WORLD, store)
    members.add(OTHER, "test")
    [member] = members
    have = HaveMap(version=2, contents=WORLD.contents, revision=5, shards=pack_bits([1], 4))
    members.learned(member, have)
    assert (member.revision, member.shard_count) == (5, 1)
    members.learned(member, HaveMap(version=2, contents=WORLD.contents, revision=9, base=7, gained=(2,)))
    assert member.revision is None and not member.answered
    assert members.have.held(OTHER, WORLD.shards[0].digest) == EVERY_BLOCK  # nothing is known: it may have all


def test_shards_that_do_not_exist_take_no_memory(new_store: NewStore) -> None:
    store = new_store("a")
    WORLD.publish_small(store)
    members = _members(WORLD, store)
    members.add(OTHER, "test")
    [member] = members
    partials = tuple(PartialShard(ordinal=i, blocks=b"\xff" * 512) for i in range(MAX_PARTIALS))
    have = HaveMap(version=2, contents=WORLD.contents, revision=5, shards=b"\xff" * 100_000, partials=partials)
    members.learned(member, have)
    assert member.shard_count == 4 and len(member.shards) == 1 and member.blocks == {}


@pytest.mark.parametrize("crowd", [1, 2, 5, 16])
def test_every_block_falls_to_exactly_one_of_those_who_fetch(new_store: NewStore, crowd: int) -> None:
    store = new_store("a")
    world = make_world(shards=8, blocks=30)
    world.publish_small(store)
    keys = [bytes([number]) * 8 for number in range(1, crowd + 1)]
    falls: dict[tuple[int, int], list[bytes]] = {}
    for key in keys:
        members = _members(world, store, key)
        for number, rival in enumerate(keys):
            if rival != key:
                members.add(Address("192.0.2.1", 1_024 + number), "test")
        for member, rival in zip(members, (rival for rival in keys if rival != key), strict=True):
            members.learned(member, HaveMap(version=2, contents=world.contents, revision=1, fetcher=rival))
        for place, shard in enumerate(world.shards):
            members.fetch(shard.digest, shard.table)
            elsewhere = members.have.falls_elsewhere(shard.digest)
            for position in range(len(shard.table.blocks)):
                if not elsewhere >> position & 1:
                    falls.setdefault((place, position), []).append(key)
    every = list(itertools.product(range(8), range(len(world.shards[0].table.blocks))))
    assert sorted(falls) == every
    assert all(len(fallen) == 1 for fallen in falls.values())
    shares = [sum(fallen == [key] for fallen in falls.values()) / len(every) for key in keys]
    assert max(shares) < 2.5 / crowd


def test_what_a_provider_denied_it_is_not_asked_again_until_it_says_more(new_store: NewStore) -> None:
    store = new_store("a")
    WORLD.publish_small(store)
    members = _members(WORLD, store)
    members.add(OTHER, "test")
    [member] = members
    shard = WORLD.shards[0]
    have: dict[str, Any] = {"version": 2, "contents": WORLD.contents}
    members.learned(member, HaveMap(**have, revision=5, shards=pack_bits([0], 4)))
    members.refused(OTHER, Run(shard.digest, 2, 2, 0, 1))
    assert members.have.held(OTHER, shard.digest) & 0b1111 == 0b0011
    members.learned(member, HaveMap(**have, revision=6, base=5, gained=(1,)))
    assert members.have.held(OTHER, shard.digest) & 0b1111 == 0b1111


def test_there_is_room_for_so_many_members(new_store: NewStore) -> None:
    members = Members()
    added = [members.add(Address("192.0.2.1", port), "test") for port in range(1_024, 1_024 + MAX_MEMBERS + 9)]
    assert sum(added) == len(members) == MAX_MEMBERS
    first = next(iter(members))
    members.drop(first)
    assert first.provider not in members
    assert members.add(Address("192.0.2.9", 1_024), "test")
