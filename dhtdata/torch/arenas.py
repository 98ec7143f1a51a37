"""Arenas: memory that a worker shares with its loop, in which parcels lie. It is used again once a loop let go of them.

A worker writes into memory that both have mapped for long, and sends no more than a number. New shared memory for each
parcel, which this replaced, took a system call and a zeroed page for every 4 KB on both sides, and a handshake to pass
its descriptor: three times the cost of the copy itself.

The first byte of an arena says whose it is. The worker (`Outbox`) takes a *free* one, writes, and marks it *busy*; the
loop (`Inbox`) marks it free when the last tensor that lies in it is gone, or *gone* if it must never be written to
again: whoever forks has a child that still sees it. Who keeps many batches gets more arenas: beyond `MAX_ARENAS` they
are used once. Memory has no name in any file system: the kernel frees it with its last user, however that ends.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FREE, BUSY, GONE = range(3)
ALIGNMENT = 64
MIN_BYTES = 1 << 20
MAX_ARENAS = 8


@dataclass(frozen=True)
class Passed:
    """What is sent: a parcel is in arena ``number`` of a process; ``file`` is its descriptor if it is new.

    Without a number it is used only once. The receiver forgets those ``dropped``.
    """

    inbox: int | None
    worker: int
    number: int | None
    file: Any
    capacity: int
    dropped: Sequence[int] = ()


class _Arena:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.file = os.memfd_create("dhtdata-parcel")
        weakref.finalize(self, os.close, self.file)
        os.truncate(self.file, capacity)
        self.memory = torch.frombuffer(mmap.mmap(self.file, capacity), dtype=torch.uint8)


class Outbox:
    """A worker's arenas. Belongs to the thread in which a loader's queue pickles."""

    def __init__(self, inbox: int | None) -> None:
        self.inbox = inbox
        self._arenas: dict[int, _Arena] = {}
        self._numbers = count()

    def place(self, size: int) -> tuple[torch.Tensor, Passed]:
        """Memory of ``size`` bytes to be written at once, and what tells the loop where it is."""
        capacity = max(ALIGNMENT + size, MIN_BYTES)
        dropped: list[int] = []
        for number, arena in list(self._arenas.items()):
            state = int(arena.memory[0])
            if state == FREE and arena.capacity >= capacity:
                arena.memory[0] = BUSY
                return arena.memory[ALIGNMENT : ALIGNMENT + size], self._passed(number, None, arena, dropped)
            if state != BUSY:  # gone, or too small
                del self._arenas[number]
                dropped.append(number)
        kept = self.inbox is not None and len(self._arenas) < MAX_ARENAS
        arena = _Arena(1 << (capacity - 1).bit_length() if kept else capacity)
        arena.memory[0] = BUSY
        fresh = next(self._numbers) if kept else None
        if fresh is not None:
            self._arenas[fresh] = arena
        return arena.memory[ALIGNMENT : ALIGNMENT + size], self._passed(fresh, DupFd(arena.file), arena, dropped)

    def _passed(self, number: int | None, file: Any, arena: _Arena, dropped: Sequence[int]) -> Passed:
        return Passed(self.inbox, os.getpid(), number, file, arena.capacity, tuple(dropped))


class Inbox:
    """What one iteration's workers sent, or, if they persist, one loader's. ``number`` is how workers address it."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._maps: dict[tuple[int, int], mmap.mmap] = {}
        self._leases: dict[tuple[int, int], weakref.finalize[Any, Any]] = {}
        _inboxes[self.number] = self

    def open(self, passed: Passed, number: int) -> NDArray[np.uint8]:
        """The arena, from behind its first bytes; it is free when the array is gone."""
        for dropped in passed.dropped:
            self._maps.pop((passed.worker, dropped), None)
            self._leases.pop((passed.worker, dropped), None)
        key = passed.worker, number
        if passed.file is not None:
            self._maps[key] = _mapped(passed)
        lease = _behind(self._maps[key])
        self._leases[key] = weakref.finalize(lease, self._maps[key].__setitem__, 0, FREE)
        self._leases[key].atexit = False  # type: ignore[misc]  # a property, whatever typeshed says
        return lease

    def retire(self) -> None:
        """Nothing that a loop holds now is written to again."""
        for key, lease in list(self._leases.items()):
            if lease.detach() is not None and key in self._maps:
                self._maps.pop(key)[0] = GONE
        self._leases.clear()


def _mapped(passed: Passed) -> mmap.mmap:
    file = passed.file.detach()
    try:
        return mmap.mmap(file, passed.capacity)
    finally:
        os.close(file)


def _behind(arena: mmap.mmap) -> NDArray[np.uint8]:
    return np.frombuffer(arena, np.uint8, offset=ALIGNMENT)


_numbers = count()
_inboxes: weakref.WeakValueDictionary[int, Inbox] = weakref.WeakValueDictionary()


def open_passed(passed: Passed) -> NDArray[np.uint8] | None:
    """The arena, from behind its first bytes. Whatever lies in it must refer to this array.

    None if the iteration that it is for was given up.
    """
    if passed.inbox is None or passed.number is None:
        return _behind(_mapped(passed))
    inbox = _inboxes.get(passed.inbox)
    return None if inbox is None else inbox.open(passed, passed.number)


_outbox: Outbox | None = None


def address(inbox: int) -> None:
    """This process is a worker, and sends to this inbox from now on."""
    global _outbox
    if _outbox is None or _outbox.inbox != inbox:
        _outbox = Outbox(inbox)


def outbox() -> Outbox:
    """This worker's; elsewhere one whose arenas are used once."""
    return Outbox(None) if _outbox is None else _outbox


def _before_fork() -> None:
    for inbox in list(_inboxes.values()):
        inbox.retire()


os.register_at_fork(before=_before_fork)
