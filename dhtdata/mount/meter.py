"""What loops of all processes wait for: figures that workers write and the process with the loop shows.

Every process writes a slot of its own on a `Page`, so nothing is locked; a worker that is replaced goes on in the slot
of its number.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhtdata.mount.page import Page

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

    def __init__(self) -> None:
        self._page = Page(bytes(_BYTES))
        self._memory: mmap.mmap | None = None

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
            self._memory = mmap.mmap(self._page.file, _BYTES)
        return np.frombuffer(self._memory, np.float64).reshape(SLOTS, _FIGURES)

    def __getstate__(self) -> dict[str, Any]:
        return {"_page": self._page, "_memory": None}
