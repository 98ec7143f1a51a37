"""The demo's rows: source files of a folder, as path, text, size and package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 4 << 20
_SUFFIXES = {".py", ".pyi", ".txt", ".md", ".rst", ".c", ".h", ".js", ".ts", ".rs", ".go", ".java", ".sh", ".toml"}
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Readable UTF-8 source files under a folder, in an order drawn by lot, the same every time.

    Symlinks, hidden and huge files are left out.
    """
    rows = []
    for path in _files(folder):
        try:
            text = path.read_text("utf-8") if path.stat().st_size <= MAX_FILE_BYTES else ""
        except (UnicodeDecodeError, OSError):
            continue
        if text:
            inside = path.relative_to(folder)
            package = inside.parts[0] if len(inside.parts) > 1 else ""
            rows.append({"path": str(inside), "text": text, "size": path.stat().st_size, "package": package})
    return sorted(rows, key=lambda row: hashlib.sha256(row["path"].encode()).digest())


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if path.suffix in _SUFFIXES and not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), ("text", pa.string()), ("size", pa.int64()), ("package", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
