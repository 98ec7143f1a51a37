from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from dhtdata.digest import Digest
from dhtdata.errors import FormatError, NotFoundError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.blocks import BlockTable
from dhtdata.store import Store
from dhtdata.store import partial as partial_module
from dhtdata.transfer import fetcher as fetcher_module
from dhtdata.transfer.rates import Limits, Rates
from tests.peer.worlds import Shard, make_world, world_of
from tests.transfer.evil import KINDS, evil
from tests.transfer.swarming import NewStore, node, run, until


def _is_whole(store: Store, shard: Shard) -> bool:
    return any(path.name == str(shard.digest) for path in (store.path / "blobs").rglob("*"))


def _blobs(*shards: Shard) -> dict[str, bytes]:
    return {str(shard.digest): shard.body for shard in shards}


def test_a_shard_comes_from_several_providers_at_once(new_store: NewStore) -> None:
    world = make_world(shards=2, blocks=60, block_bytes=200_000)

    a = new_store("a")
    b = new_store("b")
    c = new_store("c")
    for store, shard in ((a, world.shards[0]), (b, world.shards[1])):
        world.publish_small(store)
        store.put(shard.body)
    world.publish_small(c)

    async def main() -> None:
        async with node(a) as first, node(b) as second, node(c) as third:
            swarm = third.swarm(world.contents, first.address, second.address)
            async with asyncio.TaskGroup() as group:
                fetches = [
                    group.create_task(third.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False))
                    for shard in world.shards
                ]
            for shard, fetch in zip(world.shards, fetches, strict=True):
                assert fetch.result().complete
                assert fetch.result().path.read_bytes() == shard.body
            delivered = {remote.provider: remote.bytes for remote in third.remotes.everybody()}
            assert sum(delivered.values()) == sum(len(shard.body) for shard in world.shards)
            assert min(delivered[first.address], delivered[second.address]) > 0
            assert third.fetcher.blocks_verified == sum(len(shard.table.blocks) for shard in world.shards)

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_liar_costs_nothing_but_its_own_trust(new_store: NewStore, kind: str) -> None:
    world = make_world(shards=1, blocks=12)
    shard = world.shards[0]

    good = new_store("good")
    mine = new_store("mine")
    world.publish(good)
    world.publish_small(mine)

    async def main() -> None:
        async with evil(kind, _blobs(shard)) as liar, node(good) as honest, node(mine) as me:
            swarm = me.swarm(world.contents, liar)
            asking = asyncio.create_task(me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True))
            await until(lambda: not me.remotes.usable(liar) or liar not in swarm.members)
            swarm.add([honest.address], "test", trusted=True)
            reached = await asking
            assert reached.path.read_bytes() == shard.body
            assert me.remotes.at(liar).bytes == 0
            assert me.remotes.usable(honest.address)
            assert me.remotes.at(honest.address).bytes == len(shard.body)

    run(main())


def test_a_few_blocks_are_fetched_alone(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=20, block_bytes=300_000)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [3, 11], urgent=True)
            assert not reached.complete
            content = reached.path.read_bytes()
            for position in (3, 11):
                block = shard.table.blocks[position]
                end = block.offset + block.length
                assert content[block.offset : end] == shard.body[block.offset : end]
            assert me.fetcher.blocks_verified == 2
            with pytest.raises(NotFoundError, match="22 blocks"):
                await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [22], urgent=True)

    run(main())


def test_a_part_that_somebody_removed_between_two_requests_is_fetched_again(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=20)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [3], urgent=True)
            await until(lambda: me.fetcher._jobs[shard.digest].idle)
            reached.path.unlink()
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [3, 11], urgent=True)
            content = reached.path.read_bytes()
            for position in (3, 11):
                block = shard.table.blocks[position]
                end = block.offset + block.length
                assert content[block.offset : end] == shard.body[block.offset : end]
            assert me.fetcher.blocks_verified == 3

    run(main())


def test_a_part_stays_open_for_the_next_request_and_not_for_long(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher_module, "LINGER_S", 0.2)
    world = make_world(shards=1, blocks=20)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [3], urgent=True)
            (entry,) = await asyncio.to_thread(b._partials.entries)
            assert await asyncio.to_thread(b._partials.in_use, entry)
            await until(lambda: shard.digest not in me.fetcher._jobs)
            assert not await asyncio.to_thread(b._partials.in_use, entry)

    run(main())


def test_a_shard_asked_for_in_parts_becomes_a_blob_once_all_parts_are_here(new_store: NewStore) -> None:
    world = make_world(shards=4, blocks=16)

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            async with asyncio.TaskGroup() as group:
                for shard in world.shards:
                    for position in range(len(shard.table.blocks)):
                        group.create_task(
                            me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [position], urgent=True)
                        )
            await until(lambda: all(_is_whole(b, shard) for shard in world.shards))

    run(main())


def test_two_who_ask_for_one_shard_share_the_fetch(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=20)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            async with asyncio.TaskGroup() as group:
                for positions in ([], [1], [], [2, 3], [21]):
                    group.create_task(
                        me.fetcher.ensure(swarm, shard.digest, shard.table_digest, positions, urgent=True)
                    )
            assert me.fetcher.blocks_verified == len(shard.table.blocks)
            body = await asyncio.to_thread(b.read, shard.digest, limit_bytes=len(shard.body))
            assert body == shard.body

    run(main())


def test_an_interrupted_fetch_resumes_where_it_was(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=20)
    shard = world.shards[0]
    a, before = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(before)

    async def begin() -> None:
        async with node(a) as seed, node(before) as me:
            swarm = me.swarm(world.contents, seed.address)
            await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, list(range(12)), urgent=True)
            assert me.fetcher.blocks_verified == 12

    async def end() -> None:
        async with node(a) as seed, node(after) as me:
            swarm = me.swarm(world.contents, seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True)
            assert reached.path.read_bytes() == shard.body
            assert me.fetcher.blocks_verified == len(shard.table.blocks) - 12

    run(begin())
    before.close()
    after = new_store("b")
    run(end())


def test_a_provider_that_vanishes_is_replaced(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=40, block_bytes=300_000)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    c = new_store("c")
    world.publish(a)
    world.publish(b)
    world.publish_small(c)

    async def main() -> None:
        slow = Limits(Rates(down=6_000_000))
        async with node(b) as staying, node(c, limits=slow) as me:
            async with node(a) as leaving:
                swarm = me.swarm(world.contents, leaving.address)
                asking = asyncio.create_task(me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True))
                await until(lambda: me.fetcher.blocks_verified >= 3)
            swarm.add([staying.address], "test", trusted=True)
            reached = await asking
            assert reached.path.read_bytes() == shard.body
            assert me.remotes.at(staying.address).bytes > 0

    run(main())


def test_a_provider_that_hangs_is_doubled_by_another(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=6)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        never = asyncio.Event()

        async def hang(_: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
            await never.wait()
            out.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        hanging = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        async with server, node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, hanging)
            asking = asyncio.create_task(me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True))
            await until(lambda: me.remotes.at(hanging).requests > 0)
            swarm.add([seed.address], "test", trusted=True)
            started_s = asyncio.get_running_loop().time()
            assert (await asking).complete
            assert asyncio.get_running_loop().time() - started_s < 6
            never.set()
            await asyncio.sleep(0)

    run(main())


def test_a_leecher_serves_what_it_has_to_the_next(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=10)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    c = new_store("c")
    world.publish(a)
    world.publish_small(b)
    world.publish_small(c)

    async def main() -> None:
        async with node(b) as middle, node(c) as last:
            async with node(a) as seed:
                swarm = middle.swarm(world.contents, seed.address)
                waiting = asyncio.create_task(
                    middle.fetcher.ensure(swarm, shard.digest, shard.table_digest, [1, 2, 3], urgent=True)
                )
                await waiting
            # The seed is gone, the middle peer has three blocks and still wants the rest.
            rest = asyncio.create_task(middle.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False))
            behind = last.swarm(world.contents, middle.address)
            await last.place(behind)
            reached = await last.fetcher.ensure(behind, shard.digest, shard.table_digest, [1, 3], urgent=True)
            assert not reached.complete
            assert last.remotes.at(middle.address).blocks == 2
            rest.cancel()

    run(main())


@asynccontextmanager
async def _serving_as(digest: str, body: bytes) -> AsyncIterator[Address]:
    """Serves a body under a digest that is not its own, correctly in every other respect."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.endswith(digest):
            return web.Response(status=404)
        span = request.http_range
        first, end = span.start or 0, span.stop or len(body)
        headers = {"Content-Range": f"bytes {first}-{end - 1}/{len(body)}"}
        return web.Response(status=206, body=body[first:end], headers=headers)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Address("127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()


def test_a_manifest_at_fault_is_refused_and_nobody_blamed(new_store: NewStore) -> None:
    honest = make_world(shards=1).shards[0]
    # The index names a shard that is not what its own block table describes.
    claimed = Shard(random.Random(9).randbytes(len(honest.body)), honest.table)
    world = world_of((claimed,))
    b = new_store("b")
    world.publish_small(b)

    async def main() -> None:
        async with _serving_as(str(claimed.digest), honest.body) as innocent, node(b) as me:
            swarm = me.swarm(world.contents, innocent)
            for _ in range(2):
                with pytest.raises(FormatError, match="manifest"):
                    await me.fetcher.ensure(swarm, claimed.digest, claimed.table_digest, urgent=True)
            assert me.remotes.usable(innocent)

    run(main())
    assert b.partials() == []


def test_a_full_disk_tells_the_asker_and_heals(new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(shards=1, blocks=10)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch:
                patch.setattr(partial_module, "write_at", full)
                with pytest.raises(StoreError, match="no room"):
                    await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True)
            assert reached.path.read_bytes() == shard.body
            assert me.remotes.usable(seed.address)

    run(main())


def test_a_blob_nobody_has_is_not_found_after_asking_everybody(new_store: NewStore) -> None:
    world = make_world(shards=1)

    a = new_store("a")
    b = new_store("b")
    world.publish(a)

    async def main() -> None:
        async with node(a) as seed, node(b) as me:
            swarm = me.swarm(world.contents, seed.address)
            with pytest.raises(NotFoundError, match="none of 1 providers"):
                await me.fetcher.blob(swarm, Digest.of(b"nothing"), 100)
            await me.fetcher.blob(swarm, world.manifest, 10_000)
            assert await asyncio.to_thread(b.has, world.manifest)

    run(main())


def test_providers_learn_of_each_other_by_exchange(new_store: NewStore) -> None:
    world = make_world(shards=1)
    shard = world.shards[0]

    a = new_store("a")
    b = new_store("b")
    c = new_store("c")
    world.publish(a)
    world.publish_small(b)
    world.publish_small(c)

    async def main() -> None:
        async with node(a) as seed, node(b) as empty, node(c) as me:
            empty.directory.addresses[world.contents] = [seed.address]
            swarm = me.swarm(world.contents, empty.address)
            await me.place(swarm)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=True)
            assert reached.path.read_bytes() == shard.body
            assert {member.provider: member.source for member in swarm.members}[seed.address] == "exchange"

    run(main())


def test_a_broken_block_table_is_refused(new_store: NewStore) -> None:
    world = make_world(shards=1)
    shard = world.shards[0]

    b = new_store("b")
    nonsense = b.put(b"no table")

    async def main() -> None:
        async with node(b) as me:
            swarm = me.swarm(world.contents)
            with pytest.raises(FormatError, match="block table"):
                await me.fetcher.ensure(swarm, shard.digest, nonsense, urgent=True)

    run(main())
    assert BlockTable.decode(shard.table.encode()) == shard.table
