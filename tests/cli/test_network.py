"""Commands of several machines on one loopback: real peers, real sockets."""

from __future__ import annotations

import http.server
import itertools
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dhtdata.digest import Digest
from dhtdata.formats.contents import Contents
from dhtdata.formats.index import Index
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store
from tests.cli.machine import Machine
from tests.cli.web import serving

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
ROWS = pa.table({"id": range(20_000), "text": [f"this is row {number}" * 5 for number in range(20_000)]})


@dataclass(frozen=True)
class Origin:
    """A machine that publishes and seeds."""

    machine: Machine
    published: dict[str, Any]
    pid: int

    @property
    def ticket(self) -> str:
        return str(self.published["ticket"])

    @property
    def address(self) -> str:
        return str(self.published["addresses"][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("n")


_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[Origin]:
    machine = Machine(folder, "origin")
    pq.write_table(ROWS, machine.work / "rows.parquet")
    with machine.seeding("publish", "rows.parquet", "--name", "rows", "--seed") as (published, child):
        yield Origin(machine, published, child.pid)


@pytest.fixture
def reader(folder: Path) -> Iterator[Machine]:
    """A machine that knows nobody yet."""
    machine = Machine(folder, f"r{next(_NUMBERS)}")
    yield machine
    machine.stop_private_peer()


def test_a_ticket_is_all_that_another_machine_needs(origin: Origin, reader: Machine, tmp_path: Path) -> None:
    done = reader.document("get", origin.ticket, "--to", str(tmp_path))
    assert done["manifest"] == origin.published["manifest"]
    assert done["bytes_held"] == done["bytes"] == origin.published["bytes"]
    assert pq.read_table(done["files"][0]).to_pydict() == ROWS.to_pydict()
    status = reader.document("status")
    assert status["kind"] == "private" and status["addresses"] == []
    assert {entry["address"]: entry["bytes"] for entry in status["traffic"]}[origin.address] >= done["bytes"]
    shown = reader.run("status").out
    assert "serves nobody" in shown and origin.address in shown


def test_a_name_and_one_known_peer_are_enough_too(origin: Origin, reader: Machine) -> None:
    uri = origin.published["name"].partition("@")[0]
    assert reader.document("info", uri, "--bootstrap", origin.address)["rows"] == ROWS.num_rows
    assert reader.document("head", uri, "-n", "1")["rows"] == [{"id": 0, "text": "this is row 0" * 5}]
    [provider] = reader.document("peers", uri)["providers"]
    assert provider["address"] == origin.address and provider["seed"] is True
    assert origin.address in reader.run("peers").out


def test_a_dataset_that_nobody_else_provides_is_named_with_the_next_step(
    origin: Origin, reader: Machine, folder: Path
) -> None:
    lonely = Machine(folder, "lonely")
    pq.write_table(ROWS.slice(0, 10), lonely.work / "few.parquet")
    lonely.document("publish", "few.parquet", "--name", "few")
    # Somebody has to be there to be asked.
    said = lonely.run("peers", "few", "--bootstrap", origin.address)
    assert "few now, but this store has all of it: dhtdata seed few" in said.out, said
    lonely.stop_private_peer()
    with lonely.seeding("seed", "few"):
        said = lonely.run("peers", "few")
        assert "Nobody else" in said.out and "this machine itself seeds it" in said.out, said
        assert "dhtdata ticket few" in said.out


def test_a_bare_name_is_asked_of_the_peer_that_bootstrap_names(origin: Origin, reader: Machine) -> None:
    reader.document("info", origin.ticket)
    reader.stop_private_peer()
    (reader.home / "store" / "peers.json").unlink(missing_ok=True)
    (reader.home / "store" / "dht.json").unlink(missing_ok=True)
    reader.run("peers", "rows")  # a peer that knows nobody runs from here on
    done = reader.run("get", "rows", "--bootstrap", origin.address)
    assert done.code == 0 and "could not be asked" not in done.err, done.err


def test_damage_is_repaired_from_peers(origin: Origin, reader: Machine) -> None:
    reader.document("get", origin.ticket)
    with Store.open(reader.home / "store") as store:
        [entry] = store.manifests()
        manifest = Manifest.decode(store.read(entry.digest, limit_bytes=1 << 20))
        contents = Contents.decode(store.read(manifest.contents, limit_bytes=1 << 20))
        shard = Index.decode(store.read(contents.splits[0].groups[0].indexes[0], limit_bytes=1 << 20))[0]
        paths = [store.locate(digest).path for digest in (shard.digest, shard.table)]
    for path in paths:
        path.chmod(0o600)
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        done = reader.document("verify")
        assert done["damaged"] == [path.name] and done["repaired"] == 1 and done["remaining"] == []
        assert str(Digest.of_file(path)) == path.name
    assert reader.document("verify")["damaged"] == []


def test_a_lost_description_hides_nothing_else_and_is_repaired(origin: Origin, reader: Machine) -> None:
    reader.document("get", origin.ticket)
    pq.write_table(ROWS.slice(0, 10), reader.work / "own.parquet")
    reader.document("publish", "own.parquet", "--name", "own")
    manifest = origin.published["manifest"]
    path = reader.home / "store" / "blobs" / manifest[:2] / manifest
    path.chmod(0o600)
    path.write_bytes(b"{}")
    listed = reader.document("ls")
    assert [entry["name"] for entry in listed["datasets"]] == ["own"] and listed["damaged"] == [manifest]
    assert manifest in reader.run("ls").err
    reader.document("verify")
    assert {entry["name"] for entry in reader.document("ls")["datasets"]} == {"own", "rows"}
    path.chmod(0o600)
    path.write_bytes(b"{}")
    assert reader.document("rm", manifest) == {"removed": manifest, "name": None}
    assert reader.document("ls")["damaged"] == []


def test_a_digest_that_nobody_has_is_not_found_after_a_stated_search(origin: Origin, reader: Machine) -> None:
    sentence = reader.fails(5, "get", "0" * 64, "--bootstrap", origin.address)
    assert "0" * 64 in sentence and "asked" in sentence and "1 peer in" in sentence


def test_a_name_that_nobody_has_is_not_found(origin: Origin, reader: Machine) -> None:
    name = origin.published["name"].partition("@")[0] + "-of-another-kind"
    assert name in reader.fails(5, "get", name, "--bootstrap", origin.address)


def test_a_second_seed_of_a_store_hands_its_datasets_to_the_first(origin: Origin) -> None:
    machine = origin.machine
    pq.write_table(ROWS.slice(0, 100), machine.work / "few.parquet")
    made = machine.document("publish", "few.parquet", "--name", "few")
    (machine.work / "list.txt").write_text(f"# what we keep\n\nfew\n{origin.published['name']}\n")
    added = machine.document("seed", "list.txt")
    assert added["pid"] == origin.pid
    assert [entry["manifest"] for entry in added["datasets"]] == [made["manifest"], origin.published["manifest"]]
    status = machine.document("status")
    assert {entry["manifest"] for entry in status["datasets"]} == {made["manifest"], origin.published["manifest"]}
    listed = machine.document("ls")["datasets"]
    assert [entry["seeded"] for entry in listed] == [True, True]
    assert "now" in machine.run("ls").out


def test_a_seed_prints_tickets_with_its_live_address(origin: Origin) -> None:
    ticket = Ticket.parse(origin.machine.document("ticket", "rows")["ticket"])
    assert [str(address) for address in ticket.addresses] == [origin.address]


def test_a_port_in_use_is_named_and_never_changed(origin: Origin, reader: Machine) -> None:
    (reader.work / "rows.csv").write_text("id\n1\n2\n")
    reader.document("publish", "rows.csv", "--name", "mine")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = reader.fails(2, "seed", "mine", "--port", str(port))
    assert str(port) in sentence and "in use" in sentence


def test_a_port_that_another_seed_has_says_so(origin: Origin, reader: Machine) -> None:
    (reader.work / "rows.csv").write_text("id\n1\n2\n")
    reader.document("publish", "rows.csv", "--name", "mine")
    port = origin.address.rpartition(":")[2]
    sentence = reader.fails(2, "seed", "mine", "--port", port)
    assert f"TCP and UDP port {port} are in use by another dhtdata seed" in sentence and "--port" in sentence


def test_nobody_seeds_nobody_has_a_ticket(origin: Origin, reader: Machine) -> None:
    reader.document("get", origin.ticket)
    assert "dhtdata seed" in reader.fails(5, "ticket", "rows")


def test_a_dataset_that_is_not_kept_any_more_has_no_ticket(folder: Path) -> None:
    machine = Machine(folder, "fickle")
    (machine.work / "rows.csv").write_text("id\n1\n2\n")
    with machine.seeding("publish", "rows.csv", "--name", "gone", "--seed"):
        machine.document("unpin", "gone")
        assert "not seeded here" in machine.fails(5, "ticket", "gone")


def test_a_follower_serves_on_when_the_publisher_is_gone(folder: Path, reader: Machine) -> None:
    first, second = Machine(folder, "first"), Machine(folder, "second")
    (first.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(500))))
    with first.seeding("publish", "rows.csv", "--name", "short", "--seed") as (published, publisher):
        with second.seeding("seed", published["ticket"]) as (followed, _):
            second.document("get", published["manifest"])
            publisher.kill()
            publisher.wait()
            uri = published["name"].partition("@")[0]
            done = reader.document("get", uri, "--bootstrap", followed["addresses"][0])
            assert done["manifest"] == published["manifest"] and done["bytes_held"] == done["bytes"]
            assert second.document("stop")["kind"] == "seed"


def test_a_static_mirror_on_any_web_server_is_a_seed(origin: Origin, reader: Machine, tmp_path: Path) -> None:
    origin.machine.document("get", "rows", "--mirror", str(tmp_path))
    with serving(tmp_path) as (address, asked):
        ticket = str(Ticket(Digest.parse(origin.published["manifest"]), (address,)))
        done = reader.document("get", ticket)
        assert done["bytes_held"] == done["bytes"] == origin.published["bytes"]
    assert any(path.startswith("/v1/blobs/") for path in asked)


def test_a_manifest_of_a_newer_format_asks_for_an_upgrade(reader: Machine, tmp_path: Path) -> None:
    newer = json.dumps({"a_new_field": 1, "version": 2}, separators=(",", ":")).encode()
    blobs = tmp_path / "v1" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / str(Digest.of(newer))).write_bytes(newer)
    with serving(tmp_path) as (address, _):
        sentence = reader.fails(3, "get", str(Ticket(Digest.of(newer), (address,))))
    assert "version 2" in sentence and "upgrade" in sentence


def test_wrong_bytes_from_a_mirror_are_refused(reader: Machine, tmp_path: Path) -> None:
    wanted = Digest.of(b"what was asked for")
    blobs = tmp_path / "v1" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / str(wanted)).write_bytes(b"something else")
    with serving(tmp_path) as (address, _):
        sentence = reader.fails(5, "get", str(Ticket(wanted, (address,))))
    assert str(wanted) in sentence
    assert not list((reader.home / "store" / "blobs").rglob(str(wanted)))


def test_seeds_of_one_store_that_start_at_once_become_one(origin: Origin, folder: Path) -> None:
    machine = Machine(folder, "racers")
    racers = [
        subprocess.Popen(
            machine.command(["seed", origin.ticket, "--json"]),
            cwd=machine.work,
            env=machine.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        documents = []
        for racer in racers:
            assert racer.stdout is not None
            documents.append(json.loads(racer.stdout.readline()))
        assert {document["pid"] for document in documents} <= {racer.pid for racer in racers}
        assert len({document["pid"] for document in documents}) == 1
        [winner] = [racer for racer in racers if racer.pid == documents[0]["pid"]]
        assert [racer.wait(15) for racer in racers if racer is not winner] == [0, 0]
        other = documents[0]["port"] % 60_000 + 1_024
        assert str(documents[0]["port"]) in machine.fails(2, "seed", origin.ticket, "--port", str(other))
        winner.send_signal(signal.SIGINT)
        assert winner.wait(15) == 0
    finally:
        for racer in racers:
            racer.kill()
            racer.wait(5)
            if racer.stdout is not None:
                racer.stdout.close()


@pytest.mark.parametrize("command", ["get", "seed", "info"])
def test_an_interrupted_command_says_so_once(folder: Path, command: str) -> None:
    """The peer it asks accepts and never answers, so the command is still searching when Ctrl-C comes."""
    machine = Machine(folder, f"interrupted-{command}")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        bootstrap = f"127.0.0.1:{silent.getsockname()[1]}"
        child = subprocess.Popen(
            machine.command([command, "0" * 64, "--bootstrap", bootstrap, "--json"]),
            cwd=machine.work,
            env=machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        asked, _ = silent.accept()
        with asked:
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=20)
    machine.stop_private_peer()
    assert child.returncode == 130
    assert json.loads(out) == {"error": {"class": "Interrupted", "message": "interrupted", "exit_code": 130}}
    assert err == "dhtdata: interrupted\n"


def test_what_is_removed_is_not_seeded_any_more(origin: Origin, folder: Path) -> None:
    machine = Machine(folder, "removing")
    pq.write_table(ROWS.slice(0, 50), machine.work / "few.parquet")
    machine.document("publish", "few.parquet", "--name", "few")
    pq.write_table(ROWS.slice(50, 50), machine.work / "other.parquet")
    machine.document("publish", "other.parquet", "--name", "other")
    with machine.seeding("seed", "few", "other"):
        machine.document("unpin", "few")
        assert [entry["name_uri"].rpartition("/")[2] for entry in machine.document("status")["datasets"]] == ["other@1"]
        machine.document("rm", "other")
        assert machine.document("status")["datasets"] == []
        machine.document("pin", "few")
        assert len(machine.document("status")["datasets"]) == 1


def test_when_nothing_comes_the_message_says_who_was_known_and_what_they_did(
    folder: Path, reader: Machine, tmp_path: Path
) -> None:
    """Python's own web server does not answer range requests."""
    giver = Machine(folder, f"giver{next(_NUMBERS)}")
    pq.write_table(ROWS, giver.work / "rows.parquet")
    made = giver.document("publish", "rows.parquet", "--name", "rows")
    giver.document("get", "rows", "--mirror", str(tmp_path / "mirror"))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        said = reader.fails(5, "get", made["manifest"], "--web-seed", url, "--timeout", "3")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "fetching rows: nothing arrived for 3 s" in said and url in said and "status 200" in said
