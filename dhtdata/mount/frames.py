"""Whole tables as frames of other libraries (door of pandas and Polars, optional packages: extras of those names)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from dhtdata.errors import ConfigError

if TYPE_CHECKING:
    import pandas
    import polars

    PandasFrame: TypeAlias = pandas.DataFrame
    PolarsFrame: TypeAlias = polars.DataFrame

_Convert = Callable[[pa.Table], Any]


def to_pandas(table: pa.Table, options: Mapping[str, Any]) -> PandasFrame:
    """``options`` are those of ``pyarrow.Table.to_pandas``. ConfigError if pandas is missing or has no such type."""
    try:
        import pandas  # noqa: F401  # pyarrow imports it, but does not say what is missing
    except ImportError as failure:
        raise _missing("pandas", failure) from failure
    refusals = (pa.ArrowException, ValueError, OverflowError)
    frame: PandasFrame = _converted(table, "pandas", lambda part: part.to_pandas(**options), refusals)
    return frame


def to_polars(table: pa.Table) -> PolarsFrame:
    """Pieces of the table stay pieces, none are joined. ConfigError if Polars is missing or has no such type."""
    try:
        import polars
    except ImportError as failure:
        raise _missing("polars", failure) from failure
    refusals = (polars.exceptions.PolarsError, polars.exceptions.PanicException)
    frame: PolarsFrame = _converted(table, "Polars", lambda part: polars.from_arrow(part, rechunk=False), refusals)
    return frame


def _converted(table: pa.Table, library: str, convert: _Convert, refusals: tuple[type[BaseException], ...]) -> Any:
    try:
        return convert(table)
    except refusals as failure:
        for name in table.column_names:
            try:
                convert(table.select([name]))
            except refusals as reason:
                raise ConfigError(
                    f"column {name!r} of type {table.schema.field(name).type} holds what {library} cannot ({reason}): "
                    "leave it out of columns"
                ) from reason
        raise ConfigError(f"{library} cannot hold this table: {failure}") from failure


def _missing(package: str, failure: ImportError) -> ConfigError:
    return ConfigError(f"to_{package} needs {package} ({failure}): install it, or dhtdata with its extra {package}")
