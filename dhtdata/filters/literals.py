"""Literals of a filter as scalars of the type that they are compared with."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa

Value = bool | int | float | str | bytes | datetime.date | datetime.datetime | None
_TOO_LARGE = (pa.ArrowException, OverflowError, ValueError)


class MisfitError(Exception):
    """A literal that a type cannot be compared with: what there is to say about the column."""


@dataclass(frozen=True)
class Always:
    """The outcome of a comparison that a literal decides for every value that is not null."""

    true: bool


def spelled(value: Value) -> str:
    """A literal as a filter spells it, in ASCII."""
    if isinstance(value, datetime.datetime):
        return f'timestamp("{value.isoformat()}")'
    if isinstance(value, datetime.date):
        return f'date("{value.isoformat()}")'
    return ascii(value)


def fitted(value: Value, kind: pa.DataType) -> pa.Scalar:
    """``value`` to be compared with values of ``kind`` (a stored type), as that type if it can be. `MisfitError`."""
    try:
        found = _fitted(value, kind)
    except _TOO_LARGE as failure:
        raise MisfitError(f"cannot hold {spelled(value)}") from failure
    if found is None:
        raise MisfitError(f"cannot be compared with {spelled(value)}{_advice(value, kind)}")
    return found


def rounded(value: float, operator: str) -> int | Always:
    """A number with a fraction as the whole number that compares the same with whole numbers."""
    if operator in ("<=", ">"):
        return math.floor(value)
    if operator in ("<", ">="):
        return math.ceil(value)
    return Always(operator == "!=")


def _fitted(value: Value, kind: pa.DataType) -> pa.Scalar | None:
    types = pa.types
    if isinstance(value, bool):
        return pa.scalar(value, kind) if types.is_boolean(kind) else None
    if isinstance(value, int | float):
        return _number(value, kind)
    if isinstance(value, str):
        return pa.scalar(value, kind) if types.is_string(kind) or types.is_large_string(kind) else None
    if isinstance(value, bytes):
        if types.is_fixed_size_binary(kind):
            return pa.scalar(value, kind)
        return pa.scalar(value, kind) if types.is_binary(kind) or types.is_large_binary(kind) else None
    if isinstance(value, datetime.datetime):
        return _moment(value, kind) if types.is_timestamp(kind) else None
    if isinstance(value, datetime.date):
        if types.is_timestamp(kind):
            return _moment(datetime.datetime.combine(value, datetime.time()), kind)
        return pa.scalar(value, kind) if types.is_date(kind) else None
    return None


def _number(value: int | float, kind: pa.DataType) -> pa.Scalar | None:
    types = pa.types
    if types.is_integer(kind):
        # Numbers that narrow types do not reach are compared as 64 bits; 64 bits have no wider type.
        whole = int(value)
        try:
            return pa.scalar(whole, kind)
        except _TOO_LARGE:
            if kind.bit_width == 64:
                raise
            return pa.scalar(whole, pa.int64())
    if types.is_floating(kind):
        wide = pa.scalar(float(value), pa.float64())
        narrow = pa.scalar(float(value), kind)
        return narrow if narrow.as_py() == wide.as_py() else wide
    if types.is_decimal(kind):
        exact = Decimal(repr(value))
        try:
            return pa.scalar(exact, kind)
        except _TOO_LARGE:
            return pa.scalar(exact)
    return None


def _moment(value: datetime.datetime, kind: pa.TimestampType) -> pa.Scalar | None:
    if value.tzinfo is not None and kind.tz is None:
        return None
    instant = value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
    microseconds = (instant - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    exact = pa.scalar(microseconds, pa.int64()).cast(pa.timestamp("us", kind.tz))
    try:
        return exact.cast(kind)
    except _TOO_LARGE:
        if kind.unit == "ns":
            raise
        return exact  # between two values of a coarse column


def _advice(value: Value, kind: pa.DataType) -> str:
    types = pa.types
    if isinstance(value, str):
        if types.is_timestamp(kind):
            return f": write timestamp({spelled(value)})"
        if types.is_date(kind):
            return f": write date({spelled(value)})"
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return f": write b{spelled(value)}"
    if isinstance(value, datetime.datetime) and types.is_timestamp(kind):
        return ": the column has no time zone, so leave it out"
    return ""
