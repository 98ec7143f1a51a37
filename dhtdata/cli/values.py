"""Values of a row on a screen and in JSON, whatever their type."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from dhtdata.formats.codec import encode_json

CELL_CHARACTERS = 160
_SHOWN_BYTES = 16


def cell(value: Any) -> str:
    """One line of text for a table: long values are cut, control characters shown."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        text = value[:_SHOWN_BYTES].hex(" ")
        return f"{text}{' …' if len(value) > _SHOWN_BYTES else ''} ({len(value)} bytes)"
    if isinstance(value, str):
        text = value[: CELL_CHARACTERS + 1]
    else:
        text = repr(value) if isinstance(value, (list, dict, tuple)) else str(value)
    text = "".join(letter if letter.isprintable() else _visible(letter) for letter in text[: CELL_CHARACTERS + 1])
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def to_json(value: Any) -> Any:
    """The nearest JSON value: bytes as base64, other things that JSON lacks as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(name): to_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    return str(value)


def as_document(value: Any) -> Any:
    """A struct of ours (a message, statistics) as plain JSON values; digests as hexadecimal digits."""
    return json.loads(encode_json(value))


def _visible(letter: str) -> str:
    return {"\n": "⏎", "\t": "→"}.get(letter, "·")
