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
