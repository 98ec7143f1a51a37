"""A table with every type, values of every row its own, nulls in some blocks and none in others."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tests.golden.every_type import every_type

BLOCK_ROWS = 10
EPOCH = datetime.datetime(1970, 1, 1)
Draw = np.random.Generator

_LEAVES = {
    **{
        name: getattr(pa, name)() for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "bool": pa.bool_(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date32": pa.date32(),
    "date64": pa.date64(),
    "time32": pa.time32("ms"),
    "time64": pa.time64("us"),
    "timestamp_s": pa.timestamp("s"),
    "timestamp_us": pa.timestamp("us", "Europe/Paris"),
    "duration": pa.duration("ms"),
    "decimal": pa.decimal128(20, 2),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "fixed_binary": pa.binary(5),
    "fixed_binary_0": pa.binary(0),
    "interval": pa.month_day_nano_interval(),
}
_NESTED = {
    "list": pa.list_(pa.int32()),
    "large_list": pa.large_list(pa.float64()),
    "list_view": pa.list_view(pa.int16()),
    "list_of_bools": pa.list_(pa.bool_()),
    "list_of_texts": pa.list_(pa.string()),
    "list_of_lists": pa.list_(pa.list_(pa.int8())),
    "list_of_pairs": pa.list_(pa.list_(pa.int64(), 2)),
    "list_of_structs": pa.list_(pa.struct([("a", pa.int8()), ("b", pa.string())])),
    "pair": pa.list_(pa.int16(), 2),
    "triple": pa.list_(pa.float32(), 3),
    "pair_of_triples": pa.list_(pa.list_(pa.uint8(), 3), 2),
    "pair_of_bools": pa.list_(pa.bool_(), 2),
    "pair_of_texts": pa.list_(pa.string(), 2),
    "pair_of_nothing": pa.list_(pa.list_(pa.int32(), 0), 2),
    "nothing": pa.list_(pa.int64(), 0),
    "struct": pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string())), ("c", pa.struct([("d", pa.bool_())]))]),
    "map": pa.map_(pa.string(), pa.int32()),
}
WIDE = pa.list_(pa.float32(), 17_000)
"""68,000 bytes a row: more than `planes.WIDE_BYTES`."""


def table_of_every_type(rows: int, seed: int = 0) -> pa.Table:
    """Columns named after their type; those that end in ``_n`` have nulls, in items and members, too.

    In every other block of `BLOCK_ROWS` rows there are none even there.
    """
    draw = np.random.Generator(np.random.Philox(seed))
    columns: dict[str, pa.Array] = {}
    for name, kind in (_LEAVES | _NESTED).items():
        columns[name] = array_of(draw, kind, rows, lambda row: 0.0)
        columns[f"{name}_n"] = array_of(draw, kind, rows, lambda row: 0.3 if row // BLOCK_ROWS % 2 else 0.0)
    columns |= _extensions(draw, rows)
    columns["wide"] = pa.FixedSizeListArray.from_arrays(draw.random(rows * 17_000, np.float32), 17_000)
    for name, column in zip(every_type().schema.names, every_type().columns, strict=True):
        # Joined from slices, because Arrow cannot take from views and run ends.
        columns[f"golden_{name}"] = pa.concat_arrays([column.slice(int(row), 1) for row in draw.integers(0, 4, rows)])
    return pa.table(columns)


def array_of(draw: Draw, kind: pa.DataType, rows: int, null_rate: Callable[[int], float]) -> pa.Array:
    return pa.array([value_of(draw, kind, null_rate(row)) for row in range(rows)], kind)


def value_of(draw: Draw, kind: pa.DataType, null_rate: float) -> Any:
    """A value that Arrow takes; None, at every level, as often as ``null_rate`` says."""
    if null_rate and draw.random() < null_rate:
        return None
    if pa.types.is_struct(kind):
        return {field.name: value_of(draw, field.type, null_rate) for field in kind}
    if pa.types.is_map(kind):
        keys = draw.integers(0, 1 << 30, int(draw.integers(0, 4)))
        return [(str(key), value_of(draw, kind.item_type, null_rate)) for key in keys]
    if pa.types.is_fixed_size_list(kind):
        return [value_of(draw, kind.value_type, null_rate) for _ in range(kind.list_size)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return [value_of(draw, kind.value_type, null_rate) for _ in range(int(draw.integers(0, 5)))]
    return _leaf(draw, kind)


def _leaf(draw: Draw, kind: pa.DataType) -> Any:
    number = int(draw.integers(0, 1 << 30))
    if pa.types.is_boolean(kind):
        return bool(number & 1)
    if pa.types.is_integer(kind):
        return number % (1 << (kind.bit_width - 1))
    if pa.types.is_floating(kind):
        return np.float16(draw.random()) if kind == pa.float16() else draw.normal()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "ü" * (number % 3) + str(number)[: number % 20]
    if pa.types.is_fixed_size_binary(kind):
        return draw.bytes(kind.byte_width)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return draw.bytes(number % 50)
    if pa.types.is_date(kind):
        return (EPOCH + datetime.timedelta(days=number % 20_000)).date()
    if pa.types.is_time(kind):
        return (EPOCH + datetime.timedelta(milliseconds=number % 86_400_000)).time()
    if pa.types.is_timestamp(kind):
        return EPOCH + datetime.timedelta(seconds=number)
    if pa.types.is_duration(kind):
        return datetime.timedelta(milliseconds=number)
    if pa.types.is_decimal(kind):
        return decimal.Decimal(number) / 4
    return (number % 12, number % 31, number)  # an interval


def _extensions(draw: Draw, rows: int) -> dict[str, pa.Array]:
    def tensors(kind: pa.DataType, nulls: bool) -> pa.Array:
        rate = 0.3 if nulls else 0.0
        items = pa.array(draw.integers(0, 1 << 15, rows * 12), kind.value_type)
        mask = pa.array((np.arange(rows) // BLOCK_ROWS % 2 == 1) & (draw.random(rows) < rate))
        storage = pa.FixedSizeListArray.from_arrays(items, 12, mask=mask)
        return pa.ExtensionArray.from_storage(kind, storage)

    permuted = pa.fixed_shape_tensor(pa.float32(), [2, 3, 2], permutation=[2, 0, 1])
    words = pa.array([f"word {number % 40}" if number % 7 else None for number in range(rows)])
    return {
        "tensor": tensors(pa.fixed_shape_tensor(pa.int16(), [3, 4]), nulls=False),
        "tensor_n": tensors(pa.fixed_shape_tensor(pa.float64(), [12]), nulls=True),
        "tensor_permuted": tensors(permuted, nulls=False),
        "tensor_permuted_n": tensors(permuted, nulls=True),
        "dictionary": words.dictionary_encode(),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array(draw.integers(0, 2, rows), pa.int8())),
    }
