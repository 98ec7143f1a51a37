"""Python objects as sources: anything with ``__arrow_c_stream__``, iterators of dicts or of record batches.

A stream is read once; its first batch is looked at early, for the schema, and handed out first. Dicts get their types
from the first 1,000 rows (or the first 8 MiB of text and bytes, whichever ends first); later rows must fit them as they
are (``values``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.tables.sources.reading import BATCH_BYTES, check_names, small
from dhtdata.tables.sources.values import REFUSED, guessed_type, to_array

_BATCH_ROWS = 1_000


class StreamReader:
    """An object that exports an Arrow stream: tables, data frames, readers."""

    guesses = False
    byte_count = 0
    done_bytes = 0

    def __init__(self, source: Any, name: str) -> None:
        self.name = name
        if isinstance(source, pa.Table):
            self.byte_count = source.nbytes
        try:
            # Tables are not exported: C strings would cut a column's name at a zero byte.
            is_table = isinstance(source, pa.Table)
            self._reader = source.to_reader() if is_table else pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, TypeError, ValueError) as failure:
            raise ConfigError(f"{name}: {type(source).__name__} gives no Arrow stream: {failure}") from failure

    def schema(self) -> pa.Schema:
        check_names(self.name, self._reader.schema)
        return self._reader.schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        while True:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as failure:
                raise ConfigError(f"{self.name}: its stream broke off: {failure}") from failure
            self.done_bytes += batch.nbytes if self.byte_count else 0
            yield from small(batch)


class BatchesReader:
    """An iterator of record batches or tables that share a schema."""

    guesses = False
    byte_count = 0
    done_bytes = 0

    def __init__(self, items: Iterator[Any], name: str) -> None:
        self.name = name
        first = next(items)
        self._schema = first.schema
        self._items = itertools.chain([first], items)

    def schema(self) -> pa.Schema:
        check_names(self.name, self._schema)
        return self._schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for number, item in enumerate(self._items, start=1):
            if not isinstance(item, pa.RecordBatch | pa.Table):
                raise ConfigError(f"{self.name}: item {number} is a {type(item).__name__}, not a record batch")
            if not item.schema.equals(self._schema):
                raise ConfigError(f"{self.name}: item {number} has another schema: {_difference(item, self._schema)}")
            for batch in item.to_batches() if isinstance(item, pa.Table) else [item]:
                yield from small(batch)


class DictsReader:
    """An iterator of rows as mappings from column to value."""

    guesses = True
    byte_count = 0
    done_bytes = 0

    def __init__(self, rows: Iterator[Any], name: str, allow_missing: bool) -> None:
        self.name = name
        self._rows = rows
        self._allow_missing = allow_missing
        self._first = list(_some(rows))
        self._row = 0

    def schema(self) -> pa.Schema:
        return self._guessed

    @cached_property
    def _guessed(self) -> pa.Schema:
        names: dict[str, None] = {}
        for row in self._first:
            if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
                raise ConfigError(f"{self.name}: expected rows as dicts from column name to value, found {_shown(row)}")
            names.update(dict.fromkeys(row))
        fields = []
        for name in names:
            try:
                kind = guessed_type([row.get(name) for row in self._first])
            except REFUSED as failure:
                raise ConfigError(f"{self.name}: column {name!r} has no one type: {failure}") from failure
            fields.append(pa.field(name, kind))
        schema = pa.schema(fields)
        check_names(self.name, schema)
        return schema

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        columns = pa.schema([schema.field(name) for name in self._guessed.names])
        rows, self._first = self._first, []
        while rows:
            yield from small(self._batch(rows, columns))
            rows = list(_some(self._rows))

    def _batch(self, rows: list[Any], columns: pa.Schema) -> pa.RecordBatch:
        for position, row in enumerate(rows):
            self._check(row, self._row + position, columns)
        arrays = []
        for field in columns:
            values = [row.get(field.name) for row in rows]
            try:
                arrays.append(to_array(values, field.type, guessed=self._is_guess(field)))
            except REFUSED as failure:
                raise self._misfit(values, field, failure) from None
        self._row += len(rows)
        return pa.RecordBatch.from_arrays(arrays, schema=columns)

    def _check(self, row: Any, number: int, columns: pa.Schema) -> None:
        if not isinstance(row, Mapping):
            raise ConfigError(f"{self.name}: row {number} is a {type(row).__name__}, not a dict")
        if row.keys() == set(columns.names):
            return
        for name in row:
            if name not in columns.names:
                raise ConfigError(f"{self.name}: row {number} has a column {name!r} that the first rows do not have")
        missing = next(name for name in columns.names if name not in row)
        if not self._allow_missing:
            raise ConfigError(
                f"{self.name}: row {number} lacks column {missing!r}: give it a value (None is one), "
                "or allow_missing=True"
            )

    def _is_guess(self, field: pa.Field) -> bool:
        """Whether the column's type was guessed from the first rows, not declared by another source."""
        return bool(self._guessed.field(field.name).type.equals(field.type))

    def _misfit(self, values: list[Any], field: pa.Field, failure: Exception) -> ConfigError:
        for position, value in enumerate(values):
            try:
                to_array([value], field.type, guessed=self._is_guess(field))
            except REFUSED:
                where = f"row {self._row + position}"
                return ConfigError(f"{self.name}: {where}: {_shown(value)} is no {field.type} (column {field.name!r})")
        return ConfigError(f"{self.name}: column {field.name!r} cannot be made {field.type}: {failure}")


def _some(rows: Iterable[Any]) -> Iterator[Any]:
    """Up to 1,000 rows, fewer if their values are large."""
    held = 0
    for row in itertools.islice(rows, _BATCH_ROWS):
        yield row
        values = row.values() if isinstance(row, Mapping) else ()
        held += sum(_weight(value) for value in values)
        if held >= BATCH_BYTES:
            return


def _weight(value: Any) -> int:
    """Bytes of a value, roughly: arrays say, others have a length or are small."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(value) * (8 if isinstance(value, list) else 1) if isinstance(value, str | bytes | list) else 8


def _difference(item: Any, expected: pa.Schema) -> str:
    for field in expected:
        position = item.schema.get_field_index(field.name)
        if position < 0:
            return f"column {field.name!r} is missing"
        if not item.schema.field(position).equals(field):
            return f"column {field.name!r} is {item.schema.field(position).type}, not {field.type}"
    return f"its columns are {', '.join(item.schema.names)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
