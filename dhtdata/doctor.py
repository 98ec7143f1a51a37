"""What is wrong with this machine's set-up, in plain words with the next step. Looks, and changes nothing.

Every check answers with one `Finding`: good, doubtful (it works, but somebody should look) or wrong (it does not work
until it is mended). A check that cannot be made is doubtful and says why.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import ipaddress
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dhtdata.config import Settings, runtime_folder
from dhtdata.control import PeerClient
from dhtdata.control.protocol import PeerStatus
from dhtdata.errors import DhtDataError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import CLOCK_TOLERANCE_S
from dhtdata.network import PUBLIC, Network, network_at
from dhtdata.store import Store
from dhtdata.transfer.membership import member_headers

GOOD, DOUBTFUL, WRONG = "good", "doubtful", "wrong"
ROOM_DOUBTFUL_BYTES = 5 << 30
ROOM_WRONG_BYTES = 256 << 20
OPEN_FILES = 1_024
ROOT_KEY = "root.key"
ANSWER_S = 3.0
_HEALTH = "/healthz"
_EARLIEST_S = 1_735_689_600  # 2025: a clock before this was never set


@dataclass(frozen=True)
class Finding:
    """One look at one subject."""

    subject: str
    verdict: str
    text: str


@dataclass(frozen=True)
class _Answer:
    """What a bootstrap address said, and how far its clock is from ours in seconds (None if it sent no time)."""

    address: Address
    reached: bool
    text: str
    clock_s: float | None


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which they should be mended."""
    network, about_file = _network(settings.network)
    answers = [_ask(address, network) for address in settings.bootstrap]
    status = _running(settings)
    return [
        *_folders(settings),
        _keys(settings.keys),
        about_file or _joined(settings, network, status),
        _room(settings.store),
        *_store(settings),
        _open_files(),
        _clock(answers),
        _port(settings, status),
        _bootstrap(network, answers, status),
        _reachability(settings, status),
    ]


def _folders(settings: Settings) -> list[Finding]:
    found = [_folder("home", settings.home), _folder("store", settings.store)]
    try:
        found.append(Finding("runtime folder", GOOD, str(runtime_folder())))
    except (DhtDataError, OSError) as failure:
        found.append(Finding("runtime folder", WRONG, str(failure)))
    return found


def _folder(subject: str, path: Path) -> Finding:
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding(subject, GOOD, f"{path} will be made when it is needed")
        return Finding(subject, WRONG, f"{path} cannot be made: {parent} is not writable, choose another (--{subject})")
    if not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Finding(subject, WRONG, f"{path} is not a folder that this user can write: choose another (--{subject})")
    return Finding(subject, GOOD, f"{path} can be written")


def _keys(folder: Path) -> Finding:
    """Keys that others may read are anybody's."""
    for path in sorted(folder.glob("*.key")):
        if path.stat().st_mode & 0o077:
            return Finding("keys", WRONG, f"{path} can be read by others: run chmod 600 {path}")
    if not (folder / ROOT_KEY).exists():
        return Finding("keys", GOOD, f"{folder} will hold them when something is published")
    return Finding("keys", GOOD, f"{folder}: keep a copy, who has these keys owns your names")


def _network(path: Path | None) -> tuple[Network, Finding | None]:
    """The network to look at, and what is wrong with its file."""
    try:
        return network_at(path), None
    except DhtDataError as failure:
        return PUBLIC, Finding("network", WRONG, str(failure))


def _joined(settings: Settings, network: Network, status: PeerStatus | None) -> Finding:
    if status is not None and settings.network is not None and status.network != network.fingerprint:
        return Finding(
            "network",
            WRONG,
            f"the running peer (process {status.pid}) is in network {status.network}, {settings.network} leads into "
            f"{network.fingerprint}: run dhtdata stop first, or use another store (--store)",
        )
    here = status.network if status is not None else network.fingerprint
    if here == PUBLIC.fingerprint:
        return Finding("network", GOOD, "public: everybody may take part; dhtdata network FILE makes a private one")
    source = f"the secret is in {settings.network}" if settings.network is not None else "as the running peer says"
    return Finding("network", GOOD, f"private, fingerprint {here}: {source}")


def _room(store: Path) -> Finding:
    there = next(path for path in (store, *store.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / (1 << 30):.1f} GiB free on the disk of {store}"
    if free < ROOM_WRONG_BYTES:
        return Finding("disk room", WRONG, text + ": free some, run dhtdata gc, or use another store (--store)")
    if free < ROOM_DOUBTFUL_BYTES:
        return Finding("disk room", DOUBTFUL, text + ": enough to begin, not for a large dataset")
    return Finding("disk room", GOOD, text)


def _store(settings: Settings) -> list[Finding]:
    if not settings.store.exists():
        return [Finding("file system", GOOD, "is checked when the store is made")]
    try:
        with Store.open(settings.store) as store:
            count = len(store.manifests())
            what = "1 dataset" if count == 1 else f"{count} datasets"
    except DhtDataError as failure:
        return [Finding("file system", WRONG, str(failure))]
    return [Finding("file system", GOOD, f"local; the store opens and lists {what}")]


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        return Finding(
            "open files", DOUBTFUL, f"at most {soft}: a busy seed needs {OPEN_FILES}, run ulimit -n {OPEN_FILES}"
        )
    return Finding("open files", GOOD, f"up to {'any number' if soft == resource.RLIM_INFINITY else soft}")


def _clock(answers: list[_Answer]) -> Finding:
    if time.time() < _EARLIEST_S:
        return Finding("clock", WRONG, f"it says {time.strftime('%Y-%m-%d')}: set it, claims would be refused")
    offsets = sorted(answer.clock_s for answer in answers if answer.clock_s is not None)
    if not offsets:
        return Finding("clock", GOOD, f"it says {time.strftime('%Y-%m-%d %H:%M %Z')}; nobody to compare it with")
    middle = offsets[len(offsets) // 2]
    if abs(middle) > CLOCK_TOLERANCE_S:
        return Finding(
            "clock", WRONG, f"{abs(middle):.0f} s away from other peers, {CLOCK_TOLERANCE_S} are tolerated: set it"
        )
    return Finding("clock", GOOD, f"within {max(1, round(abs(middle)))} s of {len(offsets)} other peers")


def _port(settings: Settings, status: PeerStatus | None) -> Finding:
    if status is not None and status.kind == "seed":
        return Finding("port", GOOD, f"{status.port}, in use by the running seed (process {status.pid})")
    if settings.port == 0:
        return Finding("port", DOUBTFUL, "0 takes a free one at every start: a firewall or router cannot be told which")
    for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        failure = _try_bind(settings.listen, settings.port, kind)
        if failure is not None:
            return Finding("port", WRONG, _bind_advice(settings, protocol, failure))
    return Finding("port", GOOD, f"{settings.port} is free for TCP and UDP on {settings.listen}")


def _try_bind(ip: str, port: int, kind: socket.SocketKind) -> OSError | None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as failure:
            return failure
    return None


def _bind_advice(settings: Settings, protocol: str, failure: OSError) -> str:
    if failure.errno == errno.EADDRINUSE:
        return f"{protocol} port {settings.port} is in use by another program: stop it, or choose another (--port)"
    if failure.errno == errno.EACCES:
        return f"{protocol} port {settings.port} needs more rights than this user has: choose one over 1023 (--port)"
    return (
        f"{protocol} {settings.listen} port {settings.port} cannot be used ({failure.strerror}): see --listen, --port"
    )


def _bootstrap(network: Network, answers: list[_Answer], status: PeerStatus | None) -> Finding:
    reached = [answer for answer in answers if answer.reached]
    if reached:
        return Finding("bootstrap", GOOD, f"{len(reached)} of {len(answers)} known peers answer")
    if answers and network.secret is not None:
        asked = ", ".join(str(answer.address) for answer in answers)
        return Finding(
            "bootstrap",
            WRONG,
            f"{asked} does not answer: wrong address, another network file, or a blocked port; "
            "ask a member for a ticket, or change --bootstrap or --network",
        )
    if answers:
        said = "; ".join(f"{answer.address}: {answer.text}" for answer in answers)
        return Finding("bootstrap", WRONG, f"no known peer answers ({said}): ask for a ticket, or change --bootstrap")
    if status is not None and status.dht_contacts:
        return Finding("bootstrap", GOOD, f"none set; the running peer knows {status.dht_contacts} in the DHT")
    return Finding(
        "bootstrap",
        DOUBTFUL,
        "no known peer: names are found only with a ticket; set DHTDATA_BOOTSTRAP=IP:PORT of a peer you trust",
    )


def _ask(address: Address, network: Network) -> _Answer:
    begun = time.time()
    headers = member_headers(network, address, _HEALTH, begun)
    connection = http.client.HTTPConnection(address.ip, address.port, timeout=ANSWER_S)
    try:
        connection.request("GET", _HEALTH, headers=headers)
        answer = connection.getresponse()
        answer.read(1_024)
    except (OSError, http.client.HTTPException) as failure:
        return _Answer(address, False, str(failure) or type(failure).__name__, None)
    finally:
        connection.close()
    told = answer.getheader("Date")
    there = email.utils.parsedate_to_datetime(told).timestamp() if told else None
    offset = None if there is None else (begun + time.time()) / 2 - there
    return _Answer(address, answer.status == 200, f"status {answer.status}", offset)


def _running(settings: Settings) -> PeerStatus | None:
    if not settings.store.exists():
        return None
    try:
        with (
            Store.open(settings.store) as store,
            PeerClient.connect(store, settings, start=False, keeps_alive=False, any_network=True) as peer,
        ):
            return peer.status()
    except NotFoundError:
        return None
    except DhtDataError:
        return None


def _reachability(settings: Settings, status: PeerStatus | None) -> Finding:
    if status is not None and status.addresses:
        where: Callable[[str], bool] = lambda text: ipaddress.ip_address(Address.parse(text).ip).is_global  # noqa: E731
        public = [address for address in status.addresses if where(address)]
        if public:
            return Finding("reachability", GOOD, f"the running seed tells others {', '.join(public)}")
        told = ", ".join(status.addresses)
        return Finding("reachability", DOUBTFUL, f"the running seed is known at {told} only: this network alone")
    own = _own_ip()
    if own is None:
        return Finding("reachability", WRONG, "this machine has no route to any network: connect it, then try again")
    if ipaddress.ip_address(settings.listen).is_loopback:
        return Finding("reachability", DOUBTFUL, f"listening on {settings.listen}: no other machine can reach a seed")
    if ipaddress.ip_address(own).is_global:
        return Finding("reachability", GOOD, f"{own} is a public address; open port {settings.port} for TCP and UDP")
    return Finding(
        "reachability",
        DOUBTFUL,
        f"{own} is private: others beyond this network reach a seed if the router forwards port {settings.port} to it",
    )


def _own_ip() -> str | None:
    """Source address of a packet to the world. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
