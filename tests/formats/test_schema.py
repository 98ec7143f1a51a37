from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import FormatError
from dhtdata.formats.codec import decode_json, encode_json
from dhtdata.formats.schema import MAX_DEPTH, MAX_FIELDS, MAX_NAME_BYTES, TYPES, Field, check_schema

CHILDREN = {"map": 2, "struct": 3, "dense_union": 0, "sparse_union": 5}
NESTED = {"list", "large_list", "list_view", "large_list_view", "fixed_size_list", "map", "dictionary"}
NESTED |= {"run_end_encoded", "extension", "struct", "dense_union", "sparse_union"}
names = st.text(max_size=20)
parameters = st.dictionaries(
    names, st.text(max_size=9) | st.integers(-9, 9) | st.booleans() | st.lists(st.integers(0, 9)).map(tuple), max_size=3
)


def of_type(kind: str, children: int | None = None) -> Field:
    count = CHILDREN.get(kind, 1 if kind in NESTED else 0) if children is None else children
    return Field(name="c", type=kind, children=(Field(name="x", type="int8"),) * count)


fields = st.recursive(
    st.builds(Field, name=names, type=st.sampled_from(sorted(TYPES - NESTED)), parameters=parameters),
    lambda inner: st.builds(
        Field,
        name=names,
        type=st.just("struct"),
        nullable=st.booleans(),
        children=st.lists(inner, max_size=3).map(tuple),
        metadata=st.dictionaries(names, names, max_size=2),
    ),
    max_leaves=8,
)


@given(field=fields)
def test_a_field_is_read_back(field: Field) -> None:
    check_schema([field], "schema")
    assert decode_json(encode_json(field), Field, limit_bytes=1 << 20, what="field") == field


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_has_its_number_of_children(kind: str) -> None:
    check_schema([of_type(kind)], "schema")
    if kind not in ("struct", "dense_union", "sparse_union"):
        for wrong in {0, 1, 2, 3} - {len(of_type(kind).children)}:
            with pytest.raises(FormatError, match=f"{kind} column 'c' has {wrong} children"):
                check_schema([of_type(kind, wrong)], "schema")


def nest(depth: int) -> Field:
    field = Field(name="x", type="int8")
    for _ in range(depth - 1):
        field = Field(name="x", type="list", children=(field,))
    return field


def test_types_nest_to_a_depth() -> None:
    check_schema([nest(MAX_DEPTH)], "schema")
    with pytest.raises(FormatError, match="nested deeper than 32"):
        check_schema([nest(MAX_DEPTH + 1)], "schema")


def test_a_schema_has_some_columns_and_not_too_many() -> None:
    with pytest.raises(FormatError, match="no columns"):
        check_schema([], "schema")
    wide = [Field(name=str(i), type="int8") for i in range(MAX_FIELDS)]
    check_schema(wide, "schema")
    with pytest.raises(FormatError, match="has 4097 fields"):
        check_schema([*wide, Field(name="more", type="int8")], "schema")
    with pytest.raises(FormatError, match="has 4097 fields"):
        check_schema([*wide[2:], of_type("map")], "schema")


def test_columns_have_names_of_their_own_of_a_bounded_length() -> None:
    with pytest.raises(FormatError, match="column 'a' appears twice"):
        check_schema([Field(name=name, type="int8") for name in "aba"], "schema")
    check_schema([Field(name="é" * (MAX_NAME_BYTES // 2), type="int8")], "schema")
    with pytest.raises(FormatError, match="longer than 1024 bytes"):
        check_schema([Field(name="é" * (MAX_NAME_BYTES // 2) + "x", type="int8")], "schema")


def test_children_may_share_a_name() -> None:
    check_schema([of_type("struct", 2)], "schema")


def test_an_unknown_type_is_named_with_its_column() -> None:
    with pytest.raises(FormatError, match="column 'c' has unknown type 'int7'"):
        check_schema([Field(name="c", type="int7")], "schema")
