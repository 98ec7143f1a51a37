"""Threads of a mount: started on demand, ended with what they serve, never in the way of the process's end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Job = Callable[[], None]
_A = TypeVar("_A")


class Crew:
    """Up to ``most`` threads. They die with the process: what they wait for may never come."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.RLock()  # closing may be the garbage collector's doing, within `put`

    def put(self, job: _Job) -> bool:
        """Have it done; it must not raise. False if the crew is closed, and nobody would do it."""
        with self._lock:
            if self._closed:
                return False
            if len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._threads.append(thread)
            self._jobs.put(job)
            return True

    def submit(self, make: Callable[[], _A]) -> Future[_A]:
        """What it returns or raises, later; at once if the crew is closed."""
        done: Future[_A] = Future()

        def job() -> None:
            try:
                done.set_result(make())
            except BaseException as failure:  # it is raised where the result is waited for
                done.set_exception(failure)

        if not self.put(job):
            job()
        return done

    def close(self) -> None:
        """Threads end when they have done what they were given."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)

    def join(self) -> None:
        """Wait until closed threads have ended."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
