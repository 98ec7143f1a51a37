"""What a command opens: settings from its flags, the store, the store's peer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from dhtdata.cli.output import Output
from dhtdata.config import LEAST_RATE_BYTES_S, Settings, entering, load_settings, rate_text
from dhtdata.control import PeerClient
from dhtdata.errors import NotFoundError
from dhtdata.formats.addresses import MAX_ADDRESSES
from dhtdata.formats.ticket import LocalName, Target, Ticket
from dhtdata.store import Store

_COMMON, _NETWORK = "Common options", "Network"
_LIMITS = f"Limits (bytes of blobs per second, at least {rate_text(LEAST_RATE_BYTES_S)})"
SEARCH_S = 60.0

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder of the blobs.", rich_help_panel=_COMMON, metavar="DIR")
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of keys and configuration.", rich_help_panel=_COMMON, metavar="DIR"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON on standard output.", rich_help_panel=_COMMON)
]
BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        help="Addresses of known peers, IP:PORT, separated by commas.",
        rich_help_panel=_NETWORK,
        metavar="ADDRESSES",
    ),
]
NetworkOption = Annotated[
    Path | None,
    typer.Option(
        "--network",
        help="File with the secret of a private network; dhtdata network makes one.",
        rich_help_panel=_NETWORK,
        metavar="FILE",
    ),
]
WebSeedsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--web-seed",
        help="Mirror to fetch from as well: https://..., http://... or file:///folder; may be repeated.",
        rich_help_panel=_NETWORK,
        metavar="URL",
    ),
]
ListenOption = Annotated[
    str | None,
    typer.Option("--listen", help="IP address to listen on.", rich_help_panel=_NETWORK, metavar="IP"),
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port", help="UDP and TCP port of the seed; 0 takes a free one.", rich_help_panel=_NETWORK, metavar="PORT"
    ),
]
CacheLimitOption = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        help="Most bytes that unpinned blobs may take, such as 200GB.",
        rich_help_panel=_COMMON,
        metavar="SIZE",
    ),
]
UpOption = Annotated[
    str | None,
    typer.Option(
        "--up",
        help="Most to send, such as 50MB/s; unlimited for no limit.",
        rich_help_panel=_LIMITS,
        metavar="RATE",
        show_default=False,
    ),
]
DownOption = Annotated[
    str | None,
    typer.Option("--down", help="Most to fetch.", rich_help_panel=_LIMITS, metavar="RATE", show_default=False),
]
PeerUpOption = Annotated[
    str | None,
    typer.Option(
        "--peer-up",
        help="Most to send to any one peer.",
        rich_help_panel=_LIMITS,
        metavar="RATE",
        show_default=False,
    ),
]
PeerDownOption = Annotated[
    str | None,
    typer.Option(
        "--peer-down",
        help="Most to fetch from any one peer.",
        rich_help_panel=_LIMITS,
        metavar="RATE",
        show_default=False,
    ),
]
PackedOption = Annotated[
    str | None,
    typer.Option(
        "--packed",
        help="Serve shards packed (zstd), too: auto packs what is asked for, always everything, never nothing; "
        "only keeps nothing but packed ones.",
        rich_help_panel=_NETWORK,
        metavar="auto|always|never|only",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", help="Seconds to search, and to wait while nothing arrives.", rich_help_panel=_NETWORK, min=0.1
    ),
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A name in the store, dhtdata://PUBLISHER/NAME, a manifest digest or a ticket.", metavar="TARGET"
    ),
]


@dataclass(frozen=True)
class Session:
    """One command's surroundings. ``port``: what ``--port`` said; the settings' own may come from elsewhere.

    ``rates``: the limits that flags named; they hold for a peer that runs already, too.
    """

    settings: Settings
    output: Output
    port: int | None = None
    rates: Mapping[str, int | None] = field(default_factory=dict)

    def entering(self, *targets: Target) -> Session:
        """The same command in the private network that a ticket's secret leads into. ConfigError if in another one."""
        settings = self.settings
        for target in targets:
            settings = entering(settings, target)
        return replace(self, settings=settings)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, open. StoreError if its folder cannot hold one."""
        with Store.open(self.settings.store, cache_limit=self.settings.cache_limit) as store:
            yield store

    @contextmanager
    def peer(self, store: Store) -> Iterator[PeerClient]:
        """The store's peer, started as a private one if none runs."""
        with PeerClient.connect(store, self.settings, start=True) as peer:
            if self.rates:
                peer.limit(self.rates)
            yield peer

    def asking(self, target: Target) -> Target:
        """The target and our ``--bootstrap``, which a peer that was running before does not know."""
        if not self.settings.bootstrap or isinstance(target, LocalName):
            return target
        given = target if isinstance(target, Ticket) else Ticket(target)
        addresses = dict.fromkeys([*given.addresses, *self.settings.bootstrap])
        return replace(given, addresses=tuple(addresses)[:MAX_ADDRESSES])

    @contextmanager
    def running_peer(self, store: Store, *, any_network: bool = True) -> Iterator[PeerClient | None]:
        """The store's peer if one runs. ConfigError if it is in another network than ours, unless any will do."""
        try:
            peer = PeerClient.connect(store, self.settings, start=False, any_network=any_network)
        except NotFoundError:
            yield None
            return
        with peer:
            yield peer


def session(
    store: Path | None,
    home: Path | None,
    as_json: bool,
    *,
    bootstrap: str | None = None,
    network: Path | None = None,
    web_seeds: list[str] | None = None,
    listen: str | None = None,
    port: int | None = None,
    cache_limit: str | None = None,
    rates: Mapping[str, str | None] | None = None,
    packed: str | None = None,
) -> Session:
    """Settings of a command from its flags; None means not given."""
    flags = {
        "store": store,
        "home": home,
        "bootstrap": bootstrap,
        "network": network,
        "web_seeds": web_seeds or None,
        "listen": listen,
        "port": port,
        "cache_limit": cache_limit,
        "packed": packed,
    }
    named = {name: rate for name, rate in (rates or {}).items() if rate is not None}
    settings = load_settings(flags | named)
    return Session(settings, Output(as_json), port, {name: getattr(settings, name) for name in named})
