"""Memory without a name that processes share: a page in a file that forked and spawned processes inherit.

The kernel frees it with its last user, however that ends. Named shared memory would be left behind by a kill.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any


class Page:
    """``file`` is its descriptor. Pickled for a process that is being started it stays the same page, else a copy."""

    def __init__(self, content: bytes) -> None:
        self._adopt(os.memfd_create("dhtdata-page"), len(content))
        self.write(content)

    def read(self) -> bytes:
        return os.pread(self.file, self.size, 0)

    def write(self, content: bytes) -> None:
        """All of it, in one call: nobody sees half of it."""
        os.pwrite(self.file, content, 0)

    def _adopt(self, file: int, size: int) -> None:
        self.file = file
        self.size = size
        weakref.finalize(self, os.close, file)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:
            return {"file": DupFd(self.file), "size": self.size}
        return {"content": self.read()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "file" in state:
            self._adopt(state["file"].detach(), state["size"])
        else:
            self.__init__(state["content"])  # type: ignore[misc]
