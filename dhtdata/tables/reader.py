"""Reading blocks back: bytes of a block in, a record batch of stored types out, without a copy.

Nothing is believed. Before pyarrow sees a block, its header is compared with the one form that `ipc` emits, and every
length in it is checked against the schema: nodes against their parents, buffers against their nodes, children against
the last offset; buffers must tile the body and padding must be zeros. Then pyarrow validates the values in full, unless
this shard was checked before (``check``). Anything else is a `FormatError`.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pyarrow as pa

from dhtdata.digest import Buffer
from dhtdata.errors import FormatError, StoreError
from dhtdata.formats.blocks import MAX_SHARD_BYTES, Block, BlockTable
from dhtdata.tables.ipc import (
    ALIGNMENT,
    BatchNumbers,
    batch_header,
    children_of,
    counts,
    own_buffers,
    padded,
)
from dhtdata.tables.sizes import offset_width


def read_block(buffer: pa.Buffer | Buffer, block: Block, stored: pa.Schema, *, validate: bool = True) -> pa.RecordBatch:
    """The record batch in a block's bytes, sharing their memory. FormatError on anything malformed.

    ``validate=False`` leaves out only the check of values, for shards that passed it before.
    """
    given = buffer if isinstance(buffer, pa.Buffer) else pa.py_buffer(buffer)
    view = memoryview(given).cast("B")
    where = f"block at {block.offset}"
    if len(view) != block.length:
        raise FormatError(f"{where}: {len(view)} bytes, the block table says {block.length}")
    header = batch_header(*counts(stored))
    numbers = header.read(view)
    if numbers.row_count != block.rows:
        raise FormatError(f"{where}: {numbers.row_count} rows, the block table says {block.rows}")
    _Walk(numbers, view[header.size :], where).check(stored)
    try:
        batch = pa.ipc.read_record_batch(given, stored)
        if validate:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as failure:
        raise FormatError(f"{where}: values are malformed: {failure}") from failure
    return batch


class ShardReader:
    """Batches of one shard file, mapped into memory.

    Block ``i`` of the table is batch ``i - 1``. A block's bytes are touched when it is asked for and not before, so a
    shard that is still arriving can be read as far as it was verified, provided the file has its full length.
    Safe to use from several threads; pages stay readable when the file is unlinked.
    """

    def __init__(self, path: Path, table: BlockTable, stored: pa.Schema, *, checked: bool = False) -> None:
        """StoreError if the file cannot be opened, FormatError if it is shorter than its block table says."""
        self.table = table
        self.stored = stored
        self._checked = set(range(len(self))) if checked else set[int]()
        try:
            with pa.memory_map(str(path)) as file:
                self._bytes = file.read_buffer()
        except OSError as failure:
            raise StoreError(f"shard {path} cannot be read: {failure}") from failure
        if self._bytes.size != table.shard_bytes:
            raise FormatError(f"shard {path} has {self._bytes.size} bytes, its block table says {table.shard_bytes}")

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.table.blocks) - 2

    @property
    def mapped(self) -> pa.Buffer:
        """The whole file, mapped."""
        return self._bytes

    def bytes_of(self, position: int) -> pa.Buffer:
        """The bytes of block ``position`` of the table, not copied."""
        block = self.table.blocks[position]
        return self._bytes.slice(block.offset, block.length)

    def batch(self, position: int) -> pa.RecordBatch:
        """Batch ``position``; its values are validated the first time. FormatError, IndexError."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        block = self.table.blocks[position + 1]
        validate = position not in self._checked
        batch = read_block(self.bytes_of(position + 1), block, self.stored, validate=validate)
        self._checked.add(position)
        return batch


class _Walk:
    """Compares the numbers of one header with schema and body, in the order in which nodes and buffers are listed."""

    def __init__(self, numbers: BatchNumbers, body: memoryview, where: str) -> None:
        self._numbers = numbers
        self._body = body
        self._where = where
        self._nodes = iter(numbers.nodes)
        self._buffers = iter(numbers.buffers)
        self._end = 0

    def check(self, stored: pa.Schema) -> None:
        if self._numbers.body_length != len(self._body):
            self._refuse(f"a body of {len(self._body)} bytes, its header says {self._numbers.body_length}")
        for field in stored:
            self._check_field(field, self._numbers.row_count)
        if self._end != len(self._body):
            self._refuse(f"{len(self._body) - self._end} bytes after the last buffer")

    def _refuse(self, reason: str) -> None:
        raise FormatError(f"{self._where}: {reason}")

    def _buffer(self, field: pa.Field, size: int) -> memoryview:
        """The next buffer, which must have ``size`` bytes and lie right behind the one before."""
        offset, length = next(self._buffers)
        if (offset, length) != (self._end, size):
            self._refuse(f"a buffer of {field.name!r} spans {offset}+{length}, expected {self._end}+{size}")
        self._end += padded(size)
        if self._end > len(self._body):
            self._refuse(f"a buffer of {field.name!r} ends at {self._end}, the body has {len(self._body)} bytes")
        if size % ALIGNMENT and any(self._body[offset + size : self._end]):
            self._refuse(f"padding behind a buffer of {field.name!r} is not zero")
        return self._body[offset : offset + size]

    def _bits(self, field: pa.Field, count: int) -> None:
        bits = self._buffer(field, (count + 7) // 8)
        if count % 8 and bits[-1] >> count % 8:
            self._refuse(f"bits after the last one of {field.name!r} are not zero")

    def _check_field(self, field: pa.Field, expected: int) -> None:
        kind = field.type
        count, null_count = next(self._nodes)
        if count != expected or count > MAX_SHARD_BYTES:  # every value counts at least one byte (`sizes`)
            self._refuse(f"{field.name!r} has {count} values, expected {expected} and at most {MAX_SHARD_BYTES}")
        if pa.types.is_null(kind) or isinstance(kind, pa.UnionType):
            if null_count != (count if pa.types.is_null(kind) else 0):
                self._refuse(f"{field.name!r} of type {kind} has {null_count} nulls")
        elif null_count and not field.nullable:
            self._refuse(f"{field.name!r} has {null_count} nulls, its field none")
        elif not 0 <= null_count <= count:
            self._refuse(f"{field.name!r} has {null_count} nulls of {count} values")
        elif null_count:
            self._bits(field, count)
        else:
            self._buffer(field, 0)
        for child, size in zip(children_of(kind), self._own(field, count), strict=True):
            self._check_field(child, size)

    def _own(self, field: pa.Field, count: int) -> list[int]:
        """Check a type's own buffers behind the bitmap; lengths that its children must have."""
        kind = field.type
        if isinstance(kind, pa.StructType):
            return [count] * kind.num_fields
        if isinstance(kind, pa.FixedSizeListType):
            return [count * kind.list_size]
        if isinstance(kind, pa.UnionType):
            return self._union(field, count)
        if width := offset_width(kind):
            return self._variable(field, count, width)
        if pa.types.is_boolean(kind):
            self._bits(field, count)
        elif own_buffers(kind):
            self._buffer(field, count * (kind.bit_width // 8))
        return []

    def _variable(self, field: pa.Field, count: int, width: int) -> list[int]:
        offsets = self._buffer(field, (count + 1) * width)
        code = "<i" if width == 4 else "<q"
        (first,), (last,) = struct.unpack_from(code, offsets), struct.unpack_from(code, offsets, count * width)
        if first != 0 or last < 0:
            self._refuse(f"offsets of {field.name!r} span {first} to {last}, expected to start at 0")
        if own_buffers(field.type) == 3:
            self._buffer(field, last)
            return []
        return [last]

    def _union(self, field: pa.Field, count: int) -> list[int]:
        kind = field.type
        codes = bytes(self._buffer(field, count))
        if kind.mode == "sparse":
            return [count] * kind.num_fields
        self._buffer(field, 4 * count)
        chosen = Counter(codes)
        return [chosen[code] for code in kind.type_codes]
