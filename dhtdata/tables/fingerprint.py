"""Row fingerprints, version 1: 64 bits a row that choose where blocks and shards end.

A fingerprint is deterministic, never collision-free: it looks at sampled bytes and at lengths only. All arithmetic is
on unsigned 64-bit integers, modulo 2**64; ``>>`` fills with zeros. Constants: A = 0x9E3779B97F4A7C15,
B = 0xC2B2AE3D27D4EB4F, NULL = 0x165667B19E3779F9, SEED = 0x27D4EB2F165667C5. Two functions::

    start(x)   = t ^ (t >> 32)  where t = (x + A) * B
    fold(a, x) = ((a ^ (a >> 32)) * A) + x

The fingerprint of a value depends on its *stored* type (`dhtdata.tables.schema.stored_schema`):

null, or a null slot of any type
    NULL
bool
    start(0) or start(1)
fixed width of w bytes
    w ≤ 8: start(the bytes, little endian, zero-extended); w > 8: fold(start(first 8 bytes), last 8 bytes)
string, binary of n bytes (32 or 64-bit offsets)
    f = fold(start(n), S(0)); if n > 8: f = fold(f, S(n - 8)); if n > 16: f is folded with S((n - 8) * j // 4) for
    j = 1, 2, 3 in this order
list, large list, fixed-size list, map of n elements
    f = start(n); if n > 0: f is folded with the fingerprint of element (n - 1) * j // 4 for j = 0 … 4 in this order
struct, and the entries of a map (key, value)
    f = SEED, folded with the fingerprint of every child in order
dense or sparse union
    fold(start(type code), fingerprint of the selected child's value)

S(p) is the 8 bytes at position p of the value, little endian, with zeros where the value ends earlier. A row's
fingerprint over columns c0, c1, … is SEED folded with the fingerprint of every column's value in order.

What lies in a slot under a null, and how the column was sliced or batched, do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.errors import ConfigError

U64 = NDArray[np.uint64]
Rows = NDArray[np.int64] | slice
"""Which slots of an array: positions, or all of them as ``slice(None)``; a sample costs no copy of its values."""

VERSION = 1
_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xC2B2AE3D27D4EB4F)
_NULL = np.uint64(0x165667B19E3779F9)
_SEED = np.uint64(0x27D4EB2F165667C5)
_32 = np.uint64(32)
_ALL = slice(None)
_SAMPLES = 5
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_WORDS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def row_fingerprints(columns: Sequence[pa.Array]) -> U64:
    """One fingerprint for each row of equally long stored columns. ConfigError on a type that is never stored."""
    fingerprints = np.full(len(columns[0]), _SEED, dtype=np.uint64)
    for column in columns:
        _fold(fingerprints, value_fingerprints(column))
    return fingerprints


def value_fingerprints(array: pa.Array, rows: Rows = _ALL) -> U64:
    """One fingerprint for each selected slot of a stored array, as the module specifies."""
    if pa.types.is_null(array.type):
        return np.full(_count(array, rows), _NULL, dtype=np.uint64)
    fingerprints = _regardless_of_nulls(array, rows)
    if array.null_count:
        fingerprints[~_valid(array, rows)] = _NULL
    return fingerprints


def _regardless_of_nulls(array: pa.Array, rows: Rows) -> U64:
    kind = array.type
    if pa.types.is_boolean(kind):
        return _start(_bits(array, array.buffers()[1], rows).astype(np.uint64))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _of_bytes(array, np.dtype("<i4"), rows)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _of_bytes(array, np.dtype("<i8"), rows)
    if pa.types.is_list(kind) or pa.types.is_map(kind):
        return _of_lists(array, *_spans(array, np.dtype("<i4"), rows))
    if pa.types.is_large_list(kind):
        return _of_lists(array, *_spans(array, np.dtype("<i8"), rows))
    if pa.types.is_fixed_size_list(kind):
        first = (_positions(array, rows) + array.offset) * kind.list_size
        return _of_lists(array, first, np.full(len(first), kind.list_size, dtype=np.int64))
    if pa.types.is_struct(kind):
        return _of_children([array.field(position) for position in range(kind.num_fields)], _count(array, rows), rows)
    if pa.types.is_union(kind):
        return _of_unions(array, rows)
    try:
        return _of_fixed_width(array, kind.bit_width // 8, rows)
    except ValueError as failure:
        raise ConfigError(f"columns of type {kind} are not stored") from failure


def _start(values: U64) -> U64:
    values += _A
    values *= _B
    values ^= values >> _32
    return values


def _fold(fingerprints: U64, values: U64) -> None:
    fingerprints ^= fingerprints >> _32
    fingerprints *= _A
    fingerprints += values


def _of_fixed_width(array: pa.Array, width: int, rows: Rows) -> U64:
    if width == 0 or len(array) == 0:
        return _start(np.zeros(_count(array, rows), dtype=np.uint64))
    buffer = array.buffers()[1]
    first = array.offset * width
    if width in _WORDS:
        return _start(_values(buffer, _WORDS[width], array.offset, len(array))[rows].astype(np.uint64))
    raw = np.frombuffer(buffer, np.uint8, len(array) * width, first)
    if width < 8:
        padded = np.zeros((_count(array, rows), 8), dtype=np.uint8)
        padded[:, :width] = raw.reshape(-1, width)[rows]
        return _start(padded.view("<u8")[:, 0].astype(np.uint64))
    heads: U64 = np.ndarray((len(array),), "<u8", buffer, first, (width,))
    tails: U64 = np.ndarray((len(array),), "<u8", buffer, first + width - 8, (width,))
    fingerprints = _start(heads[rows].astype(np.uint64))
    _fold(fingerprints, tails[rows])
    return fingerprints


def _of_bytes(array: pa.Array, offset_type: np.dtype[Any], rows: Rows) -> U64:
    first, lengths = _spans(array, offset_type, rows)
    fingerprints = _start(lengths.astype(np.uint64))
    sample = _Sampler(array.buffers()[2])
    _fold(fingerprints, sample(first, np.minimum(lengths, 8)))
    for above, part in ((8, 4), (16, 1), (16, 2), (16, 3)):
        which = np.nonzero(lengths > above)[0]
        if len(which):
            chosen = fingerprints[which]
            _fold(chosen, sample(first[which] + (lengths[which] - 8) * part // 4, None))
            fingerprints[which] = chosen
    return fingerprints


class _Sampler:
    """Reads 8 bytes at any position of a buffer, without reading past its end."""

    def __init__(self, buffer: pa.Buffer | None) -> None:
        raw = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.zeros(0, np.uint8)
        if len(raw) < 8:
            raw = np.concatenate([raw, np.zeros(8 - len(raw), np.uint8)])
        self._last = len(raw) - 8
        self._words: U64 = np.ndarray((self._last + 1,), "<u8", raw.data, 0, (1,))

    def __call__(self, positions: NDArray[np.int64], lengths: NDArray[np.int64] | None) -> U64:
        """Words at the positions; of each only the first ``lengths`` bytes count (None: all 8)."""
        beyond = np.nonzero(positions > self._last)[0]
        if len(beyond):
            positions = positions.copy()
            shift = (positions[beyond] - self._last).clip(max=8)
            positions[beyond] = self._last
        words = self._words[positions]
        if len(beyond):
            # A shift by 64 bits is undefined: those values are empty.
            bits = (shift.clip(max=7) * 8).astype(np.uint64)
            words[beyond] = np.where(shift < 8, words[beyond] >> bits, np.uint64(0))
        if lengths is not None:
            words &= _MASKS[lengths]
        return words


def _of_lists(array: pa.Array, first: NDArray[np.int64], lengths: NDArray[np.int64]) -> U64:
    fingerprints = _start(lengths.astype(np.uint64))
    valid = lengths > 0
    if array.null_count and pa.types.is_fixed_size_list(array.type):
        # Harmless to sample under a null slot, but a fixed-size list may lack the values of trailing nulls.
        valid &= first + lengths <= len(array.values)
    which = np.nonzero(valid)[0]
    if not len(which):
        return fingerprints
    steps = lengths[which] - 1
    samples = np.concatenate([first[which] + steps * part // (_SAMPLES - 1) for part in range(_SAMPLES)])
    elements = _elements(array, samples).reshape(_SAMPLES, len(which))
    chosen = fingerprints[which]
    for part in range(_SAMPLES):
        _fold(chosen, elements[part])
    fingerprints[which] = chosen
    return fingerprints


def _elements(array: pa.Array, rows: NDArray[np.int64]) -> U64:
    if pa.types.is_map(array.type):
        return _of_children([array.keys, array.items], len(rows), rows)
    return value_fingerprints(array.values, rows)


def _of_children(children: Sequence[pa.Array], count: int, rows: Rows) -> U64:
    fingerprints = np.full(count, _SEED, dtype=np.uint64)
    for child in children:
        _fold(fingerprints, value_fingerprints(child, rows))
    return fingerprints


def _of_unions(array: pa.Array, rows: Rows) -> U64:
    kind = array.type
    dense = kind.mode == "dense"
    codes = _values(array.buffers()[1], np.dtype("i1"), array.offset, len(array))[rows]
    slots = _positions(array, rows)
    if dense:
        slots = _values(array.buffers()[2], np.dtype("<i4"), array.offset, len(array))[rows].astype(np.int64)
    fingerprints = _start(codes.astype(np.uint8).astype(np.uint64))
    for position, code in enumerate(kind.type_codes):
        which = np.nonzero(codes == code)[0]
        if len(which):
            chosen = fingerprints[which]
            _fold(chosen, value_fingerprints(array.field(position), slots[which]))
            fingerprints[which] = chosen
    return fingerprints


def _spans(array: pa.Array, offset_type: np.dtype[Any], rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First position and length of each selected value of a variable-length array."""
    if len(array) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = _values(array.buffers()[1], offset_type, array.offset, len(array) + 1)
    first = offsets[:-1][rows].astype(np.int64)
    return first, offsets[1:][rows].astype(np.int64) - first


def _valid(array: pa.Array, rows: Rows) -> NDArray[np.bool_]:
    return _bits(array, array.buffers()[0], rows).astype(np.bool_)


def _bits(array: pa.Array, buffer: pa.Buffer, rows: Rows) -> NDArray[np.uint8]:
    packed = np.frombuffer(buffer, np.uint8)
    if isinstance(rows, slice):
        span = packed[array.offset // 8 : (array.offset + len(array) + 7) // 8]
        skipped = array.offset % 8
        return np.unpackbits(span, bitorder="little")[skipped : skipped + len(array)]
    positions = rows + array.offset
    bits: NDArray[np.uint8] = (packed[positions >> 3] >> (positions & 7).astype(np.uint8)) & np.uint8(1)
    return bits


def _values(buffer: pa.Buffer, kind: np.dtype[Any], first: int, count: int) -> NDArray[Any]:
    if count == 0:
        return np.zeros(0, kind)
    return np.frombuffer(buffer, kind, count, first * kind.itemsize)


def _positions(array: pa.Array, rows: Rows) -> NDArray[np.int64]:
    return np.arange(len(array), dtype=np.int64) if isinstance(rows, slice) else rows


def _count(array: pa.Array, rows: Rows) -> int:
    return len(array) if isinstance(rows, slice) else len(rows)
