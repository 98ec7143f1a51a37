"""Source values to stored values: dictionaries and run ends decoded, views and extensions made plain.

`to_stored` checks what it is given first, in full: a Parquet file's strings need not be UTF-8, and a source's offsets
need not be offsets. What it returns has the stored types but not yet canonical bytes (it may be a slice, with anything
under its nulls); ``layout`` sees to those.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.tables.forms import assemble, convert_children
from dhtdata.tables.schema import stored_type
from dhtdata.tables.sizes import Mask, null_mask, offset_width, offsets_of, union_codes, union_of


def to_stored(batch: pa.RecordBatch, stored: pa.Schema) -> pa.RecordBatch:
    """The batch with the stored types, sharing memory wherever a column is plain already.

    ConfigError names a column whose values are not what its type says (text that is not UTF-8, offsets out of range,
    a null in a field that has none at any depth) or that would pass 2 GiB once decoded: such a batch must be handed
    over in smaller slices.
    """
    columns = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        try:
            column.validate(full=True)
            values = plain(column, stored_type(field.type))
        except (pa.ArrowException, OverflowError) as failure:
            raise ConfigError(f"column {field.name!r} holds malformed values: {failure}") from failure
        _check_nulls(field, values, None, field.name)
        columns.append(values)
    return pa.RecordBatch.from_arrays(columns, schema=stored)


def _check_nulls(field: pa.Field, array: pa.Array, hidden: Mask | None, path: str) -> None:
    """ConfigError if a field that has no nulls has one, but for slots under a null ancestor (``hidden``)."""
    if not field.nullable:
        nulls = np.ones(len(array), np.bool_) if pa.types.is_null(array.type) else null_mask(array)
        if nulls is not None and (nulls if hidden is None else nulls & ~hidden).any():
            raise ConfigError(f"column {path!r} has a null, but its schema says it has none: make the field nullable")
    if not len(array) or not _promises(array.type):
        return
    kind = array.type
    blank = union_of(null_mask(array), hidden)
    if isinstance(kind, pa.StructType):
        for position in range(kind.num_fields):
            child = kind.field(position)
            _check_nulls(child, array.field(position), blank, f"{path}.{child.name}")
    elif isinstance(kind, pa.FixedSizeListType):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        _check_nulls(kind.value_field, values, None if blank is None else blank.repeat(kind.list_size), f"{path}.item")
    elif isinstance(kind, pa.UnionType):
        codes = union_codes(array, None)
        for position, code in enumerate(kind.type_codes):
            child, chosen = kind.field(position), codes == code
            if hidden is not None:
                chosen &= ~hidden
            member = array.field(position)
            if kind.mode == "dense":
                places = np.frombuffer(array.buffers()[2], np.int32, len(array), array.offset * 4)
                member = member.take(pa.array(places[chosen]))
            _check_nulls(child, member, ~chosen if kind.mode == "sparse" else None, f"{path}.{child.name}")
    else:
        _check_item_nulls(array, blank, path)


def _check_item_nulls(array: pa.Array, blank: Mask | None, path: str) -> None:
    """`_check_nulls` of what lists and maps hold."""
    kind = array.type
    offsets = offsets_of(array, offset_width(kind))
    first, last = int(offsets[0]), int(offsets[-1])
    hidden = None if blank is None else blank.repeat(np.diff(offsets))
    children = (
        [(kind.key_field, array.keys), (kind.item_field, array.items)]
        if isinstance(kind, pa.MapType)
        else [(kind.value_field, array.values)]
    )
    for child, values in children:
        _check_nulls(child, values.slice(first, last - first), hidden, f"{path}.{child.name}")


@functools.lru_cache
def _promises(kind: pa.DataType) -> bool:
    """Whether a field somewhere inside has no nulls, keys of maps apart: Arrow sees to those."""
    if isinstance(kind, pa.MapType):
        return not kind.item_field.nullable or _promises(kind.item_type) or _promises(kind.key_type)
    children = [kind.field(position) for position in range(kind.num_fields)]
    return any(not child.nullable or _promises(child.type) for child in children)


def plain(array: pa.Array, target: pa.DataType) -> pa.Array:
    """The array with its stored type ``target``."""
    kind = array.type
    if is_plain(kind):
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage, target)
    if isinstance(kind, pa.DictionaryType):
        return plain(array.dictionary, target).take(array.indices)
    if isinstance(kind, pa.RunEndEncodedType):
        return _decode_runs(array, target)
    if kind in (pa.string_view(), pa.binary_view()):
        return array.cast(target)
    if isinstance(kind, (pa.ListViewType, pa.LargeListViewType)):
        return _decode_list_view(array, target)
    return convert_children(array, target, plain)


def is_plain(kind: pa.DataType) -> bool:
    """Whether shards hold values of this type as they are."""
    special = (pa.BaseExtensionType, pa.DictionaryType, pa.RunEndEncodedType, pa.ListViewType, pa.LargeListViewType)
    if isinstance(kind, special) or kind in (pa.string_view(), pa.binary_view()):
        return False
    if isinstance(kind, pa.MapType):
        return is_plain(kind.key_type) and is_plain(kind.item_type)
    return all(is_plain(kind.field(i).type) for i in range(kind.num_fields))


def _decode_runs(array: pa.Array, target: pa.DataType) -> pa.Array:
    ends = array.run_ends.to_numpy().astype(np.int64)
    rows = np.arange(array.offset, array.offset + len(array))
    runs = np.searchsorted(ends, rows, side="right")
    first = int(runs[0]) if runs.size else 0
    used = array.values.slice(first, int(runs[-1]) - first + 1 if runs.size else 0)
    return plain(used, target).take(pa.array(runs - first))


def _decode_list_view(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Views may overlap, leave gaps and come in any order; lists lie end to end."""
    kind = np.int32 if isinstance(array.type, pa.ListViewType) else np.int64
    count = len(array)
    starts, lengths = (
        np.frombuffer(buffer, kind, count, array.offset * kind().itemsize).astype(np.int64)
        if count
        else np.zeros(0, np.int64)
        for buffer in array.buffers()[1:3]
    )
    nulls = null_mask(array)
    if nulls is not None:
        lengths[nulls] = 0
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(kind).max:
        raise OverflowError("the lists overlap and would hold more than 2 GiB of elements")
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    first = int(places.min()) if places.size else 0
    used = array.values.slice(first, int(places.max()) - first + 1 if places.size else 0)
    values = plain(used, target.value_type)
    if places.size != len(used) or (np.diff(places) != 1).any():
        values = values.take(pa.array(places - first))
    return assemble(target, array, [pa.py_buffer(offsets.astype(kind))], [values])
