"""Arrow columns as numpy arrays and Python values: the mapping of every type.

| Arrow type | ``numpy`` | ``torch`` |
|---|---|---|
| integers, float16/32/64, bool | array of the same type | tensor |
| date32, date64, timestamp | ``datetime64`` of the unit, timestamps as UTC instants | int64 tensor of the unit |
| time32, time64, duration | ``timedelta64`` of the unit (times: since midnight) | int64 tensor of the unit |
| fixed-size list, FixedShapeTensor of the above | array of 2 or more dimensions | tensor |
| string, binary, fixed-size binary, decimal, map, union, interval, null | object array of Python values | list |
| list (all kinds) | object array; each item an array as its element type has it | list of tensors or lists |
| struct | dict of field to column, by these same rules | dict |
| dictionary, run-end encoded, other extension types | as their values or storage | same |

Nulls: NaN in floats, NaT in dates and times, None in object arrays; integers and bools with nulls are
`numpy.ma.MaskedArray` (a batch without nulls is a plain array), which no tensor can hold: the torch format refuses
them by name. A null struct has null fields. Where a mount asks for it, lists and images have other shapes
(`shaping`). ``python`` has what ``pyarrow.Array.to_pylist`` gives, ``arrow`` the logical types. Arrays are writable and
overlap with no other; those of a few batches together lie in one piece of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.gather.texts import Texts, Woven

_FOUND = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
Array = NDArray[Any]
Column = Array | Texts | Woven | dict[str, Any]
"""One column of a batch; a dict for a struct."""


@dataclass(frozen=True)
class Cut:
    """A column that is in pieces already, one for each batch."""

    pieces: list[Any]


@dataclass(frozen=True)
class Flat:
    """A type whose values have one width: ``shape`` items of ``stored`` each, shown as ``dtype``.

    ``axes`` reorders the dimensions of a permuted FixedShapeTensor, batch dimension first: dimension i is the stored
    dimension ``permutation[i]``, as Arrow specifies it (where pyarrow 26 turns three around, its strides overlap).
    """

    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    depth: int = 0
    axes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, kind: pa.DataType) -> Flat | None:
        """None if values of this logical type do not lie in one buffer of equal widths."""
        kind = plain_type(kind)
        if isinstance(kind, pa.FixedShapeTensorType):
            inner = cls.of(kind.value_type)
            if inner is None or inner.shape:
                return None
            order = kind.permutation
            axes = None if order is None else (0, *(axis + 1 for axis in order))
            return cls(inner.stored, inner.dtype, tuple(kind.shape), 1, axes)
        if pa.types.is_fixed_size_list(kind):
            inner = cls.of(kind.value_type)
            if inner is None or inner.axes is not None or pa.types.is_boolean(plain_type(kind.value_type)):
                return None
            return cls(inner.stored, inner.dtype, (kind.list_size, *inner.shape), inner.depth + 1)
        dtype = _dtype(kind)
        if dtype is None:
            return None
        width = kind.bit_width // 8
        stored = dtype if dtype.kind not in "mM" else np.dtype(f"i{width}")
        return cls(stored, dtype)

    def take(self, array: pa.Array, rows: NDArray[np.int64] | slice) -> tuple[Array, NDArray[np.bool_] | None]:
        """Values at these rows in stored order of dimensions, and where they are valid (None: everywhere)."""
        count = len(array)
        valid = _bits_at(array, 0, rows) if array.null_count else None
        for level in range(self.depth):
            size = array.type.list_size
            array = array.values.slice(array.offset * size, len(array) * size)
            if array.null_count:
                inner = _validity(array).reshape(count, *self._dimensions(level))[rows]
                valid = inner if valid is None else _spread(valid, inner.ndim) & inner
        if self.stored == np.bool_:
            return _bits_at(array, 1, rows), valid
        return _buffer(array, self.stored).reshape(count, *self.shape)[rows], valid

    def shown(self, values: Array, valid: NDArray[np.bool_] | None) -> Array:
        """Values taken, with their nulls marked, as the user sees them. Takes over ``values``."""
        if values.dtype != self.dtype:
            values = values.astype(self.dtype) if values.dtype.itemsize != 8 else values.view(self.dtype)
        values = mark_nulls(values, valid)
        return values if self.axes is None else values.transpose(self.axes)

    def _dimensions(self, level: int) -> tuple[int, ...]:
        """Shape of one row's items ``level + 1`` lists deep (a tensor is one list of all its items)."""
        return self.shape[: level + 1] if self.depth == len(self.shape) else self.shape


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A logical type without its encodings: the values' type of a dictionary, the storage of an extension."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.FixedShapeTensorType):
            kind = kind.storage_type
        else:
            return kind


def copied_bytes(schema: pa.Schema) -> int | None:
    """Bytes of a row that are copied when it is gathered; strings and binaries are only found then.

    None if that differs from row to row.
    """
    total = 0
    for column in schema:
        kind = plain_type(column.type)
        flat = Flat.of(kind)
        if flat is not None:
            total += flat.stored.itemsize * math.prod(flat.shape)
        elif not any(is_kind(kind) for is_kind in _FOUND):
            return None
    return total


def has_own_values(kind: pa.DataType) -> bool:
    """Whether Python's values of a type may be others than those of its storage, as with ``pa.bool8()``."""
    while pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return isinstance(kind, pa.BaseExtensionType)


@contextmanager
def held(name: str, kind: pa.DataType) -> Iterator[None]:
    """ConfigError that names the column if a value is none of Python's: years after 9999, nanoseconds, twin fields."""
    try:
        yield
    except (pa.ArrowException, OverflowError, ValueError) as failure:
        raise ConfigError(
            f"column {name!r} of type {kind} holds what Python cannot ({failure}): leave it out of columns, "
            'or mount with format="arrow"'
        ) from failure


def to_numpy(array: pa.Array, kind: pa.DataType) -> Column:
    """A column in its stored form as arrays; ``kind`` is the logical type. To be called within `held`."""
    kind = plain_type(kind)
    flat = Flat.of(kind)
    if flat is not None:
        values, valid = flat.take(array, slice(None))
        return flat.shown(values.copy(), valid)
    if isinstance(kind, pa.FixedShapeTensorType):
        shaped = to_numpy(array, kind.storage_type)
        return shaped.reshape(len(array), *kind.shape) if isinstance(shaped, np.ndarray) else shaped
    if pa.types.is_struct(kind):
        fields = [kind.field(position) for position in range(kind.num_fields)]
        if len({field.name for field in fields}) < len(fields):
            raise ValueError("two fields of a struct have the same name")
        return {field.name: to_numpy(child, field.type) for field, child in zip(fields, array.flatten(), strict=True)}
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        child = array.values.slice(array.offset * size, len(array) * size)
        items = to_numpy(child, kind.value_type)
        if isinstance(items, np.ndarray):
            return mark_nulls(items.reshape(len(array), size, *items.shape[1:]), _optional_validity(array))
    elif _is_list(kind):
        return _lists(array, kind)
    return np.fromiter(array.to_pylist(), dtype=object, count=len(array))


def items_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """What the items of lists of this type are as one array; None if this is no list or they are none."""
    kind = plain_type(kind)
    return _array_dtype(kind.value_type) if _is_list(kind) else None


def _array_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """None for what becomes an object array or a dict."""
    kind = plain_type(kind)
    flat = Flat.of(kind)
    if flat is not None:
        return flat.dtype
    shaped = isinstance(kind, pa.FixedShapeTensorType) or pa.types.is_fixed_size_list(kind)
    return _array_dtype(kind.value_type) if shaped else None


def mark_nulls(values: Array, valid: NDArray[np.bool_] | None) -> Array:
    """NaN, NaT or None where not valid; a masked array of integers or bools."""
    if valid is None or valid.all():
        return values
    null = ~valid
    if isinstance(values, np.ma.MaskedArray):
        values[null] = np.ma.masked
        return values
    if values.dtype.kind in "fc":
        values[null] = np.nan
    elif values.dtype.kind in "mM":
        values[null] = "NaT"
    elif values.dtype.kind == "O":
        values[null] = None
    else:
        mask = np.broadcast_to(_spread(null, values.ndim), values.shape).copy()
        return np.ma.MaskedArray(values, mask=mask)
    return values


def part(column: Any, first: int, stop: int) -> Any:
    """Rows ``[first, stop)`` of a column of any format."""
    if isinstance(column, dict):
        return {name: part(child, first, stop) for name, child in column.items()}
    if isinstance(column, np.ma.MaskedArray):
        piece = column[first:stop]
        return piece if np.ma.getmaskarray(piece).any() else np.asarray(piece.data)
    if isinstance(column, Texts | Woven):
        return objects(column[first:stop])
    return column[first:stop]


def objects(values: Sequence[Any]) -> Array:
    """Python values as an array of them."""
    return np.fromiter(values, dtype=object, count=len(values))


def item(column: Any, row: int) -> Any:
    """One row's value; None where it is masked as a whole."""
    if isinstance(column, dict):
        return {name: item(child, row) for name, child in column.items()}
    value = column[row]
    if value is np.ma.masked:
        return None
    if isinstance(value, np.ma.MaskedArray) and not np.ma.getmaskarray(value).any():
        return np.asarray(value.data)
    return value


def _dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    if pa.types.is_boolean(kind):
        return np.dtype(np.bool_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.dtype(str(_NUMPY_NAMES.get(str(kind), kind)))
    if pa.types.is_date32(kind):
        return np.dtype("datetime64[D]")
    if pa.types.is_date64(kind):
        return np.dtype("datetime64[ms]")
    if pa.types.is_timestamp(kind):
        return np.dtype(f"datetime64[{kind.unit}]")
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        return np.dtype(f"timedelta64[{kind.unit}]")
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _lists(array: pa.Array, kind: pa.DataType) -> Array:
    """Object array of one array a row. The stored form of every list type has offsets."""
    offsets = array.offsets.to_numpy()
    first = int(offsets[0])
    items = to_numpy(array.values.slice(first, int(offsets[-1]) - first), kind.value_type)
    valid = _optional_validity(array)
    cuts = (offsets - first).tolist()
    if isinstance(items, dict):  # a list of structs: Python values, as its rows have no common array
        return np.fromiter(array.to_pylist(), dtype=object, count=len(array))
    rows = (part(items, start, stop) for start, stop in zip(cuts, cuts[1:], strict=False))
    return mark_nulls(np.fromiter(rows, dtype=object, count=len(array)), valid)


def _buffer(array: pa.Array, dtype: np.dtype[Any]) -> Array:
    """The values of an array of one width, without a copy."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.empty(len(array), dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)


def _bits_at(array: pa.Array, number: int, rows: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
    """Bits of a buffer (0 validity, 1 bools) at these rows."""
    if isinstance(rows, slice):
        rows = np.arange(*rows.indices(len(array)))
    buffer = array.buffers()[number]
    if buffer is None:
        return np.full(len(rows), not pa.types.is_null(array.type))
    at = rows + array.offset
    packed = np.frombuffer(buffer, np.uint8)
    bits: NDArray[np.uint8] = packed[at >> 3] >> (at & 7).astype(np.uint8) & 1
    return bits.view(np.bool_)


def _validity(array: pa.Array) -> NDArray[np.bool_]:
    return _bits_at(array, 0, slice(None))


def _optional_validity(array: pa.Array) -> NDArray[np.bool_] | None:
    return _validity(array) if array.null_count else None


def _spread(mask: NDArray[np.bool_], dimensions: int) -> NDArray[np.bool_]:
    """The mask with trailing dimensions of size 1, to broadcast against values of more dimensions."""
    return mask.reshape(mask.shape + (1,) * (dimensions - mask.ndim))
