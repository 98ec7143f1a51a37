from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from contextlib import suppress

import aiohttp
import pytest
from multidict import CIMultiDict

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import CLOCK_TOLERANCE_S
from dhtdata.network import Network, new_network
from dhtdata.transfer import sending
from dhtdata.transfer import server as server_module
from dhtdata.transfer.answers import ProviderRecord
from dhtdata.transfer.holdings import Holdings
from dhtdata.transfer.membership import HEADER, member_headers
from dhtdata.transfer.server import BlobServer
from tests.peer.worlds import make_world
from tests.transfer.ranges import read_range
from tests.transfer.swarming import NewStore, Node, Table, node, run

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
            one.holdings.changed(shard.digest)
            have = await one.http.have(one.address, world.contents)
            assert not have.complete
            assert have.partials[0].blocks == partial.bitmap()
            first, second = shard.table.blocks[1], shard.table.blocks[2]
            span = await read_range(one.address, shard.digest, first.offset, first.length + second.length)
            assert span == shard.body[first.offset : second.offset + second.length]
            for position in (0, 3, 4, 6):
                block = shard.table.blocks[position]
                with pytest.raises(NotFoundError):
                    await read_range(one.address, shard.digest, block.offset, block.length)
            with pytest.raises(NotFoundError):
                await read_range(one.address, shard.digest, first.offset, first.length * 2 + 1)

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
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_OF_THIS_MACHINE", 3)

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
    monkeypatch.setattr(sending, "WRITE_S", 0.2)
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


def _request(path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


async def _everything_sent_back(address: Address, sent: bytes) -> bytes:
    """All bytes that a server sends until it drops the connection, which it must."""
    reader, writer = await asyncio.open_connection(address.ip, address.port)
    received = bytearray()
    try:
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                writer.write(sent)
                while piece := await reader.read(1_000):
                    received += piece
    finally:
        writer.close()
    return bytes(received)


def _stranger_requests(network: Network, address: Address, path: str) -> dict[str, bytes]:
    """What somebody may try who lacks the secret, but has overheard a member's request for ``path``."""
    now_s = time.time()
    overheard = member_headers(network, address, path, now_s)
    stranger = member_headers(new_network(), address, path, now_s)
    other = path.replace("/blobs/", "/have/")
    sent, _, code = overheard[HEADER].partition("-")
    return {
        "no code": _request(path, {"Host": str(address)}),
        "the code of another network": _request(path, stranger),
        "a code of zeros": _request(path, overheard | {HEADER: f"{sent}-{'0' * 32}"}),
        "another path": _request(other, overheard),
        "a query": _request(path + "?", overheard),
        "another host": _request(path, overheard | {"Host": "192.0.2.1:1"}),
        "a range": _request(path, overheard | {"Range": "bytes=0-0"}),
        "another method": _request(path, overheard, "HEAD"),
        "a later time": _request(path, overheard | {HEADER: f"{int(sent) + 1}-{code}"}),
        "too old": _request(path, member_headers(network, address, path, now_s - CLOCK_TOLERANCE_S - 5)),
        "too new": _request(path, member_headers(network, address, path, now_s + CLOCK_TOLERANCE_S + 5)),
        "no host": _request(path, {HEADER: overheard[HEADER]}),
        "no such form": _request(path, overheard | {HEADER: code}),
        "leading zeros": _request(path, overheard | {HEADER: f"0{sent}-{code}"}),
        "not text": _request(path, overheard).replace(code.encode(), b"\xff" * 32),
        "two codes": _request(path, overheard | {HEADER.lower(): stranger[HEADER]}),
        "a page and a wrong code": _request("/healthz", stranger),
        "a page and a query": _request("/healthz?x", {"Host": str(address)}),
        "a body": _request(path, {"Host": str(address), "Content-Length": "5"}, "POST") + b"hello",
        "a body to come": _request(
            path, {"Host": str(address), "Expect": "100-continue", "Content-Length": "5"}, "PUT"
        ),
        "an upgrade": _request(path, {"Host": str(address), "Connection": "upgrade", "Upgrade": "websocket"}),
        "a long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        "an odd target": b"GET //[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "an odd URL": b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "TLS": b"\x16\x03\x01" + bytes(1_000),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "no HTTP": b"hello\r\n\r\n",
    }


def test_a_stranger_gets_not_one_byte_of_a_private_network(
    new_store: NewStore, caplog: pytest.LogCaptureFixture
) -> None:
    network, store = new_network(), new_store("store")
    path = f"/v1/blobs/{store.put(BODY)}"

    async def main() -> None:
        async with node(store, network) as one:
            for case, sent in _stranger_requests(network, one.address, path).items():
                assert await _everything_sent_back(one.address, sent) == b"", case
            member = _request(path, member_headers(network, one.address, path, time.time()) | {"Connection": "close"})
            answer = await _everything_sent_back(one.address, member)
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(BODY)
            assert (one.server.served.requests, one.server.served.bytes) == (1, SIZE)
            assert one.server.served.strangers >= 19

    run(main())
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_a_strangers_request_behind_a_members_ends_the_connection(new_store: NewStore) -> None:
    network, store = new_network(), new_store("store")
    path = f"/v1/blobs/{store.put(b'short')}"

    async def main() -> None:
        async with node(store, network) as one:
            reader, writer = await asyncio.open_connection(one.address.ip, one.address.port)
            writer.write(_request(path, member_headers(network, one.address, path, time.time())))
            await reader.readuntil(b"short")
            with suppress(ConnectionError):
                writer.write(_request(path, {"Host": str(one.address)}))
                assert await reader.read() == b""
            writer.close()

    run(main())


def test_a_private_network_is_silent_before_the_peer_is_ready(new_store: NewStore) -> None:
    network, store = new_network(), new_store("store")

    async def main() -> None:
        async with node(store, network) as one:
            one.server.directory = None
            sent = _request(f"/v1/blobs/{'0' * 64}", {"Host": str(one.address)})
            assert await _everything_sent_back(one.address, sent) == b""

    run(main())


def test_pages_of_a_private_network_are_open_to_the_machine_itself(new_store: NewStore) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store, new_network()) as one:
            assert (await _get(one, "/healthz"))[:2] == (200, b"ok\n")
            assert (await _get(one, "/metrics"))[1] == b"dhtdata_datasets 1\n"
            assert (await _get(one, "/"))[1] == b"a peer\n"

    run(main())


def test_pages_of_a_private_network_are_closed_to_other_machines(new_store: NewStore) -> None:
    """This machine's address in its network stands for another machine: it is no loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: connecting a datagram socket only asks which way it would go.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        here = str(probe.getsockname()[0])
    network, store = new_network(), new_store("store")

    async def main() -> None:
        server = BlobServer(Holdings(store), network)
        server.directory = Table()
        async with server.running("0.0.0.0", 0) as port:
            address = Address(here, port)
            for path in ("/", "/healthz", "/metrics"):
                stranger = _request(path, {"Host": str(address), "Connection": "close"})
                assert await _everything_sent_back(address, stranger) == b""
                member = member_headers(network, address, path, time.time()) | {"Connection": "close"}
                assert (await _everything_sent_back(address, _request(path, member))).startswith(b"HTTP/1.1 200 ")

    run(main())


def test_in_the_public_network_a_code_changes_nothing(new_store: NewStore) -> None:
    store = new_store("store")
    path = f"/v1/blobs/{store.put(BODY)}"

    async def main() -> None:
        async with node(store) as one:
            headers = member_headers(new_network(), one.address, path, time.time())
            assert (await _get(one, path, "GET", **headers))[1] == BODY

    run(main())
