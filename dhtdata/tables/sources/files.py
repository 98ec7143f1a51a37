"""Which files are meant: paths, folders and globs, in a fixed order.

Symbolic links are not followed: one that is named outright is refused, one inside a folder or glob is skipped and
counted, as are hidden files and folders (their name starts with a dot; a folder counts once) and special files.
Two sources that mean the same file are refused.
A folder that holds only table files of one kind stands for these tables; any other folder is a *folder of files*
(`dhtdata.tables.sources.folder`). Order: as given; inside a folder or glob by path, compared as text.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dhtdata.errors import ConfigError

KINDS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_COMPRESSED_KINDS = ("csv", "tsv", "json")
_MAGICS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"FEA1": "arrow"}
_READABLE = "Parquet, CSV, TSV, JSON lines (the last three also .gz or .zst), Arrow IPC, Feather, or a folder of files"


@dataclass(frozen=True)
class FoundFile:
    """A table file. ``kind`` is one of parquet, csv, tsv, json, arrow; ``compression`` gzip, zstd or none."""

    path: Path
    kind: str
    compression: str | None
    size: int


@dataclass(frozen=True)
class FoundFolder:
    """A folder of files: the row order is that of ``files``, paths relative to ``root``."""

    root: Path
    files: tuple[tuple[str, int], ...]


@dataclass
class Found:
    """Everything that was meant, and what was left out."""

    items: list[FoundFile | FoundFolder] = field(default_factory=list)
    skipped_hidden: int = 0
    skipped_links: int = 0


def find(sources: Sequence[str | Path]) -> Found:
    """Resolve paths and globs. ConfigError names a source that is missing, unreadable or of no known kind."""
    found = Found()
    for source in sources:
        text = os.fspath(source)
        if glob.has_magic(text) and not os.path.lexists(text):
            _add_matches(found, text)
        else:
            _add_path(found, Path(text))
    _check_once(found)
    return found


def _check_once(found: Found) -> None:
    """ConfigError if two sources mean the same file: overlapping patterns would double its rows."""
    seen: set[str] = set()
    for item in found.items:
        paths = [item.path] if isinstance(item, FoundFile) else [item.root / name for name, _ in item.files]
        for path in map(os.path.abspath, paths):
            if path in seen:
                raise ConfigError(f"{path} is meant twice: make patterns that do not overlap, or name it once")
            seen.add(path)


def _add_matches(found: Found, pattern: str) -> None:
    count = len(found.items)
    shown_hidden = _hidden_parts(pattern)
    matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True, include_hidden=True))
    for match in matches:
        path = Path(match)
        if _hidden_parts(match) > shown_hidden:
            found.skipped_hidden += 1
        elif path.is_symlink():
            found.skipped_links += 1
        elif path.is_file():
            found.items.append(_file(path))
    if len(found.items) == count:
        left_out = " (hidden files and symbolic links do not count)" if matches else ""
        raise ConfigError(f"no file matches {pattern!r}{left_out}: check the pattern, and quote it in a shell")


def _hidden_parts(path: str) -> int:
    return sum(part.startswith(".") and part not in (".", "..") for part in path.split(os.sep))


def _add_path(found: Found, path: Path) -> None:
    path = path.expanduser()
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError as failure:
        raise ConfigError(f"source {path} does not exist: check the path") from failure
    except OSError as failure:
        raise ConfigError(f"source {path} cannot be read: {failure.strerror}") from failure
    if stat.S_ISLNK(mode):
        raise ConfigError(f"source {path} is a symbolic link, which is not followed: name {os.path.realpath(path)}")
    if stat.S_ISDIR(mode):
        _add_folder(found, path)
    elif stat.S_ISREG(mode):
        found.items.append(_file(path))
    else:
        raise ConfigError(f"source {path} is neither a file nor a folder")


def _add_folder(found: Found, root: Path) -> None:
    files = sorted(_walk(found, root, ""))
    if not files:
        raise ConfigError(f"folder {root} holds no files that could be published (hidden ones are skipped)")
    kinds = {_by_name(name) for name, _ in files}
    if len(kinds) == 1 and None not in kinds:
        found.items += [_file(root / name) for name, _ in files]
    else:
        found.items.append(FoundFolder(root, tuple(files)))


def _walk(found: Found, root: Path, below: str) -> list[tuple[str, int]]:
    """Files under a folder as (path relative to the root, size), in no order."""
    files: list[tuple[str, int]] = []
    folders = [below]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as failure:
            raise ConfigError(f"folder {root / folder} cannot be read: {failure.strerror}") from failure
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                found.skipped_hidden += 1
            elif entry.is_symlink():
                found.skipped_links += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(relative)
            elif entry.is_file(follow_symlinks=False):
                files.append((relative, entry.stat(follow_symlinks=False).st_size))
            else:
                found.skipped_links += 1
    return files


def _by_name(name: str) -> str | None:
    stem, extension = os.path.splitext(name.lower())
    if extension in COMPRESSIONS:
        kind = KINDS.get(os.path.splitext(stem)[1])
        return kind if kind in _COMPRESSED_KINDS else None
    return KINDS.get(extension)


def _file(path: Path) -> FoundFile:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(6)
    except PermissionError as failure:
        raise ConfigError(f"source {path} may not be read by this user: change its permissions") from failure
    except OSError as failure:
        raise ConfigError(f"source {path} cannot be read: {failure.strerror}") from failure
    if size == 0:
        raise ConfigError(f"source {path} is empty: make it again, or leave it out")
    kind = _by_name(path.name)
    if kind is None:
        kind = next((known for magic, known in _MAGICS.items() if head.startswith(magic)), None)
    if kind is None:
        raise ConfigError(f"source {path} is of no kind that can be read by its name: expected {_READABLE}")
    extension = path.suffix.lower()
    return FoundFile(path, kind, COMPRESSIONS.get(extension), size)
