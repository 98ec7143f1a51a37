"""What a reader is: one file or object that yields record batches; foreign errors become ours here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from dhtdata.errors import ConfigError, FormatError

BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 1 << 18


class Reader(Protocol):
    """One file or object.

    ``guesses`` says that its types were inferred from its first rows: they yield to what other files say.
    ``byte_count`` is its size as far as it is known, 0 otherwise; ``done_bytes`` how much of that was read, roughly.
    """

    @property
    def name(self) -> str: ...

    @property
    def byte_count(self) -> int: ...

    @property
    def done_bytes(self) -> int: ...

    @property
    def guesses(self) -> bool: ...

    def schema(self) -> pa.Schema:
        """Columns of the reader. FormatError or ConfigError name it."""
        ...

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """All rows in order, in batches of about 8 MiB where the format allows it.

        ``schema`` is what all readers agreed on; one that guessed its types reads its columns with those.
        """
        ...


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Translate what goes wrong while a file is read as ``kind``, such as "Parquet"."""
    try:
        yield
    except PermissionError as failure:
        raise ConfigError(f"{path} may not be read by this user: change its permissions") from failure
    except FileNotFoundError as failure:
        raise ConfigError(
            f"{path} does not exist any more: do not change sources while they are published"
        ) from failure
    except IsADirectoryError as failure:
        raise ConfigError(f"{path} is a folder, not a {kind} file") from failure
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as failure:
        reason = " ".join(str(failure).split())[:300]
        raise FormatError(
            f"{path} cannot be read as {kind}: {reason}. It may be truncated or of another format: "
            "make it again, or leave it out"
        ) from failure


def small(batch: pa.RecordBatch, target_bytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """Slices of a batch, about ``target_bytes`` each by their mean row; no row is copied."""
    if batch.num_rows == 0:
        return
    rows = rows_for(batch.get_total_buffer_size() if batch.num_rows else 0, batch.num_rows, target_bytes)
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)


def rows_for(size: int, rows: int, target_bytes: int = BATCH_BYTES) -> int:
    """How many rows make a batch, if ``rows`` of them take ``size`` bytes."""
    return max(1, min(MAX_BATCH_ROWS, target_bytes * rows // max(size, 1)))


def check_names(name: str, schema: pa.Schema) -> None:
    """ConfigError unless there are columns and every one has a name of its own."""
    try:
        columns = schema.names
    except UnicodeDecodeError as failure:
        raise ConfigError(f"{name} has a column whose name is not UTF-8: rename it, or convert the file") from failure
    if not columns:
        raise ConfigError(f"{name} has no columns")
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise ConfigError(f"{name} has two columns named {column!r}: rename one of them")
        seen.add(column)
