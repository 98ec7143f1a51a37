"""What every benchmark needs: arguments, machine, measured children, checks, the report.

A benchmark prints a table for people and, last, one line of JSON::

    {"benchmark", "machine", "versions", "seed", "repeats", "figures": {...},
     "checks": [{"name", "value", "op", "bar", "ok"}]}

Exit status is 0 whatever the checks say: a benchmark measures, people judge. A benchmark that cannot run at all raises.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

PACKAGES = ("dhtdata", "pyarrow", "numpy", "blake3", "msgspec", "aiohttp", "kademlia")
_COLOURS = ("#4878a8", "#c4572e", "#3f8f5b", "#8a5aa8", "#a8873c", "#5b6770")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bar: value >= bar,
    "<=": lambda value, bar: value <= bar,
    "==": lambda value, bar: value == bar,
}


@dataclass(frozen=True)
class Arguments:
    """``plot`` is the folder for pictures, or None."""

    quick: bool
    json: bool
    plot: Path | None


@dataclass(frozen=True)
class Check:
    """A figure that was asked of a benchmark: ``value op bar``, where op is ``>=``, ``<=`` or ``==``."""

    name: str
    value: float
    op: str
    bar: float

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise ValueError(f"check {self.name!r}: operator {self.op!r} is none of {', '.join(_OPERATORS)}")

    @property
    def ok(self) -> bool:
        return _OPERATORS[self.op](self.value, self.bar)


@dataclass(frozen=True)
class Child:
    """What came out of a finished child: its last line of output as JSON, and the wall time."""

    result: dict[str, Any]
    seconds: float


def arguments(description: str) -> Arguments:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="same checks at smaller sizes, under 60 s")
    parser.add_argument("--json", action="store_true", help="print the line of JSON only")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="also draw the figures into DIR as an SVG picture")
    given = parser.parse_args()
    return Arguments(given.quick, given.json, given.plot)


def report(
    benchmark: str,
    seed: int,
    repeats: int,
    figures: Mapping[str, float | str],
    checks: Sequence[Check],
    as_json: bool,
) -> None:
    """Print the table (unless ``as_json``) and, last, the line of JSON."""
    if not as_json:
        _print_table(benchmark, figures, checks)
    line = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "repeats": repeats,
        "figures": dict(figures),
        "checks": [
            {"name": check.name, "value": check.value, "op": check.op, "bar": check.bar, "ok": check.ok}
            for check in checks
        ],
    }
    print(json.dumps(line), flush=True)


def machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder on a real disk that is gone afterwards, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="dhtdata-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peak_rss_bytes() -> int:
    """Highest resident size of *this* process so far.

    Linux's ``ru_maxrss`` of a child starts at its parent's size (exec keeps the mark of the image it replaces), so
    the mark of the current image is read instead: a child reports its own peak.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def run_child(
    command: Sequence[str | Path], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Child:
    """Run to the end; its last line of output must be a JSON object. RuntimeError with its stderr if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=None if environment is None else {**os.environ, **environment},
    )
    seconds = time.perf_counter() - started
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    return Child(json.loads(lines[-1]), seconds)


def repeated(measure: Callable[[], float], repeats: int) -> float:
    """Median of several measurements."""
    return statistics.median(measure() for _ in range(repeats))


def draw_bars(folder: Path, name: str, title: str, bars: Mapping[str, float]) -> Path:
    """Horizontal bars as ``<folder>/<name>.svg``; no plotting package needed."""
    folder.mkdir(parents=True, exist_ok=True)
    height = 28
    longest = max([*bars.values(), 1e-12])
    rows = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    for position, (label, value) in enumerate(bars.items(), start=1):
        top = 12 + position * height
        rows.append(f'<text x="10" y="{top + 15}">{escape(label)}</text>')
        rows.append(
            f'<rect x="260" y="{top}" width="{max(1.0, 400 * value / longest):.1f}" height="20" fill="#4878a8"/>'
        )
        rows.append(f'<text x="{268 + 400 * value / longest:.1f}" y="{top + 15}">{value:,.3g}</text>')
    path = folder / f"{name}.svg"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{24 + (len(bars) + 1) * height}" '
        f'font-family="sans-serif" font-size="13">{"".join(rows)}</svg>\n'
    )
    return path


def draw_lines(
    folder: Path,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    log_x: bool = False,
) -> Path:
    """Curves through points ``(x, y)``, by label, as ``<folder>/<name>.svg``; y from 0. ``log_x`` needs x > 0."""
    folder.mkdir(parents=True, exist_ok=True)
    points = [point for line in lines.values() for point in line]
    along = [math.log10(x) if log_x else x for x, _ in points] or [0.0]
    first, width = min(along), max(along) - min(along) or 1.0
    y_ticks = _round_steps(max([y for _, y in points], default=0.0) or 1.0)
    x_ticks = sorted({x for x, _ in points}) if log_x else [first + width * part / 5 for part in range(6)]

    def across(x: float) -> float:
        return 70 + 480 * ((math.log10(x) if log_x else x) - first) / width

    def up(y: float) -> float:
        return 330 - 270 * y / y_ticks[-1]

    parts = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    for y in y_ticks:
        parts.append(f'<line x1="70" y1="{up(y):.1f}" x2="550" y2="{up(y):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="62" y="{up(y) + 4:.1f}" text-anchor="end">{y:,.5g}</text>')
    taken = -math.inf
    for x in x_ticks:
        parts.append(f'<line x1="{across(x):.1f}" y1="330" x2="{across(x):.1f}" y2="335" stroke="#888"/>')
        if across(x) - taken > 45:
            taken = across(x)
            parts.append(f'<text x="{taken:.1f}" y="350" text-anchor="middle">{x:,.5g}</text>')
    parts.append(f'<text x="310" y="374" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="10" y="46">{escape(y_label)}</text>')
    for position, (label, line) in enumerate(lines.items()):
        colour = _COLOURS[position % len(_COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        parts.append(f'<rect x="570" y="{56 + 22 * position}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="590" y="{62 + 22 * position}">{escape(label)}</text>')
    path_of_file = folder / f"{name}.svg"
    height = max(390, 80 + 22 * len(lines))
    path_of_file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height}" '
        f'font-family="sans-serif" font-size="13">{"".join(parts)}</svg>\n'
    )
    return path_of_file


def draw_points(
    folder: Path,
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    panels: Mapping[str, Sequence[tuple[float, float]]],
) -> Path:
    """Clouds of points in the unit square, a panel each, four in a row, as ``<folder>/<name>.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    side, gap, top = 180, 24, 56
    parts = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    parts.append(f'<text x="10" y="42" fill="#555">across: {escape(x_label)}; up: {escape(y_label)}</text>')
    for position, (label, points) in enumerate(panels.items()):
        left, upper = 12 + position % 4 * (side + gap), top + position // 4 * (side + gap + 16)
        parts.append(f'<text x="{left}" y="{upper + 14}">{escape(label)}</text>')
        parts.append(f'<rect x="{left}" y="{upper + 20}" width="{side}" height="{side}" fill="#fff" stroke="#bbb"/>')
        dots = "".join(f"M{left + side * x:.1f} {upper + 20 + side * (1 - y):.1f}h0" for x, y in points)
        parts.append(f'<path d="{dots}" stroke="#4878a8" stroke-width="1.6" stroke-linecap="round"/>')
    path = folder / f"{name}.svg"
    height = top + -(-len(panels) // 4) * (side + gap + 16) + 8
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{4 * (side + gap)}" height="{height}" '
        f'font-family="sans-serif" font-size="13">{"".join(parts)}</svg>\n'
    )
    return path


def _round_steps(highest: float) -> list[float]:
    """About five round numbers from 0 to just above ``highest``."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(power * times for times in (1, 2, 5, 10, 20) if power * times * 5.5 >= highest)
    return [step * position for position in range(math.ceil(highest / step - 1e-9) + 1)]


def _print_table(benchmark: str, figures: Mapping[str, float | str], checks: Sequence[Check]) -> None:
    width = max(len(name) for name in [*figures, *(check.name for check in checks), benchmark])
    print(f"{benchmark} on {machine()['cores']} cores, {platform.platform()}")
    for name, value in figures.items():
        print(f"  {name:<{width}}  {_shown(value)}")
    for check in checks:
        verdict = "ok" if check.ok else "MISSED"
        print(f"  {check.name:<{width}}  {_shown(check.value)} {check.op} {_shown(check.bar)}  {verdict}")


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) or value == int(value) else f"{value:,.3f}"
