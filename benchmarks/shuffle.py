"""How well is an epoch mixed by a window of so many row ranges, and what does the window cost?

Nothing is timed: the orders themselves are looked at, those of `dhtdata.order` for windows of 1 to 64 row ranges, of
rows in source order, of a full shuffle, and of what others do, each written down here in a few lines: a shuffle buffer
over shards in random order (HF datasets, WebDataset), of the 1,000 rows that are usual and of as many rows as our
default window has, and rows that are shifted along the line of shards by up to half a block either way (MosaicML's
py1e), with a block of as many rows. A range has 32 blocks (32 MiB of about 1 MiB). By order:

* ``blocks``, ``ranges``: different blocks and row ranges in a batch, of those in a batch of a full shuffle;
* ``label distance``: of a dataset sorted by ten labels, the worst case, how far a batch's labels are from the whole's
  (total variation; a full shuffle has 0.07 for a batch of 256 because it is a sample);
* ``label memory``: correlation of the labels of one batch with those of the next; 0 is independent;
* ``met again``: of the rows in a row's batch, how many are in its batch in the next epoch, too;
* ``epochs``: rank correlation of the rows' positions in two epochs, mean over all pairs; ``source``: with the source.

Costs: bytes that a window holds; blocks that arrive before the first batch; the longest wait in an epoch on a link of 1
Gbit/s for a loop that takes rows half as fast as the link brings them (`dhtdata.mount.plan`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Check, arguments, draw_lines, draw_points, report
from dhtdata.mount import DEFAULT_WINDOW
from dhtdata.mount.plan import Job, make_plan
from dhtdata.order import EpochOrder, Pieces, Share, Steps
from dhtdata.vault.blocks import GroupBlocks

Rows = NDArray[np.int64]
Sequence = Callable[[int], Rows]
"""The rows of an epoch, in order."""

SEED = 20
BATCH = 256
BLOCKS = 32
RANGE_BYTES = 32 << 20
LABELS = 10
WINDOWS = (1, 2, 4, 8, 16, 32, 64)
USUAL_ROWS = 1_000
LINK_BYTES_S = 125e6
FULL, SOURCE = "full shuffle", "source order"
USUAL_BUFFER, ALIKE_BUFFER = f"buffer of {USUAL_ROWS:,} rows", "buffer of as many rows"
SHIFTED = "shifted within as many"
LANES = 8
SHOWN_POINTS, SHOWN_PART = 1_500, 8


@dataclass(frozen=True)
class Size:
    """``ranges`` row ranges of ``range_rows`` rows each, over ``epochs`` epochs."""

    ranges: int
    range_rows: int
    epochs: int

    @property
    def rows(self) -> int:
        return self.ranges * self.range_rows

    @property
    def block_rows(self) -> int:
        return self.range_rows // BLOCKS


@dataclass(frozen=True)
class Quality:
    """Means over batches and epochs; see the module."""

    blocks: float
    ranges: float
    label_distance: float
    label_memory: float
    met_again: float
    epochs: float
    source: float


# Orders


def windowed(size: Size, window: int, lanes: int = 1) -> Sequence:
    def epoch_rows(epoch: int) -> Rows:
        steps = Steps(order_of(size, window, epoch, lanes), Share(), global_batch=BATCH, remainder="drop")
        return steps.deal(range(steps.count)).rows

    return epoch_rows


def order_of(size: Size, window: int, epoch: int, lanes: int = 1) -> EpochOrder:
    pieces = Pieces([size.range_rows] * size.ranges)
    return EpochOrder(pieces, seed=SEED, epoch=epoch, shuffle=True, window=window, lanes=lanes)


def in_shard_order(size: Size, draw: np.random.Generator) -> Rows:
    shards = draw.permutation(size.ranges)[:, None] * size.range_rows
    return (shards + np.arange(size.range_rows)).ravel()


def buffered(size: Size, capacity: int) -> Sequence:
    """A buffer that is filled from shards in random order; a random one of its rows goes out for each that comes in."""

    def epoch_rows(epoch: int) -> Rows:
        draw = np.random.default_rng((SEED, capacity, epoch))
        line = in_shard_order(size, draw).tolist()
        buffer, out = line[:capacity], []
        places = draw.integers(0, capacity, len(line) - len(buffer)).tolist()
        for row, place in zip(line[capacity:], places, strict=True):
            out.append(buffer[place])
            buffer[place] = row
        return np.array(out + draw.permutation(buffer).tolist(), np.int64)

    return epoch_rows


def shifted(size: Size, block_rows: int) -> Sequence:
    """Rows of shards in random order, shuffled within their shard, each shifted by up to half a block either way."""

    def epoch_rows(epoch: int) -> Rows:
        draw = np.random.default_rng((SEED, block_rows, epoch))
        line = draw.permuted(in_shard_order(size, draw).reshape(size.ranges, -1), axis=1).ravel()
        return line[np.argsort(np.arange(line.size) + draw.uniform(-block_rows / 2, block_rows / 2, line.size))]

    return epoch_rows


def full(size: Size) -> Sequence:
    return lambda epoch: np.random.default_rng((SEED, epoch)).permutation(size.rows)


def orders(size: Size) -> dict[str, Sequence]:
    alike = DEFAULT_WINDOW * size.range_rows
    return {
        SOURCE: lambda epoch: np.arange(size.rows),
        **{window_name(window): windowed(size, window) for window in WINDOWS},
        f"{window_name(DEFAULT_WINDOW)}, {LANES} lanes": windowed(size, DEFAULT_WINDOW, LANES),
        USUAL_BUFFER: buffered(size, USUAL_ROWS),
        ALIKE_BUFFER: buffered(size, alike),
        SHIFTED: shifted(size, alike),
        FULL: full(size),
    }


def window_name(window: int) -> str:
    return f"window {window}"


# Quality


def quality(size: Size, sequence: Sequence) -> Quality:
    rows = [sequence(epoch) for epoch in range(size.epochs)]
    batches = [epoch_rows[: epoch_rows.size // BATCH * BATCH].reshape(-1, BATCH) for epoch_rows in rows]
    shares = [label_shares(size, of_epoch) for of_epoch in batches]
    return Quality(
        blocks=fmean(different(of_epoch // size.block_rows) for of_epoch in batches),
        ranges=fmean(different(of_epoch // size.range_rows) for of_epoch in batches),
        label_distance=fmean(float(np.abs(share - 1 / LABELS).sum(axis=1).mean()) / 2 for share in shares),
        label_memory=fmean(map(memory, shares)),
        met_again=fmean(met_again(*pair) for pair in itertools.pairwise(batches)),
        epochs=fmean(correlation(size, *pair) for pair in itertools.combinations(rows, 2)),
        source=fmean(correlation(size, epoch_rows, np.arange(size.rows)) for epoch_rows in rows),
    )


def different(batches: Rows) -> float:
    """Different values in a batch."""
    ordered = np.sort(batches, axis=1)
    return 1 + float(np.mean((np.diff(ordered, axis=1) > 0).sum(axis=1)))


def label_shares(size: Size, batches: Rows) -> NDArray[np.float64]:
    """Shares of the labels in each batch, shape (batches, labels); rows are sorted by label."""
    labels = batches * LABELS // size.rows
    return np.stack([(labels == label).mean(axis=1) for label in range(LABELS)], axis=1)


def memory(shares: NDArray[np.float64]) -> float:
    centred = shares - shares.mean(axis=0)
    spread = float((centred**2).sum())
    return float((centred[:-1] * centred[1:]).sum()) / spread if spread else 0.0


def met_again(first: Rows, second: Rows) -> float:
    """Of the other rows in a row's batch, how many are in its batch the next time."""
    batch_of = np.full(int(max(first.max(), second.max())) + 1, -1)
    batch_of[second.ravel()] = np.repeat(np.arange(len(second)), BATCH)
    together = batch_of[first] + np.arange(len(first))[:, None] * (len(second) + 1)
    _, counts = np.unique(together[batch_of[first] >= 0], return_counts=True)
    return float((counts * (counts - 1)).sum()) / first.size


def correlation(size: Size, first: Rows, second: Rows) -> float:
    """Spearman's: of positions, which are ranks already. Rows that an epoch left out count as its end."""
    places = np.full((2, size.rows), size.rows, np.float64)
    places[0, first], places[1, second] = np.arange(first.size), np.arange(second.size)
    matrix: NDArray[np.float64] = np.asarray(np.corrcoef(places))
    return float(matrix[0, 1])


# Costs


def first_blocks(size: Size, window: int) -> float:
    """Blocks that a reader waits for before the first batch: of all windows that hold a row of it."""
    counts = []
    for epoch in range(size.epochs):
        spans = [w.spans // size.block_rows for w in order_of(size, window, epoch).windows(0, 0) if w.first < BATCH]
        counts.append(np.unique(np.concatenate(spans)[:, 0]).size)
    return fmean(counts)


def longest_wait_s(size: Size, window: int) -> float:
    """Longest wait after the first batch."""
    blocks = size.ranges * BLOCKS
    bounds = np.arange(blocks + 1, dtype=np.int64) * size.block_rows
    sizes = np.full(blocks, RANGE_BYTES // BLOCKS, np.int64)
    shards = np.arange(size.ranges, dtype=np.int64)
    group = GroupBlocks(bounds, sizes, shards * BLOCKS, shards * 0 + RANGE_BYTES, shards * 0, shards * 0, 0)
    row_s = RANGE_BYTES / size.range_rows / LINK_BYTES_S
    job = Job(1, 1, BATCH, True, window, max(window * RANGE_BYTES, 64_000_000), LINK_BYTES_S, 2 * BATCH * row_s)
    plan = make_plan([group], [size.range_rows] * size.ranges, job, 0)
    return max((stop - first for first, stop in plan.stalls if first > 0), default=0.0)


# Report


def draw(
    folder: Path,
    size: Size,
    sequences: Mapping[str, Sequence],
    found: Mapping[str, Quality],
    waits: Mapping[int, float],
) -> None:
    chosen = np.random.default_rng(SEED)
    panels = {}
    for name, sequence in sequences.items():
        rows = sequence(0)[: size.rows // SHOWN_PART]
        places = np.sort(chosen.choice(rows.size, SHOWN_POINTS, replace=False))
        panels[name] = list(zip((places / rows.size).tolist(), (rows[places] / size.rows).tolist(), strict=True))
    title = "Where in the dataset the first eighth of an epoch lies"
    draw_points(folder, "shuffle_scatter", title, "position in the epoch", "source row", panels)
    ideal = found[FULL]
    by_window = {window: found[window_name(window)] for window in WINDOWS}
    draw_lines(
        folder,
        "shuffle_mixing",
        f"A batch of {BATCH} rows, by window",
        "row ranges in a window",
        "share",
        {
            "blocks, of a full shuffle's": [(w, one.blocks / ideal.blocks) for w, one in by_window.items()],
            "ranges, of a full shuffle's": [(w, one.ranges / ideal.ranges) for w, one in by_window.items()],
            "label distance, sorted labels": [(w, one.label_distance) for w, one in by_window.items()],
            "met again in the next epoch": [(w, one.met_again / (BATCH - 1)) for w, one in by_window.items()],
        },
        log_x=True,
    )
    draw_lines(
        folder,
        "shuffle_cost",
        "What a window costs on a link of 1 Gbit/s",
        "row ranges in a window",
        "longest wait in an epoch, s",
        {"loop at half the link's rate": list(waits.items())},
        log_x=True,
    )


def checks(size: Size, found: Mapping[str, Quality]) -> list[Check]:
    """Bounds on correlations are four standard errors. A window moves whole ranges: those are what is independent."""
    pairs = size.epochs * (size.epochs - 1) / 2
    ours = [one for name, one in found.items() if name.startswith("window")]
    default, ideal = found[window_name(DEFAULT_WINDOW)], found[FULL]
    return [
        Check(
            "correlation between epochs, largest of all windows",
            max(abs(one.epochs) for one in ours),
            "<=",
            4 / math.sqrt(pairs * (size.ranges - 1)),
        ),
        Check(
            "correlation with the source, largest of all windows",
            max(abs(one.source) for one in ours),
            "<=",
            4 / math.sqrt(size.epochs * (size.ranges - 1)),
        ),
        Check("default window: blocks in a batch, of a full shuffle's", default.blocks / ideal.blocks, ">=", 0.6),
        Check("default window: of 255 rows in a batch, met again in the next epoch", default.met_again, "<=", 2.55),
        Check(
            "default window: label distance, over that of the usual buffer",
            default.label_distance / found[USUAL_BUFFER].label_distance,
            "<=",
            0.75,
        ),
        Check(
            "default window: label distance, over that of rows shifted within as many",
            default.label_distance / found[SHIFTED].label_distance,
            "<=",
            1.05,
        ),
        Check("default window: blocks waited for before the first batch", first_blocks(size, DEFAULT_WINDOW), "<=", 16),
        Check("default window: longest wait at 1 Gbit/s, s", longest_wait_s(size, DEFAULT_WINDOW), "<=", 2),
    ]


def main() -> None:
    given = arguments(__doc__ or "")
    size = Size(256, 2_048, 4) if given.quick else Size(512, 4_096, 6)
    sequences = orders(size)
    found = {name: quality(size, sequence) for name, sequence in sequences.items()}
    ideal = found[FULL]
    figures: dict[str, float | str] = {}
    for name, one in found.items():
        figures[f"{name}: blocks in a batch, of a full shuffle's"] = one.blocks / ideal.blocks
        figures[f"{name}: row ranges in a batch, of a full shuffle's"] = one.ranges / ideal.ranges
        figures[f"{name}: label distance"] = one.label_distance
        figures[f"{name}: label memory"] = one.label_memory
        figures[f"{name}: met again"] = one.met_again
        figures[f"{name}: correlation between epochs"] = one.epochs
        figures[f"{name}: correlation with the source"] = one.source
    waits = {window: longest_wait_s(size, window) for window in WINDOWS}
    for window in WINDOWS:
        figures[f"{window_name(window)}: MiB held"] = window * RANGE_BYTES >> 20
        figures[f"{window_name(window)}: blocks before the first batch"] = first_blocks(size, window)
        figures[f"{window_name(window)}: longest wait at 1 Gbit/s, s"] = waits[window]
    if given.plot:
        draw(given.plot, size, sequences, found, waits)
    report("shuffle", SEED, size.epochs, figures, checks(size, found), given.json)


if __name__ == "__main__":
    main()
