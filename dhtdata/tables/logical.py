"""Stored values to logical values: what a reader gets back has the types that were published.

Dictionaries are made anew from the values at hand, in order of first appearance, bit for bit (two NaNs with different
payloads are two entries, 0.0 and -0.0 are too). So are run ends. Both have a capacity: an int8 index numbers 128
entries, an int16 run end reaches 32,767 rows. A batch that needs more cannot have the type; `to_logical_table` halves
such batches until they fit, `to_logical` refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from dhtdata.errors import FormatError
from dhtdata.tables.canonical import is_plain
from dhtdata.tables.forms import assemble, convert_children
from dhtdata.tables.layout import layout_of
from dhtdata.tables.schema import stored_type
from dhtdata.tables.sizes import null_mask, offset_width, offsets_of

_FLOAT_BITS = {pa.float16(): pa.uint16(), pa.float32(): pa.uint32(), pa.float64(): pa.uint64()}


class _CapacityError(Exception):
    """More dictionary entries, or rows, than the index type can number."""


def to_logical(batch: pa.RecordBatch, logical: pa.Schema) -> pa.RecordBatch:
    """A batch of stored types as ``logical`` (same columns, same order), with that schema's metadata.

    Plain columns are passed on without a copy. FormatError if a dictionary or run-end encoded column cannot number what
    the batch holds: take fewer rows at a time, or `to_logical_table`.
    """
    try:
        return _to_logical(batch, logical)
    except _CapacityError as failure:
        raise FormatError(f"{failure}: read fewer rows at a time") from failure


def to_logical_table(batches: Iterable[pa.RecordBatch], logical: pa.Schema) -> pa.Table:
    """Batches of stored types as one table of ``logical``; batches that pass a capacity become several pieces."""
    pieces: list[pa.RecordBatch] = []
    waiting = list(batches)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            pieces.append(_to_logical(batch, logical))
        except _CapacityError as failure:
            half = batch.num_rows // 2
            if not half:
                raise FormatError(f"{failure}: a single row needs more") from failure
            waiting += [batch.slice(half), batch.slice(0, half)]
    return pa.Table.from_batches(pieces, schema=logical)


def _to_logical(batch: pa.RecordBatch, logical: pa.Schema) -> pa.RecordBatch:
    if batch.schema.names != logical.names:
        raise FormatError(f"the shard has columns {batch.schema.names}, the contents say {logical.names}")
    columns = []
    for field, column in zip(logical, batch.columns, strict=True):
        if column.type != stored_type(field.type):
            raise FormatError(f"column {field.name!r} holds {column.type}, the contents say {field.type}")
        try:
            columns.append(_restore(column, field.type))
        except _CapacityError as failure:
            raise _CapacityError(f"column {field.name!r} of type {field.type}: {failure}") from failure
    return pa.RecordBatch.from_arrays(columns, schema=logical)


def _restore(array: pa.Array, target: pa.DataType) -> pa.Array:
    if is_plain(target):
        return array
    if isinstance(target, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(target, _restore(array, target.storage_type))
    if isinstance(target, pa.DictionaryType):
        return _encode_dictionary(array, target)
    if isinstance(target, pa.RunEndEncodedType):
        return _encode_runs(array, target)
    if target in (pa.string_view(), pa.binary_view()):
        return array.cast(target)
    if isinstance(target, (pa.ListViewType, pa.LargeListViewType)):
        return _encode_list_view(array, target)
    return convert_children(array, target, _restore)


def _encode_list_view(array: pa.Array, target: pa.DataType) -> pa.Array:
    offsets = offsets_of(array, offset_width(array.type))
    first, last = int(offsets[0]), int(offsets[-1])
    values = _restore(array.values.slice(first, last - first), target.value_type)
    return assemble(target, array, [pa.py_buffer(offsets[:-1] - first), pa.py_buffer(np.diff(offsets))], [values])


def _encode_dictionary(array: pa.Array, target: pa.DictionaryType) -> pa.Array:
    indices, entries = _distinct(array)
    limit = _largest(target.index_type) + 1
    if len(entries) > limit:
        raise _CapacityError(f"{len(entries)} different values, the dictionary's index numbers {limit}")
    entries = _restore(entries, target.value_type)
    return pa.DictionaryArray.from_arrays(indices.cast(target.index_type), entries, ordered=target.ordered)


def _distinct(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Indices (null where the value is) and the different values, in order of first appearance, compared by bits."""
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.int32()), array.slice(0, 0)
    if pa.types.is_nested(kind):
        return _distinct_nested(array)
    comparable = _FLOAT_BITS.get(kind)
    if comparable is None and (pa.types.is_decimal(kind) or kind == pa.month_day_nano_interval()):
        comparable = pa.binary(kind.bit_width // 8)
    encoded = (array if comparable is None else array.view(comparable)).dictionary_encode()
    return encoded.indices, encoded.dictionary if comparable is None else encoded.dictionary.view(kind)


def _distinct_nested(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Rows are compared by their canonical bytes, one by one: dictionaries of nested values are rare and small."""
    seen: dict[bytes, int] = {}
    firsts: list[int] = []
    indices: list[int | None] = []
    # A union has no nulls of its own, only members that are null, each in its own way.
    nulls = null_mask(array)
    for position in range(len(array)):
        if nulls is not None and nulls[position]:
            indices.append(None)
            continue
        row = layout_of(pa.RecordBatch.from_arrays([array.slice(position, 1)], ["value"]))
        key = repr((row.nodes, [bytes(buffer) for buffer in row.buffers])).encode()
        if key not in seen:
            seen[key] = len(firsts)
            firsts.append(position)
        indices.append(seen[key])
    return pa.array(indices, pa.int64()), array.take(pa.array(firsts, pa.int64()))


def _encode_runs(array: pa.Array, target: pa.RunEndEncodedType) -> pa.Array:
    limit = _largest(target.run_end_type)
    if len(array) > limit:
        raise _CapacityError(f"{len(array)} rows, the run ends reach {limit}")
    indices, _ = _distinct(array)
    numbers = indices.fill_null(-1).to_numpy(zero_copy_only=False)
    last = np.flatnonzero(np.diff(numbers, append=-2))  # the last row of each run; a null is a run of its own kind
    values = _restore(array.take(pa.array(last)), target.value_type)
    return pa.RunEndEncodedArray.from_arrays(pa.array(last + 1, target.run_end_type), values, type=target)


def _largest(kind: pa.DataType) -> int:
    """The largest number of an integer type."""
    bits: int = kind.bit_width
    return (1 << (bits - 1 if pa.types.is_signed_integer(kind) else bits)) - 1
