"""Statistics of a split as a table that fits a screen."""

from __future__ import annotations

from rich.console import RenderableType

from dhtdata.cli.output import number, table
from dhtdata.cli.values import cell
from dhtdata.formats.statistics import ColumnStatistics, Histogram, SplitStatistics, Value

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_TOP = 3
_SHOWN_CHARACTERS = 14
_MOST_BARS = 10


def statistics_table(split: SplitStatistics) -> RenderableType:
    """One line a column: nulls, range, mean, the most frequent values, the histogram as bars."""
    rows = [
        (
            column.name,
            number(column.nulls) if column.nulls else "",
            *_range(column),
            _mean(column),
            bars(column.histogram) if column.histogram else "",
            ", ".join(_value(top.value) for top in column.top[:_SHOWN_TOP]),
        )
        for column in split.columns
    ]
    title = f"Statistics of split {split.name} (bars and frequent values from {number(split.sampled)} sampled rows)"
    columns = ("column", "nulls", "from", "to", "mean", "distribution", "frequent")
    return table(title, *columns, rows=rows, right=("nulls", "mean"))


def bars(histogram: Histogram) -> str:
    """Counts as at most ten bars, the highest one full; an empty one is blank."""
    together = -(-len(histogram.counts) // _MOST_BARS)
    counts = [sum(histogram.counts[first : first + together]) for first in range(0, len(histogram.counts), together)]
    highest = max(counts) or 1
    return "".join(_BARS[max(0, -(-count * len(_BARS) // highest) - 1)] if count else " " for count in counts)


def _range(column: ColumnStatistics) -> tuple[str, str]:
    if column.lengths is not None and column.min is None:
        return f"length {number(column.lengths.min)}", number(column.lengths.max)
    return _value(column.min), _value(column.max)


def _mean(column: ColumnStatistics) -> str:
    if column.mean is not None:
        return f"{column.mean:,.0f}" if 1_000 <= abs(column.mean) < 1e15 else f"{column.mean:.4g}"
    return f"length {column.lengths.mean:,.0f}" if column.lengths is not None else ""


def _value(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = cell(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
