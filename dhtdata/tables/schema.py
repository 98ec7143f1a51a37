"""Column types: Arrow's on one side, `Field` on the other, and the stored form that shards hold.

Three schemas matter. The *source* schema is what a publisher brings. The *logical* schema, as `Field` values in the
contents, is what a reader gets back: the same types, with the names of list and map children normalised to ``item``,
``key`` and ``value`` (Arrow calls types equal that differ in those alone). The *stored* schema is what shards hold:

| logical | stored |
|---|---|
| dictionary | its value type |
| run-end encoded | its value type |
| string view, binary view | string, binary |
| list view, large list view | list, large list |
| extension | its storage |
| everything else | itself, children mapped alike |

The stored schema keeps names and nullable flags, and no metadata: those are in the contents. A null in a field that is
not nullable, at any depth, is refused by publisher and reader alike.

**Extension types** are on an allow-list, because a reader rebuilds them from a stranger's metadata: `EXTENSIONS` are
rebuilt, `NAMED_EXTENSIONS` have no class in pyarrow and travel as their storage and field metadata. Their parameters
are kept as JSON of our own making, since pyarrow's text may change.

**Refused by name:** other extension types, the intervals that pyarrow cannot hold (months, days and milliseconds),
unions without members, duplicate column names, types nested deeper than 32.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod

import pyarrow as pa

from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.schema import MAX_DEPTH, Field, ParameterValue, check_schema
from dhtdata.tables.parameters import Parameters

EXTENSIONS = ("arrow.bool8", "arrow.fixed_shape_tensor", "arrow.json", "arrow.opaque", "arrow.uuid")
NAMED_EXTENSIONS = ("arrow.variable_shape_tensor",)
_EXTENSION_KEY = "ARROW:extension:name"
_BASE64 = ";base64"
_LARGEST = 2**31 - 1

_SIMPLE: dict[str, pa.DataType] = {
    "null": pa.null(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "date32": pa.date32(),
    "date64": pa.date64(),
    "interval_months_days_nanos": pa.month_day_nano_interval(),
}
_SIMPLE_NAMES = {kind: name for name, kind in _SIMPLE.items()}
_INDEXES = {name: _SIMPLE[name] for name in ("int8 int16 int32 int64 uint8 uint16 uint32 uint64".split())}
_RUN_ENDS = {name: _SIMPLE[name] for name in ("int16", "int32", "int64")}
_DECIMALS = {"decimal32": pa.decimal32, "decimal64": pa.decimal64, "decimal128": pa.decimal128}
_DECIMALS["decimal256"] = pa.decimal256
_LISTS = {
    "list": (pa.ListType, pa.list_),
    "large_list": (pa.LargeListType, pa.large_list),
    "list_view": (pa.ListViewType, pa.list_view),
    "large_list_view": (pa.LargeListViewType, pa.large_list_view),
}
_MALFORMED = (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError, IndexError, RecursionError)


class _UnsupportedError(Exception):
    """A type that cannot be published; the column is added where it is known."""


# Arrow to Field


def to_fields(schema: pa.Schema) -> tuple[tuple[Field, ...], dict[str, str]]:
    """Logical columns and schema metadata. ConfigError names an unsupported type and its column."""
    fields = []
    for position in range(len(schema)):
        try:
            field = schema.field(position)
            name = field.name
            fields.append(_to_field(field, name, 1))
        except UnicodeDecodeError as failure:
            raise ConfigError(f"column {position}: its name or metadata is not UTF-8: rename it") from failure
        except TypeError as failure:
            raise ConfigError(f"column {position} has a type that pyarrow has no class for: drop it") from failure
        except _UnsupportedError as failure:
            raise ConfigError(f"column {name!r} has {failure}: cast or drop it before publishing") from failure
    try:
        check_schema(fields, "source")
        metadata = _to_text(schema.metadata)
    except (FormatError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{failure}: rename or drop columns before publishing") from failure
    return tuple(fields), metadata


def _to_field(field: pa.Field, name: str, depth: int) -> Field:
    if depth > MAX_DEPTH:
        raise _UnsupportedError(f"a type that is nested deeper than {MAX_DEPTH}")
    metadata = _to_text(field.metadata)
    extension = metadata.get(_EXTENSION_KEY)
    if extension is not None and extension not in EXTENSIONS + NAMED_EXTENSIONS:
        raise _UnsupportedError(f"the extension type {extension!r}, which is not on the allow-list")
    kind, parameters, children = _describe(field.type, depth)
    return Field(
        name=name, type=kind, nullable=field.nullable, parameters=parameters, children=children, metadata=metadata
    )


_Described = tuple[str, dict[str, ParameterValue], tuple[Field, ...]]


def _describe(kind: pa.DataType, depth: int) -> _Described:
    """Name, parameters and children of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _describe_extension(kind, depth)
    simple = _SIMPLE_NAMES.get(kind)
    if simple is not None:
        return simple, {}, ()
    if isinstance(kind, pa.DictionaryType):
        index: dict[str, ParameterValue] = {"index": _SIMPLE_NAMES[kind.index_type]}
        if kind.ordered:
            index["ordered"] = True
        return "dictionary", index, (_to_field(pa.field("values", kind.value_type), "values", depth + 1),)
    if isinstance(kind, pa.RunEndEncodedType):
        run_ends: dict[str, ParameterValue] = {"index": _SIMPLE_NAMES[kind.run_end_type]}
        return "run_end_encoded", run_ends, (_to_field(pa.field("values", kind.value_type), "values", depth + 1),)
    if pa.types.is_nested(kind):
        return _describe_nested(kind, depth)
    if pa.types.is_decimal(kind):
        return f"decimal{kind.bit_width}", {"precision": kind.precision, "scale": kind.scale}, ()
    if isinstance(kind, pa.FixedSizeBinaryType):
        return "fixed_size_binary", {"byte_width": kind.byte_width}, ()
    if isinstance(kind, pa.TimestampType):
        zone: dict[str, ParameterValue] = {"timezone": kind.tz} if kind.tz else {}
        return "timestamp", {"unit": kind.unit} | zone, ()
    for name, known in (("time32", pa.Time32Type), ("time64", pa.Time64Type), ("duration", pa.DurationType)):
        if isinstance(kind, known):
            return name, {"unit": kind.unit}, ()
    raise _UnsupportedError(f"type {kind}, which is not supported")


def _describe_nested(kind: pa.DataType, depth: int) -> _Described:
    for name, (known, _) in _LISTS.items():
        if isinstance(kind, known):
            return name, {}, (_to_field(kind.value_field, "item", depth + 1),)
    if isinstance(kind, pa.FixedSizeListType):
        size: dict[str, ParameterValue] = {"list_size": kind.list_size}
        return "fixed_size_list", size, (_to_field(kind.value_field, "item", depth + 1),)
    if isinstance(kind, pa.MapType):
        keys_sorted: dict[str, ParameterValue] = {"keys_sorted": True} if kind.keys_sorted else {}
        pair = (_to_field(kind.key_field, "key", depth + 1), _to_field(kind.item_field, "value", depth + 1))
        return "map", keys_sorted, pair
    if isinstance(kind, pa.StructType):
        return "struct", {}, _to_children(kind, depth)
    if isinstance(kind, pa.UnionType):
        if not kind.num_fields:
            raise _UnsupportedError("a union type without members")
        return f"{kind.mode}_union", {"type_codes": tuple(kind.type_codes)}, _to_children(kind, depth)
    raise _UnsupportedError(f"type {kind}, which is not supported")


def _to_children(kind: pa.DataType, depth: int) -> tuple[Field, ...]:
    return tuple(_to_field(kind.field(i), kind.field(i).name, depth + 1) for i in range(kind.num_fields))


def _describe_extension(kind: pa.BaseExtensionType, depth: int) -> _Described:
    name = kind.extension_name
    if name not in EXTENSIONS:
        raise _UnsupportedError(f"the extension type {name!r}, which is not on the allow-list")
    parameters: dict[str, ParameterValue] = {"extension_name": name}
    if name == "arrow.fixed_shape_tensor":
        parameters["extension_metadata"] = _json(
            {"shape": kind.shape, "dim_names": kind.dim_names, "permutation": kind.permutation}
        )
    elif name == "arrow.opaque":
        parameters["extension_metadata"] = _json({"type_name": kind.type_name, "vendor_name": kind.vendor_name})
    return "extension", parameters, (_to_field(pa.field("storage", kind.storage_type), "storage", depth + 1),)


def _json(values: Mapping[str, object]) -> str:
    given = {key: value for key, value in values.items() if value is not None}
    return json.dumps(given, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _to_text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    text = {}
    for raw_key, raw in (metadata or {}).items():
        key = raw_key.decode()
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            value = ""
        if key.endswith(_BASE64) or value.encode() != raw:
            key, value = key + _BASE64, base64.b64encode(raw).decode()
        text[key] = value
    return text


# Field to Arrow


def to_arrow(fields: Sequence[Field], metadata: Mapping[str, str]) -> pa.Schema:
    """The logical schema. Fields come from outside: FormatError on types, parameters or extensions without sense."""
    check_schema(fields, "schema")
    return pa.schema([_to_arrow_field(field) for field in fields], metadata=_to_bytes(metadata) or None)


def _to_arrow_field(field: Field) -> pa.Field:
    extension = field.metadata.get(_EXTENSION_KEY)
    if extension is not None and extension not in EXTENSIONS + NAMED_EXTENSIONS:
        raise FormatError(f"schema: column {field.name!r} has extension type {extension!r}: not on the allow-list")
    metadata = _to_bytes(field.metadata) or None
    try:
        return pa.field(field.name, _to_type(field), nullable=field.nullable, metadata=metadata)
    except _MALFORMED as failure:
        raise FormatError(f"schema: {field.type} column {field.name!r} makes no sense: {failure}") from failure


def _to_type(field: Field) -> pa.DataType:
    kind, given = field.type, Parameters(field)
    children = [_to_arrow_field(child) for child in field.children]
    if kind in _SIMPLE:
        made = _SIMPLE[kind]
    elif kind in _LISTS:
        made = _LISTS[kind][1](_named(children[0], "item"))
    elif kind == "fixed_size_list":
        made = pa.list_(_named(children[0], "item"), given.integer("list_size", 0, _LARGEST))
    elif kind == "struct":
        made = pa.struct(children)
    elif kind == "map":
        pair = (_named(children[0], "key"), _named(children[1], "value"))
        made = pa.map_(*pair, keys_sorted=given.boolean("keys_sorted"))
    elif kind in ("dense_union", "sparse_union"):
        made = pa.union(children, mode=kind.removesuffix("_union"), type_codes=given.type_codes(len(children)))
    elif kind == "dictionary":
        made = pa.dictionary(_INDEXES[given.text("index")], children[0].type, ordered=given.boolean("ordered"))
    elif kind == "run_end_encoded":
        made = pa.run_end_encoded(_RUN_ENDS[given.text("index")], children[0].type)
    elif kind in _DECIMALS:
        made = _DECIMALS[kind](given.integer("precision", 1, 76), given.integer("scale", -_LARGEST, _LARGEST))
    elif kind == "fixed_size_binary":
        made = pa.binary(given.integer("byte_width", 0, _LARGEST))
    elif kind == "timestamp":
        made = pa.timestamp(given.text("unit"), tz=given.text("timezone", "") or None)
    elif kind in ("time32", "time64", "duration"):
        made = {"time32": pa.time32, "time64": pa.time64, "duration": pa.duration}[kind](given.text("unit"))
    elif kind == "extension":
        made = _to_extension(given.text("extension_name"), given.text("extension_metadata", ""), children[0].type)
    else:
        raise FormatError(f"schema: column {field.name!r} has type {kind}, which pyarrow cannot hold")
    given.none_left()
    return made


def _named(field: pa.Field, name: str) -> pa.Field:
    if field.name != name:
        raise FormatError(f"schema: a child is named {field.name!r}, expected {name!r}")
    return field


def _to_extension(name: str, text: str, storage: pa.DataType) -> pa.DataType:
    if name not in EXTENSIONS:
        raise FormatError(f"schema: extension type {name!r} is not on the allow-list")
    values = json.loads(text) if text else {}
    if not isinstance(values, dict) or (text and _json(values) != text):
        raise FormatError(f"schema: parameters of {name} are not in canonical form")
    made: pa.DataType
    if name == "arrow.fixed_shape_tensor":
        made = _tensor(values, storage)
    elif name == "arrow.opaque":
        if set(values) != {"type_name", "vendor_name"} or not all(isinstance(value, str) for value in values.values()):
            raise FormatError(f"schema: parameters of {name} are malformed")
        made = pa.opaque(storage, values["type_name"], values["vendor_name"])
    elif values:
        raise FormatError(f"schema: {name} has no parameters")
    else:
        made = {"arrow.uuid": pa.uuid, "arrow.bool8": pa.bool8}[name]() if name != "arrow.json" else pa.json_(storage)
    if made.storage_type != storage:
        raise FormatError(f"schema: {name} over {storage}, expected {made.storage_type}")
    return made


def _tensor(values: dict[str, object], storage: pa.DataType) -> pa.DataType:
    shape, names, order = (values.get(key) for key in ("shape", "dim_names", "permutation"))
    if (
        not set(values) <= {"shape", "dim_names", "permutation"}
        or not isinstance(storage, pa.FixedSizeListType)
        or not isinstance(shape, list)
        or not all(type(size) is int and 0 <= size <= _LARGEST for size in shape)
        or len(shape) > 64
        or prod(shape) != storage.list_size
        or not (names is None or (isinstance(names, list) and len(names) == len(shape)))
        or not all(isinstance(name, str) for name in names or ())
        or not (order is None or (isinstance(order, list) and _is_permutation(order, len(shape))))
    ):
        raise FormatError("schema: parameters of arrow.fixed_shape_tensor are malformed")
    return pa.fixed_shape_tensor(storage.value_type, shape, dim_names=names, permutation=order)


def _is_permutation(order: list[object], count: int) -> bool:
    return all(type(axis) is int for axis in order) and sorted(order, key=str) == sorted(range(count), key=str)


def _to_bytes(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    plain = {}
    for key, text in metadata.items():
        if key.endswith(_BASE64):
            try:
                plain[key.removesuffix(_BASE64).encode()] = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as failure:
                raise FormatError(f"schema: metadata {key!r} is not base64") from failure
        else:
            plain[key.encode()] = text.encode()
    return plain


# Stored form


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The plain types that shards hold, with the same names and nullable flags and without metadata."""
    return pa.schema([_stored_field(field, field.name) for field in schema])


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The plain type in which values of ``kind`` are stored. Plain types are returned with normalised child names."""
    if isinstance(kind, pa.BaseExtensionType):
        return stored_type(kind.storage_type)
    if isinstance(kind, (pa.DictionaryType, pa.RunEndEncodedType)):
        return stored_type(kind.value_type)
    if isinstance(kind, (pa.ListType, pa.ListViewType)):
        return pa.list_(_stored_field(kind.value_field, "item"))
    if isinstance(kind, (pa.LargeListType, pa.LargeListViewType)):
        return pa.large_list(_stored_field(kind.value_field, "item"))
    if isinstance(kind, pa.FixedSizeListType):
        return pa.list_(_stored_field(kind.value_field, "item"), kind.list_size)
    if isinstance(kind, pa.MapType):
        pair = (_stored_field(kind.key_field, "key"), _stored_field(kind.item_field, "value"))
        return pa.map_(*pair, keys_sorted=kind.keys_sorted)
    if isinstance(kind, pa.StructType):
        return pa.struct(_stored_children(kind))
    if isinstance(kind, pa.UnionType):
        return pa.union(_stored_children(kind), mode=kind.mode, type_codes=list(kind.type_codes))
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    return kind


def _stored_field(field: pa.Field, name: str) -> pa.Field:
    kind = stored_type(field.type)
    # A dictionary of nulls may be called not nullable; plain nulls may not.
    return pa.field(name, kind, nullable=field.nullable or pa.types.is_null(kind))


def _stored_children(kind: pa.DataType) -> Iterable[pa.Field]:
    return [_stored_field(kind.field(i), kind.field(i).name) for i in range(kind.num_fields)]
