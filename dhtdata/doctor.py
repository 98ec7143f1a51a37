"""What is wrong with this machine's set-up, in plain words with the next step. Looks, and changes nothing.

Every check answers with one `Finding`: good, doubtful (it works, but somebody should look) or wrong (it does not work
until it is mended). A check that cannot be made is doubtful and says why.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dhtdata.config import Settings, runtime_folder
from dhtdata.control import PeerClient
from dhtdata.control.dht import DhtStatus
from dhtdata.control.protocol import PeerStatus
from dhtdata.counts import counted
from dhtdata.dht.clock import MIN_WITNESSES
from dhtdata.dht.endpoint import interfaces
from dhtdata.durations import apart
from dhtdata.entrances import SILENCE, Entrance, in_use_by_seed, seed_answers, try_all
from dhtdata.errors import DhtDataError, NotFoundError, PeerError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.records import CLOCK_TOLERANCE_S
from dhtdata.formats.web_seeds import WebSeed, first_hop
from dhtdata.network import PUBLIC, Network, check_store, network_at
from dhtdata.peer.addresses import own_addresses
from dhtdata.store import Store
from dhtdata.store.filesystem import refuse_kernel, refuse_network
from dhtdata.transfer.dialling import dial

GOOD, DOUBTFUL, WRONG = "good", "doubtful", "wrong"
ROOM_DOUBTFUL_BYTES = 5 << 30
ROOM_WRONG_BYTES = 256 << 20
OPEN_FILES = 1_024
ROOT_KEY = "root.key"
MAX_TROUBLES = 6
_FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_EARLIEST_S = 1_735_689_600  # 2025: a clock before this was never set


@dataclass(frozen=True)
class Finding:
    """One look at one subject."""

    subject: str
    verdict: str
    text: str


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which they should be mended."""
    network, about_file = _network(settings.network)
    entrances = try_all(settings.bootstrap, network, settings.listen)
    status, about_peer = _running(settings)
    return [
        *_folders(settings),
        _keys(settings.keys),
        about_file or _joined(settings, network, status),
        _room(settings.store),
        *_store(settings),
        _open_files(),
        _clock(entrances, status),
        *about_peer,
        _port(settings, status),
        _ipv6(settings.listen),
        _bootstrap(entrances, _own(settings, status), status),
        *_web_seeds(settings.web_seeds),
        *(_dht(status.kind, status.dht) if status is not None else ()),
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
    there = _nearest(path)
    made = there == path
    trouble = _folder_trouble(there)
    if trouble and made:
        return Finding(subject, WRONG, f"{trouble}: choose another (--{subject})")
    if trouble:
        return Finding(subject, WRONG, f"{path} cannot be made: {trouble}, choose another (--{subject})")
    return Finding(subject, GOOD, f"{path} can be written" if made else f"{path} will be made when it is needed")


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(there for there in (path, *path.parents) if there.exists())


def _folder_trouble(path: Path) -> str:
    """Why nothing can be made in a folder; empty if something can."""
    if not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return f"{path} is not a folder that this user can write"
    try:
        # The superuser's rights say nothing there.
        refuse_kernel(path)
    except (StoreError, OSError) as failure:
        return str(failure)
    return ""


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
    if status is None:
        try:
            check_store(settings.store, network)
        except DhtDataError as failure:
            return Finding("network", WRONG, str(failure))
    here = status.network if status is not None else network.fingerprint
    if here == PUBLIC.fingerprint:
        return Finding("network", GOOD, "public: everybody may take part; dhtdata network FILE makes a private one")
    source = f"the secret is in {settings.network}" if settings.network is not None else "as the running peer says"
    return Finding("network", GOOD, f"private, fingerprint {here}: {source}")


def _room(store: Path) -> Finding:
    free = shutil.disk_usage(_nearest(store)).free
    text = f"{free / (1 << 30):.1f} GiB free on the disk of {store}"
    if free < ROOM_WRONG_BYTES:
        return Finding("disk room", WRONG, text + ": free some, run dhtdata gc, or use another store (--store)")
    if free < ROOM_DOUBTFUL_BYTES:
        return Finding("disk room", DOUBTFUL, text + ": enough to begin, not for a large dataset")
    return Finding("disk room", GOOD, text)


def _store(settings: Settings) -> list[Finding]:
    try:
        if not settings.store.exists():
            refuse_network(there := _nearest(settings.store))
            return [Finding("file system", GOOD, f"{there} is on a local one")]
        with Store.open(settings.store) as store:
            what = counted(len(store.manifests()), "dataset")
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


def _clock(entrances: Sequence[Entrance], status: PeerStatus | None) -> Finding:
    """Compared with other nodes of the DHT if the running peer has met some, else with the peers named by the user."""
    if time.time() < _EARLIEST_S:
        return Finding("clock", WRONG, f"it says {time.strftime('%Y-%m-%d')}: set it, claims would be refused")
    offsets = sorted(each.ahead_s for each in entrances if each.ahead_s is not None)
    if status is not None and status.dht.clock_witnesses >= MIN_WITNESSES:
        ahead_s, others = status.dht.clock_ahead_s, f"{status.dht.clock_witnesses} other nodes of the DHT"
    elif offsets:
        ahead_s, others = offsets[len(offsets) // 2], counted(len(offsets), "other peer")
    else:
        return Finding("clock", GOOD, f"it says {time.strftime('%Y-%m-%d %H:%M %Z')}; nobody to compare it with")
    if abs(ahead_s) > CLOCK_TOLERANCE_S:
        return Finding(
            "clock",
            WRONG,
            f"it says {time.strftime('%Y-%m-%d %H:%M %Z')}, which is {apart(ahead_s)} {others}: set it; "
            f"until then others refuse what this machine announces ({CLOCK_TOLERANCE_S // 60} min are tolerated)",
        )
    return Finding("clock", GOOD, f"within {max(1, round(abs(ahead_s)))} s of {others}")


def _port(settings: Settings, status: PeerStatus | None) -> Finding:
    if status is not None and status.kind == "seed":
        return Finding("port", GOOD, f"{status.port}, in use by the running seed (process {status.pid})")
    if settings.port == 0:
        return Finding("port", DOUBTFUL, "0 takes a free one at every start: a firewall or router cannot be told which")
    for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        for ip in interfaces(settings.listen):
            failure = _try_bind(ip, settings.port, kind)
            if (
                failure is not None
                and failure.errno == errno.EADDRINUSE
                and seed_answers(settings.listen, settings.port)
            ):
                return Finding("port", WRONG, in_use_by_seed(settings.port))
            if failure is not None:
                return Finding("port", WRONG, _bind_advice(settings, protocol, failure))
    return Finding("port", GOOD, f"{settings.port} is free for TCP and UDP on {settings.listen}")


def _try_bind(ip: str, port: int, kind: socket.SocketKind) -> OSError | None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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


def _ipv6(listen: str) -> Finding:
    """Never wrong: who has none takes part over IPv4."""
    if ":" not in listen:
        return Finding("IPv6", GOOD, f"not used: listening on {listen} means IPv4 alone (--listen)")
    own = _own_ip(socket.AF_INET6)
    if own is None:
        return Finding(
            "IPv6", GOOD, "this machine has none: peers are reached over IPv4, those with IPv6 alone are not"
        )
    return Finding("IPv6", GOOD, f"{own}: peers are reached over IPv6 too")


def _own(settings: Settings, status: PeerStatus | None) -> Callable[[Entrance], bool]:
    """Whether an address is our own peer's: our node answers there, or nobody does and it is where we would listen."""
    port = status.port if status is not None and status.kind == "seed" else settings.port
    ours = set(own_addresses(settings.listen, port)) if port else set()
    if port and ipaddress.ip_address(settings.listen).is_unspecified:
        ours |= {Address(ip, port) for ip in ("127.0.0.1", "::1")}
    node = status.node if status is not None else ""
    return lambda each: each.node == node if each.node else bool(each.udp and each.http) and each.address in ours


def _bootstrap(entrances: Sequence[Entrance], own: Callable[[Entrance], bool], status: PeerStatus | None) -> Finding:
    if not entrances:
        return _no_bootstrap(status)
    others = [each for each in entrances if not own(each)]
    said = [_trouble(each) for each in others if each.trouble]
    said += [f"{each.address} is this machine's own address" for each in entrances if own(each)]
    if len(said) > MAX_TROUBLES:
        said[MAX_TROUBLES:] = [f"and {len(said) - MAX_TROUBLES} more"]
    told = "; ".join(said)
    if not others:
        return Finding("bootstrap", DOUBTFUL, f"{told}: it leads nowhere, name another peer (--bootstrap)")
    if all(each.http and each.udp for each in others):
        advice = "ask for a ticket, or change --bootstrap or --network"
        return Finding("bootstrap", WRONG, f"no known peer answers: {told}; {advice}")
    whole = sum(not each.trouble for each in others)
    text = f"{whole} of {counted(len(others), 'known peer')} answer{'s' if len(others) == 1 else ''} over HTTP and UDP"
    return Finding("bootstrap", GOOD if whole else DOUBTFUL, f"{text}; {told}" if told else text)


def _trouble(each: Entrance) -> str:
    """With what silence may mean."""
    silent = ": wrong address, another network (--network) or a blocked port" if each.trouble == SILENCE else ""
    return f"{each.address} {each.trouble}{silent}"


def _no_bootstrap(status: PeerStatus | None) -> Finding:
    if status is not None and status.dht_contacts:
        return Finding("bootstrap", GOOD, f"none set; the running peer knows {status.dht_contacts} in the DHT")
    if status is not None and status.dht.bootstrap_failures:
        said = "; ".join(status.dht.bootstrap_failures[:MAX_TROUBLES])
        return Finding("bootstrap", WRONG, f"the running peer meets nobody: {said}; ask for a fresh ticket")
    return Finding(
        "bootstrap",
        DOUBTFUL,
        "no known peer: names are found only with a ticket; set DHTDATA_BOOTSTRAP=IP:PORT of a peer you trust",
    )


def _web_seeds(seeds: Sequence[WebSeed]) -> list[Finding]:
    """Whether the mirrors that the settings name are there; nothing if they name none."""
    said = [text for seed in seeds if (text := _mirror_trouble(seed))]
    if not seeds:
        return []
    if said:
        told = "; ".join(said[:MAX_TROUBLES])
        return [Finding("web seeds", DOUBTFUL, f"{told}: mend them, or change DHTDATA_WEB_SEEDS")]
    return [Finding("web seeds", GOOD, f"{len(seeds)} named, and there")]


def _mirror_trouble(seed: WebSeed) -> str:
    if seed.folder is not None:
        return "" if (seed.folder / "v1" / "blobs").is_dir() else f"{seed.folder} holds no mirror (v1/blobs)"
    hop = first_hop(seed, "/")
    try:
        dial(hop.host, hop.port, trusted=True).close()
    except PeerError as failure:
        return str(failure)
    return ""


def _dht(kind: str, seen: DhtStatus) -> list[Finding]:
    """How the running peer stands in the DHT."""
    crowd = f"{counted(seen.contacts, 'contact')} of about {counted(seen.nodes_estimated, 'node')}"
    if not seen.contacts:
        return [Finding("DHT", DOUBTFUL, f"the running {kind} peer has met no other node yet: see bootstrap")]
    if seen.client:
        return [
            Finding("DHT", GOOD, f"{crowd}; the running peer is private, so it is a client that asks and never serves")
        ]
    if not seen.reached:
        return [
            Finding(
                "DHT",
                WRONG,
                f"{crowd}, but strangers do not reach the running seed, so it announces nothing: open port {seen.port} "
                "for UDP and TCP in the firewall, and forward it in the router",
            )
        ]
    over = " and ".join(f"IPv{version}" for version in seen.families_reached)
    return [Finding("DHT", GOOD, f"{crowd}; strangers reach the running seed over {over}")]


def _running(settings: Settings) -> tuple[PeerStatus | None, list[Finding]]:
    """The running peer's status, None if none runs; a peer that cannot be asked is a finding."""
    if not settings.store.exists():
        return None, []
    try:
        with (
            Store.open(settings.store) as store,
            PeerClient.connect(store, settings, start=False, keeps_alive=False, any_network=True) as peer,
        ):
            return peer.status(), []
    except NotFoundError:
        return None, []
    except StoreError:
        return None, []  # said by the check of the store
    except DhtDataError as failure:
        return None, [Finding("peer", WRONG, str(failure))]


def _reachability(settings: Settings, status: PeerStatus | None) -> Finding:
    if status is not None and status.addresses:
        where: Callable[[str], bool] = lambda text: ipaddress.ip_address(Address.parse(text).ip).is_global  # noqa: E731
        public = [address for address in status.addresses if where(address)]
        if public:
            return Finding("reachability", GOOD, f"the running seed tells others {', '.join(public)}")
        told = ", ".join(status.addresses)
        return Finding("reachability", DOUBTFUL, f"the running seed is known at {told} only: this network alone")
    own = _own_ip(socket.AF_INET) or _own_ip(socket.AF_INET6)
    if own is None:
        return Finding("reachability", WRONG, "this machine has no route to any network: connect it, then try again")
    if ipaddress.ip_address(settings.listen).is_loopback:
        return Finding("reachability", DOUBTFUL, f"listening on {settings.listen}: no other machine can reach a seed")
    port = f"port {settings.port}" if settings.port else "its port"
    if ipaddress.ip_address(own).is_global:
        return Finding("reachability", GOOD, f"{own} is a public address; open {port} for TCP and UDP")
    return Finding(
        "reachability",
        DOUBTFUL,
        f"{own} is private: others beyond this network reach a seed if the router forwards {port} to it",
    )


def _own_ip(family: socket.AddressFamily) -> str | None:
    """Source address of a packet to the world. Nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_FAR_AWAY[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None
