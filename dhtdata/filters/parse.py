"""From a filter's text to an Arrow expression, through a whitelist of Python's syntax. Nothing is ever executed.

| in a filter | meaning |
|---|---|
| ``lang``, ``meta.year``, ``col("odd name")`` | columns; a field of a struct; any name |
| ``3``, ``-2.5``, ``'text'``, ``b'bytes'``, ``True`` | literals |
| ``date("2024-01-01")``, ``timestamp("2024-01-01T12:00:00Z")`` | literals; without a zone UTC if the column has one |
| ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, chained as in ``0 < x <= 5`` | comparisons by value |
| ``x in [1, 2]``, ``x not in ('a', 'b')``, ``'part' in text`` | one of some literals; a part of a text |
| ``x is None``, ``x is not None`` | null or not |
| ``and``, ``or``, ``not``, brackets | as in SQL: what is unknown stays unknown |
| ``+``, ``-``, ``*``, ``/``, ``%`` | arithmetic; ``/`` of floats, ``%`` by a positive whole number |
| ``len(x)`` | characters of a text, bytes of a binary, items of a list |
| ``lower(x)``, ``upper(x)``, ``startswith(x, 'a')``, ``endswith(x, 'a')``, ``contains(x, 'a')`` | of texts |
| ``abs(x)``, ``isnan(x)`` | of numbers |

A comparison with null is null, and rows for which the whole filter is null are left out, also under ``not``: ``x != 3``
leaves out rows without x. NaN is unequal to everything. Arithmetic is that of 64 bits; whole numbers that overflow are
an error. Columns have their stored types: a dictionary is its values, an extension type its storage.
"""

from __future__ import annotations

import ast
import datetime
import keyword
import math
import operator
from collections.abc import Callable, Sequence
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from dhtdata.filters.evaluate import kind_of
from dhtdata.filters.literals import Always, MisfitError, Value, fitted, rounded
from dhtdata.filters.terms import (
    ATOM,
    COMPARISON,
    LOGIC,
    NOT,
    SUM,
    Literal,
    Part,
    Term,
    arithmetic_kind,
    as_kind,
    bracketed,
    comparable,
    is_text,
    listed,
    named,
    readable,
    whole_kind,
    widened,
)
from dhtdata.filters.text import FilterText

_MAX_DIVISOR = 1 << 62
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_COMPARE: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%"}
_FOLD: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
}  # fmt: skip
_CHECKED = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked}
_PATTERNS = {"startswith": pc.starts_with, "endswith": pc.ends_with, "contains": pc.match_substring}
_TEXTS = {"lower": pc.utf8_lower, "upper": pc.utf8_upper}
_LITERALS = ("date", "timestamp")
FUNCTIONS = ("abs", "col", "contains", "date", "endswith", "isnan", "len", "lower", "startswith", "timestamp", "upper")


def parse(text: str, stored: pa.Schema) -> Term:
    """The filter that a text spells, over columns of their stored types. ConfigError points at what is wrong."""
    source = FilterText(text)
    tree = source.parse()
    return _Translator(source, stored).condition(tree)


class _Translator:
    def __init__(self, source: FilterText, stored: pa.Schema) -> None:
        self._source = source
        self._stored = stored

    def condition(self, node: ast.expr) -> Term:
        """A part that is true, false or null."""
        part = self._part(node)
        if isinstance(part, Literal):
            if isinstance(part.value, bool):
                return Term(pc.scalar(part.value), pa.bool_(), part.text)
            self._refuse(node, f"{part.text} is neither true nor false")
        if not pa.types.is_boolean(part.kind):
            self._refuse(node, f"{named(part)} is neither true nor false: compare it with something")
        return part

    def _refuse(self, at: int | ast.expr, reason: str) -> NoReturn:
        self._source.refuse(at, reason)

    def _part(self, node: ast.expr) -> Part:
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._column(node, node.id)
            case ast.Attribute():
                return self._field(node)
            case ast.BoolOp():
                return self._logic(node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.BinOp():
                return self._arithmetic(node)
            case ast.Call():
                return self._call(node)
            case ast.List() | ast.Tuple() | ast.Set():
                self._refuse(node, "a list stands only to the right of 'in'")
        self._refuse(node, f"{type(node).__name__} is not part of a filter")

    # Columns and literals

    def _constant(self, node: ast.Constant) -> Literal:
        value = node.value
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(node, "this number is too large")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return Literal(value)
        self._refuse(node, f"a literal of type {type(value).__name__} is not part of a filter")

    def _column(self, node: ast.expr, name: str) -> Term:
        names = self._stored.names
        if name not in names:
            dotted = next((known for known in names if known.startswith(f"{name}.")), None)
            hint = f"; write col({ascii(dotted)})" if dotted is not None and isinstance(node, ast.Name) else ""
            self._refuse(node, f"no column {name!r}: this dataset has {listed(names)}{hint}")
        spelling = name if name.isidentifier() and name.isascii() and not keyword.iskeyword(name) else None
        return readable(Term(pc.field(name), self._stored.field(name).type, spelling or f"col({ascii(name)})"))

    def _field(self, node: ast.Attribute) -> Term:
        parent = self._term(node.value)
        if not pa.types.is_struct(parent.kind):
            self._refuse(node, f"{named(parent)} has no fields")
        position = parent.kind.get_field_index(node.attr)
        if position < 0:
            names = [parent.kind.field(number).name for number in range(parent.kind.num_fields)]
            self._refuse(node, f"{parent.text} has no field {node.attr!r}, only {listed(names)}")
        expression = pc.struct_field(parent.expression, [position])
        return readable(Term(expression, parent.kind.field(position).type, f"{parent.text}.{node.attr}"))

    def _term(self, node: ast.expr) -> Term:
        part = self._part(node)
        if isinstance(part, Literal):
            self._refuse(node, f"expected a column, not {part.text}")
        return part

    def _text_literal(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        self._refuse(node, "expected a text in quotes")

    # Logic

    def _logic(self, node: ast.BoolOp) -> Term:
        conjunction = isinstance(node.op, ast.And)
        parts = [self.condition(value) for value in node.values]
        combine = operator.and_ if conjunction else operator.or_
        expression = parts[0].expression
        for part in parts[1:]:
            expression = combine(expression, part.expression)
        text = (" and " if conjunction else " or ").join(bracketed(part, NOT) for part in parts)
        return Term(expression, pa.bool_(), text, LOGIC)

    def _unary(self, node: ast.UnaryOp) -> Part:
        if isinstance(node.op, ast.Not):
            inner = self.condition(node.operand)
            return Term(~inner.expression, pa.bool_(), f"not {bracketed(inner, NOT)}", NOT)
        if isinstance(node.op, ast.Invert):
            self._refuse(node, "write 'not' instead of '~'")
        part = self._part(node.operand)
        negative = isinstance(node.op, ast.USub)
        if isinstance(part, Literal):
            if isinstance(part.value, int | float) and not isinstance(part.value, bool):
                return Literal(-part.value if negative else part.value)
            self._refuse(node, f"{part.text} is no number")
        self._number(node.operand, part)
        if not negative:
            return part
        return self._made(node, pc.negate_checked(widened(part)), f"-{bracketed(part, ATOM)}", SUM)

    # Comparisons

    def _comparison(self, node: ast.Compare) -> Term:
        operands = [node.left, *node.comparators]
        terms = [
            self._one_comparison(left, symbol, right)
            for left, symbol, right in zip(operands, node.ops, node.comparators, strict=False)
        ]
        if len(terms) == 1:
            return terms[0]
        expression = terms[0].expression
        for term in terms[1:]:
            expression = expression & term.expression
        return Term(expression, pa.bool_(), " and ".join(bracketed(term, NOT) for term in terms), LOGIC)

    def _one_comparison(self, left: ast.expr, symbol: ast.cmpop, right: ast.expr) -> Term:
        if isinstance(symbol, ast.Is | ast.IsNot):
            return self._is_null(left, symbol, right)
        if isinstance(symbol, ast.In | ast.NotIn):
            return self._membership(left, isinstance(symbol, ast.NotIn), right)
        name = _COMPARISONS[type(symbol)]
        first, second = self._part(left), self._part(right)
        for node, part in ((left, first), (right, second)):
            if isinstance(part, Literal) and part.value is None:
                self._refuse(node, f"a comparison with None is never true: write 'is {'not ' * (name == '!=')}None'")
        text = f"{bracketed(first, SUM)} {name} {bracketed(second, SUM)}"
        if isinstance(first, Term) and isinstance(second, Term):
            made = _COMPARE[name](*comparable(first, second))
            if self._kind(made) is None:
                at = self._source.operator(left, right)
                self._refuse(at, f"{named(first)} cannot be compared with {named(second)}")
            return Term(made, pa.bool_(), text, COMPARISON)
        if isinstance(first, Term) and isinstance(second, Literal):
            return Term(self._compare(first, name, second, right), pa.bool_(), text, COMPARISON)
        if isinstance(first, Literal) and isinstance(second, Term):
            return Term(self._compare(second, _FLIPPED[name], first, left), pa.bool_(), text, COMPARISON)
        self._refuse(left, "this compares two literals: name a column")

    def _compare(self, term: Term, name: str, literal: Literal, at: ast.expr) -> pc.Expression:
        value = literal.value
        if isinstance(value, float) and pa.types.is_integer(term.kind) and not value.is_integer():
            found = rounded(value, name)
            if isinstance(found, Always):
                return pc.if_else(term.expression.is_valid(), pa.scalar(found.true), pa.scalar(None, pa.bool_()))
            value = found
        made = _COMPARE[name](term.expression, pc.scalar(self._fitted(value, term, at)))
        if self._kind(made) is None:
            self._refuse(at, f"{named(term)} cannot be compared with {literal.text}")
        return made

    def _fitted(self, value: Value, term: Term, at: ast.expr) -> pa.Scalar:
        try:
            return fitted(value, term.kind)
        except MisfitError as failure:
            self._refuse(at, f"{named(term)} {failure}")

    def _is_null(self, left: ast.expr, symbol: ast.cmpop, right: ast.expr) -> Term:
        if not (isinstance(right, ast.Constant) and right.value is None):
            self._refuse(right, "'is' takes None: compare other values with ==")
        term = self._term(left)
        text = bracketed(term, SUM)
        if isinstance(symbol, ast.Is):
            return Term(term.expression.is_null(), pa.bool_(), f"{text} is None", COMPARISON)
        return Term(term.expression.is_valid(), pa.bool_(), f"{text} is not None", COMPARISON)

    def _membership(self, left: ast.expr, negated: bool, right: ast.expr) -> Term:
        word = "not in" if negated else "in"
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            term = self._term(left)
            literals = [self._member(item) for item in right.elts]
            listed = ", ".join(literal.text for literal in literals)
            expression = self._one_of(term, literals, right)
            text = f"{bracketed(term, SUM)} {word} [{listed}]"
        else:
            if not (isinstance(left, ast.Constant) and isinstance(left.value, str)):
                self._refuse(right, f"'{word}' takes a list of literals, such as [1, 2]")
            part, term = left.value, self._term(right)
            self._require(right, term, is_text(term.kind), "text")
            expression = pc.match_substring(term.expression, part)
            text = f"{ascii(part)} {word} {bracketed(term, SUM)}"
        return Term(~expression if negated else expression, pa.bool_(), text, COMPARISON)

    def _member(self, node: ast.expr) -> Literal:
        part = self._part(node)
        if isinstance(part, Term):
            self._refuse(node, "a list holds literals only")
        if part.value is None:
            self._refuse(node, "a list holds no None: write 'or ... is None'")
        return part

    def _one_of(self, term: Term, literals: Sequence[Literal], node: ast.List | ast.Tuple | ast.Set) -> pc.Expression:
        values: list[pa.Scalar] = []
        for literal, item in zip(literals, node.elts, strict=True):
            value = literal.value
            if isinstance(value, float) and pa.types.is_integer(term.kind) and not value.is_integer():
                continue  # equal to no whole number
            scalar = self._fitted(value, term, item)
            if scalar.type == term.kind:  # else none of the column's values is equal to it
                values += [scalar, pc.negate(scalar)] if pa.types.is_floating(term.kind) and value == 0 else [scalar]
        null = pa.scalar(None, pa.bool_())
        unknown = pc.if_else(term.expression.is_valid(), pa.scalar(False), null)
        made = term.expression.isin(pa.array(values, term.kind)) | unknown
        if self._kind(made) is None:
            self._refuse(node, f"{named(term)} cannot be looked up in a list")
        return made

    # Arithmetic

    def _arithmetic(self, node: ast.BinOp) -> Part:
        name = _ARITHMETIC.get(type(node.op))
        if name is None:
            words = {ast.BitAnd: "; write 'and'", ast.BitOr: "; write 'or'"}
            at = self._source.operator(node.left, node.right)
            self._refuse(at, f"this operator is not part of a filter{words.get(type(node.op), '')}")
        left, right = self._part(node.left), self._part(node.right)
        for operand, part in ((node.left, left), (node.right, right)):
            self._number(operand, part)
        if isinstance(left, Literal) and isinstance(right, Literal):
            return self._folded(node, name, left, right)
        if name == "%":
            return self._remainder(node, left, right)
        text = f"{bracketed(left, ATOM)} {name} {bracketed(right, ATOM)}"
        if name == "/" and isinstance(right, Literal) and right.value == 0:
            self._refuse(node.right, "this divides by zero")
        kind = pa.float64() if name == "/" else arithmetic_kind(left, right)
        first, second = self._operand(left, kind, node.left), self._operand(right, kind, node.right)
        function = pc.divide if name == "/" else _CHECKED[name]
        return self._made(node, function(first, second), text, SUM)

    def _operand(self, part: Part, kind: pa.DataType | None, at: ast.expr) -> pc.Expression:
        """An operand as this type; None takes it as it is."""
        if isinstance(part, Term):
            return part.expression if kind is None else as_kind(part, kind)
        try:
            return pc.scalar(fitted(part.value, kind))
        except MisfitError as failure:
            self._refuse(at, f"arithmetic with {kind} {failure}")

    def _folded(self, node: ast.BinOp, name: str, left: Literal, right: Literal) -> Literal:
        try:
            value = _FOLD[name](left.value, right.value)  # type: ignore[arg-type]  # both are numbers
        except (ZeroDivisionError, OverflowError) as failure:
            self._refuse(node.right, f"this cannot be worked out: {failure}")
        if not math.isfinite(value):
            self._refuse(node, "this number is too large")
        return Literal(value)

    def _remainder(self, node: ast.BinOp, left: Part, right: Part) -> Term:
        if not isinstance(left, Term) or not pa.types.is_integer(left.kind):
            self._refuse(node.left, "'%' takes a column of whole numbers on its left")
        divisor = right.value if isinstance(right, Literal) else None
        if not isinstance(divisor, int) or not 1 <= divisor <= _MAX_DIVISOR:
            self._refuse(node.right, "'%' takes a positive whole number on its right")
        kind = whole_kind(left.kind)
        number, by = as_kind(left, kind), pc.scalar(pa.scalar(divisor, kind))
        rest = pc.subtract_checked(number, pc.multiply_checked(pc.divide(number, by), by))
        if kind == pa.int64():  # Arrow divides towards zero, Python down
            rest = pc.if_else(rest < pa.scalar(0, pa.int64()), pc.add_checked(rest, by), rest)
        return self._made(node, rest, f"{bracketed(left, ATOM)} % {divisor}", SUM)

    def _number(self, node: ast.expr, part: Part) -> None:
        if isinstance(part, Literal):
            fits = isinstance(part.value, int | float) and not isinstance(part.value, bool)
        else:
            types = pa.types
            fits = types.is_integer(part.kind) or types.is_floating(part.kind) or types.is_decimal(part.kind)
        if not fits:
            self._refuse(node, f"{named(part)} is no number")

    # Functions

    def _call(self, node: ast.Call) -> Part:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            hint = ""
            if isinstance(node.func, ast.Attribute) and node.func.attr in FUNCTIONS:
                hint = f"; write {node.func.attr}(column, ...)"
            self._refuse(node, f"no such function: there are {', '.join(FUNCTIONS)}{hint}")
        wanted = 2 if name in _PATTERNS else 1
        if node.keywords or len(node.args) != wanted:
            self._refuse(node, f"{name} takes {'two arguments' if wanted == 2 else 'one argument'}")
        first = node.args[0]
        if name == "col":
            return self._column(first, self._text_literal(first))
        if name in _LITERALS:
            return self._instant(name, first)
        term = self._term(first)
        text = f"{name}({term.text})"
        if name in _PATTERNS:
            pattern = self._text_literal(node.args[1])
            self._require(first, term, is_text(term.kind), "text")
            made = _PATTERNS[name](term.expression, pattern)
            return Term(made, pa.bool_(), f"{name}({term.text}, {ascii(pattern)})")
        if name in _TEXTS:
            self._require(first, term, is_text(term.kind), "text")
            return self._made(node, _TEXTS[name](term.expression), text)
        if name == "len":
            return self._made(node, self._length(first, term), text)
        self._number(first, term)
        if name == "abs":
            return self._made(node, pc.abs_checked(widened(term)), text)
        self._require(first, term, pa.types.is_floating(term.kind), "float")
        return self._made(node, pc.is_nan(term.expression), text)

    def _length(self, node: ast.expr, term: Term) -> pc.Expression:
        types, kind = pa.types, term.kind
        if is_text(kind):
            return pc.utf8_length(term.expression)
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return pc.binary_length(term.expression)
        listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        self._require(node, term, listed, "text, binary or list")
        return pc.list_value_length(term.expression)

    def _require(self, node: ast.expr, term: Term, fits: bool, what: str) -> None:
        if not fits:
            self._refuse(node, f"{named(term)} is no {what}")

    def _instant(self, name: str, node: ast.expr) -> Literal:
        text = self._text_literal(node)
        try:
            if name == "date":
                return Literal(datetime.date.fromisoformat(text))
            return Literal(datetime.datetime.fromisoformat(text))
        except ValueError:
            example = "2024-01-31" if name == "date" else "2024-01-31T12:30:00Z"
            self._refuse(node, f"expected a {name} such as {example!r}")

    # Types

    def _made(self, node: ast.expr, expression: pc.Expression, text: str, level: int = ATOM) -> Term:
        kind = self._kind(expression)
        if kind is None:
            self._refuse(node, f"{text} makes no sense for the types of its columns")
        return Term(expression, kind, text, level)

    def _kind(self, expression: pc.Expression) -> pa.DataType | None:
        return kind_of(expression, self._stored)
