from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.web_seeds import MAX_WEB_SEEDS, WebSeed
from dhtdata.mirror import write_mirror
from dhtdata.network import new_network
from dhtdata.store import Store
from dhtdata.transfer.answers import VERSION, HaveMap
from dhtdata.transfer.membership import HEADER
from dhtdata.transfer.swarm import AMPLE_BYTES_S, Swarm
from tests.peer.worlds import World, make_world
from tests.transfer.strange_addresses import resolve_to
from tests.transfer.swarming import NewStore, Node, node, run, until

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def mirror(world: World, store: Store, folder: Path, *, have: bool = True) -> Path:
    """A static mirror of a dataset; without its have-map if wanted."""
    world.publish(store)
    everything = HaveMap(version=VERSION, contents=world.contents, revision=1, complete=True).encode()
    write_mirror(store, world.manifest, folder, have=everything)
    if not have:
        (folder / "v1" / "have" / str(world.contents)).unlink()
    return folder


def folder_seed(folder: Path) -> WebSeed:
    return WebSeed.parse(folder.as_uri(), named=True)


@asynccontextmanager
async def static(folder: Path, before: Answer | None = None) -> AsyncIterator[tuple[WebSeed, list[str]]]:
    """A web seed at a static web server on loopback, and the paths that it was asked for.

    ``before`` may answer in its place, or raise HTTPNotFound to let the folder answer.
    """
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        assert HEADER not in request.headers, "web seeds are no members"
        if before is not None:
            try:
                return await before(request)
            except web.HTTPNotFound:
                pass
        file = folder / request.path.lstrip("/")
        if not await asyncio.to_thread(file.is_file):
            raise web.HTTPNotFound
        return web.FileResponse(file)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield WebSeed.parse(f"http://127.0.0.1:{runner.addresses[0][1]}", named=True), asked
    finally:
        await runner.cleanup()


async def fetch_all(world: World, reader: Node, swarm: Swarm) -> None:
    """Every blob of the dataset, small ones first."""
    for blob in world.small:
        await reader.fetcher.blob(swarm, Digest.of(blob), 1 << 20)
    await reader.place(swarm)
    for shard in world.shards:
        reached = await reader.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
        assert await asyncio.to_thread(reached.path.read_bytes) == shard.body


@pytest.mark.parametrize("have", [True, False])
@pytest.mark.parametrize("kind", ["folder", "server"])
def test_a_whole_dataset_comes_from_a_mirror_and_nobody_else(
    new_store: NewStore, tmp_path: Path, kind: str, have: bool
) -> None:
    world = make_world(blocks=20)
    folder = mirror(world, new_store("a"), tmp_path / "mirror", have=have)
    b = new_store("b")

    async def main() -> None:
        async with static(folder) as (server, asked), node(b) as reader:
            seed = server if kind == "server" else folder_seed(folder)
            swarm = reader.swarm(world.contents)
            swarm.add_web_seeds([seed], "user")
            await fetch_all(world, reader, swarm)
            assert [(remote.provider, remote.wasted) for remote in reader.remotes.everybody()] == [(seed, 0)]
            assert (asked != []) == (kind == "server")
            assert asked.count(f"/v1/have/{world.contents}") <= 1
            assert not any("/peers/" in path for path in asked), "a web seed is no peer to exchange peers with"

    run(main())
    assert world.held_by(b)


def test_a_strangers_web_seed_in_our_own_networks_is_never_asked(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    world = make_world()
    folder = mirror(world, new_store("a"), tmp_path / "mirror")
    b = new_store("b")

    async def main() -> None:
        async with static(folder) as (seed, asked), node(b) as reader:
            name = WebSeed.parse(f"http://mirror.example.org:{seed.url.rpartition(':')[2]}")
            swarm = reader.swarm(world.contents)
            swarm.add_web_seeds([name], "manifest")
            with pytest.raises(NotFoundError, match="only the user may name such"):
                await reader.fetcher.blob(swarm, world.contents, 1 << 20)
            assert asked == []

    run(main())


def test_a_web_seed_of_a_private_networks_dataset_gets_no_proof_of_membership(
    new_store: NewStore, tmp_path: Path
) -> None:
    world = make_world(shards=1)
    folder = mirror(world, new_store("a"), tmp_path / "mirror")
    b = new_store("b")

    async def main() -> None:
        async with static(folder) as (seed, asked), node(b, new_network()) as reader:
            swarm = reader.swarm(world.contents)
            swarm.add_web_seeds([seed], "user")
            await fetch_all(world, reader, swarm)
            assert asked != []

    run(main())


def test_a_mirror_that_lies_costs_one_answer_and_a_peer_delivers(new_store: NewStore, tmp_path: Path) -> None:
    world = make_world(blocks=20)
    a = new_store("a")
    folder = mirror(world, a, tmp_path / "mirror")
    for shard in world.shards:
        path = folder / "v1" / "blobs" / str(shard.digest)
        path.write_bytes(bytes(len(shard.body)))
    b = new_store("b")

    async def main() -> None:
        async with node(a) as honest, node(b) as reader:
            swarm = reader.swarm(world.contents)
            seed = folder_seed(folder)
            swarm.add_web_seeds([seed], "user")
            fetching = reader.group.create_task(fetch_all(world, reader, swarm))
            await until(lambda: not reader.remotes.usable(seed))
            assert (reader.remotes.at(seed).blocks, reader.fetcher.blocks_verified) == (0, 0)
            swarm.add([honest.address], "test", trusted=True)
            await fetching
            assert reader.remotes.usable(honest.address) and not reader.remotes.usable(seed)

    run(main())
    assert world.held_by(b)


def test_a_mirror_that_lacks_a_shard_is_asked_for_it_once(new_store: NewStore, tmp_path: Path) -> None:
    world = make_world(shards=2, blocks=30, block_bytes=300_000)
    a = new_store("a")
    folder = mirror(world, a, tmp_path / "mirror", have=False)
    lacking = world.shards[0]
    (folder / "v1" / "blobs" / str(lacking.digest)).unlink()
    b = new_store("b")

    async def main() -> None:
        async with static(folder) as (seed, asked), node(a) as honest, node(b) as reader:
            swarm = reader.swarm(world.contents, honest.address)
            swarm.add_web_seeds([seed], "user")
            await fetch_all(world, reader, swarm)
            # As many as were on their way at once before the first answer came.
            assert asked.count(f"/v1/blobs/{lacking.digest}") <= 4

    run(main())


def test_a_mirror_of_other_datasets_is_asked_for_no_shard(new_store: NewStore, tmp_path: Path) -> None:
    world, other = make_world(1), make_world(2, name="other")
    a = new_store("a")
    world.publish(a)
    folder = mirror(other, new_store("o"), tmp_path / "mirror")
    b = new_store("b")
    world.publish_small(b)

    async def main() -> None:
        async with static(folder) as (seed, asked), node(a) as honest, node(b) as reader:
            swarm = reader.swarm(world.contents, honest.address)
            await reader.place(swarm)
            swarm.add_web_seeds([seed], "user")
            with swarm.interest():
                await until(lambda: all(member.answered or member.doubtful for member in swarm.members))
            asked.clear()
            for shard in world.shards:
                await reader.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
            assert asked == []

    run(main())


def _members(swarm: Swarm) -> set[object]:
    return set(swarm.usable())


def test_web_seeds_step_back_once_peers_suffice_and_return_when_they_do_not(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhtdata.transfer.swarm.USABLE_S", 0.0)
    world = make_world()
    a = new_store("a")
    folder = mirror(world, a, tmp_path / "mirror")
    b = new_store("b")

    async def main() -> None:
        async with node(a) as honest, node(b) as reader:
            swarm = reader.swarm(world.contents, honest.address)
            seed, peer = folder_seed(folder), honest.address
            swarm.add_web_seeds([seed], "user")
            remotes = reader.remotes
            assert _members(swarm) == {seed, peer}, "raced from the start"
            with swarm.interest():
                await until(lambda: all(member.answered for member in swarm.members))
            assert _members(swarm) == {seed, peer}, "nothing is known of how they deliver"
            remotes.at(peer).verified(1)
            remotes.at(peer).rate_bytes_s = AMPLE_BYTES_S
            assert _members(swarm) == {peer}, "it delivers well"
            remotes.at(peer).rate_bytes_s = AMPLE_BYTES_S / 8
            assert _members(swarm) == {seed, peer}, "slowly, and the web seed was not measured"
            remotes.at(seed).verified(1)
            remotes.at(seed).rate_bytes_s = AMPLE_BYTES_S / 4
            assert _members(swarm) == {seed, peer}, "slower than the web seed"
            remotes.at(seed).rate_bytes_s = AMPLE_BYTES_S / 32
            assert _members(swarm) == {peer}, "much faster than the web seed"
            remotes.failed(peer, "test")
            assert _members(swarm) == {seed}, "the peer is gone"

    run(main())


def test_partial_peers_suffice_when_they_have_everything_between_them(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhtdata.transfer.swarm.USABLE_S", 0.0)
    world = make_world(shards=4)
    folder = mirror(world, new_store("a"), tmp_path / "mirror")
    halves = [new_store("even"), new_store("odd")]
    for place, store in enumerate(halves):
        world.publish_small(store)
        for shard in world.shards[place::2]:
            store.put(shard.body)
    b = new_store("b")
    world.publish_small(b)

    async def main() -> None:
        async with node(halves[0]) as even, node(halves[1]) as odd, node(b) as reader:
            swarm = reader.swarm(world.contents, even.address, odd.address)
            await reader.place(swarm)
            seed = folder_seed(folder)
            swarm.add_web_seeds([seed], "user")
            with swarm.interest():
                await until(lambda: all(member.answered for member in swarm.members))
            for peer in (even.address, odd.address):
                reader.remotes.at(peer).verified(1)
                reader.remotes.at(peer).rate_bytes_s = AMPLE_BYTES_S
            assert _members(swarm) == {even.address, odd.address}
            reader.remotes.failed(odd.address, "test")
            assert _members(swarm) == {seed, even.address}

    run(main())


def test_what_the_user_names_is_believed_even_if_a_stranger_named_it_before(new_store: NewStore) -> None:
    def swarm_of(reader: Node) -> Swarm:
        return reader.swarm(Digest(bytes(32)))

    b = new_store("b")

    async def main() -> None:
        async with node(b) as reader:
            swarm = swarm_of(reader)
            url = "https://mirror.invalid/x"
            for named, believed in ((False, False), (True, True), (False, True)):
                swarm.add_web_seeds([WebSeed.parse(url, named=named)], "test")
                [member] = swarm.members
                assert isinstance(member.provider, WebSeed)
                assert member.provider.named is believed

    run(main())


def test_strangers_name_a_few_web_seeds_and_crowd_out_nobody(new_store: NewStore) -> None:
    def many(prefix: str, *, named: bool) -> Sequence[WebSeed]:
        return [WebSeed.parse(f"https://{prefix}{i}.invalid", named=named) for i in range(100)]

    b = new_store("b")

    async def main() -> None:
        async with node(b) as reader:
            swarm = reader.swarm(Digest(bytes(32)))
            swarm.add_web_seeds(many("stranger", named=False), "manifest")
            assert len(swarm.members) == 2 * MAX_WEB_SEEDS
            swarm.add_web_seeds(many("mine", named=True), "user")
            assert len(swarm.members) == 2 * MAX_WEB_SEEDS + 32

    run(main())
