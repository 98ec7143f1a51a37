"""Column types as JSON: what the contents say about a table, readable without Arrow.

A field is ``{"name", "type", "nullable", "parameters", "children", "metadata"}``; keys that hold their default are left
out. ``type`` is one of `TYPES`; parameters complete it (``unit``, ``timezone``, ``precision``, ``scale``,
``byte_width``, ``list_size``, ``keys_sorted``, ``type_codes``, ``index``, ``ordered``, ``extension_name``,
``extension_metadata``).
Children are the element of a list, the fields of a struct or union, key and value of a map, the value type of a
dictionary or run-end encoded column, the storage of an extension. This is the *logical* type, which a reader gets back;
shards hold its *stored* form: dictionaries and run ends decoded, views as plain strings, binaries and lists, extensions
as their storage (``dhtdata.tables.schema`` maps both to Arrow).

Metadata are text; a value that is not UTF-8 is kept under its key with ``;base64`` appended.
"""

from __future__ import annotations

from collections.abc import Sequence

from dhtdata.errors import FormatError
from dhtdata.formats.codec import Format

MAX_FIELDS = 4_096
MAX_DEPTH = 32
MAX_NAME_BYTES = 1_024

_LEAVES = frozenset(
    "null bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
    "string large_string string_view binary large_binary binary_view fixed_size_binary "
    "decimal32 decimal64 decimal128 decimal256 date32 date64 time32 time64 timestamp duration "
    "interval_months interval_days interval_months_days_nanos".split()
)
_CHILDREN = {
    "list": 1,
    "large_list": 1,
    "list_view": 1,
    "large_list_view": 1,
    "fixed_size_list": 1,
    "map": 2,
    "dictionary": 1,
    "run_end_encoded": 1,
    "extension": 1,
    "struct": None,
    "dense_union": None,
    "sparse_union": None,
}
TYPES = _LEAVES | frozenset(_CHILDREN)

ParameterValue = str | int | bool | tuple[int, ...]


class Field(Format, frozen=True):
    """One column, or one child of a nested column."""

    name: str
    type: str
    nullable: bool = True
    parameters: dict[str, ParameterValue] = {}
    children: tuple[Field, ...] = ()
    metadata: dict[str, str] = {}


def check_schema(fields: Sequence[Field], what: str) -> None:
    """FormatError unless every type is known, every child count fits, and top-level names are unique."""
    names = [field.name for field in fields]
    if not names:
        raise FormatError(f"{what}: the schema has no columns")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{what}: column {twice!r} appears twice")
    count = sum(_check_field(field, 1, what) for field in fields)
    if count > MAX_FIELDS:
        raise FormatError(f"{what}: the schema has {count} fields, at most {MAX_FIELDS} are allowed")


def _check_field(field: Field, depth: int, what: str) -> int:
    """Number of fields at and below this one."""
    if depth > MAX_DEPTH:
        raise FormatError(f"{what}: types are nested deeper than {MAX_DEPTH}")
    if len(field.name.encode()) > MAX_NAME_BYTES:
        raise FormatError(f"{what}: a column name is longer than {MAX_NAME_BYTES} bytes")
    if field.type not in TYPES:
        raise FormatError(f"{what}: column {field.name!r} has unknown type {field.type!r}")
    expected = _CHILDREN.get(field.type, 0)
    if expected is not None and len(field.children) != expected:
        raise FormatError(f"{what}: {field.type} column {field.name!r} has {len(field.children)} children")
    return 1 + sum(_check_field(child, depth + 1, what) for child in field.children)
