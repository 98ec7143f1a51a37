"""Python values as Arrow arrays, without loss.

Told a type, `pyarrow.array` makes 1.5 an integer, drops the fields of a dict that a struct does not have, cuts a time
off a date and takes bytes for text, all without a word. So values are first given the type that they show themselves,
and that must be one that the column's type covers: a value is stored as it is, or refused.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

REFUSED = (pa.ArrowException, OverflowError, TypeError, ValueError)
_UNLIKE = ({str, bytes}, {datetime.date, datetime.datetime}, {bool, float})
_KINDS = (
    pa.types.is_boolean,
    pa.types.is_decimal,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_duration,
)


def guessed_type(values: Sequence[Any]) -> pa.DataType:
    """The type that values show. One of `REFUSED` if they have none in common."""
    _check_alike(values)
    return pa.array(values).type


def to_array(values: Sequence[Any], kind: pa.DataType, *, guessed: bool) -> pa.Array:
    """Values as ``kind``; one of `REFUSED` if that would change one.

    Floats are rounded to a narrower type only if it was declared, not ``guessed`` from other values.
    """
    _check_alike(values)
    try:
        found = pa.array(values)
    except REFUSED:
        if len(values) == 1:
            return pa.array(values, kind)  # of a shape that shows no type, such as pairs for a map
        return pa.concat_arrays([to_array([value], kind, guessed=guessed) for value in values])
    if found.type.equals(kind):
        return found
    if not _covers(kind, found.type, guessed):
        raise TypeError(f"{found.type} does not fit {kind}")
    return pa.array(values, kind) if _is_made_whole(found.type, kind) else found.cast(kind)


def _check_alike(values: Sequence[Any]) -> None:
    """TypeError where `pyarrow.array` would make unlike values alike, or would not say what to do instead."""
    kinds = set(map(type, values))
    for unlike in _UNLIKE:
        if unlike <= kinds:
            raise TypeError(f"{' and '.join(sorted(kind.__name__ for kind in unlike))} are mixed")
    if np.ndarray in kinds and any(value.ndim > 1 for value in values if isinstance(value, np.ndarray)):
        raise TypeError(
            "an array has more dimensions than one: give .tolist(), or, where all have one shape, a pyarrow table with "
            "pyarrow.FixedShapeTensorArray.from_numpy_ndarray"
        )
    if datetime.datetime in kinds:
        zoned = {value.tzinfo is not None for value in values if isinstance(value, datetime.datetime)}
        if len(zoned) > 1:
            raise TypeError("times with and without a zone are mixed")


def _is_made_whole(found: pa.DataType, kind: pa.DataType) -> bool:
    """Whether the target type is told to Arrow: nested values have no cast that fits, exact numbers need none."""
    encoded = (pa.DictionaryType, pa.RunEndEncodedType, pa.BaseExtensionType)
    simple = pa.types.is_null(found) or pa.types.is_nested(found) or pa.types.is_decimal(kind)
    return bool(simple) or isinstance(kind, encoded)


def _covers(kind: pa.DataType, found: pa.DataType, guessed: bool) -> bool:
    """Whether ``kind`` can mean what values of the type ``found`` mean; that they fit it is left to Arrow."""
    types = pa.types
    if isinstance(kind, (pa.DictionaryType, pa.RunEndEncodedType)):
        return _covers(kind.value_type, found, guessed)
    if types.is_null(found) or kind.equals(found):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _covers(kind.storage_type, found, guessed)
    if types.is_integer(kind):
        return bool(types.is_integer(found))
    if types.is_floating(kind):
        narrower = types.is_floating(found) and (not guessed or found.bit_width <= kind.bit_width)
        return bool(narrower or types.is_integer(found))
    if types.is_timestamp(kind):
        return bool(types.is_timestamp(found)) and (kind.tz is None) == (found.tz is None)
    if _is_text(kind) or _is_text(found):
        return _is_text(kind) and _is_text(found)
    if types.is_struct(kind):
        if not types.is_struct(found):
            return False
        fields = {kind.field(position).name: kind.field(position).type for position in range(kind.num_fields)}
        members = [found.field(position) for position in range(found.num_fields)]
        return all(field.name in fields and _covers(fields[field.name], field.type, guessed) for field in members)
    if (inner := _item(kind)) is not None:
        item = _item(found)
        return item is not None and _covers(inner, item, guessed)
    return not any(known(kind) != known(found) for known in _KINDS) or (
        bool(types.is_decimal(kind) and types.is_integer(found))
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _item(kind: pa.DataType) -> pa.DataType | None:
    """Type of a list's values; None for other types."""
    lists = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType, pa.FixedSizeListType)
    return kind.value_type if isinstance(kind, lists) else None
