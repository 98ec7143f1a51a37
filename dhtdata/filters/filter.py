"""`Filter`: which rows of a dataset count."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dhtdata.digest import Digest
from dhtdata.errors import ConfigError
from dhtdata.filters.evaluate import kind_of, true_rows
from dhtdata.filters.parse import parse
from dhtdata.filters.tree import columns_of, encoded_form, functions_of, tree_of

MAX_KEY_CHARACTERS = 200
_DIGITS = 16
_CHANCE = ("random",)


@dataclass(frozen=True)
class Filter:
    """A condition over stored columns. Equal ones have equal ``text``, ``columns`` and ``digest``.

    ``text`` is canonical: the filter as `parse` would spell it, or pyarrow's text of an expression. ``digest`` names
    it among kept results; that of an expression may differ between releases of pyarrow.
    """

    text: str
    columns: tuple[str, ...]
    digest: Digest
    expression: pc.Expression = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        """What a saved state keeps of it: the text, or the beginning of a long one with a digest."""
        if len(self.text) <= MAX_KEY_CHARACTERS and self.digest == _digest_of(self.text):
            return self.text
        return f"{self.text[: MAX_KEY_CHARACTERS - _DIGITS]}... {self.digest.hex()[:_DIGITS]}"

    def matches(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows of its columns, in stored types, count. ConfigError if they cannot be worked out."""
        try:
            return true_rows(self.expression, batch)
        except (pa.ArrowException, OverflowError) as failure:
            raise ConfigError(f"filter {self.key}: {failure}, in some row") from failure


def read_filter(given: str | pc.Expression, stored: pa.Schema) -> Filter:
    """The filter that a user wrote, for columns of these stored types. ConfigError says what is wrong with it."""
    if isinstance(given, str):
        found = parse(given, stored)
        text, expression, digest = found.text, found.expression, _digest_of(found.text)
    elif isinstance(given, pc.Expression):
        text, expression = " ".join(str(given).split()), given
        digest = Digest.of(b"dhtdata filter expression" + encoded_form(given).to_pybytes())
    else:
        raise ConfigError(f"filter: expected a text or a pyarrow.compute.Expression, not {type(given).__name__}")
    tree = tree_of(expression)
    columns = columns_of(tree)
    if unknown := sorted(columns.difference(stored.names)):
        raise ConfigError(f"filter: no column {unknown[0]!r}: this dataset has {', '.join(stored.names[:30])}")
    if not columns:
        raise ConfigError(f"filter: {text} names no column, so it keeps every row or none")
    if functions_of(tree).intersection(_CHANCE):
        raise ConfigError("filter: random() would keep other rows on every machine")
    names = tuple(name for name in stored.names if name in columns)
    kind = kind_of(expression, stored)
    if kind is None or not pa.types.is_boolean(kind):
        types = ", ".join(f"{name} is {stored.field(name).type}" for name in names)
        what = f"makes no sense for its columns ({types})" if kind is None else f"is {kind}, neither true nor false"
        raise ConfigError(f"filter: {text[:MAX_KEY_CHARACTERS]} {what}")
    return Filter(text, names, digest, expression)


def _digest_of(text: str) -> Digest:
    return Digest.of(b"dhtdata filter text" + text.encode())
