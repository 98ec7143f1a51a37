"""Doctor: each thing that can be wrong, made wrong for real."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from dhtdata import doctor
from dhtdata.config import Settings
from dhtdata.dht.envelope import VERSION
from dhtdata.doctor import DOUBTFUL, GOOD, WRONG, Finding, examine
from dhtdata.formats.addresses import Address
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.network import PUBLIC, Network, network_of_store, new_network, save_network
from dhtdata.store import Store
from dhtdata.transfer.membership import HEADER, Asked, member_asks
from tests.cli.dht_samples import of_another_version, peer_status


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "home": folder / "home",
        "store": folder / "store",
        "listen": "127.0.0.1",
        "port": free_port(),
    }
    return Settings(**(values | changes))


def findings(given: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(given)}


@contextmanager
def health(clock_s: float, network: Network = PUBLIC, server: str = "") -> Iterator[Address]:
    """A peer's health answer with a clock of its own; in a private network for members only."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = Asked(self.command, self.headers.get("Host", ""), self.path)
            if network != PUBLIC and not member_asks(network, asked, self.headers.get(HEADER, ""), time.time()):
                return
            self.send_response_only(200)
            self.send_header("Date", formatdate(clock_s, usegmt=True))
            self.send_header("Server", server)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Address("127.0.0.1", serving.server_port)
        serving.shutdown()
        thread.join()


def test_a_fresh_machine_has_nothing_to_mend_and_is_left_as_it_was(tmp_path: Path) -> None:
    found = findings(settings(tmp_path))
    assert [finding.subject for finding in found.values() if finding.verdict == WRONG] == []
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_wrong_for_tcp_and_for_udp(tmp_path: Path) -> None:
    for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            found = findings(settings(tmp_path, port=port))["port"]
        assert found.verdict == WRONG
        assert f"{protocol} port {port} is in use" in found.text and "--port" in found.text


def test_a_port_that_another_seed_has_is_told_from_one_of_another_program(tmp_path: Path) -> None:
    with health(time.time(), server="dhtdata") as address:
        found = findings(settings(tmp_path, port=address.port))["port"]
    assert found.verdict == WRONG
    assert "another dhtdata seed" in found.text and "--port" in found.text and "another program" not in found.text
    with health(time.time()) as address:
        assert "another program" in findings(settings(tmp_path, port=address.port))["port"].text


def test_port_0_is_doubtful(tmp_path: Path) -> None:
    assert findings(settings(tmp_path, port=0))["port"].verdict == DOUBTFUL


def test_an_address_that_this_machine_does_not_have_is_wrong(tmp_path: Path) -> None:
    found = findings(settings(tmp_path, listen="192.0.2.77"))["port"]
    assert found.verdict == WRONG and "--listen" in found.text


def test_a_key_that_others_may_read_is_wrong(tmp_path: Path) -> None:
    given = settings(tmp_path)
    given.keys.mkdir(parents=True)
    key = given.keys / "root.key"
    key.write_text("x")
    key.chmod(0o644)
    found = findings(given)["keys"]
    assert found.verdict == WRONG and f"chmod 600 {key}" in found.text
    key.chmod(0o600)
    assert findings(given)["keys"].verdict == GOOD


def test_a_file_where_the_store_should_be_is_wrong(tmp_path: Path) -> None:
    given = settings(tmp_path)
    given.store.write_text("not a folder")
    found = findings(given)
    assert found["store"].verdict == WRONG and found["file system"].verdict == WRONG


def test_a_store_on_a_network_file_system_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path)
    with Store.open(given.store):
        pass
    monkeypatch.setattr("dhtdata.store.filesystem.magic_of", lambda path: 0x6969 if path == given.store else 0)
    found = findings(given)["file system"]
    assert found.verdict == WRONG and "NFS" in found.text and "--store" in found.text


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        (doctor.ROOM_WRONG_BYTES - 1, WRONG),
        (doctor.ROOM_WRONG_BYTES, DOUBTFUL),
        (doctor.ROOM_DOUBTFUL_BYTES, GOOD),
    ],
)
def test_disk_room_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert findings(settings(tmp_path))["disk room"].verdict == verdict


def test_a_peer_that_answers_over_http_alone_is_doubtful_and_sets_the_clock_straight(tmp_path: Path) -> None:
    with health(time.time()) as address:
        found = findings(settings(tmp_path, bootstrap=(address, Address("127.0.0.1", free_port()))))
    assert found["bootstrap"].verdict == DOUBTFUL
    assert (
        f"{address} answers over HTTP, but not over UDP: a firewall blocks UDP, or it is in another network"
        in found["bootstrap"].text
    )
    assert found["clock"] == Finding("clock", GOOD, "within 1 s of 1 other peer")


def test_a_clock_far_from_the_others_is_wrong(tmp_path: Path) -> None:
    with health(time.time() + 3600) as address:
        found = findings(settings(tmp_path, bootstrap=(address,)))["clock"]
    assert found.verdict == WRONG and "60 min behind 1 other peer: set it" in found.text


def test_a_known_peer_of_another_version_is_wrong_and_says_which_to_upgrade(tmp_path: Path) -> None:
    with of_another_version() as address:
        found = findings(settings(tmp_path, bootstrap=(address,)))["bootstrap"]
    assert found.verdict == WRONG
    assert f"{address} speaks version {VERSION + 1} of the protocol, this dhtdata {VERSION}" in found.text


def test_where_we_would_listen_ourselves_nobody_else_is_found(tmp_path: Path) -> None:
    port = free_port()
    found = findings(settings(tmp_path, port=port, bootstrap=(Address("127.0.0.1", port),)))["bootstrap"]
    assert found.verdict == DOUBTFUL and f"127.0.0.1:{port} is this machine's own address" in found.text


def test_many_dead_addresses_are_asked_at_once_and_not_all_named(tmp_path: Path) -> None:
    dead = tuple(Address(f"127.0.0.{number}", free_port()) for number in range(2, 42))
    found = findings(settings(tmp_path, bootstrap=dead))["bootstrap"]
    assert found.verdict == WRONG and "and 34 more" in found.text and found.text.count("does not answer") == 6


@pytest.mark.parametrize(
    ("kind", "changes", "subject", "verdict", "said"),
    [
        ("seed", {}, "DHT", GOOD, "strangers reach the running seed over IPv4 and IPv6"),
        ("seed", {"families_reached": ()}, "DHT", WRONG, "open port 8470 for UDP and TCP"),
        ("seed", {"contacts": 0}, "DHT", DOUBTFUL, "has met no other node"),
        ("private", {"families_reached": ()}, "DHT", GOOD, "it is a client"),
        (
            "seed",
            {"clock_ahead_s": 86_400.0},
            "clock",
            WRONG,
            "which is 24 h ahead of 12 other nodes of the DHT: set it",
        ),
        ("seed", {"clock_ahead_s": -86_400.0}, "clock", WRONG, "24 h behind 12 other nodes"),
        ("seed", {}, "clock", GOOD, "within 1 s of 12 other nodes"),
        ("seed", {}, "bootstrap", GOOD, "the running peer knows 12"),
        (
            "seed",
            {"contacts": 0, "bootstrap_failures": ("192.0.2.1:9 did not answer",)},
            "bootstrap",
            WRONG,
            "meets nobody: 192.0.2.1:9 did not answer",
        ),
        ("seed", {"contacts": 0}, "bootstrap", DOUBTFUL, "no known peer"),
    ],
)
def test_what_the_running_peer_tells_of_the_dht_is_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    changes: dict[str, Any],
    subject: str,
    verdict: str,
    said: str,
) -> None:
    monkeypatch.setattr(doctor, "_running", lambda given: (peer_status(kind, **changes), []))
    found = findings(settings(tmp_path))[subject]
    assert found.verdict == verdict and said in found.text


def test_ipv6_is_told_and_never_wrong(tmp_path: Path) -> None:
    assert "IPv4 alone" in findings(settings(tmp_path))["IPv6"].text
    both = findings(settings(tmp_path, listen="::"))
    assert both["IPv6"].verdict == GOOD and both["port"].verdict == GOOD


def test_a_machine_without_ipv6_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    class OnlyIPv4(made):  # type: ignore[valid-type,misc]
        def __init__(self, family: int = -1, *arguments: Any, **options: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", OnlyIPv4)
    found = findings(settings(tmp_path, listen="::"))
    assert found["IPv6"] == Finding(
        "IPv6", GOOD, "this machine has none: peers are reached over IPv4, those with IPv6 alone are not"
    )
    assert found["port"].verdict == GOOD


def test_known_peers_that_do_not_answer_are_wrong_and_named(tmp_path: Path) -> None:
    dead = Address("127.0.0.1", free_port())
    found = findings(settings(tmp_path, bootstrap=(dead,)))["bootstrap"]
    assert found.verdict == WRONG and str(dead) in found.text and "ticket" in found.text


def test_a_private_network_is_shown_by_its_fingerprint(tmp_path: Path) -> None:
    assert findings(settings(tmp_path))["network"].text.startswith("public")
    network, path = new_network(), tmp_path / "lab.network"
    save_network(path, network)
    found = findings(settings(tmp_path, network=path))["network"]
    assert found.verdict == GOOD and f"private, fingerprint {network.fingerprint}" in found.text
    assert network.secret is not None and network.secret.hex() not in found.text


def test_a_store_of_another_network_is_wrong(tmp_path: Path) -> None:
    network, path = new_network(), tmp_path / "lab.network"
    save_network(path, network)
    given = settings(tmp_path)
    given.store.mkdir(parents=True, exist_ok=True)
    network_of_store(given.store, path, empty=False)
    found = findings(given)["network"]
    assert found.verdict == WRONG and f"belongs to the private network {network.fingerprint}" in found.text
    assert findings(settings(tmp_path, network=path))["network"].verdict == GOOD


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0o600, "there is no network file"),
        (f"dhtdata-network-1 {'00' * 32}", 0o644, "chmod 600"),
        ("dhtdata-network-1 00", 0o600, "get the file from a member again"),
    ],
)
def test_a_wrong_network_file_is_wrong_with_the_next_step(
    tmp_path: Path, text: str | None, mode: int, said: str
) -> None:
    path = tmp_path / "lab.network"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    found = findings(settings(tmp_path, network=path))["network"]
    assert found.verdict == WRONG and said in found.text and str(path) in found.text


def test_peers_of_a_private_network_answer_members_alone(tmp_path: Path) -> None:
    network = new_network()
    save_network(tmp_path / "ours", network)
    save_network(tmp_path / "other", new_network())
    with health(time.time(), network) as address:
        asked = {
            name: findings(settings(tmp_path, bootstrap=(address,), network=path))["bootstrap"]
            for name, path in {"ours": tmp_path / "ours", "other": tmp_path / "other", "none": None}.items()
        }
    assert "answers over HTTP" in asked["ours"].text
    assert asked["other"].verdict == asked["none"].verdict == WRONG
    expected = f"{address} does not answer: wrong address, another network (--network) or a blocked port"
    assert expected in asked["other"].text and expected in asked["none"].text


def test_a_low_limit_of_open_files_is_doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 4096))
    found = findings(settings(tmp_path))["open files"]
    assert found.verdict == DOUBTFUL and "ulimit -n" in found.text


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_wrong(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert findings(settings(closed))["store"].verdict == WRONG


@pytest.mark.parametrize("folder", [Path("/proc/x/y"), Path("/proc"), Path("/dev/null/x")])
def test_a_folder_where_nobody_makes_files_is_wrong_for_the_superuser_too(tmp_path: Path, folder: Path) -> None:
    found = findings(settings(tmp_path, home=folder))["home"]
    assert found.verdict == WRONG and "--home" in found.text


def test_where_a_store_cannot_be_is_said_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhtdata.store.filesystem.magic_of", lambda path: 0x6969 if path == tmp_path else 0)
    found = findings(settings(tmp_path))
    assert found["file system"].verdict == WRONG and "NFS" in found["file system"].text


def test_web_seeds_that_are_not_there_are_named(tmp_path: Path) -> None:
    def named(url: str) -> WebSeed:
        return WebSeed.parse(url, named=True)

    assert "web seeds" not in findings(settings(tmp_path))
    (tmp_path / "mirror" / "v1" / "blobs").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = (named((tmp_path / "mirror").as_uri()), named(f"http://127.0.0.1:{server.getsockname()[1]}"))
        assert findings(settings(tmp_path, web_seeds=there))["web seeds"].verdict == GOOD
    gone = (named((tmp_path / "gone").as_uri()), named(f"http://127.0.0.1:{free_port()}/x"))
    found = findings(settings(tmp_path, web_seeds=gone))["web seeds"]
    assert found.verdict == DOUBTFUL
    assert f"{tmp_path / 'gone'} holds no mirror" in found.text and "no connection" in found.text
