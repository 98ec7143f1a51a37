"""Small files that a node keeps for its next start: replaced whole, so that a crash leaves the old one or the new."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write ``data`` in place of the file. OSError if that fails; the old file is then as it was.

    Blocking: call it in a thread.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
