"""Mirrors in folders: what ``file://`` web seeds hold, read as if a web server stood before it. Nothing is written.

Any file system will do, networked ones too: no locks, no index, no memory maps. Paths are those of the HTTP interface
and are taken apart before a file is touched: digits of a digest, a publisher's key, a dataset's name, nothing else.
Only regular files are read, symbolic links are not followed in the last part of a path, and sizes are bounded.

Blocks: everything here belongs in a thread.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from dhtdata.errors import NotFoundError, PeerError
from dhtdata.formats.web_seeds import WebSeed

_PATHS = re.compile(r"/v1/(?:(?:blobs|have)/[0-9a-f]{64}|names/[a-z2-7]{52}/[a-z0-9][a-z0-9._-]{0,62})", re.ASCII)
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PIECE_BYTES = 4 << 20


class FolderConnection:
    """Ranges of one mirror's blobs, one after the other. For one thread; `abort` is for any other."""

    def __init__(self, seed: WebSeed) -> None:
        folder = seed.folder
        if folder is None:
            raise PeerError(f"{seed} is not a folder")
        self._folder = folder
        self._file = -1
        self._path = ""
        self._offset = 0
        self._left = 0
        self._aborted = False

    def open(self, path: str, first: int, length: int, headers: Mapping[str, str] = {}) -> None:
        """Bytes ``[first, first + length)`` of what is at ``path`` are read next. NotFoundError if they are not there.

        ``headers`` have no meaning in a folder.
        """
        self.close()
        self._file, size = open_file(self._folder, path)
        if not 0 <= first <= first + length <= size:
            self.close()
            raise NotFoundError(f"{self._folder}{path} has {size} bytes: none at {first} to {first + length}")
        self._path, self._offset, self._left = path, first, length

    def read_into(self, view: memoryview) -> None:
        """Exactly ``len(view)`` bytes. PeerError if the file has become shorter, or after `abort`."""
        if self._file < 0 or len(view) > self._left:
            raise PeerError(f"{self._folder}{self._path}: more bytes are read than were asked for")
        done = 0
        while done < len(view):
            if self._aborted:
                raise PeerError(f"{self._folder}{self._path}: given up")
            try:
                count = os.preadv(self._file, [view[done : done + _PIECE_BYTES]], self._offset)
            except OSError as failure:
                raise PeerError(f"{self._folder}{self._path} cannot be read: {failure.strerror}") from failure
            if not count:
                raise PeerError(f"{self._folder}{self._path} ends before its end: it was cut short just now")
            done += count
            self._offset += count
        self._left -= done

    def close(self) -> None:
        """Close what is open; `open` may follow."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def abort(self) -> None:
        """Let a read in another thread end after its current piece."""
        # The descriptor belongs to the reading thread: closed from here, its number could mean another file by now.
        self._aborted = True


def read_whole(seed: WebSeed, path: str, limit_bytes: int) -> bytes:
    """A small file. NotFoundError if it is not there, PeerError if it is too large or cannot be read."""
    folder = seed.folder
    if folder is None:
        raise PeerError(f"{seed} is not a folder")
    file, size = open_file(folder, path)
    try:
        if size > limit_bytes:
            raise PeerError(f"{folder}{path} has {size} bytes of at most {limit_bytes}")
        with os.fdopen(file, "rb", closefd=False) as reader:
            body = reader.read(size + 1)
    except OSError as failure:
        raise PeerError(f"{folder}{path} cannot be read: {failure.strerror}") from failure
    finally:
        os.close(file)
    if len(body) != size:
        raise PeerError(f"{folder}{path} changes while it is read")
    return body


def read_range(seed: WebSeed, path: str, first: int, length: int) -> bytearray:
    """One range in memory. NotFoundError or PeerError, as `FolderConnection`."""
    body = bytearray(length)
    connection = FolderConnection(seed)
    try:
        connection.open(path, first, length)
        connection.read_into(memoryview(body))
    finally:
        connection.close()
    return body


def open_file(folder: Path, path: str) -> tuple[int, int]:
    """Descriptor and size of a regular file of a mirror; the caller closes it."""
    if _PATHS.fullmatch(path) is None:
        raise NotFoundError(f"{path[:200]!r} is not in the layout of a mirror")
    try:
        file = os.open(f"{folder}{path}", _FLAGS)
    except (FileNotFoundError, NotADirectoryError) as failure:
        raise NotFoundError(f"{folder}{path}: not there") from failure
    except OSError as failure:
        raise PeerError(f"{folder}{path} cannot be read: {failure.strerror}") from failure
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise PeerError(f"{folder}{path} is not a regular file")
    except BaseException:
        os.close(file)
        raise
    return file, status.st_size
