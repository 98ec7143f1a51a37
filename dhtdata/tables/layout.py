"""Canonical buffers: equal values give equal bytes, whatever array they came in.

Input are arrays of stored types (``schema.stored_type``), valid in full. Output are the nodes and buffers of an Arrow
record batch, in the order of the columnar format. Every slot is one of three kinds:

* *value*: its own bytes. NaN payloads and the sign of zero are kept bit for bit.
* *null*: invalid, zero bytes, zero length.
* *hidden*, under a null ancestor: **valid**, zero bytes, zero length; in a union, the first member. So a null struct
  does not give its children bitmaps.

Hence: a validity bitmap only where a value is null, its trailing bits zero; offsets start at 0 and values lie end to
end; members of dense unions hold their values in order of use; unselected slots of sparse unions are hidden.

Whatever is canonical already is passed on without a copy: fixed-width values without nulls, at any offset, are a slice
of their buffer; strings without nulls are new offsets and a slice. The rest is vectorised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.digest import Buffer
from dhtdata.tables.sizes import Mask, null_mask, offset_width, offsets_of, union_codes, union_of


@dataclass
class Layout:
    """Nodes, as (length, null count), and buffers of one record batch."""

    nodes: list[tuple[int, int]] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)


def layout_of(batch: pa.RecordBatch) -> Layout:
    """Canonical nodes and buffers of a batch of stored types. Buffers may share memory with the batch."""
    made = Layout()
    for column in batch.columns:
        _add(made, column, None)
    return made


def _add(made: Layout, array: pa.Array, hidden: Mask | None) -> None:
    kind = array.type
    if pa.types.is_null(kind):
        made.nodes.append((len(array), len(array)))
        return
    if isinstance(kind, pa.UnionType):
        made.nodes.append((len(array), 0))
        (_add_sparse if kind.mode == "sparse" else _add_dense)(made, array, hidden)
        return
    nulls = null_mask(array)
    blank = union_of(nulls, hidden)
    _add_validity(made, len(array), nulls if hidden is None or nulls is None else nulls & ~hidden)
    if isinstance(kind, pa.StructType):
        for position in range(kind.num_fields):
            _add(made, array.field(position), blank)
    elif isinstance(kind, pa.FixedSizeListType):
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        _add(made, values, None if blank is None else np.repeat(blank, size))
    elif width := offset_width(kind):
        _add_variable(made, array, width, blank)
    elif pa.types.is_boolean(kind):
        made.buffers.append(_bits(array, blank))
    else:
        made.buffers.append(_fixed(array, blank))


def _add_validity(made: Layout, count: int, nulls: Mask | None) -> None:
    null_count = 0 if nulls is None else int(np.count_nonzero(nulls))
    made.nodes.append((count, null_count))
    made.buffers.append(_pack(~nulls) if nulls is not None and null_count else b"")


def _pack(bits: Mask) -> Buffer:
    return _view(np.packbits(bits, bitorder="little"))


def _view(values: np.ndarray[Any, Any]) -> Buffer:
    return values.data.cast("B") if values.size else b""


def _bits(array: pa.Array, blank: Mask | None) -> Buffer:
    if not len(array):
        return b""
    first, skip = divmod(array.offset, 8)
    count = skip + len(array)
    packed = np.frombuffer(array.buffers()[1], np.uint8, (count + 7) // 8, first)
    bits = np.unpackbits(packed, count=count, bitorder="little")[skip:].view(np.bool_)
    return _pack(bits if blank is None else bits & ~blank)


def _fixed(array: pa.Array, blank: Mask | None) -> Buffer:
    width = array.type.bit_width // 8
    size = len(array) * width
    if not size:
        return b""
    values = memoryview(array.buffers()[1])[array.offset * width : array.offset * width + size]
    if blank is None:
        return values
    word = next(word for word in (8, 4, 2, 1) if width % word == 0)
    copy = np.frombuffer(values, f"u{word}").copy()
    copy.reshape(len(array), width // word)[blank] = 0
    return _view(copy)


def _add_variable(made: Layout, array: pa.Array, width: int, blank: Mask | None) -> None:
    offsets = offsets_of(array, width)
    keep = None
    if blank is not None:
        lengths = np.diff(offsets)
        if lengths[blank].any():
            keep = ~blank
            new = np.zeros_like(offsets)
            np.cumsum(np.where(blank, 0, lengths), out=new[1:])
    first, last = int(offsets[0]), int(offsets[-1])
    made.buffers.append(_view(new if keep is not None else offsets - offsets[0] if first else offsets))
    if isinstance(array.type, (pa.ListType, pa.LargeListType, pa.MapType)):
        values = array.values.slice(first, last - first)
        _add(made, values if keep is None else values.filter(pa.array(np.repeat(keep, lengths))), None)
        return
    if keep is not None:
        array = array.filter(pa.array(keep))
        offsets = offsets_of(array, width)
        first, last = int(offsets[0]), int(offsets[-1])
    made.buffers.append(memoryview(array.buffers()[2])[first:last] if last > first else b"")


def _add_sparse(made: Layout, array: pa.Array, hidden: Mask | None) -> None:
    codes = union_codes(array, hidden)
    made.buffers.append(_view(codes))
    for position, code in enumerate(array.type.type_codes):
        unselected = union_of(codes != code, hidden)
        _add(made, array.field(position), unselected if unselected is not None and unselected.any() else None)


def _add_dense(made: Layout, array: pa.Array, hidden: Mask | None) -> None:
    codes = union_codes(array, hidden)
    count = len(array)
    places = np.frombuffer(array.buffers()[2], np.int32, count, array.offset * 4) if count else np.zeros(0, np.int32)
    compact = np.zeros(count, np.int32)
    members = []
    for position, code in enumerate(array.type.type_codes):
        chosen = codes == code
        used = places[chosen]
        compact[chosen] = np.arange(used.size, dtype=np.int32)
        member_hidden = None if hidden is None else hidden[chosen]
        members.append((_pick(array.field(position), used, member_hidden), member_hidden))
    made.buffers.append(_view(codes))
    made.buffers.append(_view(compact))
    for member, member_hidden in members:
        _add(made, member, member_hidden)


def _pick(member: pa.Array, used: NDArray[np.int32], hidden: Mask | None) -> pa.Array:
    """The member's values at ``used``, end to end; any value where hidden."""
    if hidden is None or not hidden.any():
        first = int(used[0]) if used.size else 0
        if (np.diff(used) == 1).all():
            return member.slice(first, used.size)
    return member.take(pa.array(used, mask=hidden))
