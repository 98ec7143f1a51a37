"""Source values to stored values: dictionaries and run ends decoded, views and extensions made plain.

`to_stored` checks what it is given first, in full: a Parquet file's strings need not be UTF-8, and a source's offsets
need not be offsets. What it returns has the stored types but not yet canonical bytes (it may be a slice, with anything
under its nulls); ``layout`` sees to those.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.tables.forms import assemble, convert_children
from dhtdata.tables.schema import stored_type
from dhtdata.tables.sizes import null_mask


def to_stored(batch: pa.RecordBatch, stored: pa.Schema) -> pa.RecordBatch:
    """The batch with the stored types, sharing memory wherever a column is plain already.

    ConfigError names a column whose values are not what its type says (text that is not UTF-8, offsets out of range)
    or that would pass 2 GiB once decoded: such a batch must be handed over in smaller slices.
    """
    columns = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        try:
            column.validate(full=True)
            columns.append(plain(column, stored_type(field.type)))
        except (pa.ArrowException, OverflowError) as failure:
            raise ConfigError(f"column {field.name!r} holds malformed values: {failure}") from failure
    return pa.RecordBatch.from_arrays(columns, schema=stored)


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
