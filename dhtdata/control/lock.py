"""Files that one process at a time may hold (flock): no pid files, nothing to clean up after a kill.

A store has two. ``election.lock`` is held by whoever is starting a peer, until that peer answers; ``peer.lock`` by the
peer itself as long as it runs. A forked process closes what it inherited, so a worker never keeps a lock alive.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType

from dhtdata.errors import StoreError

ELECTION_LOCK = "election.lock"
PEER_LOCK = "peer.lock"
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.2


class FileLock:
    """An exclusive lock on a file. Not reentrant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        _ALL.add(self)

    def try_acquire(self) -> bool:
        """True if this process holds the lock now. StoreError if the file cannot be opened."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as failure:
            raise StoreError(f"lock file {self.path} cannot be opened: {failure}") from failure
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as failure:
            os.close(descriptor)
            raise StoreError(
                f"{self.path} cannot be locked: {failure}: use a store on a local file system"
            ) from failure
        self._descriptor = descriptor
        return True

    def acquire(self, timeout_s: float) -> bool:
        """Like `try_acquire`, but waits. flock has no deadline of its own, hence the growing pauses."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while not self.try_acquire():
            if time.monotonic() + pause_s > deadline_s:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def release(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_ALL: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _close_inherited() -> None:
    # close() in the child leaves the parent's lock alone: it belongs to the open file, which the parent still has.
    for lock in list(_ALL):
        lock.release()


os.register_at_fork(after_in_child=_close_inherited)
