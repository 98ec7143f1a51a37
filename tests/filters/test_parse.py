from __future__ import annotations

import datetime
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhtdata.errors import ConfigError
from dhtdata.filters import Filter, read_filter
from dhtdata.filters.filter import MAX_KEY_CHARACTERS
from tests.filters.expressions import SCHEMA, Meant, Row, filters, rows, table_of


def kept(found: Filter, table: pa.Table) -> list[int]:
    batch = table.select(list(found.columns)).combine_chunks().to_batches()[0]
    return np.flatnonzero(found.matches(batch)).tolist()


@given(meant=filters(), found=st.lists(rows(), min_size=1, max_size=12))
def test_a_filter_means_what_python_means_with_null_for_what_is_unknown(meant: Meant, found: list[Row]) -> None:
    table = table_of(found)
    read = [dict(row) for row in table.to_pylist()]
    expected = [number for number, row in enumerate(read) if meant.meaning(row) is True]
    assert kept(read_filter(meant.text, SCHEMA), table) == expected


@given(meant=filters())
def test_the_canonical_text_is_a_filter_that_means_the_same_and_spells_itself(meant: Meant) -> None:
    first = read_filter(meant.text, SCHEMA)
    again = read_filter(first.text, SCHEMA)
    assert again == first and again.key == first.key and again.expression.equals(first.expression)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("x>3   and\n (y <\t2)", "x > 3 and y < 2"),
        ("0 < x <= 5", "0 < x and x <= 5"),
        ("not (x < 3 or y > 1)", "not (x < 3 or y > 1)"),
        ("(x < 3 or y > 1) and flag", "(x < 3 or y > 1) and flag"),
        ('col("odd name") % 3 == 1', "col('odd name') % 3 == 1"),
        ("x in (1, 2)", "x in [1, 2]"),
        ("60 * 60 < x", "3600 < x"),
        ("text == 'é'", "text == '\\xe9'"),
        ('d >= date("2024-01-01")', 'd >= date("2024-01-01")'),
        ("x + y * 2 > 3", "x + (y * 2) > 3"),
        ("inner.number is not None", "inner.number is not None"),
        ("col('col') == 1 and len(text) > 2", "col == 1 and len(text) > 2"),
    ],
)
def test_spellings_that_mean_the_same_become_one(text: str, canonical: str) -> None:
    assert read_filter(text, KINDS).text == canonical


KINDS = pa.schema(
    [
        ("x", pa.int64()),
        ("y", pa.float64()),
        ("u", pa.uint64()),
        ("flag", pa.bool_()),
        ("text", pa.large_string()),
        ("odd name", pa.int32()),
        ("a.b", pa.int8()),
        ("col", pa.int8()),
        ("d", pa.date32()),
        ("zoned", pa.timestamp("us", "Europe/Paris")),
        ("local", pa.timestamp("ns")),
        ("seconds", pa.timestamp("s")),
        ("price", pa.decimal128(10, 2)),
        ("half", pa.float16()),
        ("raw", pa.binary()),
        ("pair", pa.binary(2)),
        ("items", pa.list_(pa.int8())),
        ("fixed", pa.list_(pa.int8(), 3)),
        ("inner", pa.struct([("number", pa.int16()), ("name", pa.string())])),
        ("map", pa.map_(pa.string(), pa.int8())),
    ]
)

Check = tuple[str, str, Any, Any]
MATCHES: list[Check] = [
    ("price > 1.255", "price", Decimal("1.26"), Decimal("1.25")),
    ("price in [1, 2.5]", "price", Decimal("2.50"), Decimal("2.51")),
    ("half > 0.25", "half", np.float16(0.5), np.float16(0.25)),
    ("raw == b'a\\x00'", "raw", b"a\0", b"a"),
    ("pair in [b'ab', b'cd']", "pair", b"cd", b"ce"),
    ("len(raw) == 2", "raw", b"ab", b"abc"),
    ("len(pair) == 2", "pair", b"ab", None),
    ("len(items) == 2", "items", [1, 2], [1]),
    ("len(fixed) == 3", "fixed", [1, 2, 3], None),
    ("len(text) == 2", "text", "éé", "é"),
    ("lower(text) == 'é'", "text", "É", "E"),
    ("endswith(text, 'z')", "text", "az", "za"),
    ("contains(text, 'b')", "text", "abc", "ac"),
    ("inner.name == 'a'", "inner", {"number": 1, "name": "a"}, None),
    ("map is None", "map", None, []),
    ("x == 2.5 or x < 2.5", "x", 2, 3),
    ("x not in [1, 2.5]", "x", 2, 1),
    ("u > 9223372036854775807", "u", 1 << 63, (1 << 63) - 1),
    ("y in [0, 1]", "y", -0.0, 0.5),
    ("not isnan(y)", "y", 1.0, float("nan")),
    ("-x < x - 1", "x", 1, 0),
    ("x % 3 == 2", "x", -1, 1),
    (
        "zoned == timestamp('2024-01-01T12:00:00+01:00')",
        "zoned",
        datetime.datetime(2024, 1, 1, 11, tzinfo=datetime.UTC),
        datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC),
    ),
    (
        "zoned < timestamp('2024-01-01')",
        "zoned",
        datetime.datetime(2023, 12, 31, 23, tzinfo=datetime.UTC),
        datetime.datetime(2024, 1, 1, 0, tzinfo=datetime.UTC),
    ),
    ("local >= date('2024-01-02')", "local", datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 1, 23)),
    (
        "seconds > timestamp('2024-01-01T00:00:00.5')",
        "seconds",
        datetime.datetime(2024, 1, 1, 0, 0, 1),
        datetime.datetime(2024, 1, 1),
    ),
]


@pytest.mark.parametrize(("text", "column", "yes", "no"), MATCHES, ids=[check[0] for check in MATCHES])
def test_every_type_has_its_comparisons(text: str, column: str, yes: object, no: object) -> None:
    table = pa.table([pa.array([yes, no, None], KINDS.field(column).type)], [column])
    expected = [0, 2] if text.endswith("is None") else [0]
    assert kept(read_filter(text, KINDS), table) == expected


def test_a_null_struct_has_no_fields_even_if_bytes_lie_under_it() -> None:
    inner = pa.StructArray.from_arrays(
        [pa.array([5, 5], pa.int16()), pa.array(["a", "a"])], ["number", "name"], mask=pa.array([True, False])
    )
    table = pa.table({"inner": inner})
    assert kept(read_filter("inner.number == 5", KINDS), table) == [1]
    assert kept(read_filter("not inner.number == 4", KINDS), table) == [1]
    assert kept(read_filter("inner is None", KINDS), table) == [0]


BAD: list[tuple[str, str, str | None]] = [
    ("", "it is empty", None),
    ("   ", "it is empty", None),
    ("x >", "not a filter", ""),
    ("x = 3", "not a filter (invalid syntax): write '=='", "= 3"),
    ("x > 3 && flag", "write 'and'", "& flag"),
    ("x > 3 || flag", "write 'or'", "| flag"),
    ("!flag", "write 'not'", "!flag"),
    ("(x > 3", "not a filter", "(x > 3"),
    ("x > 3) or (x < 4", "not a filter", ") or (x < 4"),
    ("x > 3 # y < 2", "not part of a filter", "# y < 2"),
    ("x > 3 and nope < 2", "no column 'nope': this dataset has x, y, u", "nope < 2"),
    ("'ä' == text and nope < 2", "no column 'nope'", "nope < 2"),
    ("  \n nope < 2", "no column 'nope'", "nope < 2"),
    ("a.b == 1", "write col('a.b')", "a.b == 1"),
    ("x.y == 1", "column x of type int64 has no fields", "x.y == 1"),
    ("inner.nope == 1", "inner has no field 'nope', only number, name", "inner.nope == 1"),
    ("x > 'a'", "column x of type int64 cannot be compared with 'a'", "'a'"),
    ("text > 3", "column text of type large_string cannot be compared with 3", "3"),
    ("x == text", "column x of type int64 cannot be compared with column text of type large_string", "== text"),
    ("(x) == (text)", "cannot be compared", "== (text)"),
    ("items == 3", "column items of type list<item: int8> cannot be compared with 3", "3"),
    ("raw == 'a'", "write b'a'", "'a'"),
    ("pair == b'abc'", "column pair of type fixed_size_binary[2] cannot hold b'abc'", "b'abc'"),
    ("d > '2024-01-01'", "write date('2024-01-01')", "'2024-01-01'"),
    ("zoned > '2024-01-01'", "write timestamp('2024-01-01')", "'2024-01-01'"),
    ("local > timestamp('2024-01-01T00:00:00Z')", "no time zone", "timestamp('2024-01-01T00:00:00Z')"),
    ("local > timestamp('1600-01-01')", "cannot hold", "timestamp('1600-01-01')"),
    ("d > date('24')", "expected a date such as '2024-01-31'", "'24')"),
    ("u > -1", "column u of type uint64 cannot hold -1", "-1"),
    ("x < 99999999999999999999", "cannot hold", "99999999999999999999"),
    ("x < 1e999", "too large", "1e999"),
    ("x", "column x of type int64 is neither true nor false", "x"),
    ("flag and x + 1", "neither true nor false", "x + 1"),
    ("3 and flag", "3 is neither true nor false", "3 and flag"),
    ("flag + 1 == 2", "column flag of type bool is no number", "flag + 1 == 2"),
    ("x & y", "write 'and'", "& y"),
    ("x | y", "write 'or'", "| y"),
    ("~flag", "write 'not'", "~flag"),
    ("x ** 2 > 3", "operator is not part", "** 2 > 3"),
    ("x == None", "write 'is None'", "None"),
    ("x != None", "write 'is not None'", "None"),
    ("x is 3", "'is' takes None", "3"),
    ("1 < 2", "compares two literals", "1 < 2"),
    ("[1, 2] == x", "only to the right of 'in'", "[1, 2] == x"),
    ("x in y", "takes a list of literals", "y"),
    ("x in [1, y]", "literals only", "y]"),
    ("x in [None]", "write 'or ... is None'", "None]"),
    ("x in ['a']", "cannot be compared with 'a'", "'a']"),
    ("'a' in x", "column x of type int64 is no text", "x"),
    ("x % 0 == 1", "positive whole number", "0 == 1"),
    ("y % 3 == 1", "whole numbers on its left", "y % 3 == 1"),
    ("x / 0 > 1", "divides by zero", "0 > 1"),
    ("x > 1 / 0", "cannot be worked out", "0"),
    ("nope(x) > 1", "no such function: there are abs, col", "nope(x) > 1"),
    ("text.startswith('a')", "write startswith(column, ...)", "text.startswith('a')"),
    ("__import__('os').system('x')", "no such function", "__import__('os').system('x')"),
    ("startswith(x, 'a')", "column x of type int64 is no text", "x, 'a')"),
    ("startswith(text)", "takes two arguments", "startswith(text)"),
    ("len(text, key=1) > 3", "takes one argument", "len(text, key=1) > 3"),
    ("len(map) > 3", "is no text, binary or list", "map) > 3"),
    ("isnan(x)", "column x of type int64 is no float", "x)"),
    ("abs(text) > 1", "is no number", "text) > 1"),
    ("col(x) == 1", "expected a text in quotes", "x) == 1"),
    ("(lambda: x)() > 1", "no such function", "(lambda: x)() > 1"),
    ("x if flag else y", "IfExp is not part", "x if flag else y"),
    ("f'{x}' == text", "JoinedStr is not part", "f'{x}' == text"),
    ("text == 3j", "type complex", "3j"),
    ("not " * 70 + "flag", "nested deeper than 64", None),
    ("(" * 300 + "flag" + ")" * 300, "not a filter", None),
    ("x\0 > 3", "character 2", None),
    ("'\ud800' == text", "character 2", None),
    ("x == 1 or " * 500 + "x == 1", "at most 4,096", None),
]


@pytest.mark.parametrize(("text", "reason", "from_caret"), BAD, ids=[ascii(bad[0][:40]) for bad in BAD])
def test_a_bad_filter_is_refused_at_the_character(text: str, reason: str, from_caret: str | None) -> None:
    with pytest.raises(ConfigError) as failure:
        read_filter(text, KINDS)
    lines = str(failure.value).split("\n")
    assert lines[0].startswith("filter: ") and reason in lines[0]
    if from_caret is not None:
        assert len(lines) == 3 and lines[2].strip() == "^"
        # An operand in brackets begins at the bracket or within it, as Python counts.
        assert lines[1][lines[2].index("^") :].lstrip("(") in (from_caret, from_caret.lstrip("("))


def test_of_a_long_filter_the_part_around_the_fault_is_shown() -> None:
    with pytest.raises(ConfigError) as failure:
        read_filter("x > 3 and " * 60 + "nope == 3" + " and x > 3" * 60, KINDS)
    _, shown, caret = str(failure.value).split("\n")
    assert shown[caret.index("^") :].startswith("nope == 3 and") and len(shown) < 150
    assert shown.strip().startswith("...") and shown.endswith("...")


@given(text=st.text(max_size=60) | st.text("x yflag()[]<>=!'\",.0123456789andorinot%*/-", max_size=40))
def test_any_text_is_a_filter_or_a_config_error(text: str) -> None:
    try:
        found = read_filter(text, KINDS)
    except ConfigError:
        return
    assert read_filter(found.text, KINDS) == found


def test_an_overflow_is_told_with_the_filter() -> None:
    found = read_filter("x * 4 > 1", KINDS)
    with pytest.raises(ConfigError, match=r"filter x \* 4 > 1: overflow"):
        found.matches(pa.record_batch({"x": [1 << 62]}))


@pytest.mark.parametrize(
    ("expression", "columns"),
    [
        (pc.field("x") > 3, ("x",)),
        ((pc.field("y") > 3) & ~pc.field("x").isin([1, 2]), ("x", "y")),
        (pc.field("inner", "number") == 3, ("inner",)),
        (pc.field("x").is_null() | (pc.field("y").cast(pa.int32()) == 1), ("x", "y")),
        (pc.match_substring_regex(pc.field("text"), "x+"), ("text",)),
    ],
    ids=str,
)
def test_an_expression_is_a_filter_of_the_columns_that_it_names(
    expression: pc.Expression, columns: tuple[str, ...]
) -> None:
    found = read_filter(expression, KINDS)
    assert found.columns == columns
    assert pickle.loads(pickle.dumps(found)) == found
    assert len(found.key) <= MAX_KEY_CHARACTERS + 4


@pytest.mark.parametrize(
    ("given_filter", "reason"),
    [
        (pc.field("nope") > 3, "no column 'nope'"),
        (pc.field(0) > 3, "name columns, as in pyarrow.compute.field"),
        (pc.field("text") > 3, r"makes no sense for its columns \(text is large_string\)"),
        (pc.field("x") + 1, "is int64, neither true nor false"),
        (pc.scalar(True), "names no column"),
        (3, "expected a text or a pyarrow.compute.Expression, not int"),
    ],
)
def test_an_expression_that_is_no_filter_is_refused(given_filter: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_filter(given_filter, KINDS)


def test_long_expressions_that_print_alike_are_not_the_same_filter() -> None:
    """pyarrow's text leaves out the middle of a long list."""
    first, second = (pc.field("x").isin([*range(20), middle, *range(30, 50)]) for middle in (21, 22))
    assert str(first) == str(second)
    assert read_filter(first, KINDS).digest != read_filter(second, KINDS).digest
    assert read_filter(first, KINDS).key != read_filter(second, KINDS).key


def test_the_key_of_a_long_filter_is_bounded_and_its_own() -> None:
    first, second = (read_filter(f"x in [{', '.join(map(str, range(500)))}, {last}]", KINDS) for last in (1000, 1001))
    assert first.key != second.key and len(first.key) <= MAX_KEY_CHARACTERS + 4
