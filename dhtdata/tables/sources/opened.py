"""Everything that can be published, opened: readers behind one function, and the schema on which they agree.

Files of a dataset must have the same columns with the same types; their order may differ (the first file's counts), and
so may nullability and schema metadata (what all share is kept). Types that were guessed (CSV, JSON lines, dicts) yield
to types that were declared, and among themselves widen: nothing to anything, integers to floats. A column that a file
lacks is an error unless missing columns are allowed: then it is null there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.formats.manifest import Source
from dhtdata.tables.sources.files import Found, FoundFile, FoundFolder, find
from dhtdata.tables.sources.folder import FolderReader
from dhtdata.tables.sources.ipc import ArrowReader
from dhtdata.tables.sources.objects import BatchesReader, DictsReader, StreamReader
from dhtdata.tables.sources.parquet import ParquetReader
from dhtdata.tables.sources.reading import Reader
from dhtdata.tables.sources.text import TextReader


@dataclass(frozen=True)
class Rows:
    """Some rows, in the agreed schema, and where they came from: reader and position of the first row in it."""

    batch: pa.RecordBatch
    name: str
    first_row: int


@dataclass(frozen=True)
class OpenedSource:
    """What one split is made of. ``files`` names its inputs by their last path component."""

    readers: tuple[Reader, ...]
    files: tuple[Source, ...]
    skipped_hidden: int
    skipped_links: int

    @property
    def byte_count(self) -> int:
        """Bytes of the inputs, as far as they are known."""
        return sum(reader.byte_count for reader in self.readers)

    @property
    def done_bytes(self) -> int:
        """How much of them was read so far, roughly."""
        return sum(reader.done_bytes for reader in self.readers)

    def rows(self, schema: pa.Schema) -> Iterator[Rows]:
        """All rows in order, once. ConfigError or FormatError name what is wrong and where."""
        for reader in self.readers:
            row = 0
            for batch in reader.batches(schema):
                yield Rows(_aligned(batch, schema, reader.name, row), reader.name, row)
                row += batch.num_rows


def open_source(source: Any, *, allow_missing: bool = False) -> OpenedSource:
    """Open paths (a path, folder or glob, or a list of them) or a Python object. ConfigError says what cannot be."""
    if isinstance(source, str | os.PathLike):
        return _open_paths([source])
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return _open_paths(source)
    reader = _open_object(source, allow_missing)
    return OpenedSource((reader,), (), 0, 0)


def agreed_schema(sources: Iterable[OpenedSource], *, allow_missing: bool = False) -> pa.Schema:
    """The schema that all rows of all sources have. ConfigError names the files and the column that differ."""
    readers = [reader for source in sources for reader in source.readers]
    schemas = [reader.schema() for reader in readers]
    named = [(reader.name, reader.guesses, schema) for reader, schema in zip(readers, schemas, strict=True)]
    columns: dict[str, _Column] = {}
    for name, guesses, schema in named:
        for field in schema:
            met = _Column(field, name, guesses)
            columns[field.name] = columns[field.name].joined(met) if field.name in columns else met
    missing = set()
    for name, _, schema in named:
        for column in columns.values():
            if schema.get_field_index(column.field.name) < 0:
                if not allow_missing:
                    raise ConfigError(
                        f"{name} lacks column {column.field.name!r}, which {column.name} has: make them alike, "
                        "or fill it with nulls (--allow-missing, allow_missing=True)"
                    )
                missing.add(column.field.name)
    fields = [
        column.settled().with_nullable(column.field.nullable or name in missing) for name, column in columns.items()
    ]
    return pa.schema(fields, metadata=_shared_metadata(schemas))


@dataclass(frozen=True)
class _Column:
    """A column as met so far: its field, the first reader that has it, and whether its type is a guess."""

    field: pa.Field
    name: str
    guessed: bool

    def joined(self, other: _Column) -> _Column:
        nullable = self.field.nullable or other.field.nullable
        if self.field.type.equals(other.field.type):
            return _Column(self.field.with_nullable(nullable), self.name, self.guessed and other.guessed)
        if self.guessed != other.guessed:
            kept = other if self.guessed else self
            return _Column(kept.field.with_nullable(nullable), kept.name, False)
        widened = _widened(self.field.type, other.field.type) if self.guessed else None
        if widened is None:
            raise ConfigError(
                f"column {self.field.name!r} is {self.field.type} in {self.name}, "
                f"but {other.field.type} in {other.name}: make the types alike"
            )
        return _Column(self.field.with_type(widened).with_nullable(nullable), self.name, True)

    def settled(self) -> pa.Field:
        """The field; where a guess never saw a value, it is text."""
        return self.field.with_type(_with_text(self.field.type)) if self.guessed else self.field


def _with_text(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.ListType):
        return pa.list_(_with_text(kind.value_type))
    if isinstance(kind, pa.StructType):
        fields = [kind.field(position) for position in range(kind.num_fields)]
        return pa.struct([field.with_type(_with_text(field.type)) for field in fields])
    return pa.string() if pa.types.is_null(kind) else kind


def _widened(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The guess that covers both guesses, if there is one."""
    fields = [pa.schema([("x", first)]), pa.schema([("x", second)])]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _shared_metadata(schemas: Sequence[pa.Schema]) -> dict[bytes, bytes] | None:
    shared = dict(schemas[0].metadata or {})
    for schema in schemas[1:]:
        metadata = schema.metadata or {}
        shared = {key: value for key, value in shared.items() if metadata.get(key) == value}
    return shared or None


def _aligned(batch: pa.RecordBatch, schema: pa.Schema, name: str, first_row: int) -> pa.RecordBatch:
    columns = []
    for field in schema:
        position = batch.schema.get_field_index(field.name)
        if position < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(position)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except pa.ArrowException as failure:
                raise ConfigError(
                    f"{name}: column {field.name!r} does not fit {field.type}, which other files have: {failure}"
                ) from failure
        if not field.nullable and column.null_count:
            raise ConfigError(
                f"{name}: column {field.name!r} has a null after row {first_row}, but its schema says it has none: "
                "make the column nullable"
            )
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _open_paths(paths: Sequence[str | os.PathLike[str]]) -> OpenedSource:
    found = find([Path(path) if isinstance(path, os.PathLike) else path for path in paths])
    return OpenedSource(
        tuple(_open_found(item) for item in found.items),
        tuple(_sources(found)),
        found.skipped_hidden,
        found.skipped_links,
    )


def _open_found(item: FoundFile | FoundFolder) -> Reader:
    if isinstance(item, FoundFolder):
        return FolderReader(item)
    if item.kind == "parquet":
        return ParquetReader(item.path, item.size)
    if item.kind == "arrow":
        return ArrowReader(item.path, item.size)
    return TextReader(item.path, item.kind, item.compression, item.size)


def _sources(found: Found) -> Iterator[Source]:
    for item in found.items:
        if isinstance(item, FoundFile):
            yield Source(name=_text(item.path.name), bytes=item.size)
        else:
            for path, size in item.files:
                yield Source(name=_text(path.rsplit("/", 1)[-1]), bytes=size)


def _text(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _open_object(source: Any, allow_missing: bool) -> Reader:
    name = f"the {type(source).__name__} given"
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if hasattr(source, "__arrow_c_stream__"):
        return StreamReader(source, name)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise ConfigError(
            f"{name} cannot be published: give paths, an object with __arrow_c_stream__, or an iterator of dicts or "
            "record batches"
        )
    items = iter(source)
    try:
        first = next(items)
    except StopIteration:
        raise ConfigError(f"{name} is empty: there are no rows to publish") from None
    chained = _chained(first, items)
    if isinstance(first, pa.RecordBatch | pa.Table):
        return BatchesReader(chained, name)
    return DictsReader(chained, name, allow_missing)


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
