"""Contacts on disk, for the next start: canonical JSON, written atomically, never pickle.

``{"version": 1, "contacts": [{"id": hexadecimal, "address": "IP:PORT"}, …]}``, at most 64 KiB, the nearest first.
Losing it costs a bootstrap address, so a damaged file counts as an empty one. Blocking: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dhtdata.dht import statefile
from dhtdata.dht.routing import Contact
from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.addresses import Address
from dhtdata.formats.codec import Format, check_version, decode_json, encode_json

VERSION = 1
MAX_REMEMBERED = 128
_MAX_BYTES = 64 << 10


class _ContactText(Format, frozen=True):
    id: str
    address: str


class _State(Format, frozen=True):
    version: int
    contacts: tuple[_ContactText, ...]


def save(path: Path, contacts: Sequence[Contact]) -> None:
    """Replace the file. StoreError if that is not possible; the old file is then as it was."""
    texts = tuple(_ContactText(id=each.id.hex(), address=str(each.address)) for each in contacts[:MAX_REMEMBERED])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        statefile.replace(path, encode_json(_State(version=VERSION, contacts=texts)))
    except OSError as failure:
        raise StoreError(f"contacts of the DHT cannot be saved in {path}: {failure}") from failure


def load(path: Path) -> list[Contact]:
    """What was saved; empty if there is no file or it is damaged. StoreError if it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as failure:
        raise StoreError(f"contacts of the DHT cannot be read from {path}: {failure}") from failure
    try:
        state = decode_json(text, _State, limit_bytes=_MAX_BYTES, what=f"contacts of the DHT in {path}")
        check_version(state, VERSION, f"contacts of the DHT in {path}")
        return [Contact(bytes.fromhex(each.id), Address.parse(each.address)) for each in state.contacts]
    except (FormatError, ValueError):
        return []
