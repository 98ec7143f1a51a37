"""Stored size of every row, exact: what cutting weighs and what a row's cap is compared with.

Counted per value of a *stored* type, over canonical values: fixed-width values their width (booleans one byte), offsets
of strings, binaries, lists and maps their width, variable parts what they hold, unions their type code (and offset, if
dense) and what their members store. Values without bytes of their own (null, empty structs, lists of fixed size 0)
count one byte, so that a limit on bytes limits the number of values too. Validity bitmaps and padding are not counted.
A null keeps the fixed parts and loses the variable ones, whatever lies under it, so that equal rows have equal sizes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Sizes = NDArray[np.int64]
Mask = NDArray[np.bool_]


def row_bytes(batch: pa.RecordBatch) -> Sizes:
    """Stored bytes of every row of a batch of stored types, shape (rows,)."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        total += value_bytes(column)
    return total


def value_bytes(array: pa.Array, blank: Mask | None = None) -> Sizes:
    """Stored bytes of every value; ``blank`` marks slots under a null ancestor."""
    kind = array.type
    fixed = fixed_bytes(kind)
    if fixed is not None:
        return np.full(len(array), fixed, np.int64)
    blank = union_of(blank, null_mask(array))
    if isinstance(kind, pa.FixedSizeListType):
        return _fixed_size_list(array, blank)
    if isinstance(kind, pa.StructType):
        total = np.zeros(len(array), np.int64)
        for position in range(kind.num_fields):
            total += value_bytes(array.field(position), blank)
        return total
    if isinstance(kind, pa.UnionType):
        return _union(array, blank)
    width = offset_width(kind)
    return width + _variable(array, width, blank)


def fixed_bytes(kind: pa.DataType) -> int | None:
    """Stored bytes of every value of a type whose values all store the same, null or not; None for other types."""
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return 1
    if isinstance(kind, pa.FixedSizeListType):
        element = fixed_bytes(kind.value_type) if kind.list_size else 1
        return None if element is None else element * max(kind.list_size, 1)
    if isinstance(kind, pa.StructType):
        members = [fixed_bytes(kind.field(position).type) for position in range(kind.num_fields)]
        return None if None in members else sum(member for member in members if member is not None) or 1
    if isinstance(kind, pa.UnionType) or offset_width(kind):
        return None
    return int(kind.bit_width) // 8 or 1


def offset_width(kind: pa.DataType) -> int:
    """4 or 8 for types with offsets, 0 for the others."""
    types = pa.types
    if types.is_large_string(kind) or types.is_large_binary(kind) or types.is_large_list(kind):
        return 8
    if types.is_string(kind) or types.is_binary(kind) or types.is_list(kind) or types.is_map(kind):
        return 4
    return 0


def offsets_of(array: pa.Array, width: int) -> NDArray[np.signedinteger]:
    """The ``len(array) + 1`` offsets of a string, binary, list or map array, as they are: not from 0."""
    buffer = array.buffers()[1]
    kind = np.int32 if width == 4 else np.int64
    if buffer is None or buffer.size < width:
        return np.zeros(1, kind)
    return np.frombuffer(buffer, kind, len(array) + 1, array.offset * width)


def null_mask(array: pa.Array) -> Mask | None:
    """True where the array itself is null; None if nowhere, and for types that have no validity bitmap."""
    kind = array.type
    if pa.types.is_null(kind) or pa.types.is_union(kind) or not array.null_count:
        return None
    first = array.offset // 8
    bits = np.frombuffer(array.buffers()[0], np.uint8, (array.offset + len(array) + 7) // 8 - first, first)
    skip = array.offset % 8
    nulls: Mask = np.unpackbits(bits, count=skip + len(array), bitorder="little")[skip:] == 0
    return nulls


def union_of(first: Mask | None, second: Mask | None) -> Mask | None:
    if first is None:
        return second
    return first if second is None else first | second


def union_codes(array: pa.Array, blank: Mask | None) -> NDArray[np.int8]:
    """Type codes of a union's slots; slots under a null ancestor count as the first member."""
    codes = np.frombuffer(array.buffers()[1], np.int8, len(array), array.offset) if len(array) else np.zeros(0, np.int8)
    return codes if blank is None else np.where(blank, np.int8(array.type.type_codes[0]), codes)


def _variable(array: pa.Array, width: int, blank: Mask | None) -> Sizes:
    offsets = offsets_of(array, width)
    nested = isinstance(array.type, (pa.ListType, pa.LargeListType, pa.MapType))
    element = fixed_bytes(array.values.type) if nested else 1
    if element is not None:
        sizes = np.diff(offsets).astype(np.int64) * element
    else:
        first, last = int(offsets[0]), int(offsets[-1])
        sums = np.zeros(last - first + 1, np.int64)
        np.cumsum(value_bytes(array.values.slice(first, last - first)), out=sums[1:])
        sizes = np.diff(sums[offsets - first])
    return sizes if blank is None else np.where(blank, 0, sizes)


def _fixed_size_list(array: pa.Array, blank: Mask | None) -> Sizes:
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    hidden = None if blank is None else np.repeat(blank, size)
    total: Sizes = value_bytes(values, hidden).reshape(len(array), size).sum(axis=1)
    return total


def _union(array: pa.Array, blank: Mask | None) -> Sizes:
    codes = union_codes(array, blank)
    total = np.ones(len(array), np.int64)
    for position, code in enumerate(array.type.type_codes):
        chosen = codes == code
        if array.type.mode == "sparse":
            total += value_bytes(array.field(position), union_of(~chosen, blank))
            continue
        total[chosen] += 4 + _dense_member(array, position, chosen, blank)
    return total


def _dense_member(array: pa.Array, position: int, chosen: Mask, blank: Mask | None) -> Sizes:
    """Stored bytes of the chosen slots' values in one member of a dense union."""
    places = np.zeros(0, np.int32)
    if len(array):
        places = np.frombuffer(array.buffers()[2], np.int32, len(array), array.offset * 4)[chosen]
    hidden = None if blank is None else blank[chosen]
    return value_bytes(array.field(position).take(pa.array(places, pa.int32(), mask=hidden)), hidden)
