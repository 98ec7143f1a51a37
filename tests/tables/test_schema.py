from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.errors import ConfigError, FormatError
from dhtdata.formats.codec import decode_json, encode_json
from dhtdata.formats.schema import MAX_DEPTH, TYPES, Field
from dhtdata.tables.ipc import schema_block
from dhtdata.tables.schema import stored_schema, to_arrow, to_fields
from tests.tables.strategies import types

LABELS = st.dictionaries(st.sampled_from(["a", "ü", "k;base64", ""]), st.binary(max_size=9), max_size=3)


@settings(max_examples=200, deadline=None)
@given(kind=types(max_leaves=8), nullable=st.booleans(), metadata=LABELS, labels=LABELS)
def test_every_schema_round_trips(
    kind: pa.DataType, nullable: bool, metadata: dict[str, bytes], labels: dict[str, bytes]
) -> None:
    schema = pa.schema([pa.field("ü", kind, nullable, metadata)], labels)
    fields, text = to_fields(schema)
    wire = decode_json(encode_json(fields), tuple[Field, ...], limit_bytes=1 << 20, what="fields")
    back = to_arrow(wire, text)
    assert back.equals(schema)
    assert (back.metadata or {}) == (schema.metadata or {})
    assert (back.field(0).metadata or {}) == (schema.field(0).metadata or {})
    assert to_fields(back) == (fields, text)


@given(kind=types())
def test_stored_schemas_keep_names_and_nullable_flags_and_no_metadata(kind: pa.DataType) -> None:
    if kind == pa.null():
        return  # which cannot be without nulls
    schema = pa.schema([pa.field("a", kind, False, {"k": "v"}), pa.field("b", kind)], {"k": "v"})
    stored = stored_schema(schema)
    assert stored.names == ["a", "b"]
    assert [field.nullable for field in stored] == [stored.field(0).type == pa.null(), True]
    assert stored.metadata is None
    assert stored.field(0).metadata is None
    assert to_fields(stored)[0][0].type not in {
        "dictionary",
        "run_end_encoded",
        "extension",
        "string_view",
        "list_view",
    }


def test_names_of_list_and_map_children_are_normalised() -> None:
    pair = (pa.field("k", pa.string(), nullable=False), pa.field("v", pa.list_(pa.field("element", pa.int8()))))
    renamed = pa.schema([("m", pa.map_(*pair))])
    usual = pa.schema([("m", pa.map_(pa.string(), pa.list_(pa.int8())))])
    assert to_fields(renamed) == to_fields(usual)


class Secret(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.int8(), "somebody.secret")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


SECRET = Secret()  # pyarrow forgets an extension type with its last instance


def interval(unit: int) -> pa.DataType:
    """A type for which pyarrow has no class: the unit in a schema that was written for another interval is replaced."""
    kind = pa.month_day_nano_interval()
    message = schema_block(pa.schema([("i", kind)]))[8:]
    for position, byte in enumerate(message):
        if byte == 2:
            patched = message[:position] + bytes([unit]) + message[position + 1 :]
            try:
                read = pa.ipc.read_schema(pa.py_buffer(patched)).field(0).type
            except (pa.ArrowException, OSError):
                continue
            if read != kind:
                return read
    raise LookupError("the unit is not where it was")


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (pa.field("odd", SECRET), "extension type 'somebody.secret'"),
        (pa.field("odd", pa.list_(SECRET)), "extension type 'somebody.secret'"),
        (pa.field("odd", pa.int8(), metadata={"ARROW:extension:name": "somebody.else"}), "'somebody.else'"),
        (pa.field("odd", interval(0)), "month_interval"),
        (pa.field("odd", pa.struct([("a", interval(1))])), "day_time_interval"),
        (pa.field("odd", pa.dense_union([])), "union type without members"),
    ],
)
def test_unsupported_types_are_named_with_their_column(field: pa.Field, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"column 'odd' has .*{reason}"):
        to_fields(pa.schema([("fine", pa.int8()), field]))


def test_a_type_whose_class_is_gone_is_refused() -> None:
    schema = pa.schema([("odd", pa.list_(Secret()))])  # nothing keeps the extension type alive
    with pytest.raises(ConfigError, match="column 0 has a type that pyarrow has no class for"):
        to_fields(schema)


def deep(levels: int) -> pa.DataType:
    kind = pa.int8()
    for _ in range(levels):
        kind = pa.list_(kind)
    return kind


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (pa.schema([]), "no columns"),
        (pa.schema([("a", pa.int8()), ("a", pa.int8())]), "'a' appears twice"),
        (pa.schema([("x" * 1025, pa.int8())]), "longer than 1024 bytes"),
        (pa.schema([("a", deep(MAX_DEPTH))]), "nested deeper than 32"),
        (pa.schema([("a", deep(500))]), "nested deeper than 32"),
        (pa.schema([(f"c{i}", pa.int8()) for i in range(4_097)]), "4097 fields"),
        (pa.schema([("a", pa.int8())], {b"\xff": b""}), "UTF-8|decode"),
        (pa.schema([pa.field("a", pa.int8(), metadata={b"\xff": b""})]), "not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schemas_that_contents_cannot_hold_are_refused(schema: pa.Schema, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        to_fields(schema)


def test_types_nested_as_deep_as_allowed_are_fine() -> None:
    schema = pa.schema([("a", deep(MAX_DEPTH - 1))])
    assert to_arrow(*to_fields(schema)).equals(schema)


def test_an_extension_without_a_class_travels_by_name() -> None:
    storage = pa.struct([("data", pa.list_(pa.float32())), ("shape", pa.list_(pa.int32(), 2))])
    named = {"ARROW:extension:name": "arrow.variable_shape_tensor", "ARROW:extension:metadata": "{}"}
    schema = pa.schema([pa.field("t", storage, metadata=named)])
    assert to_arrow(*to_fields(schema)).equals(schema, check_metadata=True)


@dataclass(frozen=True)
class Odd:
    field: Field
    reason: str


def field(kind: str, *children: Field, **parameters: Any) -> Field:
    return Field(name="c", type=kind, parameters=parameters, children=children)


def extension(name: str, text: str, storage: Field) -> Field:
    return field("extension", storage, extension_name=name, **({"extension_metadata": text} if text else {}))


ITEM = Field(name="item", type="int8")
FOUR = field("fixed_size_list", ITEM, list_size=4)
TENSOR = "arrow.fixed_shape_tensor"


@pytest.mark.parametrize(
    "odd",
    [
        Odd(field("teapot"), "unknown type"),
        Odd(field("interval_days"), "pyarrow cannot hold"),
        Odd(field("int8", width=3), "unknown parameters width"),
        Odd(field("decimal128", precision=39, scale=0), "makes no sense"),
        Odd(field("decimal32", precision=10, scale=0), "makes no sense"),
        Odd(field("decimal128", scale=0), "precision is not in"),
        Odd(field("decimal128", precision=True, scale=0), "precision is not in"),
        Odd(field("time32", unit="ns"), "makes no sense"),
        Odd(field("timestamp", unit="weeks"), "makes no sense"),
        Odd(field("timestamp"), "unit is missing"),
        Odd(field("fixed_size_binary", byte_width=-1), "byte_width is not in"),
        Odd(field("fixed_size_list", ITEM, list_size=2**31), "list_size is not in"),
        Odd(field("list", Field(name="thing", type="int8")), "expected 'item'"),
        Odd(field("map", Field(name="key", type="int8"), ITEM), "expected 'value'"),
        Odd(field("map", ITEM, ITEM, keys_sorted=1), "expected 'key'"),
        Odd(field("dictionary", ITEM, index="float32"), "makes no sense"),
        Odd(field("dictionary", ITEM, index="int8", ordered=1), "not true or false"),
        Odd(field("run_end_encoded", ITEM, index="uint8"), "makes no sense"),
        Odd(field("dense_union", ITEM, type_codes=(128,)), "not in 0 to 127"),
        Odd(field("dense_union", ITEM, type_codes=(-1,)), "not in 0 to 127"),
        Odd(field("dense_union", ITEM, ITEM, type_codes=(1, 1)), "one type code for each"),
        Odd(field("sparse_union", ITEM, type_codes=()), "one type code for each"),
        Odd(field("sparse_union", type_codes=()), "one type code for each"),
        Odd(field("sparse_union", ITEM), "one type code for each"),
        Odd(extension("somebody.secret", "", ITEM), "not on the allow-list"),
        Odd(extension("arrow.uuid", "", ITEM), "expected fixed_size_binary"),
        Odd(extension("arrow.bool8", '{"a":1}', ITEM), "has no parameters"),
        Odd(extension("arrow.json", "", ITEM), "makes no sense"),
        Odd(extension("arrow.opaque", "{}", ITEM), "malformed"),
        Odd(extension("arrow.opaque", '{"type_name":1,"vendor_name":2}', ITEM), "malformed"),
        Odd(extension("arrow.opaque", "{", ITEM), "makes no sense"),
        Odd(extension("arrow.opaque", "[]", ITEM), "canonical"),
        Odd(extension("arrow.opaque", '{"vendor_name":"b","type_name":"a"}', ITEM), "canonical"),
        Odd(extension(TENSOR, '{"shape":[4]}', ITEM), "malformed"),
        Odd(extension(TENSOR, '{"shape":[5]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"shape":[-2,-2]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"shape":[4,true]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"permutation":[0,0],"shape":[2,2]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"permutation":["0",1],"shape":[2,2]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"dim_names":["a"],"shape":[2,2]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"dim_names":[1,2],"shape":[2,2]}', FOUR), "malformed"),
        Odd(extension(TENSOR, '{"extra":1,"shape":[4]}', FOUR), "malformed"),
        Odd(extension(TENSOR, "", FOUR), "malformed"),
        Odd(
            Field(name="c", type="int8", metadata={"ARROW:extension:name": "somebody.secret"}), "not on the allow-list"
        ),
        Odd(Field(name="c", type="int8", metadata={"k;base64": "no base64!"}), "is not base64"),
    ],
    ids=lambda odd: f"{odd.field.type}-{odd.reason}",
)
def test_fields_from_outside_that_make_no_sense_are_refused(odd: Odd) -> None:
    with pytest.raises(FormatError, match=odd.reason):
        to_arrow([odd.field], {})


TEXT = st.sampled_from(["int8", "us", "arrow.uuid", TENSOR, '{"shape":[4]}', "", "x"])
JUNK = st.one_of(TEXT, st.integers(-3, 2**40), st.booleans(), st.lists(st.integers(-1, 200), max_size=3).map(tuple))
KEYS = "unit timezone precision scale byte_width list_size keys_sorted type_codes index ordered".split()
KEYS += ["extension_name", "extension_metadata"]


def fields() -> st.SearchStrategy[Field]:
    def made(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Field]:
        return st.builds(
            lambda name, kind, parameters, below: Field(name=name, type=kind, parameters=parameters, children=below),
            st.sampled_from(["item", "key", "value", "c"]),
            st.sampled_from(sorted(TYPES)),
            st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=2),
            st.lists(children, max_size=2).map(tuple),
        )

    return st.recursive(st.just(Field(name="item", type="int8")), made, max_leaves=4)


@settings(max_examples=300, deadline=None)
@given(field=fields())
def test_any_field_is_a_type_or_a_format_error(field: Field) -> None:
    field = msgspec.structs.replace(field, name="c")
    try:
        schema = to_arrow([field], {})
    except FormatError:
        return
    assert to_arrow(*to_fields(schema)).equals(schema)
