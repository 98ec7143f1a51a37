"""A folder of files as rows: ``path, label, size, text`` or ``path, label, size, bytes``.

``path`` is relative to the folder, with ``/``; ``label`` the first folder on it (null for files directly inside), as
image collections are laid out; ``text`` if every file is UTF-8 without zero bytes, which is found out by reading them,
else ``bytes``. Rows are ordered by path.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import cached_property

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.formats.blocks import MAX_ROW_BYTES
from dhtdata.tables.sources.files import FoundFolder
from dhtdata.tables.sources.reading import BATCH_BYTES, reading

_READ_BYTES = 1 << 20


class FolderReader:
    """One folder of files."""

    guesses = False

    def __init__(self, folder: FoundFolder) -> None:
        self._root = folder.root
        self._files = folder.files
        self.name = str(folder.root)
        self.byte_count = sum(size for _, size in folder.files)
        self.done_bytes = 0

    def schema(self) -> pa.Schema:
        for path, size in self._files:
            if size > MAX_ROW_BYTES:
                raise ConfigError(
                    f"{self._root / path} has {size} bytes, and a row at most {MAX_ROW_BYTES}: split it or leave it out"
                )
            if not _is_unicode(path):
                raise ConfigError(f"{self._root}: file name {path!r} is not UTF-8: rename it")
        content = pa.field("text", pa.string()) if self._is_text else pa.field("bytes", pa.binary())
        return pa.schema([("path", pa.string()), ("label", pa.string()), ("size", pa.int64()), content])

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        own = self.schema()
        rows: list[tuple[str, str | None, int, bytes]] = []
        held = 0
        for path, _ in self._files:
            with reading(self._root / path, "plain"):
                content = (self._root / path).read_bytes()
            if len(content) > MAX_ROW_BYTES:
                raise ConfigError(
                    f"{self._root / path} grew past {MAX_ROW_BYTES} bytes while it was read: leave it out"
                )
            rows.append((path, path.split("/")[0] if "/" in path else None, len(content), content))
            held += len(content)
            self.done_bytes += len(content)
            if held >= BATCH_BYTES or len(rows) >= 1 << 14:
                yield self._batch(rows, own)
                rows, held = [], 0
        if rows:
            yield self._batch(rows, own)

    def _batch(self, rows: list[tuple[str, str | None, int, bytes]], schema: pa.Schema) -> pa.RecordBatch:
        paths, labels, sizes, contents = zip(*rows, strict=True)
        content = pa.array(contents, pa.binary())
        if self._is_text:
            # Viewed, not decoded: a file that changed since it was looked at is found when the values are validated.
            content = content.view(pa.string())
        columns = [pa.array(paths), pa.array(labels, pa.string()), pa.array(sizes, pa.int64()), content]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    @cached_property
    def _is_text(self) -> bool:
        return all(self._decodes(path) for path, _ in self._files)

    def _decodes(self, path: str) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with reading(self._root / path, "plain"), (self._root / path).open("rb") as file:
            try:
                while piece := file.read(_READ_BYTES):
                    if b"\0" in piece:
                        return False
                    decoder.decode(piece)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                return False
        return True


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
