"""Peers that this one knows by address: named by the user, or remembered because they served well.

``peers.json`` in the store: ``{"version": 1, "peers": ["IP:PORT", ...], "follow": ["dhtdata://...", ...]}``, written
whole to a temporary file and renamed. Losing it costs a ticket, nothing else. ``follow`` are the names whose new
versions a seed takes up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.addresses import Address, Believed
from dhtdata.formats.codec import Format, decode_json, encode_json
from dhtdata.formats.names import Name
from dhtdata.formats.web_seeds import WebSeed
from dhtdata.peer.addresses import parse_addresses

MAX_REMEMBERED = 64
MAX_TRUSTED = 256
MAX_WEB_SEEDS = 32
_MAX_FOLLOWED = 1_024
_LIMIT_BYTES = 1 << 20
_FILE = "peers.json"


class _Wire(Format, frozen=True):
    version: int
    peers: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()


class Known:
    """Addresses worth asking anything. `load` reads a file: call it off the event loop."""

    def __init__(self, folder: Path, guard: Believed) -> None:
        self._path = folder / _FILE
        self._guard = guard
        self._trusted: dict[Address, None] = {}
        self._web_seeds: dict[WebSeed, None] = {}
        self._remembered: dict[Address, None] = {}
        self._followed: dict[Name, None] = {}
        self._saved: bytes | None = None

    def load(self) -> None:
        """Take up what was remembered. A file that is damaged is as good as none."""
        try:
            with self._path.open("rb") as file:
                wire = decode_json(file.read(_LIMIT_BYTES + 1), _Wire, limit_bytes=_LIMIT_BYTES, what=str(self._path))
            names = [Name.parse(text) for text in wire.follow]
        except (OSError, FormatError):
            return
        self._remembered = dict.fromkeys(parse_addresses(wire.peers))
        self._followed = dict.fromkeys(names)

    def save(self) -> None:
        """StoreError if the file cannot be written."""
        best = list(self._remembered)[-MAX_REMEMBERED:]
        encoded = encode_json(_Wire(version=1, peers=tuple(map(str, best)), follow=tuple(map(str, self._followed))))
        if encoded == self._saved:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(encoded)
            temporary.replace(self._path)
        except OSError as failure:
            raise StoreError(f"{self._path} cannot be written: {failure.strerror}") from failure
        self._saved = encoded

    def trust(self, addresses: Iterable[Address]) -> None:
        """The user named these."""
        for address in addresses:
            if len(self._trusted) < MAX_TRUSTED:
                self._trusted[address] = None
                self._guard.trust([address])

    def name_web_seeds(self, seeds: Iterable[WebSeed]) -> None:
        """The user named these mirrors, for whatever dataset they have."""
        for seed in seeds:
            if len(self._web_seeds) < MAX_WEB_SEEDS:
                self._web_seeds[seed] = None

    @property
    def web_seeds(self) -> list[WebSeed]:
        return list(self._web_seeds)

    def remember(self, address: Address) -> None:
        """It served something; the latest are kept."""
        self._remembered.pop(address, None)
        self._remembered[address] = None
        while len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def everybody(self) -> list[Address]:
        """Those the user named, then those that served last."""
        return list(dict.fromkeys([*self._trusted, *reversed(self._remembered)]))

    def follow(self, name: Name) -> None:
        """Take up new versions of this name from now on."""
        if len(self._followed) < _MAX_FOLLOWED:
            self._followed[Name(name.publisher, name.name)] = None

    def unfollow(self, name: Name) -> None:
        self._followed.pop(Name(name.publisher, name.name), None)

    def followed(self) -> list[Name]:
        return list(self._followed)
