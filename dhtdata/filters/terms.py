"""Parts of a filter that is being read: what they are, and how they are spelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dhtdata.filters.literals import Value, spelled

# How tightly the parts of a spelling hold together.
LOGIC, NOT, COMPARISON, SUM, ATOM = range(5)


@dataclass(frozen=True)
class Term:
    """Part of a filter that depends on columns. ``text`` is its canonical spelling, ``kind`` its stored type."""

    expression: pc.Expression
    kind: pa.DataType
    text: str
    level: int = ATOM


@dataclass(frozen=True)
class Literal:
    value: Value

    @property
    def text(self) -> str:
        return spelled(self.value)

    @property
    def level(self) -> int:
        return ATOM


Part = Term | Literal


def readable(term: Term) -> Term:
    """Half-precision floats have no comparisons of their own."""
    if not pa.types.is_float16(term.kind):
        return term
    return Term(term.expression.cast(pa.float32()), pa.float32(), term.text)


def whole_kind(kind: pa.DataType) -> pa.DataType:
    return pa.uint64() if kind == pa.uint64() else pa.int64()


def as_kind(term: Term, kind: pa.DataType) -> pc.Expression:
    """A number as another type; whole numbers become the nearest floats.

    Explicitly, because Arrow narrows literals before it looks for a common type: it would add 100 to an int8 as int8.
    """
    return term.expression if term.kind == kind else term.expression.cast(kind, safe=pa.types.is_integer(kind))


def widened(term: Term) -> pc.Expression:
    """A number that may change its sign, as 64 bits if it is whole."""
    return as_kind(term, whole_kind(term.kind)) if pa.types.is_integer(term.kind) else term.expression


def arithmetic_kind(first: Part, second: Part) -> pa.DataType | None:
    """The type in which two numbers, not both literals, are added or multiplied; None leaves it to Arrow."""
    types = pa.types
    kinds = [part.kind for part in (first, second) if isinstance(part, Term)]
    literals = [part.value for part in (first, second) if isinstance(part, Literal)]
    if all(types.is_decimal(kind) or types.is_integer(kind) for kind in kinds) and any(map(types.is_decimal, kinds)):
        return kinds[0] if literals else None
    if not all(map(types.is_integer, kinds)) or any(isinstance(value, float) for value in literals):
        return pa.float64()
    wide = {whole_kind(kind) for kind in kinds}
    negative = any(isinstance(value, int) and value < 0 for value in literals)
    return pa.int64() if len(wide) > 1 or negative else wide.pop()


def comparable(first: Term, second: Term) -> tuple[pc.Expression, pc.Expression]:
    """Two columns to be compared: a whole number meets a float as a float of 64 bits."""
    types = pa.types
    whole, real = (any(test(term.kind) for term in (first, second)) for test in (types.is_integer, types.is_floating))
    if whole and real:
        return as_kind(first, pa.float64()), as_kind(second, pa.float64())
    return first.expression, second.expression


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def bracketed(part: Part, level: int) -> str:
    return part.text if part.level >= level else f"({part.text})"


def named(part: Part) -> str:
    if isinstance(part, Literal):
        return part.text
    return f"{'column ' * part.text.replace('.', '').isidentifier()}{part.text} of type {part.kind}"


def listed(names: Sequence[str], most: int = 30) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
