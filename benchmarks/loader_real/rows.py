"""The rows of a contest, and whether a loader hands out these and no others. Needs nothing of dhtdata.

Every row tells its number, so that what a loader yields can be compared with the source in any order:

*tokens*  512 int32; the first is the row's number.
*binary*  8,000 to 12,000 bytes, and the row's number as ``label``.
*text*    200 to 4,000 characters; the first word is the row's number. One text in ten is not all ASCII.
*floats*  8 float32 columns, and the row's number as ``label``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WIDTH = 512
FLOATS = tuple(f"f{number}" for number in range(8))
KINDS = ("tokens", "binary", "text", "floats")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens",),
    "binary": ("data", "label"),
    "text": ("text",),
    "floats": (*FLOATS, "label"),
}
BATCH: Mapping[str, int] = {"tokens": 64, "binary": 64, "text": 64, "floats": 1_024}
_WORDS = 4_096
_WORD_BYTES = 7
_MANY, _MOST_IN_ORDER = 16, 0.5
_FOREIGN = ("caf\u00e9 ", "na\u00efve \u2014 ", "\u043c\u043e\u0440\u0435 ", "\u6d77 ")


def make(kind: str, rows: int, seed: int) -> pa.Table:
    """A table of one chunk, the same for the same arguments."""
    chance = np.random.default_rng(seed)
    numbers = np.arange(rows)
    if kind == "tokens":
        tokens = chance.integers(0, 50_000, (rows, WIDTH), dtype=np.int32)
        tokens[:, 0] = numbers
        return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), WIDTH)})
    if kind == "binary":
        lengths = chance.integers(8_000, 12_001, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        content = pa.py_buffer(chance.bytes(int(offsets[-1])))
        data = pa.Array.from_buffers(pa.large_binary(), rows, [None, pa.py_buffer(offsets.astype(np.int64)), content])
        return pa.table({"data": data, "label": pa.array(numbers)})
    if kind == "text":
        return pa.table({"text": pa.array(_texts(rows, chance), pa.large_string())})
    if kind == "floats":
        columns = {name: pa.array(chance.standard_normal(rows, dtype=np.float32)) for name in FLOATS}
        return pa.table(columns | {"label": pa.array(numbers)})
    raise ValueError(f"no rows of kind {kind!r}")


def _texts(rows: int, chance: np.random.Generator) -> list[str]:
    letters = chance.integers(ord("a"), ord("z") + 1, (_WORDS, _WORD_BYTES), dtype=np.uint8)
    letters[:, -1] = ord(" ")
    words = letters[chance.integers(0, _WORDS, 1 << 16)].tobytes().decode()
    lengths, firsts = chance.integers(200, 4_001, rows), chance.integers(0, len(words) - 4_000, rows)
    texts = []
    for number, (length, first) in enumerate(zip(lengths.tolist(), firsts.tolist(), strict=True)):
        begin = f"{number} " if number % 10 else f"{number} {_FOREIGN[number // 10 % len(_FOREIGN)]}"
        texts.append(begin + words[first : first + length - len(begin)])
    return texts


def write(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read(path: Path) -> pa.Table:
    """In memory, not mapped."""
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).read_all().combine_chunks()


def arrays(table: pa.Table) -> dict[str, Any]:
    """Columns as numpy arrays without a copy, binaries and texts as lists of Python objects."""
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].chunk(0)
        if pa.types.is_fixed_size_list(column.type):
            found[name] = column.flatten().to_numpy().reshape(len(column), -1)
        elif pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type):
            found[name] = column.to_pylist()
        else:
            found[name] = column.to_numpy()
    return found


class Checker:
    """Compares what a loader yields with the source. ValueError says what is wrong."""

    def __init__(self, kind: str, table: pa.Table) -> None:
        self._kind = kind
        self._source = arrays(table)
        self._seen = np.zeros(table.num_rows, np.bool_)

    def batch(self, columns: Mapping[str, Any]) -> None:
        """Rows as they are in the source, none of them seen before."""
        if set(columns) - {"_valid"} != set(COLUMNS[self._kind]):
            raise ValueError(f"a batch has columns {', '.join(columns)}")
        numbers = self._numbers(columns)
        if numbers.size != np.unique(numbers).size or self._seen[numbers].any():
            raise ValueError("a row came twice in an epoch")
        self._seen[numbers] = True
        if numbers.size >= _MANY and (np.diff(numbers) == 1).mean() > _MOST_IN_ORDER:
            raise ValueError("a batch is not shuffled: its rows follow each other as in the source")
        for name in COLUMNS[self._kind]:
            source, got = self._source[name], columns[name]
            if isinstance(source, list):
                if not isinstance(got, list | tuple) or {type(value) for value in got} != {type(source[0])}:
                    raise ValueError(f"{name} is not made of Python objects yet")
                if [source[number] for number in numbers.tolist()] != list(got):
                    raise ValueError(f"{name} of some row is not what was written")
            elif not np.array_equal(source[numbers], np.asarray(got)):
                raise ValueError(f"{name} of some row is not what was written")

    def end(self) -> None:
        """An epoch is over: all rows must have come."""
        if not self._seen.all():
            raise ValueError(f"{int((~self._seen).sum())} rows of an epoch are missing")

    def _numbers(self, columns: Mapping[str, Any]) -> NDArray[np.int64]:
        if self._kind == "tokens":
            return np.asarray(columns["tokens"])[:, 0].astype(np.int64)
        if self._kind == "text":
            return np.array([int(text.split(" ", 1)[0]) for text in columns["text"]], np.int64)
        return np.asarray(columns["label"]).astype(np.int64)
