from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.formats.addresses import Address
from dhtdata.transfer import sending, uploads
from dhtdata.transfer import server as server_module
from dhtdata.transfer.dialling import leads_to
from dhtdata.transfer.rates import Limits, Rates
from dhtdata.transfer.sending import Sending, SlowReader, is_warm
from dhtdata.transfer.uploads import NEWCOMERS, SLOTS, Meter, Refused, Upload, Uploads, peer_of
from tests.transfer.ranges import read_range
from tests.transfer.swarming import NewStore, node, run, until
from tests.transfer.test_rates import Clock

MIB = 1 << 20
BODY = random.Random(8).randbytes(5 * MIB + 3)
BLOB = "/v1/blobs/{digest}"


# Slots and the queue, on a clock of ours


@asynccontextmanager
async def taken(at: Uploads, *peers: str) -> AsyncIterator[list[Upload]]:
    """Uploads under way to these peers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(at.slot(peer)) for peer in peers]


async def _one(at: Uploads, peer: str, order: list[str], end: asyncio.Event) -> None:
    async with at.slot(peer):
        order.append(peer)
        await end.wait()


def test_as_many_uploads_as_slots_go_on_at_once_and_then_one_for_each_that_ends() -> None:
    async def main() -> None:
        at, order = Uploads(Limits(), Clock()), list[str]()
        ends = [asyncio.Event() for _ in range(20)]
        async with asyncio.TaskGroup() as group:
            for number, end in enumerate(ends):
                group.create_task(_one(at, str(number), order, end))
            await until(lambda: at.queued == 20 - SLOTS)
            for number, end in enumerate(ends):
                begun = min(20, SLOTS + number)
                await until(lambda begun=begun: len(order) >= begun)  # type: ignore[misc]
                assert order == [str(first) for first in range(begun)]
                end.set()
        assert (at.under_way, at.queued) == (0, 0)

    run(main())


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.sampled_from("abcd"), max_size=60))
def test_whatever_was_asked_before_a_peer_with_fewer_uploads_goes_first(requests: list[str]) -> None:
    """The oracle: after the first slots are gone, each turn goes to a waiting peer that has fewest uploads."""

    async def main() -> None:
        at, order = Uploads(Limits(), Clock()), list[str]()
        end = asyncio.Event()
        ends = {peer: [] for peer in "abcd"}  # type: dict[str, list[asyncio.Event]]
        async with asyncio.TaskGroup() as group:
            for peer in requests:
                ends[peer].append(asyncio.Event())
                group.create_task(_one(at, peer, order, ends[peer][-1]))
                await asyncio.sleep(0)
            begun = {peer: order.count(peer) for peer in "abcd"}
            ended = dict.fromkeys("abcd", 0)
            while len(order) < len(requests):
                busiest = max("abcd", key=lambda peer: begun[peer] - ended[peer])
                ends[busiest][ended[busiest]].set()
                ended[busiest] += 1
                under_way = {peer: begun[peer] - ended[peer] for peer in "abcd"}
                waiting = [peer for peer in "abcd" if begun[peer] < len(ends[peer])]
                count = len(order)
                await until(lambda count=count: len(order) > count)  # type: ignore[misc]
                assert len(order) == count + 1
                assert under_way[order[-1]] == min(under_way[peer] for peer in waiting)
                begun[order[-1]] += 1
            for events in ends.values():
                for event in events:
                    event.set()
            end.set()

    run(main())


def test_readers_that_take_next_to_nothing_leave_the_slots_to_others() -> None:
    async def main() -> None:
        clock = Clock()
        at = Uploads(Limits(), clock)
        async with taken(at, *["slow"] * SLOTS) as slow:
            clock.now_s += 2
            for upload in slow:
                at.sent(upload, 1_000)
            async with taken(at, *["honest"] * (SLOTS - 2)):
                assert at.under_way == 2 * SLOTS - 2
                # What is known of a peer holds for its next upload, too.
                async with taken(at, *["slow"] * SLOTS):
                    assert at.queued == 0

    run(main())


def test_readers_that_fill_the_line_keep_their_slots() -> None:
    async def main() -> None:
        clock = Clock()
        at = Uploads(Limits(), clock)
        async with taken(at, *map(str, range(SLOTS))) as fast, asyncio.TaskGroup() as group:
            for _ in range(40):
                clock.now_s += 0.1
                for upload in fast:
                    at.sent(upload, 10 * MIB)
            waiting = group.create_task(_one(at, "late", [], asyncio.Event()))
            await until(lambda: at.queued == 1)
            at._look_again()
            assert (at.under_way, at.queued) == (SLOTS, 1)
            waiting.cancel()
        assert (at.under_way, at.queued) == (0, 0)

    run(main())


def test_who_waits_is_let_in_when_the_others_turn_out_to_be_slow() -> None:
    async def main() -> None:
        clock = Clock()
        at, order, end = Uploads(Limits(), clock), list[str](), asyncio.Event()
        async with taken(at, *["slow"] * SLOTS), asyncio.TaskGroup() as group:
            group.create_task(_one(at, "honest", order, end))
            await until(lambda: at.queued == 1)
            clock.now_s += 1.5
            await until(lambda: order == ["honest"])
            end.set()

    run(main())


def test_newcomers_get_a_few_of_the_slots_that_known_peers_could_use() -> None:
    async def main() -> None:
        at = Uploads(Limits(), Clock())
        async with taken(at, "known") as uploads_of_it:
            at.sent(uploads_of_it[0], MIB)
        order, end = list[str](), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            async with taken(at, *map(str, range(SLOTS))):
                group.create_task(_one(at, "new", order, end))
                await until(lambda: at.queued == 1)
                for _ in range(SLOTS + 1):
                    group.create_task(_one(at, "known", order, end))
                left = SLOTS - NEWCOMERS
                await until(lambda: len(order) == left and at.queued == SLOTS + 2 - left)
                assert order == ["known"] * left
            end.set()

    run(main())


def test_a_full_queue_and_a_long_wait_are_told_apart_from_a_peers_own_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_QUEUED", 3)
    monkeypatch.setattr(uploads, "MAX_QUEUED_OF_PEER", 2)
    monkeypatch.setattr(uploads, "QUEUE_S", 0.3)

    async def main() -> None:
        at = Uploads(Limits(), Clock())
        async with taken(at, *["a"] * SLOTS), asyncio.TaskGroup() as group:

            async def refused(peer: str) -> Refused:
                with pytest.raises(Refused) as caught:
                    async with at.slot(peer):
                        pass
                return caught.value

            waiting = [group.create_task(refused(peer)) for peer in ("a", "a", "b")]
            await until(lambda: at.queued == 3)
            assert (await refused("a")).own_doing
            assert not (await refused("c")).own_doing
            for one in waiting:
                assert not (await one).own_doing
                assert 1 <= (await one).retry_s <= uploads.MAX_RETRY_S
            assert (at.queued, at.busy) == (0, 5)

    run(main())


def test_who_leaves_the_queue_holds_no_place() -> None:
    async def main() -> None:
        at, order, end = Uploads(Limits(), Clock()), list[str](), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            async with taken(at, *["a"] * SLOTS):
                leaving = [group.create_task(_one(at, "b", order, end)) for _ in range(5)]
                staying = group.create_task(_one(at, "c", order, end))
                await until(lambda: at.queued == 6)
                for one in leaving:
                    one.cancel()
                await until(lambda: at.queued == 1)
            await until(lambda: order == ["c"])
            end.set()
            await staying
        assert (at.under_way, at.queued) == (0, 0)

    run(main())


@pytest.mark.parametrize(
    ("rates", "slots"), [(Rates(up=100_000), 1), (Rates(up=384_000), 3), (Rates(peer_up=256_000), 2)]
)
def test_with_a_low_limit_fewer_send_at_once(rates: Rates, slots: int) -> None:
    async def main() -> None:
        at, order, end = Uploads(Limits(rates), Clock()), list[str](), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(SLOTS):
                group.create_task(_one(at, "a", order, end))
            await until(lambda: at.queued == SLOTS - slots)
            assert len(order) == slots
            end.set()

    run(main())


def test_who_is_far_behind_the_limit_is_told_to_come_back() -> None:
    async def main() -> None:
        limits = Limits(Rates(up=100_000))
        at = Uploads(limits, Clock())
        at.check("a")
        limits.up.debit(700_000)
        with pytest.raises(Refused) as caught:
            at.check("a")
        assert 6 <= caught.value.retry_s <= 8

    run(main())


@given(rates=st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 10**8)), max_size=50))
def test_a_meter_never_shows_more_than_was_sent_lately(rates: list[tuple[float, int]]) -> None:
    meter, now_s, sent = Meter(0.0), 0.0, 0
    for step_s, byte_count in rates:
        now_s += step_s
        meter.add(byte_count, now_s)
        sent += byte_count
        assert 0 <= meter.rate(now_s) <= sent / uploads._MEMORY_S + 1
    assert meter.rate(now_s + 60) <= 1e-6 * sent


@pytest.mark.parametrize(
    ("ip", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%lo", "fe80::/64"),
    ],
)
def test_one_machine_is_one_peer(ip: str, peer: str) -> None:
    assert peer_of(ip) == peer


# The bytes


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, len(BODY) - 1), length=st.integers(1, len(BODY)), piece=st.integers(1, 2 * MIB))
def test_every_span_of_a_file_arrives_as_it_is(start: int, length: int, piece: int) -> None:
    end = min(start + length, len(BODY))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        file = await asyncio.to_thread(_file, BODY)
        out = Sending(transport, file)

        async def send() -> None:
            for first in range(start, end, max(piece, (end - start) // 20)):
                await out.send(first, min(first + max(piece, (end - start) // 20), end))
            out.close()
            transport.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            received = bytearray()
            while data := await loop.sock_recv(theirs, MIB):
                received += data
        theirs.close()
        assert bytes(received) == BODY[start:end]

    run(main())


def _file(body: bytes) -> int:
    file = os.memfd_create("blob")
    os.write(file, body)
    return file


def test_spans_around_every_bound_are_served_exactly(new_store: NewStore) -> None:
    """Small answers end below 256 KiB, pieces at 1 MiB, pages at 4 KiB."""
    store = new_store("store")
    digest = store.put(BODY)
    edges = [0, 4_096, server_module.SMALL_BYTES, sending.PIECE_BYTES, 2 * sending.PIECE_BYTES, len(BODY)]
    near = sorted({min(max(edge + step, 0), len(BODY)) for edge in edges for step in (-1, 0, 1)})

    async def main() -> None:
        async with node(store) as one:
            for start in near:
                for end in near:
                    if start < end:
                        assert await read_range(one.address, digest, start, end - start) == BODY[start:end]
            assert one.server.served.bytes == sum(end - start for start in near for end in near if start < end)

    run(main())


def test_a_blob_that_is_removed_while_it_is_sent_is_sent_to_its_end(new_store: NewStore) -> None:
    store = new_store("store")
    body = random.Random(9).randbytes(24 * MIB)
    digest = store.put(body)

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            reader, writer = await asker.ask(BLOB.format(digest=digest), receive_bytes=64 << 10)
            await reader.readuntil(b"\r\n\r\n")
            await until(lambda: one.server.served.bytes > 0)
            (await asyncio.to_thread(store.path_of, digest)).unlink()
            assert await reader.readexactly(len(body)) == body

    run(main())


def test_a_file_that_became_shorter_drops_the_connection(new_store: NewStore, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        out = Sending(transport, await asyncio.to_thread(_file, b"short"))
        with pytest.raises(ConnectionResetError, match="shorter"):
            await out.send(0, 6)
        out.close()
        transport.abort()
        theirs.close()

    run(main())


def test_who_took_enough_since_the_last_look_is_not_given_up() -> None:
    """What the other side's kernel has counts as taken, what ours still holds does not."""
    enough = int(sending.SLOWEST_BYTES_S * sending.WRITE_S)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * enough)
            theirs.setblocking(False)
            await loop.sock_connect(theirs, listener.getsockname())
            listener.setblocking(False)
            ours, _ = await loop.sock_accept(listener)
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            file = await asyncio.to_thread(_file, BODY * 4)
            with closing(Sending(transport, file)) as out:
                sent = asyncio.create_task(out.send(0, 4 * len(BODY)))
                # The first turn of the task ends when nothing more fits into the buffers.
                await until(lambda: out._handed > 0)
                with suppress(SlowReader):
                    out.judge()
                with pytest.raises(SlowReader):
                    out.judge()
                received = 0
                while received < 4 * enough:
                    received += len(await loop.sock_recv(theirs, 64 << 10))
                await until(lambda: out._handed - sending._unacknowledged(out._out) >= out._taken + enough)
                out.judge()
                sent.cancel()
                with suppress(asyncio.CancelledError):
                    await sent
            os.close(file)
            transport.abort()

    run(main())


def test_whether_a_file_is_in_memory_is_known_or_denied(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    file = os.open(path, os.O_RDONLY)
    os.pread(file, MIB, 0)
    if not is_warm(file, 0, MIB):
        pytest.skip("the system cannot say it of this file system")
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    assert not is_warm(file, 0, MIB)
    sending._read(file, 0, MIB)
    assert is_warm(file, 0, MIB)
    os.close(file)
    assert not is_warm(-1, 0, MIB)


# Whom the server cuts off


class Asker:
    """Connections to a server from addresses of ours, dropped at the end."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def connect(
        self, ip: str = "127.0.0.1", receive_bytes: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        connection.bind((ip, 0))
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(connection, (self._address.ip, self._address.port))
        reader, writer = await asyncio.open_connection(sock=connection)
        self._writers.append(writer)
        return reader, writer

    async def ask(
        self, path: str, *, ip: str = "127.0.0.1", receive_bytes: int = 0, method: str = "GET", length: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request, sent, for so many bytes of the beginning (0: for all); its connection."""
        reader, writer = await self.connect(ip, receive_bytes)
        span = f"Range: bytes=0-{length - 1}\r\n" if length else ""
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{span}\r\n".encode())
        return reader, writer


async def _is_cut(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError):
        while await reader.read(MIB):
            pass
    return True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a fraction of a second."""
    monkeypatch.setattr(sending, "WRITE_S", 0.2)
    monkeypatch.setattr(server_module, "IDLE_S", 0.3)


def test_a_reader_with_a_full_window_is_cut_and_its_slot_is_free(new_store: NewStore, hasty: None) -> None:
    store = new_store("store")
    digest = store.put(random.Random(9).randbytes(24 * MIB))

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            reader, writer = await asker.ask(BLOB.format(digest=digest), receive_bytes=16 << 10)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: one.server.uploads.under_way == 1)
            await until(lambda: one.server.served.cut_readers == 1)
            await until(lambda: one.server.uploads.under_way == 0)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await _is_cut(reader)
            assert one.server.served.bytes < 24 * MIB

    run(main())


def test_a_reader_that_asks_for_small_things_and_takes_none_is_cut(new_store: NewStore, hasty: None) -> None:
    store = new_store("store")
    digest = store.put(random.Random(9).randbytes(200 << 10))

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            reader, writer = await asker.ask(BLOB.format(digest=digest), receive_bytes=16 << 10)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            request = f"GET {BLOB.format(digest=digest)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            with suppress(ConnectionError):
                for _ in range(200):
                    writer.write(request)
                    await writer.drain()
            await until(lambda: one.server.served.cut_readers == 1)

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=["nothing", "a line", "a header", "an idle connection", "a body", "pieces of a body"],
)
def test_who_drips_or_idles_is_cut(new_store: NewStore, hasty: None, sent: bytes) -> None:
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            reader, writer = await asker.connect()
            writer.write(sent)

            async def drip() -> None:
                with suppress(ConnectionError):
                    while sent and not sent.endswith(b"\r\n\r\n"):
                        await asyncio.sleep(0.05)
                        writer.write(b"x")

            async with asyncio.TaskGroup() as group:
                dripping = group.create_task(drip())
                assert await _is_cut(reader)
                dripping.cancel()

    run(main())


def test_addresses_have_caps_of_their_own_and_a_newcomer_finds_room(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 6)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_OF_THIS_MACHINE", 5)
    store = new_store("store")

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            many = [await asker.ask("/healthz", ip="127.0.0.2") for _ in range(5)]
            for reader, _ in many:
                assert b" 200 " in await reader.readuntil(b"ok\n")
            refused, _ = await asker.ask("/healthz", ip="127.0.0.2")
            assert await _is_cut(refused)
            newcomers = [await asker.ask("/healthz", ip=f"127.0.0.{number}") for number in (3, 4, 5)]
            for reader, _ in newcomers:
                assert b" 200 " in await reader.readuntil(b"ok\n")
            assert one.server.served.refused_connections == 3
            # The oldest two of the address with most made room.
            assert await _is_cut(many[0][0]) and await _is_cut(many[1][0])
            many[2][1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in await many[2][0].readuntil(b"ok\n")

    run(main())


# Slots, limits and refusals over HTTP


async def _status(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), headers


def test_a_peer_with_many_requests_does_not_starve_another(new_store: NewStore) -> None:
    """Twenty large requests from one address, unread, and then one from another."""
    store = new_store("store")
    body = random.Random(9).randbytes(24 * MIB)
    digest = store.put(body)

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            greedy = [await asker.ask(BLOB.format(digest=digest), ip="127.0.0.2") for _ in range(20)]
            await until(lambda: one.server.uploads.under_way == SLOTS)
            reader, writer = await asker.ask(BLOB.format(digest=digest), ip="127.0.0.3")
            assert (await _status(reader))[0] == 200
            begun = sum(bool(other._buffer) for other, _ in greedy)  # type: ignore[attr-defined]
            assert begun < 20
            assert await reader.readexactly(len(body)) == body
            writer.close()

    run(main())


def test_small_things_do_not_wait_behind_uploads(new_store: NewStore) -> None:
    store = new_store("store")
    large, small = store.put(random.Random(9).randbytes(24 * MIB)), store.put(b"small")

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            for _ in range(SLOTS):
                await asker.ask(BLOB.format(digest=large), receive_bytes=16 << 10)
            await until(lambda: one.server.uploads.under_way == SLOTS)
            assert await one.http.read_blob(one.address, small, 100) == b"small"
            assert await read_range(one.address, large, 0, 1_000)
            head, _ = await asker.ask(BLOB.format(digest=large), method="HEAD")
            assert (await _status(head))[0] == 200

    run(main())


@pytest.mark.parametrize(("queued_of_peer", "status"), [(1, 429), (96, 503)])
def test_refusals_say_when_to_come_back(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch, queued_of_peer: int, status: int
) -> None:
    monkeypatch.setattr(uploads, "MAX_QUEUED_OF_PEER", queued_of_peer)
    monkeypatch.setattr(uploads, "MAX_QUEUED", 1)
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        async with node(store) as one, Asker(one.address) as asker:
            at = one.server.uploads
            async with taken(at, *["127.0.0.1"] * SLOTS), asyncio.TaskGroup() as group:
                waiting = group.create_task(_one(at, "127.0.0.1", [], asyncio.Event()))
                await until(lambda: at.queued == 1)
                reader, writer = await asker.ask(BLOB.format(digest=digest))
                got, headers = await _status(reader)
                assert got == status
                assert 1 <= int(headers["Retry-After"]) <= uploads.MAX_RETRY_S
                waiting.cancel()

    run(main())


def test_who_hangs_up_while_a_limit_makes_it_wait_leaves_no_debt(new_store: NewStore) -> None:
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        limits = Limits(Rates(up=64_000), Clock())
        async with node(store, limits=limits) as one, Asker(one.address) as asker:
            _, writer = await asker.ask(BLOB.format(digest=digest), length=200_000)
            await until(lambda: limits.up.owed_s() > 0)
            writer.close()
            await until(lambda: limits.up.owed_s() == 0)
            assert one.server.served.bytes == 0

    run(main())


def test_small_things_take_turns_too_while_a_limit_is_used_up(new_store: NewStore) -> None:
    """But the smallest do not: they are what others need to find anything."""
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        limits = Limits(Rates(up=1_000_000), Clock())
        async with node(store, limits=limits) as one, Asker(one.address) as asker:
            limits.up.debit(100_000)
            await asker.ask(BLOB.format(digest=digest), length=200_000)
            await until(lambda: one.server.uploads.under_way == 1)
            reader, _ = await asker.ask(BLOB.format(digest=digest), length=1_000)
            assert (await _status(reader))[0] == 206
            assert one.server.uploads.under_way == 1

    run(main())


def test_limits_that_change_while_running_pace_what_is_sent(new_store: NewStore) -> None:
    """The bucket's clock is ours and stands still: what was sent is what was paid for."""
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        clock = Clock()
        limits = Limits(clock=clock)
        async with node(store, limits=limits) as one:
            assert await read_range(one.address, digest, 0, MIB) == BODY[:MIB]
            assert limits.up.owed_s() == 0
            limits.rates = Rates(up=100 * MIB, peer_up=50 * MIB)
            assert await read_range(one.address, digest, 0, MIB) == BODY[:MIB]
            assert limits.up.owed_s() == pytest.approx(1 / 100)
            assert limits.peer_up("127.0.0.1").owed_s() == pytest.approx(1 / 50)
            assert await read_range(one.address, digest, 7, 1_000) == BODY[7:1_007]
            assert limits.up.owed_s() == pytest.approx(1 / 100 + 1_000 / (100 * MIB))
            limits.rates = Rates()
            assert await read_range(one.address, digest, 0, len(BODY)) == BODY
            assert limits.up.owed_s() == 0

    run(main())


# Where a client connects from


@pytest.mark.parametrize(
    ("source", "there", "leads"),
    [
        ("127.0.0.2", "127.0.0.1", True),
        ("::1", "::1", True),
        ("192.0.2.1", "198.51.100.1", True),
        ("127.0.0.2", "198.51.100.1", False),
        ("192.0.2.1", "127.0.0.1", False),
        ("127.0.0.2", "::1", False),
        ("::", "::1", False),
        ("0.0.0.0", "127.0.0.1", False),
    ],
)
def test_one_address_is_used_for_others_only_where_it_leads_to_them(source: str, there: str, leads: bool) -> None:
    assert leads_to(source, there) == leads


@pytest.mark.parametrize(("source", "seen"), [("127.0.0.7", "127.0.0.7"), ("::", "127.0.0.1"), ("::1", "127.0.0.1")])
def test_a_peer_with_one_address_connects_from_it(new_store: NewStore, source: str, seen: str) -> None:
    store = new_store("store")
    digest = store.put(BODY)

    async def main() -> None:
        limits = Limits(Rates(peer_up=1_000 * MIB), Clock())
        async with node(store, limits=limits) as one:
            assert await read_range(one.address, digest, 0, 1_000, source_ip=source) == BODY[:1_000]
            assert limits.peer_up(seen).owed_s() > 0

    run(main())
