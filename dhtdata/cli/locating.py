"""Find the dataset that a user means, in the store or over the network, and bring its description here."""

from __future__ import annotations

from dataclasses import replace

from dhtdata.cli.held import Held, held
from dhtdata.cli.session import Session
from dhtdata.digest import Digest
from dhtdata.errors import ConfigError, NotFoundError
from dhtdata.formats.contents import Contents
from dhtdata.formats.ticket import PREFIX, LocalName, Target, parse_target
from dhtdata.signing import load_or_create_key
from dhtdata.store import Store, version_of

RELEASE_KEY = "release.key"


def locate(opened: Session, blobs: Store, target: str, timeout_s: float, *, newest: bool = False) -> tuple[Held, bool]:
    """The dataset, its manifest and contents in the store; and whether its name is stale.

    What the store has is taken without asking anybody, unless ``newest``: a name may have moved on, so the network is
    asked first. A name that this machine publishes cannot have moved on without it.
    """
    parsed = parse_target(target)
    local = _local(blobs, parsed)
    if local is not None and (not newest or isinstance(parsed, Digest) or _ours(opened, blobs, local)):
        return local, bool(local.known and local.known.stale)
    if local is None and isinstance(parsed, LocalName):
        if parsed.name.startswith(PREFIX):
            raise NotFoundError(f"{parsed.name} looks like a ticket that was cut short: copy it again, whole")
        raise NotFoundError(f"no dataset called {parsed.name} is in this store: see dhtdata ls, or give a ticket")
    try:
        with opened.output.status_line() as show, opened.peer(blobs) as peer:
            if show is not None:
                show("looking for the dataset")
            found = peer.resolve(opened.asking(_spelled_out(parsed, local)), timeout_s)
    except (NotFoundError, ConfigError) as failure:
        if local is None:
            raise
        opened.output.note(f"Using what is in the store; a newer version could not be asked for: {failure}")
        return local, bool(local.known and local.known.stale)
    if found.stale:
        opened.output.note(f"{target[:80]} is stale: its publisher has not vouched for it lately.")
    return held(blobs, found.manifest.hex()), found.stale


def _spelled_out(target: Target, local: Held | None) -> Target:
    """A bare name as what it means here: with addresses to ask, it can then travel as a ticket."""
    if local is None or not isinstance(target, LocalName):
        return target
    return replace(local.known.name, sequence=None) if local.known else local.digest


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


def _local(blobs: Store, target: Target) -> Held | None:
    """What the store knows of a target, if it has manifest and contents."""
    try:
        found = held(blobs, version_of(target, blobs).hex())
    except NotFoundError:
        return None
    return found if found.contents is not None else None


def _ours(opened: Session, blobs: Store, entry: Held) -> bool:
    """Whether this machine signs the dataset's name."""
    path = opened.settings.keys / RELEASE_KEY
    if entry.known is None or not path.exists():
        return False
    signed = blobs.name_record(entry.known.name.publisher, entry.known.name.name)
    return signed.signer == load_or_create_key(path).public
