"""Find the dataset that a user means, in the store or over the network, and bring its description here."""

from __future__ import annotations

from dhtdata.cli.held import Held, find, held
from dhtdata.cli.session import Session
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, FormatError, NotFoundError
from dhtdata.formats.contents import Contents
from dhtdata.formats.ticket import parse_target
from dhtdata.store import Store


def locate(opened: Session, blobs: Store, target: str, timeout_s: float) -> tuple[Held, bool]:
    """The dataset, its manifest and contents in the store; and whether its name is stale.

    Asks the network first, since a name may have moved on; falls back to what is here, and says so.
    """
    parsed = parse_target(target)
    try:
        local: Digest | None = find(blobs, parsed)
    except NotFoundError:
        local = None
    if local is not None and isinstance(parsed, Digest) and _described(blobs, local):
        return held(blobs, target), False
    try:
        with opened.peer(blobs) as peer:
            found = peer.resolve(parsed, timeout_s)
    except (NotFoundError, ConfigError) as failure:
        if local is None or not _described(blobs, local):
            raise
        opened.output.note(f"Using what is in the store; a newer version could not be asked for: {failure}")
        return held(blobs, local.hex()), False
    if found.stale:
        opened.output.note(f"{target[:80]} is stale: its publisher has not vouched for it lately.")
    return held(blobs, found.manifest.hex()), found.stale


def contents_of(entry: Held) -> Contents:
    """Contents of a dataset that was located."""
    if entry.contents is None:
        raise NotFoundError(f"the contents of {entry.label} are not in this store: fetch it with dhtdata get")
    return entry.contents


def choose_splits(contents: Contents, wanted: list[str]) -> list[str]:
    """Names of splits, all if none is wanted. ConfigError names one that does not exist."""
    names = [split.name for split in contents.splits]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"there is no split {name!r}: this dataset has {', '.join(names)}")
    return wanted or names


def choose_columns(contents: Contents, wanted: list[str]) -> list[str]:
    """Names of columns, all if none is wanted. ConfigError names one that does not exist."""
    names = [field.name for field in contents.columns]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"there is no column {name!r}: this dataset has {', '.join(names)}")
    return wanted or names


def listed(columns: str | None) -> list[str]:
    """Names from ``--columns``."""
    return [name.strip() for name in columns.split(",") if name.strip()] if columns else []


def _described(blobs: Store, manifest: Digest) -> bool:
    try:
        return held(blobs, manifest.hex()).contents is not None
    except (NotFoundError, FormatError):
        return False
