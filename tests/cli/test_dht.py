"""Looking at the DHT: real seeds, real sockets, the real command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dhtdata.dht.envelope import VERSION
from dhtdata.digest import Digest
from dhtdata.formats.contents import Contents
from dhtdata.formats.index import Index
from dhtdata.formats.manifest import Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import contents_key, shard_key
from dhtdata.formats.ticket import Ticket
from dhtdata.store import Store
from tests.cli.dht_samples import of_another_version
from tests.cli.machine import Machine
from tests.cli.test_doctor import free_port, health
from tests.peer.processes import until

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
SEEDS = 4
DAY_S = 86_400
_CLOCK = f"""
import sys, time
real = time.time
time.time = lambda: real() + {DAY_S}
from dhtdata.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Swarm:
    """Seeds of one dataset that know each other."""

    machines: list[Machine]
    published: dict[str, Any]
    addresses: list[str]

    @property
    def name(self) -> str:
        return str(self.published["name"]).partition("@")[0]

    @property
    def ticket(self) -> str:
        return str(self.published["ticket"])

    @property
    def manifest(self) -> str:
        return str(self.published["manifest"])

    def digests(self) -> tuple[Digest, Digest]:
        """Contents and a shard of the dataset."""
        with Store.open(self.machines[0].home / "store") as store:
            manifest = Manifest.decode(store.read(Digest.parse(self.manifest), limit_bytes=1 << 20))
            contents = Contents.decode(store.read(manifest.contents, limit_bytes=1 << 20))
            index = Index.decode(store.read(contents.splits[0].groups[0].indexes[0], limit_bytes=1 << 20))
        return manifest.contents, index[0].digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


@pytest.fixture(scope="module")
def swarm(folder: Path) -> Iterator[Swarm]:
    machines = [Machine(folder, f"seed{number}") for number in range(SEEDS)]
    (machines[0].work / "rows.csv").write_text("id\n" + "\n".join(map(str, range(200))))
    with ExitStack() as stack:
        published, _ = stack.enter_context(machines[0].seeding("publish", "rows.csv", "--name", "rows", "--seed"))
        addresses = [published["addresses"][0]]
        for machine in machines[1:]:
            followed, _ = stack.enter_context(machine.seeding("seed", published["ticket"]))
            addresses.append(followed["addresses"][0])
        # Each claims the dataset at the others, some of them after a pause, since nobody knew anybody at first.
        until(lambda: all(_settled(machine) for machine in machines), 60.0)
        yield Swarm(machines, published, addresses)


def _settled(machine: Machine) -> bool:
    status = machine.document("status")
    [dataset] = status["datasets"]
    return bool(status["dht"]["contacts"] == SEEDS - 1 and dataset.get("holders") == SEEDS - 1)


@pytest.fixture
def reader(folder: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine that knows nobody yet."""
    machine = Machine(folder, f"r{abs(hash(request.node.name)) % 100_000}")
    yield machine
    machine.stop_private_peer()


def test_a_seed_tells_how_it_stands_in_the_dht(swarm: Swarm) -> None:
    machine = swarm.machines[1]
    seen = machine.document("dht", "status")
    assert seen["reached"] is True and seen["families"] == seen["families_reached"] == [4]
    assert seen["contacts"] == sum(seen["contacts_by_bits"]) == SEEDS - 1 and seen["nodes_estimated"] == SEEDS
    assert seen["seen_as"] == [swarm.addresses[1]] and len(bytes.fromhex(seen["node"])) == 20
    assert seen["records_held"] and seen["keys_held"] and seen["requests_answered"] and seen["calls"]
    assert seen["shard_keys"] >= 2 and seen["clock_witnesses"] == SEEDS - 1 and seen["clock_wrong"] is False
    shown = machine.run("dht", "status").out
    for said in ("by strangers, over IPv4", "3 contacts of about 4 nodes", "Routing table", "within 1 s of 3 other"):
        assert said in shown
    status = machine.run("status").out
    assert "3 contacts of about 4 nodes; reached by strangers" in status and "DHT nodes" in status
    assert machine.document("status")["dht"]["node"] == seen["node"]


def test_who_runs_no_peer_is_told_to_start_one(reader: Machine) -> None:
    assert "start one with dhtdata seed" in reader.fails(5, "dht", "status")


def test_the_family_alone_shows_its_commands(reader: Machine) -> None:
    done = reader.run("dht")
    assert done.code == 2 and all(command in done.out for command in ("status", "lookup", "ping"))
    assert "dht --help" in reader.fails(2, "dht", "nonsense")


def test_a_name_is_looked_up_under_its_three_keys(swarm: Swarm) -> None:
    done = swarm.machines[2].document("dht", "lookup", "rows")
    keys = [key.hex() for key in Name.parse(swarm.name).dht_keys]
    assert [each["key"] for each in done["lookups"]] == keys and done["asked"] == "rows"
    for each in done["lookups"]:
        assert {record["kind"] for record in each["found"]} == {"name"} and swarm.manifest in each["found"][0]["says"]
        assert len(each["steps"]) == SEEDS - 1 and 0 <= each["first_s"] <= each["took_s"]
    shown = swarm.machines[2].run("dht", "lookup", swarm.name).out
    assert "name rows, key 3 of 3" in shown and f"name, of manifest {swarm.manifest[:12]}" in shown


def test_a_look_up_shows_whom_it_asked_and_who_provides(swarm: Swarm) -> None:
    contents, _ = swarm.digests()
    machine = swarm.machines[0]
    [done] = machine.document("dht", "lookup", swarm.manifest)["lookups"]
    assert done["key"] == contents_key(contents).hex() and done["what"] == f"providers of contents {str(contents)[:12]}"
    asked = {step["address"]: step for step in done["steps"]}
    assert set(asked) == set(swarm.addresses[1:])
    for step in asked.values():
        assert step["outcome"] == "answered" and step["records"] and step["hop"] == 0 and step["took_s"] > 0
        assert len(bytes.fromhex(step["node"])) == 20 and 0 <= step["near_bits"] <= 160
    providers = {address: record for record in done["found"] for address in record["addresses"]}
    assert set(providers) == set(swarm.addresses)
    assert {(record["kind"], record["says"]) for record in providers.values()} == {("provider", "all")}
    shown = machine.run("dht", "lookup", swarm.manifest).out
    assert all(address in shown for address in swarm.addresses) and "3 of 3 nodes asked answered" in shown


def test_a_key_contents_a_shard_and_a_digest_nobody_knows_are_looked_up_too(swarm: Swarm, reader: Machine) -> None:
    contents, shard = swarm.digests()
    machine = swarm.machines[0]
    key = contents_key(contents).hex()
    [done] = machine.document("dht", "lookup", key.upper())["lookups"]
    assert done["key"] == key and done["what"] == "" and len(done["found"]) == SEEDS
    [done] = machine.document("dht", "lookup", str(contents))["lookups"]
    assert done["key"] == key
    [done] = machine.document("dht", "lookup", str(shard))["lookups"]
    assert done["key"] == shard_key(shard).hex() and {record["kind"] for record in done["found"]} == {"shards"}
    unknown = reader.document("dht", "lookup", str(contents), "--bootstrap", swarm.addresses[0])["lookups"]
    assert [each["key"] for each in unknown] == [key, shard_key(contents).hex()]
    assert len(unknown[0]["found"]) == SEEDS and "if it is" in unknown[0]["what"]


def test_a_ticket_leads_to_its_datasets_keys(swarm: Swarm, reader: Machine) -> None:
    contents, _ = swarm.digests()
    done = reader.document("dht", "lookup", swarm.ticket)
    assert len(done["lookups"]) == 3 and all(each["found"] for each in done["lookups"])
    ticket = Ticket(Digest.parse(swarm.manifest), Ticket.parse(swarm.ticket).addresses)
    done = reader.document("dht", "lookup", str(ticket))
    assert done["asked"] == swarm.manifest
    assert [each["key"] for each in done["lookups"]] == [contents_key(contents).hex()] and done["found"] == SEEDS


def test_what_nobody_has_ends_with_5_and_the_way_is_shown_all_the_same(swarm: Swarm) -> None:
    done = swarm.machines[0].run("dht", "lookup", "ab" * 20)
    assert done.code == 5 and "Nothing found: 3 of 3 nodes asked answered" in done.out
    done = swarm.machines[0].run("dht", "lookup", "ab" * 20, "--json")
    assert done.code == 5 and done.document["found"] == 0 and len(done.document["lookups"][0]["steps"]) == 3


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        ("What is this?", 3, "a key of the DHT (40 hexadecimal digits)"),
        ("ab" * 19, 3, "has 38 digits: a key of the DHT has 40, a digest 64"),
        ("dhtdata1" + "a" * 80, 3, "copy it again"),
        ("rows", 5, "no dataset called 'rows'"),
        ("ab" * 20, 2, "knows nobody to ask"),
        ("0" * 64, 2, "--bootstrap IP:PORT"),
    ],
)
def test_what_is_no_key_is_refused_with_what_was_expected(reader: Machine, key: str, code: int, said: str) -> None:
    assert said in reader.fails(code, "dht", "lookup", key)


def test_a_look_up_through_a_dead_address_names_it(reader: Machine) -> None:
    dead = f"127.0.0.1:{free_port()}"
    sentence = reader.fails(5, "dht", "lookup", "ab" * 20, "--bootstrap", dead)
    assert dead in sentence and "another network or a blocked UDP port" in sentence


def test_a_ping_says_who_answers(swarm: Swarm, reader: Machine) -> None:
    done = reader.document("dht", "ping", swarm.addresses[1])
    assert done["node"] == swarm.machines[1].document("dht", "status")["node"]
    assert done["client"] is False and done["took_s"] > 0 and done["address"] == swarm.addresses[1]
    assert "a full node of the DHT" in reader.run("dht", "ping", swarm.addresses[1]).out
    port = reader.document("dht", "status")["port"]
    assert swarm.machines[0].document("dht", "ping", f"127.0.0.1:{port}")["client"] is True
    assert "a client" in swarm.machines[0].run("dht", "ping", f"127.0.0.1:{port}").out


def test_a_ping_says_why_nobody_answers(swarm: Swarm) -> None:
    machine = swarm.machines[0]
    silent = f"127.0.0.1:{free_port()}"
    assert machine.fails(6, "dht", "ping", silent) == (
        f"{silent} does not answer: wrong address, another network or a blocked port"
    )
    assert "our own address" in machine.fails(6, "dht", "ping", swarm.addresses[0])
    assert "no IPv6 socket" in machine.fails(6, "dht", "ping", "[::1]:8470")
    with of_another_version() as address:
        sentence = machine.fails(6, "dht", "ping", str(address))
    assert f"{address} speaks version {VERSION + 1} of the protocol" in sentence and "upgrade the older" in sentence
    assert machine.document("dht", "status")["other_versions"] >= 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost:8470", "is a host name"),
        ("example.org", "is a host name"),
        ("127.0.0.1", "is not an address: expected IP:PORT"),
        ("127.0.0.1:0", "port 0 is not an address"),
        ("1.2.3:80", "is not an IP address"),
    ],
)
def test_what_is_no_address_is_refused(reader: Machine, address: str, said: str) -> None:
    sentence = reader.fails(2, "dht", "ping", address)
    assert said in sentence and "203.0.113.7:8470" in sentence


def test_monitors_see_how_a_seed_stands(swarm: Swarm) -> None:
    with urllib.request.urlopen(f"http://{swarm.addresses[0]}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    measured = {name: float(value) for name, value in (line.split() for line in lines)}
    assert measured["dhtdata_dht_reached"] == 1 and measured["dhtdata_dht_contacts"] == SEEDS - 1
    assert measured["dhtdata_dht_nodes_estimated"] == SEEDS and measured["dhtdata_dht_records_held"] > 0
    assert abs(measured["dhtdata_dht_clock_ahead_seconds"]) < 60 and measured["dhtdata_dht_shard_keys"] >= 2
    assert measured["dhtdata_dht_shards_behind_seconds"] == 0


def _findings(machine: Machine, *bootstrap: str) -> dict[str, dict[str, str]]:
    given = ("--bootstrap", ",".join(bootstrap)) if bootstrap else ()
    findings = machine.run("doctor", *given, "--json").document["findings"]
    return {finding["subject"]: finding for finding in findings}


def test_doctor_tells_own_and_dead_addresses_from_those_that_answer(swarm: Swarm) -> None:
    dead = f"127.0.0.1:{free_port()}"
    found = _findings(swarm.machines[0], swarm.addresses[1], swarm.addresses[0], dead)
    assert found["bootstrap"]["verdict"] == "good"
    text = found["bootstrap"]["text"]
    assert text.startswith("1 of 2 known peers answer over HTTP and UDP")
    assert f"{dead} does not answer" in text and f"{swarm.addresses[0]} is this machine's own address" in text
    assert found["DHT"]["verdict"] == "good" and "strangers reach the running seed over IPv4" in found["DHT"]["text"]
    assert found["clock"]["text"] == "within 1 s of 3 other nodes of the DHT"
    alone = _findings(swarm.machines[0], swarm.addresses[0])["bootstrap"]
    assert alone["verdict"] == "doubtful" and "name another peer" in alone["text"]


def test_doctor_says_that_udp_is_blocked_and_who_speaks_another_version(swarm: Swarm) -> None:
    with health(0.0) as blocked, of_another_version() as newer:
        text = _findings(swarm.machines[0], str(blocked), str(newer), swarm.addresses[1])["bootstrap"]["text"]
    assert f"{blocked} answers over HTTP, but not over UDP: a firewall blocks UDP, or it is in another network" in text
    assert f"{newer} speaks version {VERSION + 1} of the protocol" in text


def test_a_clock_that_is_a_day_ahead_is_said_plainly(swarm: Swarm, folder: Path) -> None:
    machine = Machine(folder, "tomorrow")
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _CLOCK, "seed", swarm.ticket, "--bootstrap", ",".join(swarm.addresses), "--json"],
        cwd=machine.work,
        env=machine.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline()
        until(lambda: bool(machine.document("dht", "status")["clock_wrong"]), 30.0)
        seen = machine.document("dht", "status")
        assert abs(seen["clock_ahead_s"] - DAY_S) < 60
        said = f"24 h ahead of {seen['clock_witnesses']} other nodes"
        assert f"our clock is {said}: set it, claims are refused until then" in machine.run("dht", "status").out
        assert "clock 24 h ahead of the others': set it" in " ".join(machine.run("status").out.split())
        clock = _findings(machine)["clock"]
        assert clock["verdict"] == "wrong" and "24 h ahead of" in clock["text"] and "set it" in clock["text"]
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(15)
        if child.stdout is not None:
            child.stdout.close()
