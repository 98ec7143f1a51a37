"""Settings: frozen, built once at the rim. Flag over environment over file over default (door of ``os.environ``).

The file is ``config.toml`` in the home folder; its keys are the fields of `Settings`. Unknown keys are refused by name.

| field | environment | meaning |
|---|---|---|
| ``home`` | ``DHTDATA_HOME`` | keys, configuration, remembered peers; the user's data folder by default |
| ``store`` | ``DHTDATA_STORE`` | folder of the blobs; ``<home>/store`` by default; must be on a local file system |
| ``cache_limit`` | ``DHTDATA_CACHE_LIMIT`` | bytes for unpinned blobs, such as ``200GB``; no limit by default |
| ``listen`` | ``DHTDATA_LISTEN`` | IP address to listen on; ``::``, the default, means all of IPv4 and IPv6 |
| ``port`` | ``DHTDATA_PORT`` | UDP and TCP port of a seed; 0 takes a free one |
| ``bootstrap`` | ``DHTDATA_BOOTSTRAP`` | addresses of known peers, ``IP:PORT``, separated by commas |
| ``network`` | ``DHTDATA_NETWORK`` | file with the secret of a private network; the public network by default |
| ``up`` | ``DHTDATA_UP`` | bytes of blobs per second that are sent, such as ``50MB/s``; ``unlimited`` by default |
| ``down`` | ``DHTDATA_DOWN`` | the same of what is fetched |
| ``peer_up`` | ``DHTDATA_PEER_UP`` | the same of what is sent to any one peer |
| ``peer_down`` | ``DHTDATA_PEER_DOWN`` | the same of what is fetched from any one peer |
| ``web_seeds`` | ``DHTDATA_WEB_SEEDS`` | base URLs of mirrors, separated by white space; any that this user may reach |
| ``packed`` | ``DHTDATA_PACKED`` | packed shards on the wire: ``auto``, ``always``, ``never``; ``only``: on disk, too |

A ticket may carry the secret of a private network; `entering` gives it a file in ``<store>/networks``, so that the
secret itself never stands in arguments or environment of a process that we start.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import platformdirs

from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import Target, Ticket
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.network import Network, keep_network, load_network

DEFAULT_PORT = 8470
MAX_RUNTIME_PATH_BYTES = 76
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-zA-Z]*)")
_BANDWIDTH = re.compile(r"([0-9.]+\s*[kKmMgGtT]?)(?:bit/s|bps)|([0-9.]+\s*(?:[kKmMgGtT]i?)?B)/s")
_SECOND_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0}
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|ms|min|)")
RATES = ("up", "down", "peer_up", "peer_down")
LEAST_RATE_BYTES_S = 64_000
_RATE_UNITS = ("B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")
_TOO_SLOW_UP = "whoever fetches gives up on a slower peer"
# `dhtdata.transfer.sending` cuts readers; what is fetched at the same time shares the limit.
_TOO_SLOW_DOWN = "several transfers share it, and other peers hang up on whoever reads at less than 16KB/s"
_FIELDS = ("home", "store", "cache_limit", "listen", "port", "bootstrap", "network", "web_seeds", "packed", *RATES)
_NETWORKS = "networks"
PackedPolicy = Literal["auto", "always", "never", "only"]


@dataclass(frozen=True)
class Settings:
    """What a process needs to know about its surroundings. See the module for meaning and source of each field."""

    home: Path
    store: Path
    cache_limit: int | None = None
    listen: str = "::"
    port: int = DEFAULT_PORT
    bootstrap: tuple[Address, ...] = ()
    network: Path | None = None
    up: int | None = None
    down: int | None = None
    peer_up: int | None = None
    peer_down: int | None = None
    web_seeds: tuple[WebSeed, ...] = ()
    packed: PackedPolicy = "auto"

    @property
    def keys(self) -> Path:
        return self.home / "keys"


def load_settings(flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags (None: not given), environment and configuration file. ConfigError names what is wrong."""
    environment = os.environ if environment is None else environment
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    from_environment = {
        field: environment[variable] for field in _FIELDS if environment.get(variable := f"DHTDATA_{field.upper()}")
    }
    home = _path("home", given.get("home") or from_environment.get("home") or platformdirs.user_data_path("dhtdata"))
    merged = _read_file(home / "config.toml") | from_environment | given
    merged.pop("home", None)

    def source(field: str) -> str:
        """Where the value of a field stands, for messages."""
        if field in given:
            return f"--{field.replace('_', '-')}"
        return f"DHTDATA_{field.upper()}" if field in from_environment else f"{field} in config.toml"

    return Settings(
        home=home,
        store=_path("store", merged.pop("store", None) or home / "store"),
        cache_limit=_optional_size(merged.pop("cache_limit", None)),
        listen=_ip(merged.pop("listen", Settings.listen)),
        port=_port(merged.pop("port", Settings.port)),
        bootstrap=_addresses(merged.pop("bootstrap", ())),
        network=_path("network", merged["network"]) if "network" in merged else None,
        **{name: parse_rate(name, merged[name], source(name)) for name in RATES if name in merged},
        web_seeds=_web_seeds(merged.pop("web_seeds", ())),
        packed=_packed(merged.pop("packed", Settings.packed)),
    )


def entering(settings: Settings, target: Target) -> Settings:
    """Settings in the network that a ticket's secret leads into; as they are if the target carries none.

    The secret is kept in ``<store>/networks``. ConfigError if the settings name another network.
    """
    if not isinstance(target, Ticket) or target.secret is None:
        return settings
    network = Network(target.secret)
    if settings.network is None:
        return replace(settings, network=keep_network(settings.store / _NETWORKS, network))
    named = load_network(settings.network)
    if named != network:
        raise ConfigError(
            f"the ticket leads into network {network.fingerprint}, {settings.network} into {named.fingerprint}: "
            "leave out --network (or DHTDATA_NETWORK, or network in config.toml), or ask for a ticket of that network"
        )
    return settings


def parse_size(text: str | int) -> int:
    """Bytes from ``200GB``, ``1.5 GiB`` or a plain number. ConfigError otherwise."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{str(text)[:80]!r} is not a size: write it like 200GB, 512MiB or 1000000")
    whole, _, fraction = match[1].partition(".")
    unit = _UNITS[match[2].upper()]
    below: int = 10 ** len(fraction)
    return int(whole) * unit + int(fraction or 0) * unit // below


def parse_rate(limit: str, value: object, source: str = "") -> int | None:
    """Bytes per second from ``50MB/s``, ``1.5 MiB`` or a plain number; None for ``unlimited``.

    ``limit`` is one of `RATES`; ``source`` is what messages call it, such as ``--up``. ConfigError if it is no size, or
    so low that nothing would get through.
    """
    source = source or limit
    text = str(value).strip()
    if text.lower() == "unlimited":
        return None
    try:
        rate = parse_size(text[:-2] if text.lower().endswith("/s") else text)
    except ConfigError as failure:
        raise ConfigError(f"{source}: {text[:80]!r} is no rate: write it like 50MB/s, 2MiB/s or unlimited") from failure
    if rate < LEAST_RATE_BYTES_S:
        raise ConfigError(
            f"{source}: {text[:80]} is too low: the least is {rate_text(LEAST_RATE_BYTES_S)}, because "
            f"{_TOO_SLOW_DOWN if limit.endswith('down') else _TOO_SLOW_UP}; "
            "write unlimited for no limit, or end the peer with dhtdata stop"
        )
    return rate


def parse_bandwidth(text: str) -> int:
    """Bytes per second of a link from ``1Gbit/s``, ``100Mbps`` or ``125MB/s``; Gb/s is refused, as it may mean either.

    ConfigError if it is none, or nothing.
    """
    match = _BANDWIDTH.fullmatch(text.strip())
    try:
        rate = 0 if match is None else parse_size(f"{match[1]}B") // 8 if match[1] else parse_size(match[2])
    except ConfigError:
        rate = 0
    if not rate:
        raise ConfigError(f"{text[:80]!r} is no bandwidth: write it like 1Gbit/s, 100Mbit/s or 125MB/s")
    return rate


def parse_seconds(text: str) -> float:
    """Seconds from ``0.2s``, ``150ms``, ``2min`` or a plain number. ConfigError unless it is more than nothing."""
    match = _SECONDS.fullmatch(text.strip())
    seconds = float(match[1]) * _SECOND_UNITS[match[2]] if match is not None else 0.0
    if not seconds > 0:
        raise ConfigError(f"{text[:80]!r} is no time: write it like 0.2s, 150ms or 2min")
    return seconds


def rate_text(rate_bytes_s: int | None) -> str:
    """What `parse_rate` reads, exact and as short as can be: ``50MB/s``, ``5MiB/s``, ``unlimited``."""
    if rate_bytes_s is None:
        return "unlimited"
    sizes = {unit: _UNITS[unit.upper()] for unit in _RATE_UNITS}
    return min((f"{rate_bytes_s // size}{unit}/s" for unit, size in sizes.items() if rate_bytes_s % size == 0), key=len)


def runtime_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where control sockets live: ``XDG_RUNTIME_DIR`` if it exists and is ours, else a private temporary folder.

    A folder whose path leaves no room for a Unix socket's name (batch systems make long ones) is passed over. Created
    with mode 0700. ConfigError if somebody else owns it.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("XDG_RUNTIME_DIR")
    private = f"dhtdata-{os.getuid()}"
    folders = [Path(tempfile.gettempdir()) / private, Path("/tmp") / private]
    if named and Path(named).is_dir() and Path(named).stat().st_uid == os.getuid():
        folders.insert(0, Path(named) / "dhtdata")
    folder = next((folder for folder in folders if len(os.fsencode(folder)) <= MAX_RUNTIME_PATH_BYTES), folders[0])
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as failure:
        raise ConfigError(
            f"{folder} cannot be made: {failure.strerror}: set XDG_RUNTIME_DIR to a folder of yours"
        ) from failure
    if status.st_uid != os.getuid() or folder.is_symlink() or status.st_mode & 0o077:
        raise ConfigError(f"{folder} is not a private folder of this user: remove it, or set XDG_RUNTIME_DIR")
    return folder


def local_folders(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Folders that are usually on a local disk, best first: the batch job's, the user's, the system's temporary one."""
    environment = os.environ if environment is None else environment
    named = [environment.get("SLURM_TMPDIR"), environment.get("TMPDIR"), "/tmp", "/var/tmp"]
    return tuple(dict.fromkeys(Path(folder) for folder in named if folder))


def launched_ranks(environment: Mapping[str, str] | None = None) -> tuple[int, int, int] | None:
    """(rank, world size, ranks on this node) as torchrun's ``RANK``, ``WORLD_SIZE``, ``LOCAL_WORLD_SIZE`` say.

    None if there is no ``WORLD_SIZE``. Without ``LOCAL_WORLD_SIZE`` all ranks count as one node's. ConfigError if they
    are no numbers or one of the first two is missing.
    """
    environment = os.environ if environment is None else environment
    if not environment.get("WORLD_SIZE") and not environment.get("RANK"):
        return None
    world_size = environment.get("WORLD_SIZE", "")
    values = (environment.get("RANK", ""), world_size, environment.get("LOCAL_WORLD_SIZE") or world_size)
    if not all(value.isascii() and value.isdigit() for value in values) or not int(values[1]) or not int(values[2]):
        raise ConfigError(
            f"RANK={values[0]!r}, WORLD_SIZE={values[1]!r}, LOCAL_WORLD_SIZE={values[2]!r} make no sense: "
            "set them as torchrun does, mount once torch.distributed is initialised, or give rank and world_size"
        )
    return int(values[0]), int(values[1]), int(values[2])


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise ConfigError(f"configuration file {path} cannot be read: {failure}") from failure
    for key in values:
        if key not in _FIELDS or key == "home":
            raise ConfigError(f"configuration file {path}: unknown key {key!r}; known are {', '.join(_FIELDS[1:])}")
    return values


def _optional_size(value: str | int | None) -> int | None:
    return None if value is None else parse_size(value)


def _path(field: str, value: object) -> Path:
    try:
        if isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value):
            return Path(value).expanduser().absolute()
    except RuntimeError as failure:
        raise ConfigError(f"{field}: {value!r}: there is no such user") from failure
    raise ConfigError(f"{field}: {value!r} is not a path")


def _ip(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError as failure:
        raise ConfigError(f"listen: {value!r} is not an IP address") from failure


def _port(value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65_535:
        raise ConfigError(f"port: {value!r} is not in 0 to 65535")
    return int(text)


def _packed(value: object) -> PackedPolicy:
    for policy in get_args(PackedPolicy):
        if value == policy:
            return cast(PackedPolicy, policy)
    raise ConfigError(f"packed: {value!r} is none of {', '.join(get_args(PackedPolicy))}")


def _addresses(value: object) -> tuple[Address, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str | Address) for item in items):
        raise ConfigError(
            f"bootstrap: {value!r} is not a list of addresses: write them as IP:PORT, separated by commas"
        )
    try:
        return tuple(item if isinstance(item, Address) else Address.parse(item.strip()) for item in items if item)
    except FormatError as failure:
        raise ConfigError(f"bootstrap: {failure}") from failure


def _web_seeds(value: object) -> tuple[WebSeed, ...]:
    """What the user names himself: folders and his own networks too."""
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str | WebSeed) for item in items):
        raise ConfigError(f"web_seeds: {value!r} is not a list of URLs: write them separated by spaces")
    try:
        return tuple(dict.fromkeys(WebSeed.parse(str(item), named=True) for item in items))
    except FormatError as failure:
        raise ConfigError(f"web_seeds: {failure}") from failure
