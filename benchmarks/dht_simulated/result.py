"""What every question answers with, and how it is run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.harness import Check
from dhtdata.signing import substitute
from tests.simulation.clock import run
from tests.simulation.signer import FastScheme

_T = TypeVar("_T")


@dataclass(frozen=True)
class Curves:
    """For `benchmarks.harness.draw_lines`: points ``(x, y)`` by label."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False


@dataclass(frozen=True)
class Bars:
    """For `benchmarks.harness.draw_bars`: values by label."""

    title: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """Figures by name, with the sizes they were measured at; what was asked of them; pictures by file name."""

    figures: dict[str, float | str]
    checks: list[Check]
    curves: dict[str, Curves] = field(default_factory=dict)
    bars: dict[str, Bars] = field(default_factory=dict)


def simulate(story: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end in virtual time, with signatures that cost little."""
    with substitute(FastScheme()):
        return run(story)


def p95(values: Sequence[float]) -> float:
    """The value that 95% are not above."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def p50(values: Sequence[float]) -> float:
    return statistics.median(values)
