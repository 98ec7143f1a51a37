"""Ranges over real sockets: what every kind of wrong answer comes to, and that threads can be called back."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dhtdata.digest import Digest
from dhtdata.errors import NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.network import PUBLIC
from dhtdata.transfer import wire
from dhtdata.transfer.wire import Busy, Connection, blob_path
from tests.transfer.evil import KINDS, evil
from tests.transfer.ranges import read_range
from tests.transfer.swarming import NewStore, node, run

BODY = random.Random(3).randbytes(50_000)
DIGEST = Digest.of(BODY)
BAD_BYTES = {"flipped", "zeros"}
PATH = blob_path(DIGEST)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_to_a_range_is_an_error_or_plainly_wrong_bytes(kind: str) -> None:
    async def main() -> None:
        async with evil(kind, {str(DIGEST): BODY}) as address:
            if kind in BAD_BYTES:
                got = await read_range(address, DIGEST, 1_000, 2_000)
                assert len(got) == 2_000
                assert got != BODY[1_000:3_000]
            else:
                with pytest.raises(PeerError):
                    await read_range(address, DIGEST, 1_000, 2_000)

    run(main())


def test_a_connection_serves_one_range_after_the_other(new_store: NewStore) -> None:
    store = new_store("store")
    store.put(BODY)

    async def main() -> None:
        async with node(store) as one:
            connection = Connection(one.address, PUBLIC)

            def read(first: int, length: int) -> bytes:
                body = bytearray(length)
                connection.open(PATH, first, length)
                for start in range(0, length, 7_000):
                    connection.read_into(memoryview(body)[start : start + 7_000])
                return bytes(body)

            for first, length in ((0, 50_000), (0, 1), (49_999, 1), (12_345, 30_000)):
                assert await asyncio.to_thread(read, first, length) == BODY[first : first + length]
                assert connection.reusable
            with pytest.raises(NotFoundError):
                await asyncio.to_thread(connection.open, PATH, 50_000, 1)
            with pytest.raises(NotFoundError):
                await asyncio.to_thread(connection.open, blob_path(Digest.of(b"else")), 0, 1)
            assert await asyncio.to_thread(read, 5, 10) == BODY[5:15]
            connection.close()
            assert one.server.served.refused_connections == 0

    run(main())


def test_more_than_was_asked_for_is_not_read(new_store: NewStore) -> None:
    store = new_store("store")
    store.put(BODY)

    async def main() -> None:
        async with node(store) as one:
            connection = Connection(one.address, PUBLIC)
            await asyncio.to_thread(connection.open, PATH, 0, 10)
            with pytest.raises(ValueError, match="11 bytes"):
                connection.read_into(memoryview(bytearray(11)))
            connection.close()

    run(main())


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[Address, list[bytes]]]:
    """A server that gives these answers, one a connection, whatever it is asked; and what it was asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in answers:
            there, _ = listener.accept()
            with there:
                there.settimeout(5)
                asked.append(there.recv(65_536))
                there.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1]), asked
    finally:
        thread.join(10)
        listener.close()


@contextmanager
def still_answering(said: bytes, *, silent: bool) -> Iterator[Address]:
    """A server that says this much to one request and then hangs up, or nothing more until the block ends."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        there, _ = listener.accept()
        with there:
            there.recv(65_536)
            there.sendall(said)
            if silent:
                over.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        over.set()
        thread.join(10)
        listener.close()


def _partial(body: bytes) -> bytes:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{len(body) - 1}/9\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def test_an_idle_connection_that_was_closed_is_made_anew_once() -> None:
    with answering(_partial(b"abc"), _partial(b"xyz")) as (address, asked):
        connection = Connection(address, PUBLIC)
        body = bytearray(3)
        for expected in (b"abc", b"xyz"):
            connection.open(PATH, 0, 3)
            connection.read_into(memoryview(body))
            assert bytes(body) == expected
        connection.close()
    assert len(asked) == 2


@pytest.mark.parametrize(("status", "field", "retry_s"), [(503, "7", 7), (429, "9999", 60), (503, "soon", 1)])
def test_a_busy_provider_says_when_to_come_back(status: int, field: str, retry_s: float) -> None:
    answer = f"HTTP/1.1 {status} Busy\r\nRetry-After: {field}\r\nContent-Length: 0\r\n\r\n".encode()
    with answering(answer) as (address, _):
        connection = Connection(address, PUBLIC)
        with pytest.raises(Busy) as caught:
            connection.open(PATH, 0, 3)
        connection.close()
        assert caught.value.retry_s == retry_s


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        (b"Content-Length: 10\r\n\r\nabc", NotFoundError),
        (b"Content-Length: 10\r\n\r\n", NotFoundError),
        (b"Content-Length: 1000000\r\n\r\nabc", NotFoundError),
        (b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n", NotFoundError),
        (b"Content-Length: 4\r\n", NotFoundError),
        (b"Content-Le", NotFoundError),
    ],
)
@pytest.mark.parametrize("status", [404, 416])
@pytest.mark.parametrize("silent", [False, True])
def test_a_not_found_that_breaks_off_or_falls_silent_is_not_found_and_ends_the_connection(
    rest: bytes, error: type[Exception], status: int, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhtdata.transfer.wire.SILENCE_S", 0.2)
    cut_in_the_head = b"\r\n\r\n" not in rest
    with still_answering(f"HTTP/1.1 {status} No\r\n".encode() + rest, silent=silent) as address:
        connection = Connection(address, PUBLIC)
        with pytest.raises(PeerError if silent and cut_in_the_head else error):
            connection.open(PATH, 0, 3)
        assert not connection.reusable


def test_a_head_that_pauses_too_long_is_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise what comes after the pause, the rest of the head, would be taken for the body."""
    monkeypatch.setattr("dhtdata.transfer.wire.SILENCE_S", 0.2)
    with still_answering(_partial(b"abc")[:-6], silent=True) as address:
        connection = Connection(address, PUBLIC)
        with pytest.raises(PeerError, match="no answer"):
            connection.open(PATH, 0, 3)


def test_two_lengths_are_no_length() -> None:
    answer = _partial(b"abc").replace(b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 4")
    with answering(answer) as (address, _):
        connection = Connection(address, PUBLIC)
        with pytest.raises(PeerError, match="announces"):
            connection.open(PATH, 0, 3)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 206 Part", _partial(bytes(9))[:-5]])
def test_a_thread_that_waits_is_called_back_by_any_other(said: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    connection = Connection(Address("127.0.0.1", listener.getsockname()[1]), PUBLIC)
    failures: list[Exception] = []

    def read() -> None:
        try:
            connection.open(PATH, 0, 9)
            connection.read_into(memoryview(bytearray(9)))
        except PeerError as failure:
            failures.append(failure)

    thread = threading.Thread(target=read)
    thread.start()
    there, _ = listener.accept()
    with there, listener:
        there.recv(65_536)
        there.sendall(said)
        connection.abort()
        thread.join(5)
        assert not thread.is_alive()
    assert len(failures) == 1
    with pytest.raises(PeerError):
        connection.open(PATH, 0, 9)


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Key and certificate of 127.0.0.1, which this machine trusts meanwhile."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    wire._tls.cache_clear()
    yield path
    wire._tls.cache_clear()


@pytest.mark.parametrize("said", [None, b"HTTP/1.1 206 Part", _partial(bytes(9))[:-5]])
def test_a_thread_that_waits_for_tls_is_called_back_by_any_other(said: bytes | None, certificate: Path) -> None:
    """In the handshake (None), in the head, in the body."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    seed = WebSeed.parse(f"https://127.0.0.1:{listener.getsockname()[1]}", named=True)
    connection = Connection(seed, PUBLIC)

    def read() -> None:
        connection.open(PATH, 0, 9)
        connection.read_into(memoryview(bytearray(9)))

    with listener, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        there, _ = listener.accept()
        with there:
            if said is None:
                assert there.recv(1)
                connection.abort()
            else:
                with context.wrap_socket(there, server_side=True) as secured:
                    secured.recv(65_536)
                    secured.sendall(said)
                    connection.abort()
                    secured.settimeout(5)
                    assert not secured.recv(1)
            with pytest.raises(PeerError):
                reading.result(5)


def test_a_range_comes_over_tls(certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        there, _ = listener.accept()
        with context.wrap_socket(there, server_side=True) as secured:
            for length in (100_000, 3):
                secured.recv(65_536)
                secured.sendall(_partial(LARGE[:length]).replace(b"/9\r", b"/999999\r", 1))

    with listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        connection = Connection(WebSeed.parse(f"https://127.0.0.1:{listener.getsockname()[1]}", named=True), PUBLIC)
        for length in (100_000, 3):
            body = bytearray(length)
            connection.open(PATH, 0, length)
            connection.read_into(memoryview(body))
            assert body == LARGE[:length]
        served.result(5)
        connection.close()


LARGE = random.Random(4).randbytes(3 * 64 * 1024)


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, len(LARGE)), st.sampled_from([65_535, 65_536, 65_537, 131_072, 131_073])),
        min_size=1,
        max_size=4,
    ),
    late=st.integers(0, 70_000),
    piece=st.sampled_from([100, 65_535, 65_536, 65_537, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_a_reader_sleeps_until_many_bytes_are_there_but_never_for_more_than_will_come(
    lengths: list[int], late: int, piece: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhtdata.transfer.wire.SILENCE_S", 1_000.0)
    listener = socket.create_server(("127.0.0.1", 0))
    chance = random.Random(seed)
    reads = [threading.Event() for _ in lengths]

    def serve() -> None:
        there, _ = listener.accept()
        with listener, there:
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there.settimeout(5)
            for length, reading in zip(lengths, reads, strict=True):
                there.recv(65_536)
                answer = _partial(LARGE[:length]).replace(b"/9\r", b"/999999\r", 1)
                last = max(len(answer) - late, len(answer) - length + 1)
                there.sendall(answer[:last])
                # The end only when somebody sleeps for it.
                assert reading.wait(5)
                while last < len(answer):
                    step = chance.choice([1, 1_448, 9_000, 70_000])
                    there.sendall(answer[last : last + step])
                    last += step
            assert there.recv(1) == b"", "the reader sleeps although it has everything"

    connection = Connection(Address("127.0.0.1", listener.getsockname()[1]), PUBLIC)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        for length, reading in zip(lengths, reads, strict=True):
            connection.open(PATH, 0, length)
            reading.set()
            body = bytearray(length)
            for first in range(0, length, piece):
                connection.read_into(memoryview(body)[first : first + piece])
            assert body == LARGE[:length]
            assert connection.reusable
        connection.close()
        served.result(10)


def test_a_server_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhtdata.transfer.wire.SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection(Address("127.0.0.1", listener.getsockname()[1]), PUBLIC)
        with pytest.raises(PeerError, match="no answer"):
            connection.open(PATH, 0, 10)
