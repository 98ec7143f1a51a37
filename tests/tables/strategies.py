"""Arbitrary Arrow types and arrays, and arrays that are equal in value but not in memory.

Types are drawn by hypothesis (so that they shrink); an array's values come from a seed, since drawing them one by one
would be slow. Arrays are messy on purpose: bytes under nulls are random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from dhtdata.tables.schema import stored_type
from dhtdata.tables.sizes import null_mask

Mask = NDArray[np.bool_]

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
LEAVES = [
    *INTEGERS,
    *FLOATS,
    *TEXTS,
    pa.null(),
    pa.bool_(),
    pa.binary(0),
    pa.binary(3),
    pa.binary(16),
    pa.decimal32(7, 2),
    pa.decimal64(16, -1),
    pa.decimal128(30, 4),
    pa.decimal256(60, 0),
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
    pa.time64("ns"),
    pa.timestamp("s"),
    pa.timestamp("ns", "Europe/Paris"),
    pa.duration("ms"),
    pa.month_day_nano_interval(),
    pa.uuid(),
    pa.bool8(),
    pa.json_(),
    pa.opaque(pa.int16(), "point", "somebody"),
    pa.fixed_shape_tensor(pa.float32(), [2, 1, 2], dim_names=["a", "b", "c"], permutation=[2, 0, 1]),
]
_NAMES = st.sampled_from(["a", "b", "ü", "", "x.y"])


def _fields(children: st.SearchStrategy[Any], least: int, most: int) -> st.SearchStrategy[list[pa.Field]]:
    field = st.builds(lambda name, kind: pa.field(name, kind), _NAMES, children)
    return st.lists(field, min_size=least, max_size=most)


def _union(fields: list[pa.Field], mode: str, codes: list[int]) -> pa.DataType:
    return pa.union(fields, mode=mode, type_codes=codes[: len(fields)])


def _nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[pa.DataType]:
    codes = st.permutations([0, 5, 127, 3])
    plain_keys = st.sampled_from([pa.int32(), pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.binary(2)])
    return st.one_of(
        st.builds(pa.list_, children),
        st.builds(lambda kind: pa.list_(pa.field("element", kind)), children),
        st.builds(pa.large_list, children),
        st.builds(pa.list_view, children),
        st.builds(pa.large_list_view, children),
        st.builds(pa.list_, children, st.integers(0, 3)),
        st.builds(pa.struct, _fields(children, 0, 3)),
        st.builds(pa.map_, plain_keys, children),
        st.builds(_union, _fields(children, 1, 3), st.sampled_from(["dense", "sparse"]), codes),
        st.builds(pa.dictionary, st.sampled_from(INTEGERS), children, st.booleans()),
        st.builds(pa.run_end_encoded, st.sampled_from([pa.int16(), pa.int32(), pa.int64()]), children),
    )


def _storable(kind: pa.DataType) -> bool:
    """pyarrow refuses run ends right inside run ends, and dictionaries of dictionaries or of run ends."""
    if isinstance(kind, (pa.DictionaryType, pa.RunEndEncodedType)) and isinstance(
        kind.value_type, (pa.DictionaryType, pa.RunEndEncodedType)
    ):
        return False
    if isinstance(kind, pa.MapType):
        return _storable(kind.key_type) and _storable(kind.item_type)
    if isinstance(kind, (pa.DictionaryType, pa.RunEndEncodedType)):
        return _storable(kind.value_type)
    return all(_storable(kind.field(i).type) for i in range(kind.num_fields))


def types(leaves: Sequence[pa.DataType] = tuple(LEAVES), max_leaves: int = 4) -> st.SearchStrategy[pa.DataType]:
    """Any type that a dataset may have."""
    return st.recursive(st.sampled_from(leaves), _nested, max_leaves=max_leaves).filter(_storable)


@dataclass(frozen=True)
class Values:
    """Where random values come from. ``nans`` allows any float bits; without, equality of arrays means what it says."""

    rng: np.random.Generator
    null_share: float = 0.3
    nans: bool = True
    few: bool = False
    """Values from a tiny domain, so that two arrays are sometimes equal."""

    def array(self, kind: pa.DataType, count: int, *, nulls: bool = True) -> pa.Array:
        return _array(self, kind, count, nulls)

    def mask(self, count: int) -> Mask:
        share = self.null_share if self.rng.random() < 0.7 else 0.0
        return self.rng.random(count) < share


def seeded(seed: int, *, nans: bool = True, few: bool = False) -> Values:
    return Values(np.random.default_rng(seed), nans=nans, few=few)


@st.composite
def batches(draw: st.DrawFn, /, kinds: st.SearchStrategy[pa.DataType] | None = None, **options: Any) -> pa.RecordBatch:
    """A record batch of 1 to 3 columns of any type and 0 to 20 rows, a slice of a longer one."""
    columns = draw(st.lists(types() if kinds is None else kinds, min_size=1, max_size=3))
    before, count, after = draw(st.integers(0, 9)), draw(st.integers(0, 20)), draw(st.integers(0, 9))
    values = seeded(draw(st.integers(0, 2**32)), **options)
    arrays = [values.array(kind, before + count + after).slice(before, count) for kind in columns]
    return pa.RecordBatch.from_arrays(arrays, [f"c{i}" for i in range(len(columns))])


# Values


def _array(values: Values, kind: pa.DataType, count: int, nulls: bool) -> pa.Array:
    rng = values.rng
    if isinstance(kind, pa.BaseExtensionType):
        storage = _json_texts(values, count) if kind == pa.json_() else _array(values, kind.storage_type, count, nulls)
        return pa.ExtensionArray.from_storage(kind, storage)
    if isinstance(kind, pa.DictionaryType):
        entries = _array(values, kind.value_type, int(rng.integers(1, 6)), nulls)
        mask = values.mask(count) if nulls else np.zeros(count, np.bool_)
        indices = pa.array(rng.integers(0, len(entries), count), kind.index_type, mask=mask)
        return pa.DictionaryArray.from_arrays(indices, entries, ordered=kind.ordered)
    if isinstance(kind, pa.RunEndEncodedType):
        lengths = rng.integers(1, 4, count)
        ends = np.minimum(np.cumsum(lengths), count)
        ends = ends[: int(np.searchsorted(ends, count)) + 1] if count else ends
        runs = _array(values, kind.value_type, len(ends), nulls)
        return pa.RunEndEncodedArray.from_arrays(pa.array(ends, kind.run_end_type), runs, type=kind)
    if pa.types.is_null(kind):
        return pa.nulls(count)
    if isinstance(kind, pa.UnionType):
        return _union_array(values, kind, count, nulls)
    mask = values.mask(count) if nulls else np.zeros(count, np.bool_)
    bitmap = pa.py_buffer(np.packbits(~mask, bitorder="little")) if mask.any() else None
    if kind in (pa.string_view(), pa.binary_view()):
        return _texts(values, stored_type(kind), count, mask, bitmap).cast(kind)
    if kind in TEXTS:
        return _texts(values, kind, count, mask, bitmap)
    if pa.types.is_nested(kind):
        return _nested_array(values, kind, count, bitmap, nulls)
    return pa.Array.from_buffers(kind, count, [bitmap, _fixed(values, kind, count)])


def _json_texts(values: Values, count: int) -> pa.Array:
    return pa.array([json.dumps({"n": int(number)}) for number in values.rng.integers(0, 9, count)], pa.string())


def _fixed(values: Values, kind: pa.DataType, count: int) -> pa.Buffer:
    rng = values.rng
    if pa.types.is_boolean(kind):
        return pa.py_buffer(rng.bytes(count // 8 + 1))
    width = kind.bit_width // 8
    if kind in FLOATS and not values.nans:
        return pa.py_buffer(rng.integers(1, 4 if values.few else 100, count).astype(f"f{width}"))
    if values.few:
        return pa.py_buffer(_little(rng.integers(0, 2, count) * _unit(kind), width))
    if _unit(kind) or pa.types.is_decimal(kind):
        limit = 86_399 if pa.types.is_time(kind) else 50_000
        return pa.py_buffer(_little(rng.integers(0, limit, count) * (_unit(kind) or 1), width))
    return pa.py_buffer(rng.bytes(count * width))


def _unit(kind: pa.DataType) -> int:
    """What a value must be a multiple of to be valid; 0 where any bits are."""
    return 86_400_000 if kind == pa.date64() else 1 if pa.types.is_time(kind) else 0


def _little(numbers: NDArray[np.int64], width: int) -> bytes:
    return b"".join(int(number).to_bytes(width, "little") for number in numbers) if width else b""


def _texts(values: Values, kind: pa.DataType, count: int, mask: Mask, bitmap: pa.Buffer | None) -> pa.Array:
    alphabet = ["", "a"] if values.few else ["", "a", "grün", "x" * 13, "long text " * 3, "\0"]
    words = [alphabet[i].encode() for i in values.rng.integers(0, len(alphabet), count)]
    width = "i8" if kind in (pa.large_string(), pa.large_binary()) else "i4"
    offsets = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(width)
    return pa.Array.from_buffers(kind, count, [bitmap, pa.py_buffer(offsets), pa.py_buffer(b"".join(words))])


def _nested_array(values: Values, kind: pa.DataType, count: int, bitmap: pa.Buffer | None, nulls: bool) -> pa.Array:
    rng = values.rng
    if isinstance(kind, pa.StructType):
        children = [_array(values, kind.field(i).type, count, nulls) for i in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, count, [bitmap], children=children)
    if isinstance(kind, pa.FixedSizeListType):
        child = _array(values, kind.value_type, count * kind.list_size, nulls)
        return pa.Array.from_buffers(kind, count, [bitmap], children=[child])
    lengths = rng.integers(0, 2 if values.few else 4, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    if isinstance(kind, (pa.ListViewType, pa.LargeListViewType)):
        width = "i4" if isinstance(kind, pa.ListViewType) else "i8"
        child = _array(values, kind.value_type, total + 4, nulls)
        starts = rng.integers(0, total + 1, count)  # any order, overlapping
        views = [pa.py_buffer(starts.astype(width)), pa.py_buffer(lengths.astype(width))]
        return pa.Array.from_buffers(kind, count, [bitmap, *views], children=[child])
    width = "i8" if isinstance(kind, pa.LargeListType) else "i4"
    if isinstance(kind, pa.MapType):
        keys = _array(values, kind.key_type, total, False)
        pair = pa.struct([kind.key_field, kind.item_field])
        child = pa.Array.from_buffers(
            pair, total, [None], children=[_filled(keys), _array(values, kind.item_type, total, nulls)]
        )
    else:
        child = _array(values, kind.value_type, total, nulls)
    return pa.Array.from_buffers(kind, count, [bitmap, pa.py_buffer(offsets.astype(width))], children=[child])


def _filled(keys: pa.Array) -> pa.Array:
    """Keys of a map have no nulls: a dictionary's may have, so make it one without."""
    if isinstance(keys, pa.DictionaryArray):
        entries = keys.dictionary.fill_null("none")
        return pa.DictionaryArray.from_arrays(keys.indices, entries)
    return keys


def _union_array(values: Values, kind: pa.UnionType, count: int, nulls: bool) -> pa.Array:
    chosen = values.rng.integers(0, kind.num_fields, count)
    codes = np.array(kind.type_codes, np.int8)[chosen] if count else np.zeros(0, np.int8)
    if kind.mode == "sparse":
        children = [_array(values, kind.field(i).type, count, nulls) for i in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(codes)], children=children)
    children, places = [], np.zeros(count, np.int32)
    for position in range(kind.num_fields):
        mine = chosen == position
        gaps = values.rng.integers(0, 2, count)[mine]  # some values are never used
        places[mine] = np.cumsum(gaps + 1) - 1
        children.append(_array(values, kind.field(position).type, int((gaps + 1).sum()), nulls))
    buffers = [None, pa.py_buffer(codes), pa.py_buffer(places)]
    return pa.Array.from_buffers(kind, count, buffers, children=children)


# Equal in value, not in memory


def joinable(kind: pa.DataType) -> bool:
    """Whether pyarrow can put such arrays together: not if they hold dictionaries or runs of unusual values."""
    if isinstance(kind, pa.BaseExtensionType):
        return joinable(kind.storage_type)
    if isinstance(kind, pa.MapType):
        return joinable(kind.key_type) and joinable(kind.item_type)
    if isinstance(kind, (pa.DictionaryType, pa.RunEndEncodedType)):
        return False
    return all(joinable(kind.field(i).type) for i in range(kind.num_fields))


def shifted(values: Values, array: pa.Array) -> pa.Array:
    """The array as a slice out of a longer one; as it is where pyarrow cannot make one."""
    if not joinable(array.type):
        return array
    before, after = (values.array(array.type, int(size)) for size in values.rng.integers(0, 10, 2))
    return pa.concat_arrays([before, array, after]).slice(len(before), len(array))


def regrouped(values: Values, array: pa.Array) -> pa.Array:
    """The array cut into pieces and put together again; as it is where pyarrow cannot."""
    if not joinable(array.type):
        return array
    cut = int(values.rng.integers(0, len(array) + 1))
    return pa.concat_arrays([shifted(values, array.slice(0, cut)), array.slice(cut)])


def poisoned(values: Values, array: pa.Array, hidden: Mask | None = None) -> pa.Array:
    """An array of a stored type, with other valid values wherever they must not matter.

    That is under nulls, under null ancestors (where validity must not matter either), and in the unselected slots of
    sparse unions.
    """
    kind = array.type
    count = len(array)
    if pa.types.is_null(kind) or not count:
        return array
    hidden = np.zeros(count, np.bool_) if hidden is None else hidden
    own = null_mask(array)
    nulls = np.zeros(count, np.bool_) if own is None else own
    noise = values.array(kind, count, nulls=False)
    places = np.where(nulls | hidden, np.arange(count, 2 * count), np.arange(count))
    mixed = pa.concat_arrays([array, noise]).take(pa.array(places))
    if isinstance(kind, pa.UnionType):
        codes = np.frombuffer(mixed.buffers()[1], np.int8, count, mixed.offset)
        members = [mixed.field(i) for i in range(kind.num_fields)]
        if kind.mode == "dense":
            members = [poisoned(values, member) for member in members]
        else:
            members = [poisoned(values, m, codes != code) for m, code in zip(members, kind.type_codes, strict=True)]
        buffers = [None, *mixed.buffers()[1 : 2 if kind.mode == "sparse" else 3]]
        return pa.Array.from_buffers(kind, count, buffers, children=members)
    null = (nulls & ~hidden) | (hidden & (values.rng.random(count) < 0.5))
    bitmap = pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None
    if isinstance(kind, pa.StructType):
        children = [poisoned(values, mixed.field(i)) for i in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, count, [bitmap], children=children)
    if isinstance(kind, pa.FixedSizeListType):
        child = poisoned(values, mixed.values.slice(mixed.offset * kind.list_size, count * kind.list_size))
        return pa.Array.from_buffers(kind, count, [bitmap], children=[child])
    if pa.types.is_nested(kind):
        children = [mixed.values if isinstance(kind, pa.MapType) else poisoned(values, mixed.values)]
        return pa.Array.from_buffers(kind, count, [bitmap, mixed.buffers()[1]], children=children)
    return pa.Array.from_buffers(kind, count, [bitmap, *mixed.buffers()[1:]], offset=mixed.offset)
