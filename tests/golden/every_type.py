"""One small batch that has every stored type and every logical one, from literals; its shard is ``every_type.arrow``.

The bytes are the format. If they change, every digest that anybody ever published changes: do not regenerate them, mend
the code. Only a new format version may add a file beside this one.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa

ROWS = 4


def every_type() -> pa.RecordBatch:
    columns = _numbers() | _times() | _texts() | _nested() | _encoded() | _extensions()
    fields = [
        pa.field(name, column.type, nullable=column.null_count > 0 or name != "int8", metadata=_METADATA.get(name))
        for name, column in columns.items()
    ]
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata={"made": "by hand"}))


_METADATA = {"int8": {"unit": "m"}, "float64": {b"raw": b"\xff\x00"}, "binary": {"odd;base64": "text"}}


def _numbers() -> dict[str, pa.Array]:
    integers = {
        name: pa.array([0, 1, high, low], pa.type_for_alias(name))
        for name, low, high in (
            ("int8", -(2**7), 2**7 - 1),
            ("int16", -(2**15), 2**15 - 1),
            ("int32", -(2**31), 2**31 - 1),
            ("int64", -(2**63), 2**63 - 1),
            ("uint8", 2, 2**8 - 1),
            ("uint16", 2, 2**16 - 1),
            ("uint32", 2, 2**32 - 1),
            ("uint64", 2, 2**64 - 1),
        )
    }
    odd_nan = pa.array([0x7FF8000000000001, 0x8000000000000000, 0x7FF0000000000000, 1], pa.uint64()).view(pa.float64())
    decimals = [Decimal("1.25"), None, Decimal("-99.99"), Decimal("0")]
    return integers | {
        "null": pa.nulls(ROWS),
        "bool": pa.array([True, None, False, True]),
        "float16": pa.array(np.array([0.5, -2, 65504, 0], np.float16), mask=np.array([False, False, False, True])),
        "float32": pa.array([0.1, None, -0.0, float("inf")], pa.float32()),
        "float64": odd_nan,
        "decimal32": pa.array(decimals, pa.decimal32(9, 2)),
        "decimal64": pa.array(decimals, pa.decimal64(18, 2)),
        "decimal128": pa.array(decimals, pa.decimal128(38, 2)),
        "decimal256": pa.array(decimals, pa.decimal256(76, 2)),
    }


def _times() -> dict[str, pa.Array]:
    day = datetime.date(2024, 2, 29)
    made = {
        "date32": pa.array([day, None, day, day], pa.date32()),
        "date64": pa.array([day, None, day, day], pa.date64()),
        "month_day_nano": pa.array([(1, 2, 3), None, (-1, -2, -3), (0, 0, 0)], pa.month_day_nano_interval()),
        "zoned": pa.array([0, 1, None, -1], pa.timestamp("us", "Europe/Paris")),
    }
    for unit in ("s", "ms", "us", "ns"):
        clock = pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
        made[f"time_{unit}"] = pa.array([0, 1, None, 86_399], clock)
        made[f"timestamp_{unit}"] = pa.array([0, 1, None, -86_399], pa.timestamp(unit))
        made[f"duration_{unit}"] = pa.array([0, 1, None, -86_399], pa.duration(unit))
    return made


def _texts() -> dict[str, pa.Array]:
    words = ["", "grün", None, "a longer text than twelve bytes"]
    raw = [None if word is None else word.encode() for word in words]
    return {
        "string": pa.array(words, pa.string()),
        "large_string": pa.array(words, pa.large_string()),
        "string_view": pa.array(words, pa.string_view()),
        "binary": pa.array(raw, pa.binary()),
        "large_binary": pa.array(raw, pa.large_binary()),
        "binary_view": pa.array(raw, pa.binary_view()),
        "fixed_size_binary": pa.array([b"abc", None, b"\0\0\0", b"xyz"], pa.binary(3)),
        "fixed_size_binary_0": pa.array([b"", None, b"", b""], pa.binary(0)),
    }


def _nested() -> dict[str, pa.Array]:
    lists = [[1, None], [], None, [3]]
    pairs = [[("a", 1), ("b", None)], [], None, [("c", 3)]]
    codes = pa.array([5, 1, 5, 1], pa.int8())
    members = [pa.array([1, None, 3, 4], pa.int16()), pa.array(["a", "b", None, "d"])]
    struct = pa.struct([pa.field("x", pa.int8(), nullable=False), pa.field("y", pa.list_(pa.string()))])
    return {
        "list": pa.array(lists, pa.list_(pa.field("element", pa.int32()))),
        "large_list": pa.array(lists, pa.large_list(pa.int32())),
        "list_view": pa.array(lists, pa.list_view(pa.int32())),
        "large_list_view": pa.array(lists, pa.large_list_view(pa.int32())),
        "fixed_size_list": pa.array([[1, 2], None, [None, 4], [5, 6]], pa.list_(pa.int8(), 2)),
        "fixed_size_list_0": pa.array([[], None, [], []], pa.list_(pa.int8(), 0)),
        "struct": pa.array([{"x": 1, "y": ["a", None]}, None, {"x": 3, "y": None}, {"x": 4, "y": []}], struct),
        "struct_0": pa.array([{}, None, {}, {}], pa.struct([])),
        "map": pa.array(pairs, pa.map_(pa.string(), pa.int64())),
        "map_sorted": pa.array(pairs, pa.map_(pa.string(), pa.int64(), keys_sorted=True)),
        "sparse_union": pa.UnionArray.from_sparse(codes, members, ["n", "t"], [1, 5]),
        "dense_union": pa.UnionArray.from_dense(codes, pa.array([0, 1, 2, 3], pa.int32()), members, ["n", "t"], [1, 5]),
    }


def _encoded() -> dict[str, pa.Array]:
    words = pa.array(["low", "high", None])
    indices = pa.array([1, None, 2, 0], pa.uint16())
    nested = pa.array([["a"], None, []], pa.list_(pa.string()))
    inner = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None, 1], pa.int8()), pa.array([1.5, 2.5]))
    return {
        "dictionary": pa.DictionaryArray.from_arrays(indices, words),
        "dictionary_ordered": pa.DictionaryArray.from_arrays(indices, words, ordered=True),
        "dictionary_of_lists": pa.DictionaryArray.from_arrays(indices.cast(pa.int8()), nested),
        "list_of_dictionaries": pa.ListArray.from_arrays(pa.array([0, 2, 2, 3, 5], pa.int32()), inner),
        "run_ends": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3, 4], pa.int16()), words),
        "run_ends_64": pa.RunEndEncodedArray.from_arrays(pa.array([1, 4], pa.int64()), pa.array([None, 7], pa.int8())),
    }


def _extensions() -> dict[str, pa.Array]:
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 2], dim_names=["h", "w"], permutation=[1, 0])
    storages = {
        "tensor": (tensor, [[1, 2, 3, 4], None, [0, 0, 0, 0], [5, 6, 7, 8]]),
        "uuid": (pa.uuid(), [UUID(int=1).bytes, None, UUID(int=0).bytes, UUID(int=2**128 - 1).bytes]),
        "json": (pa.json_(pa.large_string()), ['{"a":1}', None, "[]", "2"]),
        "bool8": (pa.bool8(), [1, None, 0, -1]),
        "opaque": (pa.opaque(pa.binary(), "thing", "somebody"), [b"\x01", None, b"", b"\xff"]),
    }
    return {
        name: pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
        for name, (kind, values) in storages.items()
    }
