"""What a stranger, or a program of another release, gets at the control socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dhtdata.control import PeerClient, protocol
from dhtdata.control.client import socket_path
from dhtdata.control.protocol import (
    PROTOCOL,
    Answer,
    AskStatus,
    Done,
    Failure,
    Hello,
    Message,
    PeerStatus,
    Stop,
    Welcome,
)
from dhtdata.peer.control_server import ControlServer
from dhtdata.store import Store
from tests.peer.processes import opened


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with opened(tmp_path_factory.mktemp("peer")) as (store, settings):
        with PeerClient.connect(store, settings, start=True):
            yield store


def _connect(store: Store) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(socket_path(store.id)))
    return connection


def _read(connection: socket.socket) -> Message | None:
    """The next message; None at end of file."""
    header = connection.recv(4, socket.MSG_WAITALL)
    if len(header) < 4:
        return None
    return protocol.unpack(connection.recv(protocol.body_length(header), socket.MSG_WAITALL))


def _hello(at: Store, **changes: object) -> Hello:
    fields = {"protocol": PROTOCOL, "version": "0.1.0", "uid": os.getuid(), "store": at.id, "keeps_alive": False}
    return Hello(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": PROTOCOL + 1}, "run dhtdata stop"),
        ({"store": b"another store id"}, "another store"),
        ({"uid": os.getuid() + 1}, "another user"),
        ({"network": "0123456789abcdef"}, "in network public, but network 0123456789abcdef was asked for"),
    ],
)
def test_a_stranger_is_refused_with_the_reason(running: Store, change: dict[str, object], said: str) -> None:
    with _connect(running) as connection:
        connection.sendall(protocol.pack(_hello(running, **change)))
        answer = _read(connection)
        assert isinstance(answer, Failure)
        assert answer.kind == "ConfigError"
        assert said in answer.message
        assert _read(connection) is None


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\5hello",
        protocol.pack(AskStatus()),
        protocol.pack(Welcome(protocol=1, version="", pid=1, kind="seed")),
    ],
)
def test_nonsense_instead_of_hello_is_a_format_error(running: Store, frame: bytes) -> None:
    with _connect(running) as connection:
        connection.sendall(frame)
        answer = _read(connection)
        assert isinstance(answer, Failure)
        assert answer.kind == "FormatError"
        assert _read(connection) is None


@pytest.mark.parametrize("network", ["", "public"])
def test_who_means_the_same_network_or_none_is_welcome(running: Store, network: str) -> None:
    with _connect(running) as connection:
        connection.sendall(protocol.pack(_hello(running, network=network)))
        assert isinstance(_read(connection), Welcome)


def test_requests_that_are_sent_early_are_answered_in_order(running: Store) -> None:
    with _connect(running) as connection:
        requests = [protocol.pack(AskStatus())] * 20
        connection.sendall(protocol.pack(_hello(running)) + b"".join(requests))
        assert isinstance(_read(connection), Welcome)
        for _ in requests:
            assert isinstance(_read(connection), PeerStatus)


def test_an_answer_is_no_request(running: Store) -> None:
    with _connect(running) as connection:
        connection.sendall(protocol.pack(_hello(running)) + protocol.pack(protocol.Done()))
        assert isinstance(_read(connection), Welcome)
        assert isinstance(_read(connection), Failure)
        assert _read(connection) is None


def test_many_connections_come_and_go(running: Store, tmp_path: Path) -> None:
    for _ in range(50):
        with _connect(running) as connection:
            connection.sendall(protocol.pack(_hello(running))[:7])
    with _connect(running) as connection:
        connection.sendall(protocol.pack(_hello(running)) + protocol.pack(AskStatus()))
        assert isinstance(_read(connection), Welcome)
        assert isinstance(_read(connection), PeerStatus)


def test_a_defect_costs_its_asker_an_error_and_the_peer_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(os.path.relpath(tmp_path / "s"))  # short enough for a Unix socket
    store_id = b"0123456789abcdef"
    status = Done()

    async def handle(request: Message, send: object, stay: object) -> Answer:
        if isinstance(request, AskStatus):
            raise ZeroDivisionError("a planted defect")
        return status

    async def main() -> list[Message]:
        server = ControlServer(store_id, Welcome(protocol=PROTOCOL, version="0.1.0", pid=1, kind="seed"), "public")
        async with asyncio.TaskGroup() as group, server.running(path):
            await server.serve(group, handle, lambda _: None)
            reader, writer = await asyncio.open_unix_connection(str(path))
            hello = Hello(protocol=PROTOCOL, version="0.1.0", uid=os.getuid(), store=store_id, keeps_alive=False)
            answers = []
            for message in (hello, AskStatus(), Stop()):
                writer.write(protocol.pack(message))
                header = await reader.readexactly(4)
                answers.append(protocol.unpack(await reader.readexactly(protocol.body_length(header))))
            writer.close()
        return answers

    welcome, failure, answer = asyncio.run(main())
    assert isinstance(welcome, Welcome)
    assert isinstance(failure, Failure)
    assert failure.kind == "PeerError"
    assert "a planted defect" in failure.message
    assert answer == status
    assert "ZeroDivisionError" in caplog.text
