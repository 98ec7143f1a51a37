"""Random rows, and random filters with what they mean in plain Python: True, False or None."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

Row = Mapping[str, Any]
Meaning = Callable[[Row], Any]

SCHEMA = pa.schema(
    [
        ("small", pa.int8()),
        ("big", pa.int64()),
        ("free", pa.uint64()),
        ("single", pa.float32()),
        ("double", pa.float64()),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("day", pa.date32()),
        ("at", pa.timestamp("ms")),
        ("inner", pa.struct([("number", pa.int16())])),
    ]
)
_FLOATS = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 2.0**24, 0.10000000149011612, math.inf, -math.inf, math.nan])
_TEXTS = st.one_of(
    st.sampled_from(["", "a", "ab", "b", "é", "x" * 16, "x" * 16 + "a", "x" * 20, "\U0010ffff" * 5]),
    st.text("abx\U0010ffff", max_size=20),
)
_DAYS = st.dates(datetime.date(2024, 1, 1), datetime.date(2024, 1, 9))
_MOMENTS = st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 3)).map(
    lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000)
)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "small": st.integers(-4, 4) | st.sampled_from([127, -128]),
    "big": st.integers(-4, 4) | st.sampled_from([1 << 53, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63)]),
    "free": st.integers(0, 4) | st.just((1 << 64) - 1),
    "single": _FLOATS,
    "double": _FLOATS | st.floats(width=32),
    "text": _TEXTS,
    "flag": st.booleans(),
    "day": _DAYS,
    "at": _MOMENTS,
    "inner": st.fixed_dictionaries({"number": st.none() | st.integers(-3, 3)}),
}


def rows() -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries({name: st.none() | values for name, values in _VALUES.items()})


def table_of(found: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in found], schema=SCHEMA)


@dataclass(frozen=True)
class Meant:
    """A filter's text and what it means for a row."""

    text: str
    meaning: Meaning

    def __repr__(self) -> str:
        return self.text


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _known(function: Callable[..., Any]) -> Callable[..., Any]:
    """Null where an argument is."""
    return lambda *values: None if any(value is None for value in values) else function(*values)


def _spelled(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return f"timestamp({value.isoformat()!r})"
    if isinstance(value, datetime.date):
        return f"date({value.isoformat()!r})"
    return repr(value)


def _number(row: Row) -> Any:
    return None if row["inner"] is None else row["inner"]["number"]


def _operands() -> st.SearchStrategy[tuple[Meant, st.SearchStrategy[Any]]]:
    """Something to compare, and literals to compare it with."""
    whole = st.integers(-5, 5) | st.sampled_from([0.5, -2.5, 2.0])
    real = whole | st.sampled_from([0.1, 16777217, 1e300])
    columns: dict[str, st.SearchStrategy[Any]] = {
        "small": whole | st.sampled_from([300, -129]),
        "big": whole | st.sampled_from([1 << 53, (1 << 53) + 1, (1 << 63) - 1]),
        "free": st.integers(0, 5) | st.just((1 << 64) - 1),
        "single": real,
        "double": real,
        "text": _TEXTS,
        "flag": st.booleans(),
        "day": _DAYS,
        "at": _MOMENTS | _DAYS.map(lambda day: datetime.datetime.combine(day, datetime.time())),
    }
    plain = [st.just((Meant(name, itemgetter(name)), literals)) for name, literals in columns.items()]
    made = [
        (Meant("inner.number", _number), whole),
        (Meant("len(text)", lambda row: _known(len)(row["text"])), whole),
        (Meant("upper(text)", lambda row: _known(str.upper)(row["text"])), st.sampled_from(["A", "AB", "", "É"])),
        (Meant("small * 2 + 1", lambda row: _known(lambda x: x * 2 + 1)(row["small"])), whole),
        (Meant("-small", lambda row: _known(lambda x: -x)(row["small"])), whole | st.just(128)),
        (Meant("small + 0.5", lambda row: _known(lambda x: x + 0.5)(row["small"])), whole),
        (Meant("big - 0.5", lambda row: _known(lambda x: x - 0.5)(row["big"])), whole),
        (Meant("single * 0.1", lambda row: _known(lambda x: x * 0.1)(row["single"])), real),
        (Meant("small / 2", lambda row: _known(lambda x: x / 2)(row["small"])), whole),
        (Meant("big % 3", lambda row: _known(lambda x: x % 3)(row["big"])), whole),
        (Meant("free % 3", lambda row: _known(lambda x: x % 3)(row["free"])), st.integers(0, 3)),
        (Meant("abs(small)", lambda row: _known(abs)(row["small"])), whole),
        (Meant("-single", lambda row: _known(lambda x: -x)(row["single"])), real),
    ]
    return st.one_of(*plain, st.sampled_from(made))


@st.composite
def _comparisons(draw: st.DrawFn) -> Meant:
    operand, literals = draw(_operands())
    name = draw(st.sampled_from(list(_OPERATORS)))
    value = draw(literals)
    if draw(st.booleans()):
        flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(name, name)
        text = f"{_spelled(value)} {flipped} {operand.text}"
    else:
        text = f"{operand.text} {name} {_spelled(value)}"
    return Meant(text, lambda row: _known(_OPERATORS[name])(operand.meaning(row), value))


@st.composite
def _memberships(draw: st.DrawFn) -> Meant:
    operand, literals = draw(_operands())
    values = draw(st.lists(literals, max_size=4))
    word = draw(st.sampled_from(["in", "not in"]))
    text = f"{operand.text} {word} [{', '.join(map(_spelled, values))}]"
    return Meant(
        text, lambda row: _known(lambda x: any(x == y for y in values) == (word == "in"))(operand.meaning(row))
    )


def _others() -> st.SearchStrategy[Meant]:
    def null(name: str) -> Meant:
        return Meant(f"{name} is None", lambda row: row[name] is None)

    def valid(name: str) -> Meant:
        return Meant(f"{name} is not None", lambda row: row[name] is not None)

    def prefix(part: str) -> Meant:
        return Meant(f"startswith(text, {part!r})", lambda row: _known(lambda x: x.startswith(part))(row["text"]))

    def part_of(part: str) -> Meant:
        return Meant(f"{part!r} in text", lambda row: _known(lambda x: part in x)(row["text"]))

    names = st.sampled_from(SCHEMA.names)
    parts = st.sampled_from(["a", "ab", "x" * 16, "\U0010ffff", ""])
    return st.one_of(
        names.map(null),
        names.map(valid),
        parts.map(prefix),
        parts.map(part_of),
        st.just(Meant("flag", lambda row: row["flag"])),
        st.just(Meant("isnan(double)", lambda row: _known(math.isnan)(row["double"]))),
        st.just(Meant("small < single", lambda row: _known(lambda x, y: x < y)(row["small"], row["single"]))),
        st.just(Meant("small < big", lambda row: _known(lambda x, y: x < y)(row["small"], row["big"]))),
    )


def _and(first: Any, second: Any) -> Any:
    return False if first is False or second is False else None if None in (first, second) else True


def _or(first: Any, second: Any) -> Any:
    return True if first is True or second is True else None if None in (first, second) else False


def filters() -> st.SearchStrategy[Meant]:
    def negated(inner: Meant) -> Meant:
        return Meant(f"not ({inner.text})", lambda row: _known(lambda x: not x)(inner.meaning(row)))

    def both(pair: tuple[Meant, Meant]) -> Meant:
        first, second = pair
        return Meant(f"({first.text}) and ({second.text})", lambda row: _and(first.meaning(row), second.meaning(row)))

    def either(pair: tuple[Meant, Meant]) -> Meant:
        first, second = pair
        return Meant(f"({first.text}) or ({second.text})", lambda row: _or(first.meaning(row), second.meaning(row)))

    simple = st.one_of(_comparisons(), _memberships(), _others())
    return st.recursive(
        simple,
        lambda below: st.one_of(
            below.map(negated), st.tuples(below, below).map(both), st.tuples(below, below).map(either)
        ),
        max_leaves=4,
    )
