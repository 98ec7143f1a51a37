"""Arrow IPC: files (also Feather V2) and streams, mapped into memory and mapped anew now and then.

A record batch may be as large as its file. Mapped, an uncompressed one costs nothing until it is touched; what was
touched counts as resident until the map is closed, so after every 64 MiB the file is mapped again and the reader goes
on where it was. Compressed batches have to be decompressed whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dhtdata.errors import FormatError
from dhtdata.tables.sources.reading import check_names, reading, rows_for

_MAP_BYTES = 64 << 20


@dataclass(frozen=True)
class _Place:
    """Number of a record batch and a row in it."""

    number: int
    row: int


class ArrowReader:
    """One Arrow IPC file or stream."""

    guesses = False

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.name = str(path)
        self.byte_count = size
        self.done_bytes = 0

    def schema(self) -> pa.Schema:
        with reading(self.path, "Arrow IPC"), pa.memory_map(self.name) as mapped:
            schema: pa.Schema = self._open(mapped).schema
        check_names(self.name, schema)
        return schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        place: _Place | None = _Place(0, 0)
        while place is not None:
            with reading(self.path, "Arrow IPC"), pa.memory_map(self.name) as mapped:
                place = yield from self._one_map(mapped, place)

    def _one_map(self, mapped: pa.MemoryMappedFile, place: _Place) -> Generator[pa.RecordBatch, None, _Place | None]:
        """Rows from a place on, until so much was touched that the file should be mapped again; where to go on."""
        touched = 0
        for number, batch in self._numbered(mapped, place.number):
            rows = rows_for(batch.nbytes, batch.num_rows)
            for first in range(place.row if number == place.number else 0, batch.num_rows, rows):
                if touched >= _MAP_BYTES:
                    return _Place(number, first)
                part = batch.slice(first, rows)
                touched += part.nbytes
                self.done_bytes = min(self.done_bytes + part.nbytes, self.byte_count)
                yield part
        return None

    def _numbered(self, mapped: pa.MemoryMappedFile, first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        reader = self._open(mapped)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            for number in range(first, reader.num_record_batches):
                yield number, reader.get_batch(number)
        else:
            yield from itertools.islice(enumerate(reader), first, None)

    def _open(self, mapped: pa.MemoryMappedFile) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
        head = mapped.read(6)
        mapped.seek(0)
        if head[:4] == b"FEA1":
            raise FormatError(
                f"{self.path} is Feather version 1, which nobody writes any more: convert it to version 2"
            )
        return pa.ipc.open_file(mapped) if head == b"ARROW1" else pa.ipc.open_stream(mapped)
