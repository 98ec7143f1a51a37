"""`PeerClient`: what mount, publish and the command line ask of the peer of a store. Blocking and thread-safe.

Each thread that asks has a connection of its own while it asks; connections are kept and reused, and belong to one
process id: a forked worker opens its own. When the peer goes away (end of file), the client elects a new one and asks
again; every request may be asked twice. The new one is told first which targets were resolved here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from dhtdata.config import Settings, runtime_folder
from dhtdata.control import protocol
from dhtdata.control.dht import AskDht, DhtLookup, DhtPing, DhtPong, DhtStatus, DhtTrace
from dhtdata.control.protocol import (
    DEFAULT_TIMEOUT_S,
    Ensured,
    PeerStatus,
    Progress,
    ProviderStatus,
    Resolved,
    Seeded,
)
from dhtdata.control.spawn import PEER_LOG, elect
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, DhtDataError, NotFoundError, PeerError
from dhtdata.formats.addresses import Address
from dhtdata.formats.ticket import LocalName, Target
from dhtdata.network import network_at
from dhtdata.store import NoRoomYet, Store

MAX_SOCKET_PATH_BYTES = 100
LOOKUP_S = 90.0
_GRACE_S = 15.0
_HANDSHAKE_S = 10.0
_TELL_S = 10.0
_MAX_TARGETS = 16
_MAX_REELECTIONS = 4
_FOREVER_S = 10 * 365 * 86_400.0
RELEASE = "0.1.0"

_A = TypeVar("_A", bound=protocol.Message)


class EndOfFile(Exception):
    """The peer went away in the middle of a conversation."""


def socket_path(store_id: bytes) -> Path:
    """Where the peer of a store listens. ConfigError if the path is too long for a Unix socket."""
    path = runtime_folder() / f"{store_id.hex()[:16]}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"socket path {path} is over {MAX_SOCKET_PATH_BYTES} bytes: set XDG_RUNTIME_DIR or TMPDIR")
    return path


def ask_running(store_id: bytes, request: protocol.Request, timeout_s: float) -> protocol.Answer:
    """One request to a running peer, without starting one. NotFoundError if there is none, or it ends meanwhile."""
    with Link.open(store_id, keeps_alive=False) as link:
        try:
            return next(link.ask(request, timeout_s))
        except EndOfFile as failure:
            raise NotFoundError("the peer ended before it answered") from failure


def answers(store_id: bytes) -> bool:
    """Whether a peer of this store listens."""
    try:
        Link.open(store_id, keeps_alive=False).close()
    except NotFoundError:
        return False
    return True


def text_of(target: Target | str) -> str:
    """What `parse_target` reads back as this target."""
    return target.name if isinstance(target, LocalName) else str(target)


class Link:
    """One connection after its handshake."""

    def __init__(self, connection: socket.socket, welcome: protocol.Welcome) -> None:
        self._connection = connection
        self.welcome = welcome

    @classmethod
    def open(cls, store_id: bytes, *, keeps_alive: bool, network: str = "", web_seeds: tuple[str, ...] = ()) -> Link:
        """NotFoundError if no peer listens, PeerError if it is none of ours, ConfigError if in another network."""
        path = socket_path(store_id)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_HANDSHAKE_S)
            connection.connect(str(path))
            hello = protocol.Hello(
                protocol=protocol.PROTOCOL,
                version=RELEASE,
                uid=os.getuid(),
                store=store_id,
                keeps_alive=keeps_alive,
                network=network,
                web_seeds=web_seeds,
            )
            connection.sendall(protocol.pack(hello))
            answer = _receive(connection)
        except (EndOfFile, FileNotFoundError, ConnectionError) as failure:
            connection.close()
            raise NotFoundError("no peer runs for this store") from failure
        except OSError as failure:
            who = _listener_of(connection)
            connection.close()
            raise PeerError(
                f"{who} at {path} does not answer ({failure}): end it with kill, then try again"
            ) from failure
        except BaseException:
            connection.close()
            raise
        if isinstance(answer, protocol.Welcome) and answer.protocol == protocol.PROTOCOL:
            return cls(connection, answer)
        connection.close()
        if isinstance(answer, protocol.Failure):
            raise protocol.to_error(answer)
        raise PeerError(f"the peer at {path} is of another release: stop it, then try again")

    def ask(self, request: protocol.Request, timeout_s: float) -> Iterator[protocol.Answer]:
        """Answers as they come; whoever iterates knows which is the last."""
        try:
            self._connection.settimeout(min(timeout_s + _GRACE_S, _FOREVER_S))
            self._connection.sendall(protocol.pack(request))
            while True:
                answer = _receive(self._connection)
                if isinstance(answer, protocol.Failure):
                    raise protocol.to_error(answer)
                if isinstance(answer, protocol.Answer):
                    yield answer
                else:
                    raise PeerError(f"the peer answered with a {type(answer).__name__}, which is no answer")
        except ConnectionError as failure:
            raise EndOfFile from failure
        except TimeoutError as failure:
            raise PeerError(f"the peer (pid {self.welcome.pid}) did not answer in {timeout_s:.0f} s") from failure

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class _Pool:
    """Idle connections of one process."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    idle: list[Link] = field(default_factory=list)

    def take(self) -> Link | None:
        with self.lock:
            return self.idle.pop() if self.idle else None

    def put(self, link: Link) -> None:
        with self.lock:
            self.idle.append(link)

    def close(self) -> None:
        with self.lock:
            links, self.idle = self.idle, []
        for link in links:
            link.close()


class PeerClient:
    """A conversation with the peer of one store. Close it, or use it in a ``with`` statement."""

    def __init__(
        self, store_id: bytes, settings: Settings, *, start: bool, keeps_alive: bool, network: str = ""
    ) -> None:
        self._store_id = store_id
        self._network = network
        self._settings = settings
        self._start = start
        self._keeps_alive = keeps_alive
        self._closed = False
        self._pool = _Pool()
        self._targets: dict[str, None] = {}
        self._told_pid = 0
        self._cache_limit: int | None = None

    @classmethod
    def connect(
        cls, store: Store, settings: Settings, *, start: bool, keeps_alive: bool = True, any_network: bool = False
    ) -> PeerClient:
        """NotFoundError if no peer runs and ``start`` is false; with it, a private one is started.

        A private peer lives as long as clients that keep it alive, and a minute more. ConfigError if the settings name
        a network and the peer is in another one; ``any_network`` is for who only looks at the peer, or ends it.
        """
        if store.path.resolve() != settings.store.resolve():
            raise ConfigError(f"the settings speak of store {settings.store}, but {store.path} is open")
        named = settings.network is not None and not any_network
        network = network_at(settings.network).fingerprint if named else ""
        client = cls(store.id, settings, start=start, keeps_alive=keeps_alive, network=network)
        client._pool.put(client._open())
        return client

    def resolve(self, target: Target | str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Resolved:
        """Find the version that a target means; its manifest and contents are in the store afterwards.

        NotFoundError says who was asked; ConfigError asks for a ticket if there was nobody to ask.
        """
        text = text_of(target)
        found = self._ask(lambda left_s: protocol.Resolve(target=text, timeout_s=left_s), Resolved, timeout_s)
        self._targets[text] = None
        while len(self._targets) > _MAX_TARGETS:
            del self._targets[next(iter(self._targets))]
        return found

    def fetch_blobs(
        self, contents: Digest, blobs: Sequence[tuple[Digest, int]], timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Small blobs (digest, most bytes it may have) of a dataset into the store."""
        wanted = tuple(blobs)
        self._ask(
            lambda left_s: protocol.FetchBlobs(contents=contents, blobs=wanted, timeout_s=left_s),
            protocol.Done,
            timeout_s,
        )

    def ensure_blocks(
        self,
        contents: Digest,
        shard: Digest,
        table: Digest,
        blocks: Sequence[int] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        ahead: bool = False,
    ) -> Ensured:
        """Wait until these blocks of a shard (all if empty) are verified on disk, before any background fetch.

        `NoRoomYet` when running loops must move on first: at once for what is fetched ``ahead`` of need, else in time.
        """
        wanted = tuple(blocks)
        found = self._ask(
            lambda left_s: protocol.EnsureBlocks(
                contents=contents, shard=shard, table=table, blocks=wanted, timeout_s=left_s, ahead=ahead
            ),
            Ensured,
            timeout_s,
        )
        if found.no_room:
            raise NoRoomYet(found.no_room)
        return Ensured(path=str(self._settings.store / found.path), complete=found.complete)

    def fetch_dataset(
        self,
        manifest: Digest,
        splits: Sequence[str] = (),
        columns: Sequence[str] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Fetch all shards of these splits and columns (all if empty). Returns when they are in the store."""
        request = protocol.FetchDataset(manifest=manifest, splits=tuple(splits), columns=tuple(columns))
        self._ask(lambda _: request, protocol.Done, _FOREVER_S, on_progress)

    def seed(self, target: Target | str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Seeded:
        """Add a dataset to the running seed. ConfigError if the peer that runs is a private one."""
        text = text_of(target)
        return self._ask(lambda left_s: protocol.Seed(target=text, timeout_s=left_s), Seeded, timeout_s)

    def announce(self, manifest: Digest) -> None:
        """Tell a running seed that a manifest was published, pinned, unpinned or removed here."""
        self._ask(lambda _: protocol.Announce(manifest=manifest), protocol.Done, DEFAULT_TIMEOUT_S)

    def ticket(self, target: Target | str, *, with_secret: bool = False) -> str:
        """A ticket with the live addresses of the running seed, and the secret of its private network if wanted."""
        request = protocol.MakeTicket(target=text_of(target), with_secret=with_secret)
        return self._ask(lambda _: request, protocol.TicketText, DEFAULT_TIMEOUT_S).ticket

    def status(self) -> PeerStatus:
        return self._ask(lambda _: protocol.AskStatus(), PeerStatus, DEFAULT_TIMEOUT_S)

    def providers(self, contents: Digest) -> tuple[ProviderStatus, ...]:
        """Who is known to provide these contents, right now."""
        request = protocol.AskProviders(contents=contents)
        return self._ask(lambda _: request, protocol.ProviderList, DEFAULT_TIMEOUT_S).providers

    def dht(self) -> DhtStatus:
        """The peer's part in the DHT."""
        return self._ask(lambda _: AskDht(), DhtStatus, DEFAULT_TIMEOUT_S)

    def dht_lookup(self, key: bytes, through: Sequence[Address] = ()) -> DhtTrace:
        """Look a key up in the DHT, entering by these addresses too, and tell everything that the look-up did.

        ConfigError if the peer knows nobody to ask, NotFoundError if nobody whom it knows answers.
        """
        request = DhtLookup(key=key, through=tuple(map(str, through)))
        return self._ask(lambda _: request, DhtTrace, LOOKUP_S)

    def dht_ping(self, address: Address) -> DhtPong:
        """Who is at an address. PeerError says why nobody answers."""
        return self._ask(lambda _: DhtPing(address=str(address)), DhtPong, DEFAULT_TIMEOUT_S)

    def limit(self, changes: Mapping[str, int | None]) -> protocol.LimitsNow:
        """Change these limits (``up``, ``down``, ``peer_up``, ``peer_down``) while it runs; those that hold then."""
        request = protocol.SetLimits(changes=dict(changes))
        return self._ask(lambda _: request, protocol.LimitsNow, DEFAULT_TIMEOUT_S)

    def connection(self) -> Link:
        """A connection of its own to the peer that runs now, which keeps it alive. NotFoundError if none runs."""
        return self._connect()

    @property
    def cache_limit(self) -> int | None:
        """Bytes that unpinned blobs may take, as the peer that was met last says."""
        return self._cache_limit

    def stop(self) -> None:
        """Ask the peer to end, and wait until it closes its socket."""
        with self._open() as link, contextlib.suppress(EndOfFile):
            for _ in link.ask(protocol.Stop(), DEFAULT_TIMEOUT_S):
                pass

    def close(self) -> None:
        """Close all connections; those that another thread uses, when it has its answer."""
        self._closed = True
        self._here().close()

    def __enter__(self) -> PeerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pool = _Pool()

    def _ask(
        self,
        request: Callable[[float], protocol.Request],
        expected: type[_A],
        timeout_s: float,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> _A:
        deadline_s = time.monotonic() + timeout_s
        for _ in range(_MAX_REELECTIONS):
            link = self._here().take() or self._open()
            try:
                self._tell_targets(link.welcome.pid)
                left_s = max(deadline_s - time.monotonic(), 0.0)
                answer = self._last_answer(link, request(left_s), left_s, on_progress)
            except EndOfFile:
                link.close()
                self._here().close()
                continue
            except BaseException:
                link.close()
                raise
            self._put_back(link)
            if not isinstance(answer, expected):
                raise PeerError(f"the peer answered with a {type(answer).__name__}, not a {expected.__name__}")
            return answer
        raise PeerError(
            f"the peer of {self._settings.store} ended {_MAX_REELECTIONS} times while it was asked: "
            f"see {self._settings.store / PEER_LOG}"
        )

    def _tell_targets(self, pid: int) -> None:
        """Tell a peer that took another's place whom the targets name: tickets' addresses died with their peer."""
        if pid == self._told_pid:
            return
        for target in list(self._targets):
            # What cannot be found now is told again by the request itself.
            with contextlib.suppress(DhtDataError), self._open() as link:
                self._last_answer(link, protocol.Resolve(target=target, timeout_s=_TELL_S), _TELL_S, None)
        self._told_pid = pid

    def _put_back(self, link: Link) -> None:
        pool = self._here()
        pool.put(link)
        if self._closed:
            pool.close()

    @staticmethod
    def _last_answer(
        link: Link,
        request: protocol.Request,
        timeout_s: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> protocol.Answer:
        for answer in link.ask(request, timeout_s):
            if not isinstance(answer, Progress):
                return answer
            if on_progress is not None:
                on_progress(answer)
        raise EndOfFile

    def _open(self) -> Link:
        return elect(self._settings, self._connect) if self._start else self._connect()

    def _connect(self) -> Link:
        link = Link.open(
            self._store_id,
            keeps_alive=self._keeps_alive,
            network=self._network,
            web_seeds=tuple(seed.url for seed in self._settings.web_seeds),
        )
        self._cache_limit = link.welcome.cache_limit
        return link

    def _here(self) -> _Pool:
        if self._pool.pid != os.getpid():
            # Inherited through fork: the parent still talks over these, so close our copies and say nothing.
            for link in self._pool.idle:
                link.close()
            self._pool = _Pool()
        return self._pool


def _listener_of(connection: socket.socket) -> str:
    """The peer at the other end, with its process id where the system tells."""
    if hasattr(socket, "SO_PEERCRED"):
        with contextlib.suppress(OSError):
            pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
            return f"the peer (process {pid})" if pid else "the peer"
    return "the peer"


def _receive(connection: socket.socket) -> protocol.Message:
    length = protocol.body_length(_receive_exactly(connection, protocol.HEADER_BYTES))
    return protocol.unpack(_receive_exactly(connection, length))


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        piece = connection.recv(min(length - len(received), 1 << 20))
        if not piece:
            raise EndOfFile
        received += piece
    return bytes(received)
