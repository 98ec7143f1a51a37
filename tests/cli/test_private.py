"""Commands in a private network: several machines on one loopback, real peers, real sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dhtdata.formats.ticket import Ticket
from dhtdata.network import load_network, new_network, save_network
from tests.cli.machine import COMMAND_S, Machine

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
ROW_COUNT = 500


@dataclass(frozen=True)
class Lab:
    """A machine that seeds in a private network, and the network's file."""

    machine: Machine
    file: Path
    fingerprint: str
    published: dict[str, Any]

    @property
    def ticket(self) -> str:
        return str(self.published["ticket"])

    @property
    def secret(self) -> bytes:
        secret = load_network(self.file).secret
        assert secret is not None
        return secret

    def ticket_with_secret(self) -> str:
        return str(self.machine.document("ticket", "rows", "--with-secret")["ticket"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    machine = Machine(folder, "lab")
    fingerprint = machine.document("network", "lab.network")["fingerprint"]
    (machine.work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(ROW_COUNT))))
    seeding = machine.seeding("publish", "rows.csv", "--name", "rows", "--seed", "--network", "lab.network")
    with seeding as (published, _):
        yield Lab(machine, machine.work / "lab.network", fingerprint, published)


@pytest.fixture
def reader(folder: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine that knows nobody yet."""
    machine = Machine(folder, request.node.name)
    yield machine
    machine.stop_private_peer()


def test_a_network_is_made_once_and_its_secret_never_shown(folder: Path) -> None:
    machine = Machine(folder, "making")
    made = machine.run("network", "new.network")
    path = machine.work / "new.network"
    network = load_network(path)
    assert made.code == 0 and path.stat().st_mode & 0o777 == 0o600
    for told in (network.fingerprint, "made now", "Whoever has this file is a member", "--network new.network"):
        assert told in made.out
    shown = machine.run("network", "new.network")
    assert "was there" in shown.out and load_network(path) == network
    document = machine.document("network", "new.network")
    assert document == {"file": "new.network", "fingerprint": network.fingerprint, "made": False}
    assert network.secret is not None
    assert network.secret.hex() not in made.out + made.err + shown.out + shown.err + str(document)


def test_a_wrong_file_is_never_overwritten(folder: Path) -> None:
    machine = Machine(folder, "wrong")
    path = machine.work / "notes.txt"
    path.write_text("notes")
    assert "holds no secret" in machine.fails(2, "network", "notes.txt")
    assert path.read_text() == "notes"
    assert "missing.network" in machine.fails(2, "info", "0" * 64, "--network", "missing.network")
    assert "missing.network" in machine.fails(
        2, "publish", "notes.txt", "--name", "notes", "--seed", "--network", "missing.network"
    )


def test_a_member_gets_what_a_stranger_does_not(lab: Lab, reader: Machine) -> None:
    sentence = reader.fails(5, "get", lab.ticket)
    assert "asked" in sentence and "no answer from" in sentence and "--network" in sentence
    reader.stop_private_peer()
    done = reader.document("get", lab.ticket, "--network", str(lab.file))
    assert done["rows"] == ROW_COUNT and done["bytes_held"] == done["bytes"]
    status = reader.document("status")
    assert status["kind"] == "private" and status["network"] == lab.fingerprint
    assert f"private, fingerprint {lab.fingerprint}" in reader.run("status").out


def test_the_environment_may_name_the_network(lab: Lab, reader: Machine) -> None:
    environment = reader.environment | {"DHTDATA_NETWORK": str(lab.file)}
    done = subprocess.run(
        reader.command(["info", lab.ticket]), env=environment, cwd=reader.work, capture_output=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stderr


def test_a_ticket_says_what_its_reader_needs(lab: Lab) -> None:
    plain = lab.machine.document("ticket", "rows")
    assert Ticket.parse(plain["ticket"]).secret is None
    assert (plain["network"], plain["secret"]) == (lab.fingerprint, False)
    assert lab.published["network"] == lab.fingerprint and Ticket.parse(lab.ticket).secret is None
    said = lab.machine.run("ticket", "rows")
    assert said.out.strip() == plain["ticket"] and "needs the network file" in said.err
    secret = lab.machine.run("ticket", "rows", "--with-secret")
    assert Ticket.parse(secret.out.strip()).secret == lab.secret and "whoever reads it is a member" in secret.err


def test_a_ticket_with_the_secret_is_all_that_a_reader_needs(lab: Lab, reader: Machine) -> None:
    ticket = lab.ticket_with_secret()
    assert reader.document("head", ticket, "-n", "2")["rows"] == [{"id": 0}, {"id": 1}]
    done = reader.document("get", ticket)
    assert done["rows"] == ROW_COUNT and done["bytes_held"] == done["bytes"]
    kept = reader.home / "store" / "networks" / f"{lab.fingerprint}.network"
    assert load_network(kept) == load_network(lab.file)
    status = reader.document("status")
    assert status["network"] == lab.fingerprint
    running = Path(f"/proc/{status['pid']}")
    shown = running.joinpath("cmdline").read_bytes() + running.joinpath("environ").read_bytes()
    assert os.fsencode(kept) in shown and lab.secret.hex().encode() not in shown
    reader.stop_private_peer()
    assert reader.document("peers", lab.ticket, "--network", str(kept))["providers"]


def test_a_mount_enters_the_network_of_its_ticket(lab: Lab, reader: Machine) -> None:
    code = "import sys, dhtdata\nprint(sum(len(b['id']) for b in dhtdata.mount(sys.argv[1], batch_size=50)))\n"
    command = [sys.executable, "-P", "-c", code, lab.ticket_with_secret()]
    done = subprocess.run(
        command, env=reader.environment, cwd=reader.work, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.stdout.strip() == str(ROW_COUNT), done.stderr


def test_a_mount_takes_the_networks_file(lab: Lab, reader: Machine) -> None:
    code = "import sys, dhtdata\nprint(dhtdata.mount(sys.argv[1], network=sys.argv[2]).num_rows)\n"
    command = [sys.executable, "-P", "-c", code, lab.ticket, str(lab.file)]
    done = subprocess.run(
        command, env=reader.environment, cwd=reader.work, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.stdout.strip() == str(ROW_COUNT), done.stderr


def test_a_second_seed_joins_by_ticket_and_its_own_tickets_carry_no_secret(lab: Lab, folder: Path) -> None:
    second = Machine(folder, "second")
    with second.seeding("seed", lab.ticket_with_secret()) as (followed, _):
        assert followed["network"] == lab.fingerprint
        assert Ticket.parse(followed["ticket"]).secret is None
        assert Ticket.parse(second.document("ticket", "rows", "--with-secret")["ticket"]).secret == lab.secret


def test_two_networks_at_once_are_refused_with_both_named(lab: Lab, reader: Machine) -> None:
    other = new_network()
    save_network(reader.work / "other.network", other)
    ticket = lab.ticket_with_secret()
    sentence = reader.fails(2, "get", ticket, "--network", "other.network")
    assert lab.fingerprint in sentence and other.fingerprint in sentence and "--network" in sentence
    reader.document("info", ticket)
    sentence = reader.fails(2, "get", lab.ticket, "--network", "other.network")
    assert lab.fingerprint in sentence and other.fingerprint in sentence and "dhtdata stop" in sentence
    findings = reader.run("doctor", "--network", "other.network", "--json").document["findings"]
    [found] = [finding for finding in findings if finding["subject"] == "network"]
    assert found["verdict"] == "wrong" and "dhtdata stop" in found["text"]


def test_a_secret_comes_only_from_a_seed_in_a_private_network(lab: Lab, reader: Machine) -> None:
    (reader.work / "own.csv").write_text("id\n1\n")
    reader.document("publish", "own.csv", "--name", "own")
    assert "--network FILE" in reader.fails(2, "ticket", "own", "--with-secret")
    with reader.seeding("seed", "own"):
        assert "leave --with-secret out" in reader.fails(2, "ticket", "own", "--with-secret")
        assert reader.run("status").out.count("public") == 1
