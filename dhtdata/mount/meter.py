"""What loops of all processes wait for: figures that workers write and the process with the loop shows.

A page of memory without a name, which forked and spawned workers inherit and the kernel frees with its last user. Every
process writes a slot of its own, so nothing is locked; a worker that is replaced goes on in the slot of its number.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 128
_STALLED, _AHEAD, _FIGURES = 0, 1, 2
_BYTES = SLOTS * _FIGURES * 8


@dataclass(frozen=True)
class Held:
    """``stalled_s``: how long rows were waited for that were not here. ``ahead_bytes``: here and not yet reached.

    ``stored``: all was here when the dataset was mounted, so that nothing is read ahead.
    """

    stalled_s: float
    ahead_bytes: int
    stored: bool = False


class Meter:
    """Shared by the copies of a dataset in all processes of a loader."""

    _memory: mmap.mmap | None

    def __init__(self) -> None:
        self._adopt(os.memfd_create("dhtdata-meter"))
        os.truncate(self._file, _BYTES)

    @contextmanager
    def stalled(self, slot: int) -> Iterator[None]:
        """Time within is time in which rows were waited for."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._figures[slot % SLOTS, _STALLED] += time.monotonic() - started_s

    def hold(self, slot: int, ahead_bytes: int) -> None:
        self._figures[slot % SLOTS, _AHEAD] = ahead_bytes

    def total(self) -> Held:
        stalled_s, ahead_bytes = self._figures.sum(axis=0).tolist()
        return Held(stalled_s, int(ahead_bytes))

    @property
    def _figures(self) -> NDArray[np.float64]:
        if self._memory is None:
            self._memory = mmap.mmap(self._file, _BYTES)
        return np.frombuffer(self._memory, np.float64).reshape(SLOTS, _FIGURES)

    def _adopt(self, file: int) -> None:
        self._file = file
        self._memory = None
        weakref.finalize(self, os.close, file)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": DupFd(self._file)} if get_spawning_popen() is not None else {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy that was not made for a process that is being started has figures of its own."""
        if "file" in state:
            self._adopt(state["file"].detach())
        else:
            self.__init__()  # type: ignore[misc]
