"""Blocks of a shard: Arrow IPC envelopes, emitted here (door of ``flatbuffers``).

A shard is an Arrow IPC *file*, cut into blocks that are its parts in file order:

| block | bytes |
|---|---|
| first | ``ARROW1`` + 2 zero bytes, then the schema as an encapsulated message |
| one per record batch | an encapsulated message: header, then body |
| last | end-of-stream marker ``FFFFFFFF 00000000``, footer, its length (int32), ``ARROW1`` |

An encapsulated message is ``FFFFFFFF``, the length of what follows up to the body (int32), the flatbuffer, zeros. All
blocks but the last are a multiple of 64 bytes long, and every buffer in a body starts at a multiple of 64: mapped into
memory, every column is aligned. Padding is zeros. Metadata version V5, little endian; no compression, no dictionaries,
no custom metadata. Every table lists all its fields in the order of the format's own definition, defaults included.

The header of a record batch has the same size and shape for all batches of a schema, so it is built once as a template
into which numbers are put; reading compares with the same template (``reader``), so any other header is refused.

Why not pyarrow's writer: its bytes differ between releases (the footer has 192 bytes in 14, 184 in 17 and 26) and with
slicing under a validity bitmap; an identity must not.

Source: Apache Arrow, "Arrow Columnar Format" 1.5, and its ``Schema.fbs``, ``Message.fbs``, ``File.fbs``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
from flatbuffers import Builder

from dhtdata.digest import Buffer
from dhtdata.errors import FormatError
from dhtdata.tables.layout import Layout, layout_of

ALIGNMENT = 64
MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_V5 = 4
_SCHEMA_MESSAGE, _BATCH_MESSAGE = 1, 3
_ZEROS = bytes(ALIGNMENT)
_UNITS = {"s": 0, "ms": 1, "us": 2, "ns": 3}


def padded(length: int) -> int:
    """The next multiple of 64."""
    return -(-length // ALIGNMENT) * ALIGNMENT


# Blocks


def schema_block(stored: pa.Schema) -> bytes:
    """The first block: magic and schema."""
    builder = _builder()
    schema = _schema(builder, stored)
    message = _message(builder, _SCHEMA_MESSAGE, schema, 0)
    builder.Finish(message)
    return MAGIC + b"\0\0" + _encapsulate(bytes(builder.Output()), len(MAGIC) + 2)


def batch_block(batch: pa.RecordBatch) -> list[Buffer]:
    """One record batch of stored types as the parts of its block, end to end. Parts may share memory with the batch."""
    return block_of(layout_of(batch), batch.num_rows)


def block_of(layout: Layout, row_count: int) -> list[Buffer]:
    """The parts of the block that holds these canonical nodes and buffers."""
    spans, body, body_length = [], list[Buffer](), 0
    for buffer in layout.buffers:
        size = len(buffer)
        spans.append((body_length, size))
        if size:
            body.append(buffer)
            body_length += padded(size)
            if size % ALIGNMENT:
                body.append(_ZEROS[size % ALIGNMENT :])
    header = batch_header(len(layout.nodes), len(spans))
    return [header.fill(BatchNumbers(row_count, body_length, tuple(layout.nodes), tuple(spans))), *body]


def footer_block(stored: pa.Schema, block_lengths: Sequence[int]) -> bytes:
    """The last block, for the lengths of all blocks before it in file order (the first is the schema's)."""
    header = batch_header(*counts(stored)).size
    builder = _builder()
    builder.StartVector(24, len(block_lengths) - 1, 8)
    offset = sum(block_lengths)
    for length in reversed(block_lengths[1:]):
        offset -= length
        builder.Prep(8, 24)
        builder.PrependInt64(length - header)
        builder.PrependInt32(0)
        builder.PrependInt32(header)
        builder.PrependInt64(offset)
    batches = builder.EndVector()
    builder.StartVector(24, 0, 8)
    dictionaries = builder.EndVector()
    schema = _schema(builder, stored)
    builder.StartObject(5)
    builder.PrependInt16Slot(0, _V5, 0)
    builder.PrependUOffsetTRelativeSlot(1, schema, 0)
    builder.PrependUOffsetTRelativeSlot(2, dictionaries, 0)
    builder.PrependUOffsetTRelativeSlot(3, batches, 0)
    builder.Finish(builder.EndObject())
    footer = bytes(builder.Output())
    return _CONTINUATION + bytes(4) + footer + struct.pack("<i", len(footer)) + MAGIC


# Header of a record batch


@dataclass(frozen=True)
class BatchNumbers:
    """All that varies in the header of a record batch: nodes as (length, null count), buffers as (offset, length)."""

    row_count: int
    body_length: int
    nodes: tuple[tuple[int, int], ...]
    buffers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BatchHeader:
    """Encapsulated header of record batches with a given number of nodes and buffers, numbers left out."""

    template: bytes
    rows_at: int
    body_length_at: int
    nodes_at: int
    node_count: int
    buffers_at: int
    buffer_count: int

    @property
    def size(self) -> int:
        return len(self.template)

    def fill(self, numbers: BatchNumbers) -> bytes:
        filled = bytearray(self.template)
        struct.pack_into("<q", filled, self.rows_at, numbers.row_count)
        struct.pack_into("<q", filled, self.body_length_at, numbers.body_length)
        nodes = [number for node in numbers.nodes for number in node]
        buffers = [number for span in numbers.buffers for number in span]
        struct.pack_into(f"<{2 * self.node_count}q", filled, self.nodes_at, *nodes)
        struct.pack_into(f"<{2 * self.buffer_count}q", filled, self.buffers_at, *buffers)
        return bytes(filled)

    def read(self, block: Buffer) -> BatchNumbers:
        """The numbers in a block's header. FormatError unless the rest of it is exactly the template."""
        if len(block) < self.size:
            raise FormatError(f"record batch of {len(block)} bytes: cut short inside its header")
        head = bytes(block[: self.size])
        nodes = struct.unpack_from(f"<{2 * self.node_count}q", head, self.nodes_at)
        spans = struct.unpack_from(f"<{2 * self.buffer_count}q", head, self.buffers_at)
        (row_count,) = struct.unpack_from("<q", head, self.rows_at)
        (body_length,) = struct.unpack_from("<q", head, self.body_length_at)
        numbers = BatchNumbers(
            row_count,
            body_length,
            tuple(zip(nodes[::2], nodes[1::2], strict=True)),
            tuple(zip(spans[::2], spans[1::2], strict=True)),
        )
        if self.fill(numbers) != head:
            raise FormatError("record batch: its header is not in canonical form")
        return numbers


@lru_cache(maxsize=256)
def batch_header(node_count: int, buffer_count: int) -> BatchHeader:
    """The header that all batches with so many nodes and buffers have."""
    builder = _builder()
    buffers_end = _zero_pairs(builder, buffer_count)
    nodes_end = _zero_pairs(builder, node_count)
    builder.StartObject(5)
    builder.PrependInt64Slot(0, 0, 0)
    rows_end = builder.Offset()
    builder.PrependUOffsetTRelativeSlot(1, nodes_end, 0)
    builder.PrependUOffsetTRelativeSlot(2, buffers_end, 0)
    message = _message(builder, _BATCH_MESSAGE, builder.EndObject(), 0)
    builder.Finish(message)
    flat = bytes(builder.Output())
    template = _encapsulate(flat, 0)
    end = 8 + len(flat)  # the builder's positions count from the end of the flatbuffer
    table = 8 + struct.unpack_from("<I", flat, 0)[0]
    vtable = table - struct.unpack_from("<i", template, table)[0]
    return BatchHeader(
        template,
        rows_at=end - rows_end,
        body_length_at=table + struct.unpack_from("<H", template, vtable + 4 + 2 * 3)[0],
        nodes_at=end - nodes_end + 4,
        node_count=node_count,
        buffers_at=end - buffers_end + 4,
        buffer_count=buffer_count,
    )


def _zero_pairs(builder: Builder, count: int) -> int:
    """A vector of pairs of int64, all zero: field nodes or buffers."""
    builder.StartVector(16, count, 8)
    for _ in range(count):
        builder.Prep(8, 16)
        builder.PrependInt64(0)
        builder.PrependInt64(0)
    end: int = builder.EndVector()
    return end


def counts(stored: pa.Schema) -> tuple[int, int]:
    """Nodes and buffers that a batch of this schema has."""
    pairs = [_counts(field.type) for field in stored]
    return sum(nodes for nodes, _ in pairs), sum(buffers for _, buffers in pairs)


def _counts(kind: pa.DataType) -> tuple[int, int]:
    pairs = [_counts(child.type) for child in children_of(kind)]
    return 1 + sum(nodes for nodes, _ in pairs), own_buffers(kind) + sum(buffers for _, buffers in pairs)


def own_buffers(kind: pa.DataType) -> int:
    """Buffers of a type itself, without its children's."""
    if pa.types.is_null(kind):
        return 0
    if isinstance(kind, pa.UnionType):
        return 1 if kind.mode == "sparse" else 2
    if isinstance(kind, (pa.StructType, pa.FixedSizeListType)):
        return 1
    if pa.types.is_nested(kind) or not _is_variable(kind):
        return 2
    return 3


def children_of(kind: pa.DataType) -> list[pa.Field]:
    """Child fields of a stored type, with the names that shards hold."""
    if isinstance(kind, pa.MapType):
        pair = [kind.key_field.with_name("key"), kind.item_field.with_name("value")]
        return [pa.field("entries", pa.struct(pair), nullable=False)]
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return [kind.value_field.with_name("item")]
    return [kind.field(i) for i in range(kind.num_fields)]


def _is_variable(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())


# Flatbuffers


def _builder() -> Builder:
    builder = Builder(1024)
    builder.ForceDefaults(True)
    return builder


def _encapsulate(flatbuffer: bytes, before: int) -> bytes:
    """Marker, length, flatbuffer and padding; ``before`` bytes stand before it in the block."""
    length = padded(before + 8 + len(flatbuffer)) - before - 8
    return _CONTINUATION + struct.pack("<i", length) + flatbuffer.ljust(length, b"\0")


def _message(builder: Builder, kind: int, header: int, body_length: int) -> int:
    builder.StartObject(5)
    builder.PrependInt16Slot(0, _V5, 0)
    builder.PrependUint8Slot(1, kind, 0)
    builder.PrependUOffsetTRelativeSlot(2, header, 0)
    builder.PrependInt64Slot(3, body_length, 0)
    return _end(builder)


def _schema(builder: Builder, stored: pa.Schema) -> int:
    fields = _offsets(builder, [_field(builder, field) for field in stored])
    builder.StartObject(4)
    builder.PrependInt16Slot(0, 0, 0)
    builder.PrependUOffsetTRelativeSlot(1, fields, 0)
    return _end(builder)


def _field(builder: Builder, field: pa.Field) -> int:
    name = builder.CreateString(field.name)
    children = _offsets(builder, [_field(builder, child) for child in children_of(field.type)])
    number, kind = _type(builder, field.type)
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependBoolSlot(1, field.nullable, False)
    builder.PrependUint8Slot(2, number, 0)
    builder.PrependUOffsetTRelativeSlot(3, kind, 0)
    builder.PrependUOffsetTRelativeSlot(5, children, 0)
    return _end(builder)


def _type(builder: Builder, kind: pa.DataType) -> tuple[int, int]:
    """Number of the type in the union of types, and its table."""
    if isinstance(kind, pa.UnionType):
        codes = list(kind.type_codes)
        builder.StartVector(4, len(codes), 4)
        for code in reversed(codes):
            builder.PrependInt32(code)
        vector = builder.EndVector()
        builder.StartObject(2)
        builder.PrependInt16Slot(0, 0 if kind.mode == "sparse" else 1, 0)
        builder.PrependUOffsetTRelativeSlot(1, vector, 0)
        return 14, _end(builder)
    if isinstance(kind, pa.TimestampType):
        zone = builder.CreateString(kind.tz) if kind.tz else 0
        builder.StartObject(2)
        builder.PrependInt16Slot(0, _UNITS[kind.unit], 0)
        if zone:
            builder.PrependUOffsetTRelativeSlot(1, zone, 0)
        return 10, _end(builder)
    number, slots = _plain_type(kind)
    builder.StartObject(len(slots))
    for slot, (width, value) in enumerate(slots):
        _SLOTS[width](builder, slot, value)
    return number, _end(builder)


_Slot = tuple[str, int]
_SLOTS: dict[str, Callable[[Builder, int, int], None]] = {
    "bool": lambda builder, slot, value: builder.PrependBoolSlot(slot, bool(value), False),
    "int16": lambda builder, slot, value: builder.PrependInt16Slot(slot, value, 0),
    "int32": lambda builder, slot, value: builder.PrependInt32Slot(slot, value, 0),
}
_WITHOUT_FIELDS = {
    pa.null(): 1,
    pa.binary(): 4,
    pa.string(): 5,
    pa.bool_(): 6,
    pa.large_binary(): 19,
    pa.large_string(): 20,
}
_FLOATS = {pa.float16(): 0, pa.float32(): 1, pa.float64(): 2}


def _plain_type(kind: pa.DataType) -> tuple[int, list[_Slot]]:
    """Number and fields, as (width, value), of a type whose table holds numbers only."""
    types = pa.types
    if kind in _WITHOUT_FIELDS:
        return _WITHOUT_FIELDS[kind], []
    if types.is_integer(kind):
        return 2, [("int32", kind.bit_width), ("bool", types.is_signed_integer(kind))]
    if kind in _FLOATS:
        return 3, [("int16", _FLOATS[kind])]
    if types.is_decimal(kind):
        return 7, [("int32", kind.precision), ("int32", kind.scale), ("int32", kind.bit_width)]
    if types.is_date(kind):
        return 8, [("int16", 0 if types.is_date32(kind) else 1)]
    if types.is_time(kind):
        return 9, [("int16", _UNITS[kind.unit]), ("int32", kind.bit_width)]
    if kind == pa.month_day_nano_interval():
        return 11, [("int16", 2)]
    if isinstance(kind, pa.DurationType):
        return 18, [("int16", _UNITS[kind.unit])]
    if isinstance(kind, pa.MapType):
        return 17, [("bool", kind.keys_sorted)]
    if isinstance(kind, pa.FixedSizeListType):
        return 16, [("int32", kind.list_size)]
    if isinstance(kind, pa.FixedSizeBinaryType):
        return 15, [("int32", kind.byte_width)]
    nested = {pa.ListType: 12, pa.StructType: 13, pa.LargeListType: 21}
    if type(kind) not in nested:
        raise FormatError(f"shards do not hold {kind}: it has no stored form of its own")
    return nested[type(kind)], []


def _offsets(builder: Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end


def _end(builder: Builder) -> int:
    end: int = builder.EndObject()
    return end
