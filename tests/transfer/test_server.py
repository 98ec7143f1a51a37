from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

import aiohttp
import pytest
from multidict import CIMultiDict

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.transfer import server as server_module
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.server import BlobServer
from tests.peer.worlds import make_world
from tests.transfer.swarming import NewStore, Node, node, run

BODY = random.Random(5).randbytes(600_001)
SIZE = len(BODY)
# (Range header, expected span or None for 416): first, last, open end, suffix, past the end, malformed, several.
RANGES = [
    ("bytes=0-0", (0, 1)),
    (f"bytes={SIZE - 1}-{SIZE - 1}", (SIZE - 1, SIZE)),
    ("bytes=0-", (0, SIZE)),
    ("bytes=5-262149", (5, 262_150)),
    ("bytes=-1", (SIZE - 1, SIZE)),
    (f"bytes=-{SIZE + 5}", (0, SIZE)),
    (f"bytes=10-{SIZE + 100}", (10, SIZE)),
    (f"bytes={SIZE}-", None),
    ("bytes=5-4", None),
    ("bytes=-0", None),
    ("bytes=-", None),
    ("bytes=0-1,4-5", None),
    ("lines=0-1", None),
    ("bytes=a-b", None),
    ("bytes=" + "9" * 30 + "-", None),
    ("bytes=٣-٤", None),
]


async def _get(at: Node, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, CIMultiDict[str]]:
    async with aiohttp.ClientSession() as session:
        async with session.request(method, f"{at.address.url}{path}", headers=headers) as response:
            return response.status, await response.read(), response.headers.copy()


def test_ranges_are_served_exactly_or_refused(new_store: NewStore) -> None:
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        async with node(store) as one:
            for header, expected in RANGES:
                status, body, headers = await _get(one, f"/v1/blobs/{digest}", Range=header)
                if expected is None:
                    assert (status, headers["Content-Range"]) == (416, f"bytes */{SIZE}"), header
                else:
                    first, end = expected
                    assert status == 206, header
                    assert body == BODY[first:end], header
                    assert headers["Content-Range"] == f"bytes {first}-{end - 1}/{SIZE}"

    run(main())


def test_a_whole_blob_carries_its_digest_and_never_changes(new_store: NewStore) -> None:
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        async with node(store) as one:
            status, body, headers = await _get(one, f"/v1/blobs/{digest}")
            assert (status, body) == (200, BODY)
            assert headers["ETag"] == f'"{digest}"'
            assert "immutable" in headers["Cache-Control"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            head = await _get(one, f"/v1/blobs/{digest}", "HEAD")
            assert (head[0], head[1], head[2]["Content-Length"]) == (200, b"", str(SIZE))
            same = await _get(one, f"/v1/blobs/{digest}", **{"If-None-Match": f'"{digest}"'})
            assert same[0] == 304

    run(main())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/blobs/" + "0" * 64, 404),
        ("/v1/blobs/" + "A" * 64, 400),
        ("/v1/blobs/short", 400),
        ("/v1/blobs/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/blobs/", 400),
        ("/v1/have/" + "0" * 64, 404),
        ("/v1/have/" + "0" * 64 + "?since=x", 400),
        ("/v1/names/abc/def", 400),
        ("/v1/names/" + "a" * 52 + "/UPPER", 400),
        ("/v2/blobs", 404),
        ("/etc/passwd", 404),
    ],
)
def test_odd_paths_are_refused(new_store: NewStore, path: str, status: int) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            assert (await _get(one, path))[0] == status

    run(main())


def test_only_reading_is_served(new_store: NewStore) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                assert (await _get(one, "/", method))[0] == 405

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET //[::1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01" + bytes(1_000),
    ],
)
def test_what_is_no_request_is_neither_logged_nor_sent_back(
    new_store: NewStore, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """A stranger must not be able to fill the log of a seed, nor get more bytes than were sent."""
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            reader, writer = await asyncio.open_connection(one.address.ip, one.address.port)
            writer.write(sent)
            async with asyncio.timeout(10):
                status = await reader.readline()
                # The server may reset the connection: it does not read what comes after the refused part.
                with suppress(ConnectionError):
                    assert len(await reader.read()) < 500
            writer.close()
            assert status.split()[1] in (b"400", b"404")
            assert (await _get(one, "/healthz"))[0] == 200

    run(main())
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_pages_for_monitors_and_people_answer(new_store: NewStore) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            assert (await _get(one, "/healthz"))[:2] == (200, b"ok\n")
            assert (await _get(one, "/metrics"))[1] == b"dhtdata_datasets 1\n"
            assert (await _get(one, "/"))[1] == b"a peer\n"

    run(main())


def test_a_partial_shard_serves_its_verified_blocks_and_nothing_else(new_store: NewStore) -> None:
    world = make_world(shards=1)
    shard = world.shards[0]

    store = new_store("store")
    world.publish_small(store)
    partial = store.partial(shard.digest, shard.table)

    async def main() -> None:
        async with node(store) as one:
            one.holdings.opened(partial)
            for position in (1, 2, 5):
                block = shard.table.blocks[position]
                body = shard.body[block.offset : block.offset + block.length]
                await asyncio.to_thread(partial.accept, position, body)
            one.holdings.changed()
            have = await one.http.have(one.address, world.contents)
            assert not have.complete
            assert have.partials[0].blocks == partial.bitmap()
            first, second = shard.table.blocks[1], shard.table.blocks[2]
            span = await one.http.read_range(one.address, shard.digest, first.offset, first.length + second.length)
            assert span == shard.body[first.offset : second.offset + second.length]
            for position in (0, 3, 4, 6):
                block = shard.table.blocks[position]
                with pytest.raises(NotFoundError):
                    await one.http.read_range(one.address, shard.digest, block.offset, block.length)
            with pytest.raises(NotFoundError):
                await one.http.read_range(one.address, shard.digest, first.offset, first.length * 2 + 1)

    run(main())


def test_a_have_map_says_what_is_held_and_when_nothing_changed(new_store: NewStore) -> None:
    world = make_world(shards=3)

    store = new_store("store")
    world.publish_small(store)
    store.put(world.shards[1].body)

    async def main() -> None:
        async with node(store) as one:
            have = await one.http.have(one.address, world.contents)
            assert (have.complete, have.shards) == (False, b"\x02")
            again = await one.http.have(one.address, world.contents, have.revision)
            assert again.unchanged
            for shard in (world.shards[0], world.shards[2]):
                await asyncio.to_thread(store.put, shard.body)
                one.holdings.finished(shard.digest)
            assert (await one.http.have(one.address, world.contents, have.revision)).complete

    run(main())


def test_peers_and_providers_are_passed_on(new_store: NewStore) -> None:
    contents = Digest.of(b"contents")
    addresses = (Address("192.0.2.7", 1_000), Address("2001:db8::1", 2_000))

    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            one.directory.addresses[contents] = addresses
            one.directory.records[contents] = [ProviderRecord(b"signed", addresses)]
            assert await one.http.peers(one.address, contents) == addresses
            assert await one.http.providers(one.address, contents) == [ProviderRecord(b"signed", addresses)]

    run(main())


def test_too_many_connections_of_one_address_are_dropped(new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_PER_ADDRESS", 3)

    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            pairs = [await asyncio.open_connection("127.0.0.1", one.address.port) for _ in range(6)]
            answers = []
            for reader, writer in pairs:
                try:
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    answers.append(await reader.read(12))
                except ConnectionError:
                    answers.append(b"")
            assert [bool(answer) for answer in answers] == [True] * 3 + [False] * 3
            assert one.server.served.refused_connections == 3
            for _, writer in pairs:
                writer.close()

    run(main())


def test_a_client_that_reads_nothing_is_cut_off(new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WRITE_S", 0.2)
    body = random.Random(6).randbytes(16 << 20)

    store = new_store("store")
    digest = store.put(body)

    async def main() -> None:
        async with node(store) as one:
            reader, writer = await asyncio.open_connection("127.0.0.1", one.address.port, limit=1_024)
            writer.write(f"GET /v1/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = 0
            await asyncio.sleep(1.0)
            try:
                while piece := await reader.read(65_536):
                    received += len(piece)
            except ConnectionError:
                received = min(received, len(body) - 1)
            assert received < len(body)
            writer.close()

    run(main())


def test_a_port_in_use_is_named_with_what_to_do(new_store: NewStore) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            other = BlobServer(Holdings(store))
            with pytest.raises(ConfigError, match=rf"{one.address.port}.*--port"):
                async with other.running("127.0.0.1", one.address.port):
                    pass

    run(main())


def test_nothing_is_answered_before_the_peer_is_ready(new_store: NewStore) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one:
            one.server.directory = None
            assert (await _get(one, "/healthz"))[0] == 503

    run(main())
