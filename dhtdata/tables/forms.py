"""Rebuilding nested arrays: the same lists, structs and unions around children of another type.

`convert_children` is what the two directions share: ``canonical`` (source form to stored form) and ``logical`` (stored
form to logical form) bring the rules for leaves. Children are cut to what the array uses before they are converted,
so that a thousand slices of one array cost what the whole costs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dhtdata.tables.sizes import null_mask, offset_width, offsets_of

Convert = Callable[[pa.Array, pa.DataType], pa.Array]


def convert_children(array: pa.Array, target: pa.DataType, convert: Convert) -> pa.Array:
    """``array`` as ``target``, a type of the same shape, its children brought over by ``convert``."""
    kind = array.type
    if isinstance(kind, pa.StructType):
        children = [convert(array.field(i), target.field(i).type) for i in range(kind.num_fields)]
        return assemble(target, array, [], children)
    if isinstance(kind, pa.UnionType):
        return _convert_union(array, target, convert)
    if isinstance(kind, pa.FixedSizeListType):
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return assemble(target, array, [], [convert(values, target.value_type)])
    offsets = offsets_of(array, offset_width(kind))
    first, last = int(offsets[0]), int(offsets[-1])
    values = array.values.slice(first, last - first)
    # A map's child is its entries: a struct of key and value, whatever the target calls them.
    child = pa.struct([target.key_field, target.item_field]) if isinstance(target, pa.MapType) else target.value_type
    return assemble(target, array, [pa.py_buffer(offsets - offsets[0])], [convert(values, child)])


def assemble(target: pa.DataType, like: pa.Array, buffers: list[pa.Buffer], children: list[pa.Array]) -> pa.Array:
    """An array of ``target`` with the nulls of ``like`` and the given other buffers and children, at offset 0."""
    nulls = null_mask(like)
    bitmap = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    count = 0 if nulls is None else int(nulls.sum())
    return pa.Array.from_buffers(target, len(like), [bitmap, *buffers], null_count=count, children=children)


def _convert_union(array: pa.Array, target: pa.DataType, convert: Convert) -> pa.Array:
    count = len(array)
    codes = np.frombuffer(array.buffers()[1], np.int8, count, array.offset) if count else np.zeros(0, np.int8)
    buffers = [pa.py_buffer(codes)]
    members = [array.field(i) for i in range(array.type.num_fields)]
    if array.type.mode == "dense":
        places = np.zeros(count, np.int32)
        if count:
            places[:] = np.frombuffer(array.buffers()[2], np.int32, count, array.offset * 4)
        for position, code in enumerate(array.type.type_codes):
            chosen = codes == code
            used = places[chosen]
            first = int(used.min()) if used.size else 0
            members[position] = members[position].slice(first, int(used.max()) - first + 1 if used.size else 0)
            places[chosen] -= first
        buffers.append(pa.py_buffer(places))
    children = [convert(member, target.field(i).type) for i, member in enumerate(members)]
    return pa.Array.from_buffers(target, count, [None, *buffers], null_count=0, children=children)
