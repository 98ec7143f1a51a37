"""Messages between a program and the peer of its store, over a Unix stream socket.

Bytes: each message is a frame, 4 bytes of big-endian length (at most `MAX_FRAME_BYTES`) and that many bytes of msgpack:
a map whose ``type`` names the message. A connection starts with `Hello`, answered by `Welcome`; after that the program
sends one request at a time and reads answers until the one that ends it:

| request | answers |
|---|---|
| `Resolve` | `Resolved` |
| `FetchBlobs` | `Done` |
| `EnsureBlocks` | `Ensured` |
| `Foresee` | `Foreseen` |
| `Learn` | `Done` |
| `FetchDataset` | any number of `Progress`, then `Done` |
| `Seed` | `Seeded` |
| `Announce`, `HandOver`, `Stop` | `Done` |
| `MakeTicket` | `TicketText` |
| `AskStatus` | `PeerStatus` |
| `AskProviders` | `ProviderList` |
| `AskDht` | `DhtStatus` |
| `DhtLookup` | `DhtTrace` |
| `DhtPing` | `DhtPong` |
| `SetLimits` | `LimitsNow` |

Any request may be answered by `Failure`, which carries the error's class by name. The socket belongs to one user (mode
0600 in a 0700 folder), and `Hello` states program version, user and store, so that a stranger's peer is never believed.
It may name a network too; a peer in another one refuses, so that nobody searches or serves where it was not meant.
Both ends are of one machine and usually of one release: messages of another `PROTOCOL` are refused by number.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dhtdata import errors
from dhtdata.control.dht import AskDht, DhtLookup, DhtPing, DhtPong, DhtStatus, DhtTrace
from dhtdata.control.foreseeing import Foresee, Foreseen, Learn
from dhtdata.digest import Digest
from dhtdata.errors import DhtDataError, FormatError, IntegrityError
from dhtdata.formats.codec import Format, encode_msgpack
from dhtdata.formats.names import Name

PROTOCOL = 5
HEADER_BYTES = 4
MAX_FRAME_BYTES = 16 << 20
DEFAULT_TIMEOUT_S = 60.0

Cells = bytes
"""A have-map in little: for each of some equal parts of the bytes, in order, the share that is here, 0 to 255."""


class Hello(Format, frozen=True, tag="hello"):
    """``store`` is the store's id. ``keeps_alive``: the private peer lives as long as such a connection does.

    ``network``: fingerprint of the network that the program means; empty if it means none. ``web_seeds``: URLs of
    mirrors that the user named; the peer asks them as well from then on.
    """

    protocol: int
    version: str
    uid: int
    store: bytes
    keeps_alive: bool = True
    network: str = ""
    web_seeds: tuple[str, ...] = ()


class Welcome(Format, frozen=True, tag="welcome"):
    """``kind`` is ``seed`` or ``private``. ``cache_limit``: bytes that unpinned blobs may take, None for no limit."""

    protocol: int
    version: str
    pid: int
    kind: str
    cache_limit: int | None = None


class Resolve(Format, frozen=True, tag="resolve"):
    """``target`` is whatever `parse_target` reads."""

    target: str
    timeout_s: float


class Resolved(Format, frozen=True, tag="resolved"):
    """Manifest and contents are in the store now. ``stale``: the name's promise of freshness has run out."""

    manifest: Digest
    contents: Digest
    name_uri: str = ""
    stale: bool = False

    @property
    def name(self) -> Name | None:
        """The name at the sequence found; None if the target was a digest."""
        return Name.parse(self.name_uri) if self.name_uri else None


class FetchBlobs(Format, frozen=True, tag="fetch_blobs"):
    """Small blobs of a dataset: (digest, most bytes it may have)."""

    contents: Digest
    blobs: tuple[tuple[Digest, int], ...]
    timeout_s: float


class EnsureBlocks(Format, frozen=True, tag="ensure_blocks"):
    """Blocks of one shard, by position in its block table ``table``; all of them if ``blocks`` is empty.

    ``ahead``: nobody waits for them yet. If there is no room for them the answer is at once that there is none; those
    who wait are told so when their time is over.
    """

    contents: Digest
    shard: Digest
    table: Digest
    blocks: tuple[int, ...]
    timeout_s: float
    ahead: bool = False


class Ensured(Format, frozen=True, tag="ensured"):
    """``path`` holds the verified blocks at their offsets; ``complete``: it is the whole shard at its final path.

    On the wire the path is relative to the store; `PeerClient` makes it absolute. ``no_room``: nothing is ensured, the
    cache limit is full of what is being fetched or is needed sooner, and this says what it would take.
    """

    path: str = ""
    complete: bool = False
    no_room: str = ""


class FetchDataset(Format, frozen=True, tag="fetch_dataset"):
    """Everything of these splits and columns (all if empty). Lasts until done or until the asker leaves."""

    manifest: Digest
    splits: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class Traffic(Format, frozen=True):
    """What one address delivered: verified bytes and blocks, bytes thrown away, why it is avoided (if it is).

    ``rate_bytes_s``: over the last second. ``latency_s``: until an answer begins, 0 if not known. ``outstanding``:
    bytes it is being asked for. ``share`` of the dataset that it holds, 0 to 1; None if not known, or of no dataset.
    """

    address: str
    bytes: int
    blocks: int
    wasted: int = 0
    avoided: str = ""
    rate_bytes_s: float = 0.0
    latency_s: float = 0.0
    outstanding: int = 0
    share: float | None = None


class Progress(Format, frozen=True, tag="progress"):
    """How far a fetch is, four times a second while it lasts, and once more when it is done.

    ``bytes`` are here and verified, whole shards or not; ``have`` says which. Of this fetch alone: ``blocks`` verified,
    of about ``blocks_total`` (what is missing is counted in blocks of the usual length); ``fetched``, ``reused`` and
    ``wasted``: bytes that came from providers and were verified, were copied from other shards, were thrown away;
    ``elapsed_s``, and ``bound_s``, the least time in which it could have come as far (`dhtdata.transfer.meters`; None:
    too early to say).

    ``providers``: how many are known, the busiest of which are in ``traffic``. ``peer_received``: bytes that
    the peer has received since its start, verified or not; it grows as long as anything arrives.
    """

    shards: int
    shards_total: int
    bytes: int
    bytes_total: int
    providers: int = 0
    have: Cells = b""
    blocks: int = 0
    blocks_total: int = 0
    fetched: int = 0
    reused: int = 0
    wasted: int = 0
    rate_bytes_s: float = 0.0
    elapsed_s: float = 0.0
    bound_s: float | None = None
    traffic: tuple[Traffic, ...] = ()
    peer_received: int = 0


class Seed(Format, frozen=True, tag="seed"):
    """Add a dataset to the running seed: pin, fetch what is missing, announce, serve; also after its restart."""

    target: str
    timeout_s: float


class Seeded(Format, frozen=True, tag="seeded"):
    manifest: Digest
    contents: Digest
    ticket: str
    name_uri: str = ""


class Announce(Format, frozen=True, tag="announce"):
    """A manifest was published, pinned, unpinned or removed on this machine.

    A seed takes it up and announces it now, or lets it go, as the store says; others ignore it.
    """

    manifest: Digest


class MakeTicket(Format, frozen=True, tag="make_ticket"):
    """A ticket for a dataset held here. A private peer answers with a ConfigError: it serves nobody.

    ``with_secret``: the ticket carries the private network's secret. ConfigError in the public network.
    """

    target: str
    with_secret: bool = False


class TicketText(Format, frozen=True, tag="ticket"):
    ticket: str


class AskStatus(Format, frozen=True, tag="status"):
    pass


class AskProviders(Format, frozen=True, tag="providers"):
    contents: Digest


class HandOver(Format, frozen=True, tag="hand_over"):
    """From a seed that wants to take a private peer's place; a seed refuses."""


class Stop(Format, frozen=True, tag="stop"):
    pass


class SetLimits(Format, frozen=True, tag="set_limits"):
    """Change limits of the running peer, those that are named: bytes per second, None for no limit."""

    changes: dict[str, int | None]


class LimitsNow(Format, frozen=True, tag="limits"):
    """Bytes per second of blobs, for all together and for each other peer; None: no limit."""

    up: int | None
    down: int | None
    peer_up: int | None
    peer_down: int | None


class Done(Format, frozen=True, tag="done"):
    pass


class Failure(Format, frozen=True, tag="failure"):
    """``kind`` names a class of `dhtdata.errors`."""

    kind: str
    message: str
    culprit: str = ""


class Upload(Format, frozen=True):
    """What one IP address fetched from us, and how fast over the last second."""

    address: str
    bytes: int
    rate_bytes_s: float


class HeldDataset(Format, frozen=True):
    """One dataset of a peer. ``announced``: Unix seconds of the last claim, 0 before the first.

    ``holders``: DHT nodes that keep the claim. ``state``: fetching, complete, or what it waits for.
    """

    manifest: Digest
    contents: Digest
    name_uri: str
    shards: int
    shards_held: int
    bytes: int
    bytes_held: int
    announced: int = 0
    holders: int = 0
    state: str = ""
    have: Cells = b""


class PeerStatus(Format, frozen=True, tag="peer_status"):
    """``addresses``: where others reach this peer (none if private). ``clients``: programs that keep it alive.

    ``uploads`` of large pieces are under way, ``uploads_waiting`` wait for a slot.

    ``network``: ``public``, or the fingerprint of a private one. ``down_bytes_s``, ``up_bytes_s``: over the last
    second. ``fetchers``: the addresses that fetch most.
    """

    version: str
    pid: int
    kind: str
    store: str
    listen: str
    port: int
    network: str
    node: str
    addresses: tuple[str, ...]
    dht_contacts: int
    dht: DhtStatus
    datasets: tuple[HeldDataset, ...]
    traffic: tuple[Traffic, ...]
    blocks_verified: int
    bytes_fetched: int
    bytes_served: int
    requests_served: int
    uptime_s: float
    clients: int
    limits: LimitsNow
    uploads: int
    uploads_waiting: int
    down_bytes_s: float = 0.0
    up_bytes_s: float = 0.0
    fetchers: tuple[Upload, ...] = ()


class ProviderStatus(Format, frozen=True):
    """A provider of some contents. ``seed``: has all of it; else ``shards`` counts its whole shards (-1: unknown).

    ``rate_bytes_s``: over the last second. ``latency_s``: until an answer begins, 0 if not known.
    """

    address: str
    seed: bool
    shards: int
    bytes: int
    source: str
    avoided: str = ""
    rate_bytes_s: float = 0.0
    latency_s: float = 0.0


class ProviderList(Format, frozen=True, tag="provider_list"):
    providers: tuple[ProviderStatus, ...]


Request = (
    Resolve
    | FetchBlobs
    | EnsureBlocks
    | Foresee
    | Learn
    | FetchDataset
    | Seed
    | Announce
    | MakeTicket
    | AskStatus
    | AskProviders
    | AskDht
    | DhtLookup
    | DhtPing
    | SetLimits
    | HandOver
    | Stop
)
Answer = (
    Resolved
    | Done
    | Ensured
    | Foreseen
    | Progress
    | Seeded
    | TicketText
    | PeerStatus
    | ProviderList
    | DhtStatus
    | DhtTrace
    | DhtPong
    | LimitsNow
    | Failure
)
Message = Hello | Welcome | Request | Answer


def _decode_hook(expected: type, value: Any) -> Any:
    if expected is Digest and isinstance(value, bytes):
        return Digest(value)
    raise FormatError(f"expected {expected.__name__}, got {type(value).__name__}")


_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message, dec_hook=_decode_hook)


def pack(message: Message) -> bytes:
    """One frame. FormatError if the message is too large to send."""
    body = encode_msgpack(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FormatError(f"control message of {len(body)} bytes, at most {MAX_FRAME_BYTES} are allowed")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes) -> int:
    """Length of the body that follows these 4 bytes. FormatError if it is over the limit."""
    length = int.from_bytes(header, "big")
    if not 1 <= length <= MAX_FRAME_BYTES:
        raise FormatError(f"control message of {length} bytes, 1 to {MAX_FRAME_BYTES} are allowed")
    return length


def unpack(body: bytes) -> Message:
    """A message from a frame's body. FormatError, never another exception."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, FormatError, ValueError, TypeError, RecursionError) as failure:
        raise FormatError(f"control message is malformed: {failure}") from failure


def to_failure(error: DhtDataError) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error), culprit=getattr(error, "culprit", ""))


def to_error(failure: Failure) -> DhtDataError:
    """The error that the other side raised, as the same class; its base if this release does not know the class."""
    kind = getattr(errors, failure.kind, DhtDataError)
    if not (isinstance(kind, type) and issubclass(kind, DhtDataError)):
        kind = DhtDataError
    if issubclass(kind, IntegrityError):
        return kind(failure.message, failure.culprit)
    return kind(failure.message)
