"""Where results of filters are kept: ``<store>/filters``, a file each, made by one process while others wait.

The files are no blobs: nobody else is given them, and whoever finds one missing or damaged works it out again. The
most recently used stay, up to `MAX_FILES` and `MAX_BYTES`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dhtdata.control.lock import FileLock
from dhtdata.digest import Digest
from dhtdata.errors import FormatError, NotFoundError
from dhtdata.filters.selection import Segments, Selection, SelectionWriter, open_selection, writing_selection
from dhtdata.store.filesystem import make_folder, store_errors

FOLDER = "filters"
MAX_FILES = 64
MAX_BYTES = 2 << 30
_LOCKS = 64
_PATIENCE_S = 1.0
_log = logging.getLogger("dhtdata")

Work = Callable[[SelectionWriter], None]


def selection_key(contents: Digest, split: str, filter: Digest) -> Digest:
    return Digest.of(b"dhtdata selection" + contents + filter + split.encode())


def kept_selection(store: Path, key: Digest, ranges: Sequence[int], work: Work) -> Selection:
    """The selection of this key, worked out by ``work`` if no process of this machine did that before."""
    folder = store / FOLDER
    path = folder / f"{key}.rows"
    with store_errors(folder):
        make_folder(folder)
    try:
        return _found(path, key, ranges)
    except NotFoundError:
        pass
    with _alone(folder / f"{key[0] % _LOCKS}.lock"):
        try:
            return _found(path, key, ranges)
        except NotFoundError:
            with writing_selection(path, key, Segments(ranges)) as writer:
                work(writer)
                writer.commit()
        _trim(folder, path)
        return open_selection(path, key, ranges)


def _found(path: Path, key: Digest, ranges: Sequence[int]) -> Selection:
    try:
        found = open_selection(path, key, ranges)
    except FormatError as failure:
        _log.warning("%s: it is worked out again", failure)
        path.unlink(missing_ok=True)
        raise NotFoundError(f"{path} is damaged") from failure
    with store_errors(path), suppress(FileNotFoundError):
        os.utime(path)
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases if this process dies."""
    with FileLock(path) as lock:
        if not lock.try_acquire():
            _log.info("another process works out which rows the filter keeps: waiting for it")
            while not lock.acquire(_PATIENCE_S):
                pass
        yield


def _trim(folder: Path, newest: Path) -> None:
    """Remove what was used longest ago. Maps of it stay readable."""
    sizes = []
    for path in folder.glob("*.rows"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        sizes.append((path != newest, -status.st_mtime_ns, status.st_size, path))
    total = 0
    for number, (_, _, size, path) in enumerate(sorted(sizes)):
        total += size
        if number and (number >= MAX_FILES or total > MAX_BYTES):
            path.unlink(missing_ok=True)
