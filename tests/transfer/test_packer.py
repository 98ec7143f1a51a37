"""Packed shards over real sockets, and what a seed packs when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from multidict import CIMultiDict

from dhtdata.config import PackedPolicy
from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError
from dhtdata.formats.packed import PackedTable, seek_table_bytes
from dhtdata.packing import unpack_into
from dhtdata.store import PackedFile, Store
from dhtdata.transfer import packer as packer_module
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.packer import Packer
from dhtdata.transfer.server import BlobServer
from tests.store.samples import Dataset, Shard, files_under, of_shards, shard
from tests.store.test_packed import text_dataset
from tests.transfer.swarming import NewStore, Table, run, until


@asynccontextmanager
async def seed(store: Store, policy: PackedPolicy) -> AsyncIterator[tuple[str, Packer]]:
    """A server with a packer at work; its URL."""
    packer = Packer(store, policy)
    server = BlobServer(Holdings(store, packer))
    server.directory = Table()
    async with server.running("127.0.0.1", 0) as port, asyncio.TaskGroup() as group:
        working = group.create_task(packer.run())
        try:
            yield f"http://127.0.0.1:{port}", packer
        finally:
            working.cancel()


async def get(url: str, **headers: str) -> tuple[int, bytes, CIMultiDict[str]]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.read(), response.headers.copy()


async def get_whole(url: str) -> bytes:
    status, body, _ = await get(url)
    assert status == 200
    return body


async def fetched(url: str, item: Shard) -> bytes:
    """A shard as a peer on a slow link fetches it: the end of the packed file, then frames."""
    status, suffix, headers = await get(url, Range=f"bytes=-{seek_table_bytes(len(item.blocks))}")
    assert status == 206
    table = PackedTable.parse(suffix, int(headers["Content-Range"].partition("/")[2]), item.table)
    blocks = []
    for position, block in enumerate(item.table.blocks):
        start, end = table.span(position, position + 1)
        same = {"Range": f"bytes={start}-{end - 1}", "If-Match": headers["ETag"]}
        status, frame, _ = await get(url, **same)
        assert (status, len(frame)) == (206, end - start)
        view = memoryview(bytearray(block.length))
        unpack_into(frame, view)
        assert Digest.of(view) == block.digest
        blocks.append(bytes(view))
    return b"".join(blocks)


async def found(packer: Packer, shard: Digest) -> bool:
    try:
        await packer.find(shard)
    except NotFoundError:
        return False
    return True


def stored(store: Store, sample: Dataset) -> Dataset:
    sample.put(store)
    return sample


def test_a_shard_is_packed_when_it_is_first_asked_for_and_comes_back_whole(new_store: NewStore) -> None:
    store = new_store("store")
    sample = stored(store, text_dataset(1))

    async def main() -> None:
        async with seed(store, "auto") as (url, packer):
            await packer.completed(sample.contents)
            for item in sample.shards:
                assert await fetched(f"{url}/v1/blobs/{item.digest}.zst", item) == item.content
            whole = await get(f"{url}/v1/blobs/{sample.shards[0].digest}.zst")
            packed = await asyncio.to_thread(store.packed, sample.shards[0].digest)
            assert (whole[0], Digest.of(whole[1]), whole[2]["ETag"]) == (200, packed.digest, f'"{packed.digest}"')
            assert "immutable" in whole[2]["Cache-Control"]

    run(main())


def test_two_peers_packed_files_differ_and_their_ranges_are_never_mixed(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_store("one"), new_store("two")
    sample = stored(one, text_dataset(2))
    stored(two, sample)
    item = sample.shards[0]
    one.pack(item.digest)
    monkeypatch.setattr("dhtdata.packing.LEVEL", 12)
    two.pack(item.digest)

    async def main() -> None:
        path = f"/v1/blobs/{item.digest}.zst"
        async with seed(one, "auto") as (first, _), seed(two, "auto") as (second, _):
            etag = (await get(first + path))[2]["ETag"]
            other = (await get(second + path))[2]["ETag"]
            assert etag != other
            assert (await get(first + path, Range="bytes=0-9", **{"If-Match": etag}))[0] == 206
            status, _, headers = await get(second + path, Range="bytes=0-9", **{"If-Match": etag})
            assert (status, headers["ETag"]) == (412, other)
            assert (await get(second + path, Range="bytes=0-9", **{"If-Match": "*"}))[0] == 206
            raw = f"{first}/v1/blobs/{item.digest}"
            assert (await get(raw, **{"If-Match": etag}))[0] == 412
            assert (await get(raw, **{"If-Match": f'"{item.digest}"'}))[0] == 200

    run(main())


@pytest.mark.parametrize("what", ["never", "small", "random", "unknown", "partial", "malformed"])
def test_what_has_no_packed_form_is_not_found(new_store: NewStore, what: str) -> None:
    store = new_store("store")
    sample = stored(store, text_dataset(3))
    random = stored(store, of_shards([shard(4)]))
    begun = shard(5)
    partial = store.partial(begun.digest, begun.table)
    partial.accept(0, begun.blocks[0])
    name, policy, expected = {
        "never": (str(sample.shards[0].digest), "never", 404),
        "small": (str(sample.contents), "auto", 404),
        "random": (str(random.shards[0].digest), "auto", 404),
        "unknown": ("0" * 64, "auto", 404),
        "partial": (str(begun.digest), "auto", 404),
        "malformed": ("0" * 63, "auto", 400),
    }[what]

    async def main() -> None:
        async with seed(store, policy) as (url, _):  # type: ignore[arg-type]
            for _ in range(2):
                assert (await get(f"{url}/v1/blobs/{name}.zst"))[0] == expected
            assert (await get(f"{url}/v1/blobs/{name}.zst.zst"))[0] == 400
            assert (await get(f"{url}/v1/blobs/.zst"))[0] == 400
        assert files_under(store.path / "packed") == []

    run(main())


@pytest.mark.parametrize("policy", ["always", "auto"])
def test_a_complete_dataset_is_packed_in_the_background_if_all_is_to_be(
    new_store: NewStore, policy: PackedPolicy
) -> None:
    store = new_store("store")
    sample = stored(store, text_dataset(6, shard_count=5))

    async def main() -> None:
        async with seed(store, policy) as (url, packer):
            await packer.completed(sample.contents)
            if policy == "always":
                await until(lambda: len(files_under(store.path / "packed")) == 5)
            item = sample.shards[4]
            assert await fetched(f"{url}/v1/blobs/{item.digest}.zst", item) == item.content
        assert len(files_under(store.path / "packed")) == (5 if policy == "always" else 1)

    run(main())


class Gate:
    """Holds up every packing in its thread, and counts how many are at work at once."""

    def __init__(self, real: Callable[..., PackedFile]) -> None:
        self.real = real
        self.opened = threading.Event()
        self.at_work = self.most = 0
        self.order: list[Digest] = []

    def pack(self, digest: Digest, going: Callable[[], bool] = lambda: True) -> PackedFile:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.order.append(digest)
        try:
            assert self.opened.wait(10)
            return self.real(digest, going)
        finally:
            self.at_work -= 1


def test_one_shard_is_packed_at_a_time_and_a_bounded_number_waited_for(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer_module, "MAX_WANTED", 3)
    store = new_store("store")
    sample = stored(store, text_dataset(7, shard_count=5))
    digests = [item.digest for item in sample.shards]
    gate = Gate(store.pack)
    monkeypatch.setattr(store, "pack", gate.pack)

    async def main() -> None:
        async with seed(store, "always") as (_, packer), asyncio.TaskGroup() as group:
            await packer.completed(sample.contents)
            await until(lambda: gate.at_work == 1)
            asked = [digest for digest in reversed(digests) for _ in range(2)]
            waiting = [group.create_task(found(packer, digest)) for digest in asked]
            await until(lambda: sum(task.done() for task in waiting) == 4)
            gate.opened.set()
            promised = {digest for digest, task in zip(asked, waiting, strict=True) if await task}
            assert len(promised) == 3
            await until(lambda: len(files_under(store.path / "packed")) == 5)
        assert gate.most == 1
        # What was asked for comes before what nobody has asked for.
        assert promised <= set(gate.order[:4])

    run(main())


def test_who_waits_too_long_takes_the_shard_as_it_is_and_the_work_goes_on(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer_module, "WAIT_S", 0.05)
    store = new_store("store")
    sample = stored(store, text_dataset(8))
    first = sample.shards[0].digest
    gate = Gate(store.pack)
    monkeypatch.setattr(store, "pack", gate.pack)

    async def main() -> None:
        async with seed(store, "auto") as (url, _):
            assert (await get(f"{url}/v1/blobs/{first}.zst"))[0] == 404
            assert (await get(f"{url}/v1/blobs/{first}"))[0] == 200
            gate.opened.set()
            await until(lambda: len(files_under(store.path / "packed")) == 1)
            assert (await get(f"{url}/v1/blobs/{first}.zst"))[0] == 200

    run(main())


def test_a_seed_that_keeps_only_packed_shards_serves_both_forms(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store("store")
    sample = stored(store, text_dataset(9, shard_count=4))
    noise = stored(store, of_shards([shard(10)]))
    size = len(sample.shards[0].content)
    monkeypatch.setattr(packer_module, "MAX_RESTORED_BYTES", 2 * size + 10)
    digests = {item.digest for item in sample.shards}

    def as_they_are() -> set[Digest]:
        return {digest for path in files_under(store.path / "blobs") if (digest := Digest.parse(path.name)) in digests}

    async def main() -> None:
        async with seed(store, "only") as (url, packer):
            for contents in (sample.contents, noise.contents):
                await packer.completed(contents)
            await until(lambda: not as_they_are())
            for item in sample.shards:
                assert await get_whole(f"{url}/v1/blobs/{item.digest}") == item.content
                assert await fetched(f"{url}/v1/blobs/{item.digest}.zst", item) == item.content
                span = await get(f"{url}/v1/blobs/{item.digest}", Range="bytes=100-30000")
                assert (span[0], span[1]) == (206, item.content[100:30_001])
            # The last two that were asked for stay as they are for a while.
            await until(lambda: as_they_are() == {item.digest for item in sample.shards[2:]})
            assert await get_whole(f"{url}/v1/blobs/{noise.shards[0].digest}") == noise.shards[0].content
            await until(lambda: as_they_are() == {sample.shards[3].digest})

    run(main())
    assert store.completeness(sample.manifest).complete


def test_a_shard_that_arrives_is_packed_at_once_where_only_packed_ones_are_kept(new_store: NewStore) -> None:
    store = new_store("store")
    sample = text_dataset(11)
    for content in sample.small:
        store.put(content)
    store.add_manifest(sample.manifest)
    item = sample.shards[0]

    async def main() -> None:
        packer = Packer(store, "only")
        holdings = Holdings(store, packer)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(packer.run())
            partial = await asyncio.to_thread(store.partial, item.digest, item.table)
            holdings.opened(partial)
            for position, block in enumerate(item.blocks):
                await asyncio.to_thread(partial.accept, position, block)
            path = await asyncio.to_thread(partial.finish)
            holdings.finished(item.digest)
            await until(lambda: not path.exists())
            working.cancel()

    run(main())
    assert store.completeness(sample.manifest).shards_held == 1
    assert store.path_of(item.digest).read_bytes() == item.content
