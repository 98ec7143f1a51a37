"""Arrow IPC: files (also Feather V2) and streams, mapped into memory.

A record batch may be as large as its file. Mapped, an uncompressed one costs nothing until it is touched; what was
touched counts as resident, so after every 64 MiB the system is told that these pages are not needed any more (they stay
readable: the file is their backing). Compressed batches have to be decompressed whole.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from dhtdata.errors import FormatError
from dhtdata.tables.sources.reading import check_names, reading, rows_for

_RELEASE_BYTES = 64 << 20


class ArrowReader:
    """One Arrow IPC file or stream."""

    guesses = False

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.name = str(path)
        self.byte_count = size
        self.done_bytes = 0

    def schema(self) -> pa.Schema:
        with reading(self.path, "Arrow IPC"), self._mapped() as mapped:
            schema: pa.Schema = self._open(mapped).schema
        check_names(self.name, schema)
        return schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with reading(self.path, "Arrow IPC"), self._mapped() as mapped:
            touched = 0
            for batch in _batches(self._open(mapped)):
                rows = rows_for(batch.nbytes, batch.num_rows)
                for first in range(0, batch.num_rows, rows):
                    if touched >= _RELEASE_BYTES:
                        mapped.madvise(mmap.MADV_DONTNEED)
                        touched = 0
                    part = batch.slice(first, rows)
                    touched += part.nbytes
                    self.done_bytes = min(self.done_bytes + part.nbytes, self.byte_count)
                    yield part

    @contextmanager
    def _mapped(self) -> Iterator[mmap.mmap]:
        """The file's bytes; unmapped when the last array over them is gone."""
        with self.path.open("rb") as file:
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _open(self, mapped: mmap.mmap) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
        head = mapped[:6]
        if head[:4] == b"FEA1":
            raise FormatError(
                f"{self.path} is Feather version 1, which nobody writes any more: convert it to version 2"
            )
        whole = pa.py_buffer(mapped)
        return pa.ipc.open_file(whole) if head == b"ARROW1" else pa.ipc.open_stream(whole)


def _batches(reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader
