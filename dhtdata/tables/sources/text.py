"""CSV, TSV and JSON lines, plain or compressed with gzip or zstd: read in blocks, types settled once.

Types are guessed from the first 4 MiB of every file (32 MiB if a column showed no value there), the guesses of all
files are brought together (``opened``), and then every row of every file is read with these types: no block is guessed
anew. A value that does not fit is an error that names file and row. A column without any value where we looked is text.
JSON has no times, so text that looks like one stays text; CSV recognises ISO 8601.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from dhtdata.errors import FormatError
from dhtdata.tables.sources.reading import check_names, reading, small

_BLOCK_BYTES = 4 << 20
_LARGEST_BLOCK_BYTES = 512 << 20
_GUESS_BYTES = (4 << 20, 32 << 20)
_STRADDLING = "straddling object"


class TextReader:
    """One file of rows as text; ``kind`` is csv, tsv or json."""

    guesses = True

    def __init__(self, path: Path, kind: str, compression: str | None, size: int) -> None:
        self.path = path
        self.name = str(path)
        self.byte_count = size
        self.done_bytes = 0
        self._compression = compression
        self._open = _open_json if kind == "json" else _csv_opener("\t" if kind == "tsv" else ",")
        self._label = {"json": "JSON lines", "csv": "CSV", "tsv": "TSV"}[kind]
        self._is_json = kind == "json"

    def schema(self) -> pa.Schema:
        with reading(self.path, self._label):
            schema = self._guess(_GUESS_BYTES[0])
            if self.byte_count > _GUESS_BYTES[0] and any(_holds_null(field.type) for field in schema):
                schema = self._guess(_GUESS_BYTES[1])
        check_names(self.name, schema)
        self._check_text(schema)
        return pa.schema([field.with_type(_without_times(field.type)) for field in schema]) if self._is_json else schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        columns = pa.schema([schema.field(name) for name in self.schema().names])
        done, block_bytes = 0, _BLOCK_BYTES
        while True:
            try:
                with reading(self.path, self._label):
                    for batch in self._from_row(columns, block_bytes, done):
                        done += batch.num_rows
                        yield from small(batch)
                return
            except FormatError as failure:
                if _STRADDLING not in str(failure):
                    raise self._located(failure, columns, done) from failure
                if block_bytes >= _LARGEST_BLOCK_BYTES:
                    raise FormatError(
                        f"{self.path}: row {done + 1} or one soon after it is longer than {_LARGEST_BLOCK_BYTES} "
                        "bytes, or a quote is never closed: mend the file"
                    ) from failure
            # A row longer than a block: go on behind what was read, with larger blocks.
            block_bytes *= 8

    def _check_text(self, schema: pa.Schema) -> None:
        """FormatError unless all values looked at are UTF-8: of those that are not, Arrow makes bytes."""
        for field in schema:
            if pa.types.is_binary(field.type):
                raise FormatError(
                    f"{self.path}: column {field.name!r} is not UTF-8: convert the file first (iconv -t UTF-8)"
                )

    def _guess(self, block_bytes: int) -> pa.Schema:
        while True:
            try:
                with self._stream() as stream:
                    return self._open(stream, block_bytes, None).schema
            except pa.ArrowInvalid as failure:
                if _STRADDLING not in str(failure) or block_bytes >= _LARGEST_BLOCK_BYTES:
                    raise
            block_bytes *= 8

    def _from_row(self, columns: pa.Schema, block_bytes: int, skip: int) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(self.name) as file, self._unpacked(file) as stream:
            for batch in self._open(stream, block_bytes, columns):
                self.done_bytes = file.tell()
                if skip < batch.num_rows:
                    yield batch.slice(skip)
                skip = max(0, skip - batch.num_rows)

    def _stream(self) -> pa.NativeFile:
        return self._unpacked(pa.OSFile(self.name))

    def _unpacked(self, file: pa.NativeFile) -> pa.NativeFile:
        return file if self._compression is None else pa.CompressedInputStream(file, self._compression)

    def _located(self, failure: FormatError, columns: pa.Schema, done: int) -> FormatError:
        """The error with row and reason, where Arrow leaves them out: its JSON reader counts within a block."""
        if not self._is_json:
            return failure
        with self._stream() as stream:
            lines = (line for line in io.BufferedReader(stream) if line.strip())
            try:
                for number, line in enumerate(itertools.islice(lines, done, None), start=done + 1):
                    if reason := _complaint(line, columns):
                        return FormatError(
                            f"{self.path} cannot be read as JSON lines: row {number}: {reason}. "
                            "Mend the row, or publish a format with types, such as Parquet"
                        )
            except (OSError, pa.ArrowException):
                return failure
        return failure


def _complaint(line: bytes, columns: pa.Schema) -> str:
    """Why a line is not a row of these columns; nothing if it is."""
    try:
        _open_json(pa.BufferReader(line), len(line) + 1, columns).read_all()
        return ""
    except pa.ArrowInvalid as failure:
        reason = str(failure)
    try:
        row = json.loads(line)
    except ValueError as failure:
        return f"not JSON ({failure})"
    if not isinstance(row, dict):
        return f"expected an object, found a {type(row).__name__}"
    for name, value in row.items():
        if name not in columns.names:
            return f"field {name!r} does not occur in the rows before it"
        alone = json.dumps({name: value}).encode()
        try:
            _open_json(pa.BufferReader(alone), len(alone) + 1, pa.schema([columns.field(name)])).read_all()
        except pa.ArrowInvalid:
            return f"field {name!r} holds {json.dumps(value)[:80]}, where {columns.field(name).type} is expected"
    return reason


_Opener = Callable[[pa.NativeFile, int, pa.Schema | None], Any]


def _open_json(stream: pa.NativeFile, block_bytes: int, columns: pa.Schema | None) -> Any:
    options = pa.json.ParseOptions(
        explicit_schema=columns,
        newlines_in_values=False,
        unexpected_field_behavior="infer" if columns is None else "error",
    )
    return pa.json.open_json(stream, pa.json.ReadOptions(use_threads=False, block_size=block_bytes), options)


def _csv_opener(delimiter: str) -> _Opener:
    def opened(stream: pa.NativeFile, block_bytes: int, columns: pa.Schema | None) -> Any:
        types = None if columns is None else {field.name: field.type for field in columns}
        return pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(use_threads=False, block_size=block_bytes),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=types),
        )

    return opened


def _without_times(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.ListType):
        return pa.list_(_without_times(kind.value_type))
    if isinstance(kind, pa.StructType):
        return pa.struct([field.with_type(_without_times(field.type)) for field in _fields(kind)])
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _holds_null(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ListType):
        return _holds_null(kind.value_type)
    if isinstance(kind, pa.StructType):
        return any(_holds_null(field.type) for field in _fields(kind))
    return bool(pa.types.is_null(kind))


def _fields(kind: pa.StructType) -> list[pa.Field]:
    return [kind.field(position) for position in range(kind.num_fields)]
