"""Workers that end with the process that started them, however that ends.

torch's own workers notice within seconds that their main process is gone, but then wait for ever until what they had
made has gone into a pipe that nobody reads, and that they hold open for each other: after ``kill -9`` of a training run
whose batches hold strings or bytes, workers stayed and kept their memory and the store's peer.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

_watching: set[int] = set()


def end_with_parent() -> None:
    """In a worker: end as soon as the process that started it is gone. Nothing in the main process."""
    parent = multiprocessing.parent_process()
    if parent is None or os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    threading.Thread(target=_watch, args=(parent.sentinel,), name="dhtdata-parent", daemon=True).start()


def _watch(sentinel: int) -> None:
    from multiprocessing.connection import wait  # it brings subprocess along, which a mount does without

    wait([sentinel])
    os._exit(1)
