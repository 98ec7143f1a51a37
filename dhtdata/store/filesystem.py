"""What a store asks of the file system: local, durable, and plain words when it is full (door of ``statfs``).

SQLite in WAL mode, ``flock`` and shared maps are only right where one kernel sees all writers, so network and
user-space file systems are refused by the magic number of ``statfs(2)``, with a local path to use instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhtdata.config import local_folders
from dhtdata.errors import StoreError

_REFUSED = {
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x65735546: "FUSE",
    0x00C36400: "CephFS",
    0x19830326: "BeeGFS",
    0x5346414F: "AFS",
}
"""Magic numbers of ``statfs(2)`` and ``linux/magic.h``; Lustre, GPFS and BeeGFS from their own sources."""
_OF_THE_KERNEL = {
    0x9FA0: "procfs",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STATFS_BYTES = 512
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
HEADROOM_BYTES = 16 << 20


def magic_of(path: Path) -> int:
    """Magic number of the file system that holds ``path``; 0 where the system has none. OSError if unreadable."""
    if _LIBC is None or sys.platform != "linux":
        return 0
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC.statfs(os.fsencode(path), answer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    # f_type is the first word of struct statfs on every Linux architecture.
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF


def refuse_kernel(path: Path) -> None:
    """StoreError if ``path`` lies on a file system that shows the kernel and holds no files of ours, whoever we are."""
    kind = _OF_THE_KERNEL.get(magic_of(path))
    if kind is not None:
        raise StoreError(f"{path} is on {kind}, which holds no files")


def refuse_network(path: Path) -> None:
    """StoreError if ``path`` lies on a network or user-space file system; names a local folder to use instead."""
    kind = _REFUSED.get(magic_of(path))
    if kind is None:
        return
    local = [str(folder) for folder in local_folders() if folder.is_dir() and magic_of(folder) not in _REFUSED]
    advice = f"use a local folder, such as {local[0]}/dhtdata" if local else "use a folder on a local disk"
    raise StoreError(f"{path} is on {kind}, which cannot hold a store: {advice} (--store or DHTDATA_STORE)")


@contextmanager
def store_errors(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Translate OSError into StoreError; a full disk names the path and the bytes that were to be written."""
    try:
        yield
    except OSError as failure:
        if failure.errno in _FULL:
            raise StoreError(
                f"{path}: no room for {needed_bytes} more bytes ({failure.strerror}): free some space, "
                "run dhtdata gc, or use another store (--store)"
            ) from failure
        raise StoreError(f"{path}: {failure.strerror or failure}") from failure


def free_bytes(path: Path) -> tuple[int, int]:
    """Bytes free on the disk of ``path``, and how many of them are kept for the index."""
    with store_errors(path):
        status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, min(HEADROOM_BYTES, status.f_blocks * status.f_frsize // 16)


def require_room(path: Path, needed_bytes: int) -> None:
    """StoreError unless the disk of ``path`` has room for so many bytes, and a little more.

    Shards that fill a disk to the last byte would leave none to the index, and so nothing could be dropped any more.
    """
    free, kept = free_bytes(path)
    if free < needed_bytes + kept:
        raise StoreError(
            f"{path}: no room for {needed_bytes} more bytes ({free} are free, {kept} of them kept for the index): "
            "free some space, run dhtdata gc, or use another store (--store)"
        )


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A folder of this user only (0700), made durable if it is new."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(path.parent)


def write_all(descriptor: int, parts: list[memoryview]) -> None:
    """Write every byte of every part, in order, at the file's position."""
    parts = [part for part in parts if len(part)]
    first = 0
    while first < len(parts):
        written = os.writev(descriptor, parts[first : first + _IOV_MAX])
        while first < len(parts) and written >= len(parts[first]):
            written -= len(parts[first])
            first += 1
        if written:
            parts[first] = parts[first][written:]


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """Let the system write a span to the disk from now on, so that a later fsync has little left to wait for.

    Nothing is promised, and where the system cannot, nothing happens: ``sync_file_range(2)``.
    """
    if _LIBC is not None and hasattr(_LIBC, "sync_file_range"):
        _LIBC.sync_file_range(
            descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )


def write_at(descriptor: int, part: memoryview, offset: int) -> None:
    """Write every byte of ``part`` at ``offset``."""
    while len(part):
        written = os.pwrite(descriptor, part, offset)
        part = part[written:]
        offset += written


_IOV_MAX = os.sysconf("SC_IOV_MAX")
