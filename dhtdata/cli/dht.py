"""``dht status|lookup|ping``: look at the DHT through the store's peer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from dhtdata.cli.dht_view import pong, standing, way
from dhtdata.cli.session import (
    SEARCH_S,
    BootstrapOption,
    HomeOption,
    JsonOption,
    NetworkOption,
    Session,
    StoreOption,
    session,
)
from dhtdata.cli.values import as_document
from dhtdata.control.dht import DhtTrace
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, IntegrityError, NotFoundError
from dhtdata.formats.addresses import Address
from dhtdata.formats.contents import MAX_CONTENTS_BYTES, Contents
from dhtdata.formats.manifest import MAX_MANIFEST_BYTES, Manifest
from dhtdata.formats.names import Name
from dhtdata.formats.records import contents_key, shard_key
from dhtdata.formats.ticket import LocalName, Target, Ticket, parse_target
from dhtdata.store import Store, meaning_of

KEY_DIGITS = 40
_DIGITS = frozenset("0123456789abcdef")
_NOBODY = 5

app = typer.Typer(name="dht")


@dataclass(frozen=True)
class Wanted:
    """A key to look up, and what is kept under it; empty if not known."""

    key: bytes
    what: str


@app.command()
def status(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the running peer's part in the DHT: who reaches it, whom it knows, what it holds, its clock.

    Example: `dhtdata dht status`
    """
    opened = session(store, home, as_json)
    with opened.store() as blobs, opened.running_peer(blobs) as peer:
        if peer is None:
            raise NotFoundError(f"no peer runs on the store {blobs.path}: start one with dhtdata seed")
        seen = peer.dht()
    opened.output.result(as_document(seen) | {"reached": seen.reached}, *standing(seen))


@app.command()
def lookup(
    key: Annotated[
        str,
        typer.Argument(
            help="A key of 40 hexadecimal digits, a name, a digest of 64 digits or a ticket.", metavar="KEY"
        ),
    ],
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> int:
    """Look a key up in the DHT and show the way that the look-up took, hop by hop, and what it found.

    A name has three keys, and each is looked up. Of a dataset the key of its contents is looked up, under which its
    providers are found; of another blob the key of its holders; of a digest that the store does not know, both.

    Ends with exit code 5 if nothing was found.

    Example: `dhtdata dht lookup my-dataset`
    """
    opened = session(store, home, as_json, bootstrap=bootstrap, network=network)
    parsed = _parse(key)
    if not isinstance(parsed, Wanted):
        opened = opened.entering(parsed)
    ticket = parsed.addresses if isinstance(parsed, Ticket) else ()
    through = tuple(dict.fromkeys([*ticket, *opened.settings.bootstrap]))
    traces: list[tuple[Wanted, DhtTrace]] = []
    with opened.store() as blobs:
        planned = [parsed] if isinstance(parsed, Wanted) else _plan(opened, blobs, parsed)
        with opened.peer(blobs) as peer, opened.output.status_line() as show:
            for place, wanted in enumerate(planned):
                if show is not None:
                    show(f"looking up {wanted.key.hex()} ({place + 1} of {len(planned)})")
                traces.append((wanted, peer.dht_lookup(wanted.key, () if place else through)))
    document: dict[str, Any] = {
        "asked": str(parsed.target) if isinstance(parsed, Ticket) else key,
        "found": sum(len(trace.found) for _, trace in traces),
        "lookups": [{"what": wanted.what} | as_document(trace) for wanted, trace in traces],
    }
    pieces: list[RenderableType] = []
    for wanted, trace in traces:
        pieces += [*([""] if pieces else []), *way(trace, wanted.what, opened.output.width)]
    opened.output.result(document, *pieces)
    return 0 if document["found"] else _NOBODY


@app.command()
def ping(
    address: Annotated[str, typer.Argument(help="IP:PORT or [IPv6]:PORT of a node.", metavar="ADDRESS")],
    store: StoreOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask over UDP who is at an address: its node, whether it is a client, and how long it takes to answer.

    Example: `dhtdata dht ping 203.0.113.7:8470`
    """
    parsed = _address(address)
    opened = session(store, home, as_json, bootstrap=bootstrap, network=network)
    with opened.store() as blobs, opened.peer(blobs) as peer:
        answer = peer.dht_ping(parsed)
    opened.output.result(as_document(answer), *pong(answer))


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except FormatError as failure:
        host = text.rpartition(":")[0] or text
        if any(letter.isalpha() for letter in host) and ":" not in host:
            raise ConfigError(
                f"{text[:80]!r} is a host name, nodes are known by IP address: give IP:PORT, such as 203.0.113.7:8470"
            ) from failure
        raise ConfigError(f"{failure}, such as 203.0.113.7:8470") from failure


def _parse(text: str) -> Target | Wanted:
    """A key as it stands, or a target of any kind. FormatError says what is expected."""
    text = text.strip()
    digits = text.lower()
    if len(digits) == KEY_DIGITS and set(digits) <= _DIGITS:
        return Wanted(bytes.fromhex(digits), "")
    try:
        return parse_target(text)
    except FormatError as failure:
        if "names no dataset" not in str(failure):
            raise
        raise FormatError(f"{failure}; or a key of the DHT ({KEY_DIGITS} hexadecimal digits)") from failure


def _plan(opened: Session, blobs: Store, target: Target) -> list[Wanted]:
    """Which keys to look up for a target. NotFoundError if the store does not know a bare name."""
    if isinstance(target, LocalName):
        target = _meaning(blobs, target)
    wanted = target.target if isinstance(target, Ticket) else target
    if isinstance(wanted, Name):
        return [
            Wanted(key, f"name {wanted.name}, key {place} of {len(wanted.dht_keys)}")
            for place, key in enumerate(wanted.dht_keys, 1)
        ]
    known = _known(blobs, wanted)
    if not known and isinstance(target, Ticket):
        with opened.peer(blobs) as peer:
            known = [_providers(peer.resolve(opened.asking(target), SEARCH_S).contents)]
    return known or [
        Wanted(contents_key(wanted), "providers, if it is the digest of contents"),
        Wanted(shard_key(wanted), "holders, if it is a manifest or a shard"),
    ]


def _meaning(blobs: Store, target: LocalName) -> Name | Digest:
    try:
        return meaning_of(target, blobs)
    except NotFoundError as failure:
        if len(target.name) >= KEY_DIGITS // 2 and set(target.name) <= _DIGITS:
            raise FormatError(
                f"{target.name!r} has {len(target.name)} digits: a key of the DHT has {KEY_DIGITS}, a digest 64"
            ) from failure
        raise NotFoundError(
            f"{failure}; a key of the DHT has {KEY_DIGITS} hexadecimal digits, a digest 64"
        ) from failure


def _known(blobs: Store, digest: Digest) -> list[Wanted]:
    """The key of a blob that the store has: a manifest, contents or something else."""
    if not blobs.has(digest):
        return []
    with suppress(FormatError, IntegrityError, NotFoundError):
        return [_providers(Manifest.decode(blobs.read(digest, limit_bytes=MAX_MANIFEST_BYTES)).contents)]
    with suppress(FormatError, IntegrityError, NotFoundError):
        Contents.decode(blobs.read(digest, limit_bytes=MAX_CONTENTS_BYTES))
        return [_providers(digest)]
    return [Wanted(shard_key(digest), f"holders of blob {digest.hex()[:12]}")]


def _providers(contents: Digest) -> Wanted:
    return Wanted(contents_key(contents), f"providers of contents {contents.hex()[:12]}")
