"""Datasets that lie on web servers and in folders, while nobody seeds them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dhtdata.digest import Digest
from dhtdata.formats.ticket import Ticket
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.store import Store
from tests.cli.machine import Machine
from tests.cli.web import serving

pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(120)]
ROWS = pa.table({"id": range(20_000), "text": [f"this is row {number}" * 5 for number in range(20_000)]})
PUBLIC = "https://rows.mirror.invalid/rows"


@dataclass(frozen=True)
class Origin:
    """What somebody published who is not there any more; its mirror is."""

    machine: Machine
    mirror: Path
    manifest: str
    name: str
    bytes: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w")


@pytest.fixture(scope="module")
def origin(folder: Path) -> Origin:
    machine = Machine(folder, "origin")
    pq.write_table(ROWS, machine.work / "rows.parquet")
    done = machine.document("publish", "rows.parquet", "--name", "rows", "--web-seed", PUBLIC)
    machine.document("get", "rows", "--mirror", str(folder / "a mirror"))
    machine.stop_private_peer()
    return Origin(machine, folder / "a mirror", done["manifest"], done["name"].partition("@")[0], done["bytes"])


@pytest.fixture
def reader(folder: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(folder, f"r{abs(hash(request.node.name)) % 10_000}")
    yield machine
    machine.stop_private_peer()


def test_a_folder_is_all_that_a_digest_needs(origin: Origin, reader: Machine, tmp_path: Path) -> None:
    url = origin.mirror.as_uri()
    done = reader.document("get", origin.manifest, "--web-seed", url, "--to", str(tmp_path))
    assert done["bytes_held"] == done["bytes"] == origin.bytes
    assert pq.read_table(done["files"][0]).to_pydict() == ROWS.to_pydict()
    assert [entry["address"] for entry in reader.document("status")["traffic"]] == [url]
    assert [entry["address"] for entry in reader.document("peers", origin.manifest)["providers"]] == [url]


def test_a_web_server_is_all_that_a_ticket_needs(origin: Origin, reader: Machine) -> None:
    ticket = origin.machine.document("ticket", "rows", "--web-seed", PUBLIC + "/")
    assert ticket["web_seeds"] == [PUBLIC] and ticket["addresses"] == []
    assert Ticket.parse(ticket["ticket"]).web_seeds == (WebSeed(PUBLIC),)
    with serving(origin.mirror) as (address, asked):
        done = reader.document("get", ticket["ticket"], "--web-seed", address.url)
    assert done["bytes_held"] == done["bytes"] == origin.bytes
    assert len([path for path in asked if path.startswith("/v1/have/")]) == 1


def test_a_name_is_found_on_a_web_server_below_a_prefix(origin: Origin, reader: Machine, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "er").symlink_to(origin.mirror)
    with serving(tmp_path) as (address, asked):
        seed = f"{address.url}/deep/er/"
        assert reader.document("info", origin.name, "--web-seed", seed)["rows"] == ROWS.num_rows
        shown = reader.document("head", origin.name, "-n", "1", "--web-seed", seed)
    assert shown["rows"] == [{"id": 0, "text": "this is row 0" * 5}]
    assert all(path.startswith("/deep/er/v1/") for path in asked)


def test_info_shows_the_web_seeds_of_a_manifest(origin: Origin) -> None:
    assert origin.machine.document("info", "rows")["web_seeds"] == [PUBLIC]
    assert PUBLIC in origin.machine.run("info", "rows").out


def test_a_peer_that_runs_already_hears_of_a_web_seed(origin: Origin, reader: Machine) -> None:
    sentence = reader.fails(2, "get", origin.manifest)
    assert "--web-seed URL" in sentence
    assert reader.document("status")["kind"] == "private"
    done = reader.document("get", origin.manifest, "--web-seed", origin.mirror.as_uri())
    assert done["bytes_held"] == origin.bytes


def test_verify_repairs_from_a_web_seed(origin: Origin, reader: Machine) -> None:
    reader.document("get", origin.manifest, "--web-seed", origin.mirror.as_uri())
    reader.stop_private_peer()
    with Store.open(reader.home / "store") as store:
        path = max((store.locate(digest).path for digest in _blobs(origin)), key=lambda path: path.stat().st_size)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    done = reader.document("verify", "--web-seed", origin.mirror.as_uri())
    assert (done["damaged"], done["repaired"]) == ([path.name], 1)


def test_a_mirror_comes_with_what_its_server_must_do(origin: Origin, tmp_path: Path) -> None:
    said = origin.machine.run("get", "rows", "--mirror", str(tmp_path / "another")).out
    assert "a web server that answers range requests" in said and "http.server does not" in said


def test_a_seed_completes_from_a_web_seed_and_serves_others(origin: Origin, folder: Path, reader: Machine) -> None:
    seed = Machine(folder, "seed")
    with seed.seeding("seed", origin.manifest, "--web-seed", origin.mirror.as_uri()) as (seeded, _):
        done = reader.document("get", seeded["ticket"])
    assert done["bytes_held"] == origin.bytes
    addresses = {entry["address"] for entry in reader.document("status")["traffic"]}
    assert addresses == set(seeded["addresses"]), "a web seed is passed on to nobody"


def test_a_web_seed_that_has_other_datasets_is_told_from_one_that_has_this(origin: Origin, reader: Machine) -> None:
    (reader.work / "empty").mkdir()
    with serving(reader.work / "empty") as (address, asked):
        done = reader.document("get", origin.manifest, "--web-seed", address.url, "--web-seed", origin.mirror.as_uri())
    assert done["bytes_held"] == origin.bytes
    assert 0 < len(asked) < 40


def test_settings_name_web_seeds_too(origin: Origin, reader: Machine) -> None:
    reader.home.mkdir()
    (reader.home / "config.toml").write_text(f'web_seeds = ["{origin.mirror.as_uri()}"]\n')
    assert reader.document("get", origin.manifest)["bytes_held"] == origin.bytes


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("publish", "x.csv", "--name", "x", "--web-seed", "file:///mnt/x"), "only its own machine can read"),
        (("publish", "x.csv", "--name", "x", "--web-seed", "http://10.0.0.1/x"), "not an address that everybody"),
        (("publish", "x.csv", "--name", "x", "--web-seed", "http://me:secret@a.org"), "user names and passwords"),
        (("ticket", "x", "--web-seed", "http://nas/x"), "write the whole host name"),
        (("get", "x", "--web-seed", "https://a.org?x"), "begins with ? or #"),
        (("get", "x", "--web-seed", "mirror"), "expected https://"),
    ],
)
def test_a_web_seed_that_cannot_be_is_refused_at_once(
    reader: Machine, arguments: tuple[str, ...], complaint: str
) -> None:
    (reader.work / "x.csv").write_text("id\n1\n")
    assert complaint in reader.fails(2, *arguments)


def test_https_is_believed_only_with_a_certificate_that_this_machine_trusts(
    origin: Origin, reader: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(origin.mirror, context) as (address, asked):
        seed = f"https://{address}"
        sentence = reader.fails(5, "get", origin.manifest, "--web-seed", seed)
        assert "certificate" in sentence
        assert asked == []
        reader.stop_private_peer()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert reader.document("get", origin.manifest, "--web-seed", seed)["bytes_held"] == origin.bytes
        assert asked != []
        reader.stop_private_peer()
        other = f"https://localhost:{address.port}"
        sentence = reader.fails(5, "get", "0" * 64, "--web-seed", other)
        assert "certificate" in sentence, "it is one of another host"


def _blobs(origin: Origin) -> list[Digest]:
    """Of the dataset, shards and others, as its mirror has them."""
    return [Digest.parse(path.name) for path in (origin.mirror / "v1" / "blobs").iterdir() if len(path.name) == 64]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """One that its owner signed himself, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a mirror")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private
