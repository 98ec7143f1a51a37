"""Packed blocks over real sockets, and when they are welcome."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.formats.addresses import Address
from dhtdata.formats.blocks import BlockTable
from dhtdata.formats.packed import PackedTable, SeekTable
from dhtdata.packing import pack
from dhtdata.transfer.packed import SLOW_BYTES_S, PackedForm, Welcome
from tests.peer.worlds import Shard, make_world, world_of
from tests.transfer.swarming import NewStore, node, run

TEXT = b"the quick brown fox jumps over the lazy dog, and then again. "


def _text_shard(blocks: int = 8) -> Shard:
    bodies = [b"head" * 8, *(f"{number}: ".encode() + TEXT * 2_000 for number in range(blocks)), b"foot" * 16]
    rows = [0, *([10] * blocks), 0]
    table = BlockTable.build([(len(body), count, Digest.of(body)) for body, count in zip(bodies, rows, strict=True)])
    return Shard(b"".join(bodies), table)


def test_text_comes_packed_and_is_the_same_bytes(new_store: NewStore) -> None:
    shard = _text_shard()
    world = world_of((shard,))
    a, b = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b, packed="always") as me:
            swarm = me.swarm(world.contents, seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
            assert reached.path.read_bytes() == shard.body
            assert me.fetcher.bytes_fetched == len(shard.body)
            assert seed.server.served.bytes < len(shard.body) / 5
            assert me.fetcher.received.rate(seed.address).bytes < len(shard.body) / 5
            assert me.remotes.at(seed.address).wasted == 0

    run(main())


@pytest.mark.parametrize(("seeds", "mine"), [("never", "always"), ("auto", "never")])
def test_who_packs_nothing_or_wants_nothing_packed_gets_shards_as_they_are(
    new_store: NewStore, seeds: str, mine: str
) -> None:
    shard = _text_shard()
    world = world_of((shard,))
    a, b = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a, packed=seeds) as seed, node(b, packed=mine) as me:  # type: ignore[arg-type]
            swarm = me.swarm(world.contents, seed.address)
            await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
            assert seed.server.served.bytes >= len(shard.body)

    run(main())


def test_what_is_not_worth_packing_comes_as_it_is(new_store: NewStore) -> None:
    world = make_world(shards=1, blocks=8, block_bytes=100_000)
    shard = world.shards[0]
    a, b = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b, packed="always") as me:
            swarm = me.swarm(world.contents, seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
            assert reached.path.read_bytes() == shard.body
            assert me.remotes.usable(seed.address)

    run(main())


def test_a_shard_that_was_packed_anew_meanwhile_is_taken_as_it_is(new_store: NewStore) -> None:
    shard = _text_shard()
    world = world_of((shard,))
    a, b = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        async with node(a) as seed, node(b, packed="always") as me:
            swarm = me.swarm(world.contents, seed.address)
            stale = PackedForm(PackedTable.of([9] * len(shard.table.blocks)), f'"{Digest.of(b"stale")}"')
            me.carrier.forms.know(seed.address, shard.digest, stale)
            await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, [3], urgent=True)
            assert me.remotes.usable(seed.address)
            reached = await me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False)
            assert reached.path.read_bytes() == shard.body

    run(main())


def _packed_file(shard: Shard, kind: str) -> bytes:
    bodies = [shard.body[block.offset : block.offset + block.length] for block in shard.table.blocks]
    if kind == "swapped":
        bodies[2], bodies[3] = bodies[3], bodies[2]
    frames = [pack(body) for body in bodies]
    if kind == "bomb":
        frames[1] = pack(bytes(100_000_000))
    if kind == "garbage":
        frames[1] = b"no zstd at all" * 9
    lengths = [block.length for block in shard.table.blocks]
    if kind == "other table":
        lengths[1], lengths[2] = lengths[1] + 1, lengths[2] - 1
    table = SeekTable(tuple(map(len, frames)), tuple(lengths))
    return b"".join(frames) + table.encode()


@asynccontextmanager
async def _serving(files: dict[str, bytes]) -> AsyncIterator[Address]:
    """Ranges of these files, by the last part of their path."""

    async def converse(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = re.search(rb"GET /v1/\w+/([0-9a-z.]+)", head)
                span = re.search(rb"(?i)range: bytes=(\d*)-(\d+)", head)
                body = files.get(path[1].decode()) if path else None
                if body is None or span is None:
                    out.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                first = int(span[1]) if span[1] else len(body) - int(span[2])
                last = int(span[2]) if span[1] else len(body) - 1
                out.write(
                    b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Length: %d\r\n'
                    b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (last + 1 - first, first, last, len(body))
                )
                out.write(body[first : last + 1])
                await out.drain()
        out.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["swapped", "bomb", "garbage", "other table"])
def test_a_liar_about_packed_blocks_is_banned_and_nothing_of_it_kept(new_store: NewStore, kind: str) -> None:
    shard = _text_shard()
    world = world_of((shard,))
    a, b = new_store("a"), new_store("b")
    world.publish(a)
    world.publish_small(b)

    async def main() -> None:
        files = {f"{shard.digest}.zst": _packed_file(shard, kind), str(shard.digest): shard.body}
        async with _serving(files) as liar, node(a) as seed, node(b, packed="always") as me:
            swarm = me.swarm(world.contents, liar)
            asking = asyncio.create_task(me.fetcher.ensure(swarm, shard.digest, shard.table_digest, urgent=False))
            while me.remotes.usable(liar):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert me.remotes.at(liar).wasted < 2 * len(TEXT) * 2_000
            swarm.add([seed.address], "test", trusted=True)
            reached = await asking
            assert reached.path.read_bytes() == shard.body
            assert me.remotes.usable(seed.address)

    run(main())


def test_a_link_is_slow_until_it_carries_twice_as_much() -> None:
    welcome = Welcome("auto")
    fast, slow = SLOW_BYTES_S + 1, SLOW_BYTES_S - 1
    assert not welcome.look(0, 0), "nothing is known yet"
    assert not welcome.look(fast, fast)
    assert welcome.look(slow, slow)
    assert welcome.look(5 * SLOW_BYTES_S, slow), "that many bytes of blocks come out of few"
    assert welcome.look(5 * SLOW_BYTES_S, SLOW_BYTES_S * 1.5)
    assert not welcome.look(5 * SLOW_BYTES_S, SLOW_BYTES_S * 2)
    assert not welcome.look(fast, fast)


@given(looks=st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=20))
def test_always_and_never_mean_what_they_say(looks: list[tuple[float, float]]) -> None:
    always, never = Welcome("always"), Welcome("never")
    assert all(always.look(*look) and not never.look(*look) for look in looks)
