from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.config import (
    DEFAULT_PORT,
    MAX_RUNTIME_PATH_BYTES,
    Settings,
    entering,
    launched_ranks,
    load_settings,
    local_folders,
    parse_bandwidth,
    parse_rate,
    parse_seconds,
    parse_size,
    rate_text,
    runtime_folder,
)
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import LocalName, Ticket
from dhtdata.network import load_network, new_network, save_network

FILE = """
store = "/from/file"
cache_limit = "1GB"
listen = "127.0.0.1"
port = 1
bootstrap = ["192.0.2.1:1", "[2001:db8::1]:1"]
network = "/from/file.network"
web_seeds = ["https://a.example.org", "file:///from/file"]
up = "1MB/s"
down = 1000000
peer_up = "unlimited"
"""
ENVIRONMENT = {
    "DHTDATA_STORE": "/from/environment",
    "DHTDATA_CACHE_LIMIT": "2GB",
    "DHTDATA_LISTEN": "127.0.0.2",
    "DHTDATA_PORT": "2",
    "DHTDATA_BOOTSTRAP": "192.0.2.2:2, 192.0.2.3:2,",
    "DHTDATA_NETWORK": "/from/environment.network",
    "DHTDATA_WEB_SEEDS": " https://b.example.org  http://127.0.0.1:81/x\n",
    "DHTDATA_UP": "2MB/s",
    "DHTDATA_PEER_UP": "2MB/s",
}
FLAGS = {
    "store": Path("/from/flag"),
    "cache_limit": 3_000_000_000,
    "listen": "127.0.0.3",
    "port": 3,
    "bootstrap": (Address("192.0.2.4", 3),),
    "network": Path("/from/flag.network"),
    "web_seeds": ["https://c.example.org/"],
    "up": "unlimited",
    "peer_up": "3MB/s",
}


def settings(home: Path, flags: Mapping[str, object] = {}, environment: Mapping[str, str] = {}) -> Settings:
    return load_settings({"home": home, **flags}, environment)


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found == Settings(home=tmp_path, store=tmp_path / "store")
    assert (found.cache_limit, found.listen, found.port, found.bootstrap) == (None, "::", DEFAULT_PORT, ())
    assert found.network is None
    assert found.keys == tmp_path / "keys"


def test_the_home_is_the_users_data_folder_by_default() -> None:
    found = load_settings({}, {"DHTDATA_STORE": "/elsewhere"})
    assert found.home == platformdirs.user_data_path("dhtdata")


def test_without_arguments_the_environment_is_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHTDATA_HOME", str(tmp_path))
    monkeypatch.setenv("DHTDATA_PORT", "77")
    assert (load_settings().home, load_settings().port) == (tmp_path, 77)


def test_flag_over_environment_over_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(FILE)
    found = settings(tmp_path)
    assert (found.store, found.cache_limit, found.listen, found.port) == (Path("/from/file"), 10**9, "127.0.0.1", 1)
    assert found.bootstrap == (Address("192.0.2.1", 1), Address("2001:db8::1", 1))
    assert found.network == Path("/from/file.network")
    assert [seed.url for seed in found.web_seeds] == ["https://a.example.org", "file:///from/file"]
    found = settings(tmp_path, {}, ENVIRONMENT)
    assert (found.store, found.cache_limit, found.listen, found.port) == (
        Path("/from/environment"),
        2 * 10**9,
        "127.0.0.2",
        2,
    )
    assert found.bootstrap == (Address("192.0.2.2", 2), Address("192.0.2.3", 2))
    assert found.network == Path("/from/environment.network")
    assert [seed.url for seed in found.web_seeds] == ["https://b.example.org", "http://127.0.0.1:81/x"]
    found = settings(tmp_path, FLAGS, ENVIRONMENT)
    assert (found.store, found.cache_limit, found.listen, found.port) == (
        Path("/from/flag"),
        3 * 10**9,
        "127.0.0.3",
        3,
    )
    assert found.bootstrap == (Address("192.0.2.4", 3),)
    assert found.network == Path("/from/flag.network")
    assert [(seed.url, seed.named) for seed in found.web_seeds] == [("https://c.example.org", True)]
    assert (found.up, found.down, found.peer_up, found.peer_down) == (None, 10**6, 3 * 10**6, None)


@pytest.mark.parametrize("field", FLAGS)
def test_each_field_is_taken_from_the_best_source_that_has_it(tmp_path: Path, field: str) -> None:
    (tmp_path / "config.toml").write_text(FILE)
    flagged = settings(tmp_path, {field: FLAGS[field]}, ENVIRONMENT)
    for other in FLAGS:
        best = settings(tmp_path, FLAGS) if other == field else settings(tmp_path, {}, ENVIRONMENT)
        assert getattr(flagged, other) == getattr(best, other)


def test_a_flag_that_was_not_given_and_an_empty_variable_count_for_nothing(tmp_path: Path) -> None:
    assert settings(tmp_path, {"port": None}, {"DHTDATA_PORT": ""}).port == DEFAULT_PORT


def test_paths_are_absolute_and_know_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    found = load_settings({"home": "here", "store": "~/there", "network": "lab.network"}, {})
    assert (found.home, found.store) == (tmp_path / "here", Path("/home/someone/there"))
    assert found.network == tmp_path / "lab.network"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 1", "unknown key 'colour'; known are store, cache_limit"),
        ('home = "/elsewhere"', "unknown key 'home'"),
        ("port =", "cannot be read"),
        ("store = 5", "store: 5 is not a path"),
        ('store = "a\\u0000b"', "is not a path"),
        ("network = 5", "network: 5 is not a path"),
        ('store = "~nobody-of-this-name/x"', "no such user"),
        ("cache_limit = {}", "is not a size"),
        ("cache_limit = true", "'True' is not a size"),
        ('cache_limit = "lots"', "'lots' is not a size"),
        ("listen = 5", "listen: 5 is not an IP address"),
        ("listen = true", "listen: True is not an IP address"),
        ('listen = "localhost"', "'localhost' is not an IP address"),
        ("port = -1", "port: -1 is not in"),
        ("port = 65536", "port: 65536 is not in"),
        ("port = 1.5", "port: 1.5 is not in"),
        ("port = []", "port: .* is not in"),
        ('port = "²"', "port: '²' is not in"),
        ("bootstrap = 5", "bootstrap: 5 is not a list"),
        ("web_seeds = 5", "web_seeds: 5 is not a list of URLs"),
        ("web_seeds = [5]", "web_seeds: .* is not a list of URLs"),
        ('web_seeds = "mirror"', "web_seeds: 'mirror' is no web seed"),
        ("bootstrap = [5]", "bootstrap: .* is not a list"),
        ("bootstrap = {}", "bootstrap: .* is not a list"),
        ('bootstrap = "example.org:80"', "bootstrap: 'example.org' is not an IP address"),
        ('bootstrap = "192.0.2.1"', "bootstrap: .* is not an address"),
        ("up = true", "up in config.toml: 'True' is no rate"),
        ("down = 0", "down in config.toml: 0 is too low"),
        ("peer_down = []", "peer_down in config.toml: '\\[\\]' is no rate"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        settings(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        settings(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    {
        "0": 0,
        "12": 12,
        " 12 B ": 12,
        "1kb": 1_000,
        "1KiB": 1_024,
        "1.5 GiB": 3 << 29,
        "200GB": 200 * 10**9,
        "2TiB": 2 << 40,
        "0.5MB": 500_000,
        "9007199254740993": 9_007_199_254_740_993,
    }.items(),
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(size=st.integers(0, 10**18 - 1))
def test_a_plain_number_is_that_many_bytes(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1 PB", "1.", ".5", "1.2.3", "٣", "1GB extra", "9" * 400])
def test_other_text_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size: write it like 200GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    {
        "1Gbit/s": 125_000_000,
        "100 Mbps": 12_500_000,
        "0.5kbit/s": 62,
        "125MB/s": 125_000_000,
        "1.5 MiB/s": 3 << 19,
    }.items(),
)
def test_a_bandwidth_is_read_in_bits_and_bytes(text: str, rate: int) -> None:
    assert parse_bandwidth(text) == rate


@pytest.mark.parametrize(
    "text", ["", "1Gb/s", "1Gb", "100", "12GB", "7bit/s", "0MB/s", ".Gbit/s", "1..2Gbit/s", "-1MB/s"]
)
def test_other_text_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ConfigError, match="is no bandwidth: write it like 1Gbit/s"):
        parse_bandwidth(text)


def test_a_time_is_read() -> None:
    assert [parse_seconds(text) for text in ("0.2s", "150 ms", "2min", "3")] == [0.2, 0.15, 120.0, 3.0]
    for text in ("", "0", "0ms", "-1s", "1e3", "2h", "soon"):
        with pytest.raises(ConfigError, match="is no time: write it like 0.2s"):
            parse_seconds(text)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket's name; pytest's own are too long for that."""
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("text", "rate"),
    {
        "unlimited": None,
        "Unlimited ": None,
        "64000": 64_000,
        "50MB/s": 50_000_000,
        "1.5 MiB/s": 3 << 19,
        "2gb": 2 * 10**9,
    }.items(),
)
def test_a_rate_is_read(text: str, rate: int | None) -> None:
    assert parse_rate("up", text) == rate


@given(rate=st.one_of(st.none(), st.integers(64_000, 10**18 - 1)))
def test_a_rate_that_is_shown_is_read_back(rate: int | None) -> None:
    assert parse_rate("down", rate_text(rate)) == rate


@pytest.mark.parametrize(
    ("rate", "text"),
    {
        64_000: "64KB/s",
        65_536: "64KiB/s",
        5 << 20: "5MiB/s",
        50_000_000: "50MB/s",
        3 << 29: "1536MiB/s",
        1_024_000: "1024KB/s",
        64_001: "64001B/s",
    }.items(),
)
def test_a_rate_is_shown_in_the_shortest_unit_that_is_exact(rate: int, text: str) -> None:
    assert rate_text(rate) == text


def test_a_limit_that_is_refused_is_called_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^--peer-up: 1KB "):
        settings(tmp_path, {"peer_up": "1KB"}, {"DHTDATA_PEER_UP": "2KB"})
    with pytest.raises(ConfigError, match="^DHTDATA_PEER_UP: 2KB "):
        settings(tmp_path, {}, {"DHTDATA_PEER_UP": "2KB"})
    (tmp_path / "config.toml").write_text('peer_up = "3KB"')
    with pytest.raises(ConfigError, match=r"^peer_up in config\.toml: 3KB "):
        settings(tmp_path)


@pytest.mark.parametrize(("limit", "reason"), {"up": "gives up", "peer_down": "hang up"}.items())
def test_the_least_rate_has_a_reason_for_each_direction(limit: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"the least is 64KB/s, because .*{reason}"):
        parse_rate(limit, "10KB/s")


@pytest.mark.parametrize("text", ["0", "0MB/s", "63KB/s", "63999"])
def test_a_rate_that_lets_next_to_nothing_pass_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="peer_up: .* is too low: .*unlimited"):
        parse_rate("peer_up", text)


@pytest.mark.parametrize("text", ["", "fast", "-1", "50MB/h", "50Mbit/s", "/s", "None"])
def test_other_text_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigError, match="up: .* is no rate: write it like 50MB/s"):
        parse_rate("up", text)


def test_sockets_live_in_the_sessions_folder_if_it_is_ours(short_path: Path) -> None:
    folder = runtime_folder({"XDG_RUNTIME_DIR": str(short_path)})
    assert folder == short_path / "dhtdata"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert runtime_folder({"XDG_RUNTIME_DIR": str(short_path)}) == folder


def test_a_folder_too_long_for_a_socket_is_passed_over(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    long = short_path / ("x" * MAX_RUNTIME_PATH_BYTES)
    long.mkdir(0o700)
    assert runtime_folder({"XDG_RUNTIME_DIR": str(long)}) == short_path / f"dhtdata-{os.getuid()}"


@pytest.mark.parametrize("named", ["", "/nowhere at all"])
def test_else_in_a_private_temporary_folder(short_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    folder = runtime_folder({"XDG_RUNTIME_DIR": named})
    assert folder == short_path / f"dhtdata-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_enter_is_refused(short_path: Path) -> None:
    (short_path / "dhtdata").mkdir()
    (short_path / "dhtdata").chmod(0o755)
    with pytest.raises(ConfigError, match="is not a private folder"):
        runtime_folder({"XDG_RUNTIME_DIR": str(short_path)})


def test_a_link_in_place_of_the_folder_is_refused(short_path: Path) -> None:
    (short_path / "elsewhere").mkdir(0o700)
    (short_path / "dhtdata").symlink_to(short_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not a private folder"):
        runtime_folder({"XDG_RUNTIME_DIR": str(short_path)})


def test_a_file_in_place_of_the_folder_is_refused(short_path: Path) -> None:
    (short_path / "dhtdata").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        runtime_folder({"XDG_RUNTIME_DIR": str(short_path)})


def test_the_batch_jobs_folder_comes_first() -> None:
    assert local_folders({"SLURM_TMPDIR": "/job", "TMPDIR": "/mine"})[:2] == (Path("/job"), Path("/mine"))
    assert local_folders({"TMPDIR": "/tmp"}) == (Path("/tmp"), Path("/var/tmp"))


def test_ranks_are_what_the_launcher_says() -> None:
    assert launched_ranks({}) is None
    assert launched_ranks({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}) == (3, 8, 4)
    assert launched_ranks({"RANK": "3", "WORLD_SIZE": "8"}) == (3, 8, 8)


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"}],
)
def test_ranks_that_make_no_sense_are_named(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="make no sense"):
        launched_ranks(environment)


def test_a_tickets_secret_becomes_a_file_of_the_store(tmp_path: Path) -> None:
    network, found = new_network(), settings(tmp_path)
    ticket = Ticket(Digest.of(b"m"), (), network.secret)
    entered = entering(found, ticket)
    path = tmp_path / "store" / "networks" / f"{network.fingerprint}.network"
    assert entered.network == path and load_network(path) == network
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert entering(found, ticket) == entering(entered, ticket) == entered
    assert list(path.parent.iterdir()) == [path]


def test_what_carries_no_secret_enters_nothing(tmp_path: Path) -> None:
    found = settings(tmp_path, {"network": tmp_path / "is not read"})
    for target in (Ticket(Digest.of(b"m")), Digest.of(b"m"), LocalName("rows")):
        assert entering(found, target) is found
    assert list(tmp_path.iterdir()) == []


def test_a_ticket_of_another_network_than_the_named_one_is_refused(tmp_path: Path) -> None:
    named, other = new_network(), new_network()
    save_network(tmp_path / "lab.network", named)
    found = settings(tmp_path, {"network": tmp_path / "lab.network"})
    assert entering(found, Ticket(Digest.of(b"m"), (), named.secret)) == found
    with pytest.raises(ConfigError, match=f"{other.fingerprint}.*{named.fingerprint}.*--network"):
        entering(found, Ticket(Digest.of(b"m"), (), other.secret))
    assert not (tmp_path / "store").exists()


def test_the_policy_of_packed_shards_is_one_of_four(tmp_path: Path) -> None:
    assert settings(tmp_path).packed == "auto"
    (tmp_path / "config.toml").write_text('packed = "never"')
    assert settings(tmp_path).packed == "never"
    assert settings(tmp_path, {}, {"DHTDATA_PACKED": "auto"}).packed == "auto"
    assert settings(tmp_path, {"packed": "always"}, {"DHTDATA_PACKED": "auto"}).packed == "always"
    with pytest.raises(ConfigError, match="'sometimes' is none of auto, always, never, only"):
        settings(tmp_path, {"packed": "sometimes"})
