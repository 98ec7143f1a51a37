"""What a run will fetch, hold and wait for, reckoned before it begins. Pure: values in, values out.

The order of the run's first epoch is walked as the reader ahead walks it (`dhtdata.vault.readahead`), a lane per node,
and every block is counted where a node needs it first. On top of that time is reckoned as flows: each node receives at
the given bandwidth, windows in the order of need, never more ahead of the loop than it may; the loop takes a global
batch in ``step_s`` and enters a window when all of it is here; all nodes wait for the slowest, as ranks do that
exchange gradients.

Reckoned from an empty store. Left out: round trips, the peer's start, what the other peers of the swarm lack, and the
rows that a node takes out of others' lanes in a short last batch, at most a quarter of the number of nodes. Windows are
waited for whole, which a loop need not do whose batches touch few of their blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError
from dhtdata.order import MAX_LANES, EpochOrder, Pieces
from dhtdata.vault.blocks import GroupBlocks, Numbers

FINE_WINDOWS, COARSE_WINDOWS = 1 << 10, 1 << 15
"""In source order there is a window for every block: the first are taken as they are, the others by row range."""


@dataclass(frozen=True)
class Job:
    """A run: ``ranks`` over ``nodes``, ``global_batch`` rows a step of all ranks together, in ``step_s`` seconds.

    ``ahead_bytes`` may be fetched besides the windows being read; ``bandwidth_bytes_s`` is each node's own.
    """

    nodes: int
    ranks: int
    global_batch: int
    shuffle: bool
    window: int
    ahead_bytes: int
    bandwidth_bytes_s: float
    step_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_LANES:
            raise ConfigError(f"nodes: {self.nodes} is not in 1 to {MAX_LANES}")
        if self.ranks < self.nodes or self.ranks % self.nodes:
            raise ConfigError(
                f"{self.ranks} ranks do not spread evenly over {self.nodes} nodes: "
                f"take {_next_sizes(self.ranks, self.nodes)} ranks"
            )
        if self.global_batch < self.ranks or self.global_batch % self.ranks:
            raise ConfigError(
                f"a global batch of {self.global_batch} rows cannot be dealt to {self.ranks} ranks equally: "
                f"take {_next_sizes(self.global_batch, self.ranks)} rows"
            )


@dataclass(frozen=True)
class Plan:
    """``node_bytes``: of shards, that each node fetches in the epoch; ``described_bytes``: of what says where rows are.

    Cache figures are of the node that needs most, in bytes that count against a cache limit (a shard counts in full
    from its first block on): ``least`` for the windows that a step reads, ``peak`` with what is fetched ahead of them,
    ``epoch`` if nothing is given up. Seconds: ``network_s`` for a loop that takes no time, ``first_batch_s`` until the
    first step can begin, ``stall_s`` of later waiting. ``arrivals`` (end, seconds) are transfers to the node that
    fetches most, ``stalls`` (begin, end) when the loop waits.
    """

    rows: int
    steps: int
    byte_count: int
    node_bytes: tuple[int, ...]
    described_bytes: tuple[int, ...]
    cache_least_bytes: int
    cache_peak_bytes: int
    cache_epoch_bytes: int
    network_s: float
    first_batch_s: float
    stall_s: float
    epoch_s: float
    arrivals: tuple[tuple[float, float], ...]
    stalls: tuple[tuple[float, float], ...]

    @property
    def network_rows_s(self) -> float:
        """Rows per second of all nodes together at which the network becomes the limit."""
        return self.rows / self.network_s

    def shares(self, parts: int) -> tuple[list[float], list[float]]:
        """The epoch in so many equal times: shares of each in which bytes arrive, and in which the loop waits."""
        arriving = [(end_s - seconds, end_s) for end_s, seconds in self.arrivals]
        return _shares(arriving, self.epoch_s, parts), _shares(self.stalls, self.epoch_s, parts)


@dataclass(frozen=True)
class _Lane:
    """One node's way through the epoch. By window: lane row at which it begins (one more ends the last), step that
    first needs it, bytes that are new with it. ``shards``: numbers of the shards that each window touches.
    """

    bounds: Numbers
    steps: Numbers
    shard_bytes: Numbers
    described: Numbers
    shards: tuple[Numbers, ...]


def make_plan(groups: Sequence[GroupBlocks], ranges: Sequence[int], job: Job, described_bytes: int) -> Plan:
    """The plan of an epoch over these groups. ``described_bytes``: manifest, contents, indexes and row ranges."""
    order = EpochOrder(Pieces(ranges), seed=0, epoch=0, shuffle=job.shuffle, window=job.window, lanes=job.nodes)
    lanes = [_walk(groups, order, job, node) for node in range(order.lanes)]
    if order.lanes < job.nodes:  # in source order everybody reads everything
        lanes = lanes * job.nodes
    shard_sizes = np.concatenate([group.shard_sizes for group in groups])
    held = [_held(lane, shard_sizes, job) for lane in lanes[: order.lanes]]
    described = [int(lane.described.sum()) + described_bytes for lane in lanes]
    fast = _Clock(lanes[: order.lanes], job, described_bytes)
    fast.run(0.0)
    clock = fast
    if job.step_s:
        clock = _Clock(lanes[: order.lanes], job, described_bytes)
        clock.run(job.step_s)
    steps = -(-order.rows // job.global_batch)
    return Plan(
        rows=order.rows,
        steps=steps,
        byte_count=sum(int(group.shard_sizes.sum()) for group in groups),
        node_bytes=tuple(int(lane.shard_bytes.sum()) for lane in lanes),
        described_bytes=tuple(described),
        cache_least_bytes=max(least + small for (least, _, _), small in zip(held, described, strict=False)),
        cache_peak_bytes=max(peak + small for (_, peak, _), small in zip(held, described, strict=False)),
        cache_epoch_bytes=max(whole + small for (_, _, whole), small in zip(held, described, strict=False)),
        network_s=fast.late_s,
        first_batch_s=clock.first_s,
        stall_s=clock.late_s - clock.first_s if job.step_s else 0.0,
        epoch_s=clock.late_s + steps * job.step_s,
        arrivals=tuple(clock.arrivals),
        stalls=tuple(clock.stalls),
    )


# Bytes


def _walk(groups: Sequence[GroupBlocks], order: EpochOrder, job: Job, node: int) -> _Lane:
    bounds, spans, owner = _windows(order, node, job.shuffle)
    batch = job.global_batch // order.lanes
    steps = bounds[:-1] // batch
    count = steps.size
    shard_bytes, described = np.zeros(count, np.int64), np.zeros(count, np.int64)
    pairs, before = [], 0
    for group in groups:
        first, stop = group.blocks_of(spans)
        needed = _first_needed(first, stop, owner, group.sizes.size, count)
        for windows, sizes, into in (
            (needed, group.sizes, shard_bytes),
            (np.maximum.reduceat(needed, group.starts), group.envelopes, shard_bytes),
            (np.minimum.reduceat(needed, group.starts), group.tables, described),
        ):
            into += np.bincount(windows, sizes, count + 1)[:count].astype(np.int64)
        shards, spread = _expanded(group.shards_of(first), group.shards_of(stop - 1) + 1)
        pairs.append(np.stack([owner[spread], before + shards], axis=1))
        before += group.shard_sizes.size
    by_window = np.concatenate(pairs)
    by_window = by_window[np.argsort(by_window[:, 0], kind="stable")]
    cuts = np.searchsorted(by_window[:, 0], np.arange(1, count))
    shards_of = tuple(np.unique(part) for part in np.split(by_window[:, 1], cuts))[:count]
    return _Lane(bounds, steps, shard_bytes, described, shards_of)


def _windows(order: EpochOrder, lane: int, shuffle: bool) -> tuple[Numbers, Numbers, Numbers]:
    """Bounds of a lane's windows in rows of the lane, source spans of all of them, the window of each span."""
    windows = list(islice(order.windows(lane, 0), None if shuffle else FINE_WINDOWS))
    bounds = [window.first for window in windows]
    spans = [window.spans for window in windows]
    done, rows = windows[-1].stop if windows else 0, order.lane_rows(lane)
    if done < rows:
        cuts = order.pieces.firsts[np.searchsorted(order.pieces.firsts, done, "right") :]
        cuts = np.array([done, *cuts[:: -(-cuts.size // COARSE_WINDOWS) or 1].tolist(), rows], np.int64)
        bounds += cuts[:-1].tolist()
        spans += list(np.stack([cuts[:-1], np.diff(cuts)], axis=1)[:, None])
    owner = np.repeat(np.arange(len(spans)), np.array([len(part) for part in spans], np.int64))
    joined = np.concatenate(spans) if spans else np.zeros((0, 2), np.int64)
    return np.array([*bounds, rows], np.int64), joined, owner


def _first_needed(first: Numbers, stop: Numbers, owner: Numbers, blocks: int, windows: int) -> NDArray[np.int32]:
    """The first window that needs each block; ``windows`` where none does. ``owner`` ascends."""
    needed = np.full(blocks, windows, np.int32)
    numbers, spread = _expanded(first, stop)
    needed[numbers[::-1]] = owner[spread[::-1]]  # of several the last assignment stays, which is the first window
    return needed


def _expanded(first: Numbers, stop: Numbers) -> tuple[Numbers, Numbers]:
    """Every number of the ranges ``[first, stop)``, and the range of each."""
    counts = stop - first
    numbers = np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    return numbers, np.repeat(np.arange(counts.size), counts)


# Room


def _held(lane: _Lane, shard_sizes: Numbers, job: Job) -> tuple[int, int, int]:
    """Most bytes of whole shards that are needed at once: by a step; with what is ahead of it; in all."""
    ends = np.cumsum(lane.shard_bytes)
    whole = np.unique(np.concatenate(lane.shards)) if lane.shards else np.zeros(0, np.int64)
    reading, ahead = _Held(lane.shards, shard_sizes), _Held(lane.shards, shard_sizes)
    for step in np.unique(lane.steps).tolist():
        first = int(np.searchsorted(lane.bounds, step * (job.global_batch // _lanes(job)), "right")) - 1
        last = int(np.searchsorted(lane.steps, step, "right"))
        reading.move(min(first, last - 1), last)
        reach = int(np.searchsorted(ends, ends[last - 1] + job.ahead_bytes, "left")) + 1
        ahead.move(min(first, last - 1), max(last, min(reach, ends.size)))
    return reading.most_bytes, ahead.most_bytes, int(shard_sizes[whole].sum())


def _lanes(job: Job) -> int:
    return job.nodes if job.shuffle else 1


@dataclass
class _Held:
    """Shards of the windows ``[first, stop)``, both of which only grow."""

    shards: Sequence[Numbers]
    shard_sizes: Numbers
    first: int = 0
    stop: int = 0
    now_bytes: int = 0
    most_bytes: int = 0
    uses: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.uses = np.zeros(self.shard_sizes.size, np.int32)

    def move(self, first: int, stop: int) -> None:
        for window in range(self.first, first):
            self._count(window, -1, 0)
        for window in range(self.stop, stop):
            self._count(window, 1, 1)
        self.first, self.stop = max(first, self.first), max(stop, self.stop)
        self.most_bytes = max(self.most_bytes, self.now_bytes)

    def _count(self, window: int, change: int, turned: int) -> None:
        shards = self.shards[window]
        self.uses[shards] += change
        self.now_bytes += change * int(self.shard_sizes[shards[self.uses[shards] == turned]].sum())


# Time


class _Clock:
    """A loop on all nodes against their links. ``late_s``: seconds by which it is behind one that never waits."""

    def __init__(self, lanes: Sequence[_Lane], job: Job, described_bytes: int) -> None:
        self._lanes = lanes
        self._watched = max(range(len(lanes)), key=lambda number: int(lanes[number].shard_bytes.sum()))
        self._links = [_Link(lane, job, described_bytes / job.bandwidth_bytes_s) for lane in lanes]
        self.first_s = self.late_s = 0.0
        self.arrivals: list[tuple[float, float]] = []
        self.stalls: list[tuple[float, float]] = []

    def run(self, step_s: float) -> None:
        for step, needed in groupby(self._needs(), key=lambda need: need[0]):
            asked_s = here_s = step * step_s + self.late_s
            for _, number, window in needed:
                end_s = self._links[number].receive(window, asked_s)
                if number == self._watched:
                    self.arrivals.append((end_s, self._links[number].seconds(window)))
                here_s = max(here_s, end_s)
            if here_s > asked_s:
                self.stalls.append((asked_s, here_s))
                self.late_s += here_s - asked_s
            if step == 0:
                self.first_s = self.late_s

    def _needs(self) -> Iterator[tuple[int, int, int]]:
        """(step, lane, window) by step, and by window within a lane."""
        needs = [
            (step, number, window)
            for number, lane in enumerate(self._lanes)
            for window, step in enumerate(lane.steps.tolist())
        ]
        return iter(sorted(needs))


class _Link:
    """One node's link: bytes arrive in the order of need, from when they may be asked for.

    Byte x may be asked for once the loop has asked for a window v whose bytes end, with what may lie ahead, at or after
    x. With r_v the moment of that, c_v the bytes up to and with window v, and B the bandwidth, window w is here at
    c_w / B + max(start, r_v - (c_(v-1) + ahead) / B over all v <= w with c_(v-1) + ahead < c_w).
    """

    def __init__(self, lane: _Lane, job: Job, start_s: float) -> None:
        byte_counts = lane.shard_bytes + lane.described
        self._ends: list[int] = np.cumsum(byte_counts).tolist()
        self._rate = job.bandwidth_bytes_s
        self._ahead = job.ahead_bytes
        self._behind_s = start_s
        self._released = 0
        self._asked: list[float] = []

    def receive(self, window: int, asked_s: float) -> float:
        """Seconds at which a window is here that the loop asks for at ``asked_s``. Windows come in order."""
        self._asked.append(asked_s)
        end = self._ends[window]
        while self._released <= window and (reached := self._end(self._released - 1) + self._ahead) < end:
            self._behind_s = max(self._behind_s, self._asked[self._released] - reached / self._rate)
            self._released += 1
        return self._behind_s + end / self._rate

    def seconds(self, window: int) -> float:
        return (self._end(window) - self._end(window - 1)) / self._rate

    def _end(self, window: int) -> int:
        return self._ends[window] if window >= 0 else 0


def _next_sizes(size: int, step: int) -> str:
    """The multiples of ``step`` around ``size``, for messages."""
    below, above = size // step * step, (size // step + 1) * step
    return f"{below} or {above}" if below else str(above)


def _shares(spans: Sequence[tuple[float, float]], total_s: float, parts: int) -> list[float]:
    """How much of each of ``parts`` equal times lies in the spans, which do not overlap."""
    ends = np.linspace(0.0, total_s, parts + 1)
    covered = np.zeros(parts + 1)
    for first, stop in spans:
        covered += np.clip(ends - first, 0.0, stop - first)
    shares: list[float] = np.clip(np.diff(covered) / (total_s / parts), 0.0, 1.0).tolist()
    return shares
