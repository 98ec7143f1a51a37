"""What a peer says it has."""

from __future__ import annotations

import asyncio

from dhtdata.transfer.holdings import Holdings
from tests.peer.worlds import make_world
from tests.transfer.swarming import NewStore, run


def test_a_have_map_made_before_the_indexes_came_does_not_hide_what_came_since(new_store: NewStore) -> None:
    world = make_world(shards=3)
    whole, mine = new_store("whole"), new_store("mine")
    world.publish(whole)
    mine.put(whole.read(world.contents, limit_bytes=1 << 20))

    async def main() -> None:
        holdings = Holdings(mine)
        first = await holdings.have(world.contents)
        assert not first.complete and not any(first.shards)
        await asyncio.to_thread(world.publish, mine)
        for shard in world.shards:
            holdings.finished(shard.digest)
        assert (await holdings.have(world.contents, first.revision)).complete

    run(main())


def test_verified_blocks_of_begun_shards_are_known_by_their_place(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=6)
    shard = world.shards[0]
    store = new_store("mine")
    holdings = Holdings(store)
    partial = store.partial(shard.digest, shard.table)
    holdings.opened(partial)
    for position in (1, 4):
        block = shard.table.blocks[position]
        partial.accept(position, shard.body[block.offset : block.offset + block.length])
    held = [(block.offset, block.length) for block in (shard.table.blocks[1], shard.table.blocks[4])]
    assert holdings.begun() == {shard.digest: held}
    holdings.closed(shard.digest)
    assert holdings.begun() == {}
