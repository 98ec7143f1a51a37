"""Reading the parameters of a field from outside: each asked for once, typed; what is left over is refused."""

from __future__ import annotations

from dhtdata.errors import FormatError
from dhtdata.formats.schema import Field


class Parameters:
    """A field's parameters. Every method raises a FormatError that names the column."""

    def __init__(self, field: Field) -> None:
        self._name = field.name
        self._left = dict(field.parameters)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._left.pop(key, default)
        if not isinstance(value, str):
            raise FormatError(f"schema: column {self._name!r}: parameter {key} is missing or no text")
        return value

    def boolean(self, key: str) -> bool:
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            raise FormatError(f"schema: column {self._name!r}: parameter {key} is not true or false")
        return value

    def integer(self, key: str, least: int, most: int) -> int:
        value = self._left.pop(key, None)
        if type(value) is not int or not least <= value <= most:
            raise FormatError(f"schema: column {self._name!r}: parameter {key} is not in {least} to {most}")
        return value

    def type_codes(self, count: int) -> list[int]:
        codes = self._left.pop("type_codes", None)
        if not isinstance(codes, tuple) or not count or len(codes) != count or len(set(codes)) != count:
            raise FormatError(f"schema: union column {self._name!r} needs one type code for each of its members")
        if not all(type(code) is int and 0 <= code <= 127 for code in codes):
            raise FormatError(f"schema: union column {self._name!r} has a type code that is not in 0 to 127")
        return list(codes)

    def none_left(self) -> None:
        if self._left:
            raise FormatError(f"schema: column {self._name!r} has unknown parameters {', '.join(sorted(self._left))}")
