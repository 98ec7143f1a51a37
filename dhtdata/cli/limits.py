"""``limit``: show or change how fast the running peer sends and fetches."""

from __future__ import annotations

from dhtdata.cli.session import (
    DownOption,
    HomeOption,
    JsonOption,
    PeerDownOption,
    PeerUpOption,
    StoreOption,
    UpOption,
    session,
)
from dhtdata.config import RATES, rate_text
from dhtdata.control.protocol import LimitsNow
from dhtdata.errors import NotFoundError


def limit(
    up: UpOption = None,
    down: DownOption = None,
    peer_up: PeerUpOption = None,
    peer_down: PeerDownOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how fast the running peer may send and fetch, or change it at once.

    A change holds until the peer ends; what stands in config.toml or the environment holds from the start.

    Example: `dhtdata limit --up 5MB/s --peer-down unlimited`
    """
    rates = {"up": up, "down": down, "peer_up": peer_up, "peer_down": peer_down}
    opened = session(store, home, as_json, rates=rates)
    with opened.store() as blobs, opened.running_peer(blobs) as peer:
        if peer is None:
            raise NotFoundError(f"no peer runs on the store {blobs.path}: start one with dhtdata seed")
        now = peer.limit(opened.rates)
    opened.output.result({name: getattr(now, name) for name in RATES}, f"Limits: {limits_text(now)}.")


def limits_text(now: LimitsNow) -> str:
    """All four in one line."""
    return (
        f"up {rate_text(now.up)}, down {rate_text(now.down)}, "
        f"each peer up {rate_text(now.peer_up)}, down {rate_text(now.peer_down)}"
    )
