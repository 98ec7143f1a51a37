"""What an Arrow expression consists of: columns, literals and calls, as values to reason about.

pyarrow shows no parts of an expression, but pickles it: as an Arrow IPC file whose schema metadata list the tree in
prefix order (``call``, ``field_ref``, ``nested_field_ref``, ``literal``, ``options``, ``end``; C++:
``arrow::compute::Serialize``) and whose one row holds literals and options. The same keys come several times, which
pyarrow's own dict of metadata would fold together, so they are read through the Arrow C data interface.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dhtdata.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """A column, or a field of a struct by its path."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class Constant:
    scalar: pa.Scalar


@dataclass(frozen=True)
class Call:
    """An Arrow function. ``options`` is a struct of the function's options, or None."""

    name: str
    arguments: tuple[Node, ...]
    options: pa.StructScalar | None


Node = Field | Constant | Call


def tree_of(expression: pc.Expression) -> Node:
    """ConfigError if columns go by number rather than by name."""
    encoded = encoded_form(expression)
    try:
        table = pa.ipc.open_file(encoded).read_all()
        return _node(_metadata(table.schema), table)
    except (pa.ArrowException, IndexError, ValueError) as failure:
        raise ConfigError(
            f"filter: pyarrow {pa.__version__} keeps expressions in a form that is not known here ({failure}): give "
            "the filter as text"
        ) from failure


def encoded_form(expression: pc.Expression) -> pa.Buffer:
    """The bytes that stand for an expression, the same for equal ones. ConfigError if it cannot be written down."""
    try:
        _, (encoded,) = expression.__reduce__()
    except pa.ArrowException as failure:
        raise ConfigError(
            f"filter: {expression} cannot be handed to other processes ({failure}): name columns, as in "
            "pyarrow.compute.field('name')"
        ) from failure
    return encoded


def columns_of(node: Node) -> set[str]:
    if isinstance(node, Field):
        return {node.path[0]}
    return set().union(*map(columns_of, node.arguments)) if isinstance(node, Call) else set()


def functions_of(node: Node) -> set[str]:
    if isinstance(node, Call):
        return {node.name}.union(*map(functions_of, node.arguments))
    return set()


def _node(entries: deque[tuple[str, str]], table: pa.Table) -> Node:
    """The next node; its entries are taken off."""
    key, value = entries.popleft()
    if key == "call":
        arguments: list[Node] = []
        options = None
        while entries[0][0] != "end":
            if entries[0][0] == "options":
                options = table.column(int(entries.popleft()[1]))[0]
            else:
                arguments.append(_node(entries, table))
        entries.popleft()
        return Call(value, tuple(arguments), options)
    if key == "literal":
        return Constant(table.column(int(value))[0])
    if key == "field_ref":
        return Field((value,))
    if key == "nested_field_ref":
        parts = [_node(entries, table) for _ in range(int(value))]
        return Field(tuple(name for part in parts if isinstance(part, Field) for name in part.path))
    raise ValueError(f"unknown entry {key!r}")


class _ArrowSchema(ctypes.Structure):
    """The head of the C data interface's ``struct ArrowSchema``."""

    _fields_ = (("format", ctypes.c_void_p), ("name", ctypes.c_void_p), ("metadata", ctypes.c_void_p))


def _metadata(schema: pa.Schema) -> deque[tuple[str, str]]:
    """Keys and values in order, repeated ones too: a count, then each text after its length, all int32."""
    capsule = schema.__arrow_c_schema__()
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    place = ctypes.cast(pointer(capsule, b"arrow_schema"), ctypes.POINTER(_ArrowSchema)).contents.metadata
    texts: list[str] = []
    if place is not None:
        count = 2 * _int32(place)
        place += 4
        for _ in range(count):
            length = _int32(place)
            texts.append(ctypes.string_at(place + 4, length).decode())
            place += 4 + length
    return deque(zip(texts[::2], texts[1::2], strict=True))


def _int32(place: int) -> int:
    number: int = struct.unpack("=i", ctypes.string_at(place, 4))[0]
    return number
