from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web

from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, PeerError
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.transfer.client import HttpClient
from dhtdata.transfer.dialling import dial, socket_maker
from tests.transfer.ranges import read_range
from tests.transfer.strange_addresses import HOSTS, IPS, resolve_to
from tests.transfer.swarming import run

BLOB = b"not for strangers"
DIGEST = Digest.of(BLOB)
_dialled: list[tuple[Any, ...]] = []
_watched = threading.Event()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watched.is_set() and isinstance(arguments[1], tuple):
        _dialled.append(arguments[1])


sys.addaudithook(_audit)


@contextmanager
def dialled() -> Iterator[list[tuple[Any, ...]]]:
    """Every address that this process connects to meanwhile, as the interpreter itself reports."""
    _dialled.clear()
    _watched.set()
    try:
        yield _dialled
    finally:
        _watched.clear()


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    """The port of somebody on this machine who hopes for visitors, on IPv4 and, where there is one, on IPv6."""
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with socket.socket(socket.AF_INET6) as second:
            if socket.has_ipv6:
                try:
                    second.bind(("::1", port))
                    second.listen()
                except OSError:
                    pass
            yield port


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """The port of a web server on loopback that answers everything like this."""
    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _ask(seed: WebSeed) -> None:
    async with HttpClient.running() as http:
        with pytest.raises(DhtDataError):
            await http.read_blob(seed, DIGEST, 1_000)
        with pytest.raises(DhtDataError):
            await read_range(seed, DIGEST, 0, 10)


def test_sixty_forms_of_forbidden_addresses_are_tried() -> None:
    assert len(set(HOSTS)) >= 60


@pytest.mark.parametrize("host", HOSTS)
def test_a_strangers_url_leads_to_no_connection(host: str, listener: int) -> None:
    with dialled() as seen:
        with pytest.raises(FormatError):
            WebSeed.parse(f"http://{host}:{listener}/mirror")
        # And if the text had passed: what dials looks at the address itself.
        with pytest.raises(PeerError):
            dial(host.strip("[]"), listener, trusted=False, timeout_s=2)
    assert seen == []


@pytest.mark.parametrize("ip", IPS)
def test_a_name_that_leads_elsewhere_when_it_is_dialled_leads_to_no_connection(
    ip: str, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, ip)
    with dialled() as seen:
        run(_ask(WebSeed.parse(f"http://data.example.org:{listener}/mirror")))
        with pytest.raises(PeerError, match="data.example.org"):
            dial("data.example.org", listener, trusted=False, timeout_s=2)
    assert seen == []


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_leads_to_no_other_connection(host: str, status: int, listener: int) -> None:
    asked = 0

    async def redirect(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=status, headers={"Location": f"http://{host}:{listener}{request.path}"})

    async def main() -> int:
        async with serving(redirect) as port:
            with dialled() as seen:
                await _ask(WebSeed.parse(f"http://127.0.0.1:{port}", named=True))
            assert {address[:2] for address in seen} == {("127.0.0.1", port)}
        return asked

    assert run(main()) == 2


def test_a_redirect_to_a_name_that_leads_home_leads_to_no_other_connection(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1")

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://cdn.example.org:{listener}{request.path}"})

    async def main() -> None:
        async with serving(redirect) as port:
            with dialled() as seen:
                await _ask(WebSeed.parse(f"http://127.0.0.1:{port}", named=True))
            assert {address[:2] for address in seen} == {("127.0.0.1", port)}

    run(main())


def test_a_redirect_within_the_host_that_the_user_named_is_followed() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/old"):
            return web.Response(status=308, headers={"Location": request.path.replace("/old", "/new") + "?signed=%2F"})
        assert request.raw_path.endswith("?signed=%2F")
        return web.Response(body=BLOB)

    async def main() -> None:
        async with serving(answer) as port, HttpClient.running() as http:
            seed = WebSeed.parse(f"http://127.0.0.1:{port}/old/place/", named=True)
            assert await http.read_blob(seed, DIGEST, 1_000) == BLOB

    run(main())


@pytest.mark.parametrize("location", ["", "/v1/blobs/again", "http://[", "ftp://127.0.0.1/", "file:///etc/passwd"])
def test_a_redirect_that_leads_nowhere_is_an_error(location: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    async def main() -> None:
        async with serving(answer) as port:
            await _ask(WebSeed.parse(f"http://127.0.0.1:{port}", named=True))

    run(main())


def test_what_the_user_named_is_dialled_wherever_it_is(listener: int) -> None:
    with dialled() as seen, dial("127.0.0.1", listener, trusted=True) as connection:
        assert connection.getpeername() == ("127.0.0.1", listener)
        assert connection.gettimeout() is None
    assert seen == [("127.0.0.1", listener)]


def test_a_connection_starts_from_the_address_that_was_asked_for(listener: int) -> None:
    with dial("127.0.0.1", listener, trusted=True, source_ip="127.0.0.9") as connection:
        assert connection.getsockname()[0] == "127.0.0.9"


@pytest.mark.parametrize(("ip", "port"), [("8.8.8.8", 443), ("8.8.8.8", 80), ("8.8.8.8", 8_470), ("2606:4700::1", 443)])
def test_global_addresses_are_let_through(ip: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    info = (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, port))
    assert ipaddress.ip_address(ip).is_global
    socket_maker(trusted=False)(info).close()


@pytest.mark.parametrize("port", [0, 1, 22, 25, 79, 81, 442, 444, 631, 1_023])
def test_ports_of_other_services_are_not_dialled(port: int) -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", port))
    with pytest.raises(PermissionError, match=f"8.8.8.8 port {port}"):
        socket_maker(trusted=False)(info)


def test_nobody_there_and_no_such_name_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PeerError, match=f"127.0.0.1 port {port}: no connection"):
        dial("127.0.0.1", port, trusted=True)
    with pytest.raises(PeerError, match="cannot be looked up"):
        dial("name.invalid", 80, trusted=True)
    with pytest.raises(PeerError, match="cannot be looked up"):
        dial("a" * 64 + ".example.org", 80, trusted=True)


def test_a_listener_that_accepts_nobody_costs_the_time_allowed() -> None:
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        with pytest.raises(PeerError, match="no connection"):
            for _ in range(8):
                dial(*full.getsockname(), trusted=True, timeout_s=0.2)
