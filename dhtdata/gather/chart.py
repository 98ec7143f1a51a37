"""Where the values of a split lie in this process's memory, block by block.

A chart covers the whole split: blocks that were looked at, with an address for each column, and the gaps between them.
From a row number to an address is then a table look-up and an addition, for thousands of rows at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.gather.columns import Flat, has_own_values, plain_type
from dhtdata.gather.planes import unit_of
from dhtdata.tables.ipc import ALIGNMENT
from dhtdata.tables.sizes import offset_width
from dhtdata.vault.opened import OpenShard
from dhtdata.vault.shards import GroupShards
from dhtdata.vault.vault import Vault

Rows = NDArray[np.int64]

MAX_BLOCKS = 16_384
"""Per group: 16 GiB of blocks of 1 MiB. Beyond it those that the present rows do not need are forgotten."""
TABLE_ENTRIES = 1 << 16
MAX_HOPS = 3


@dataclass(frozen=True)
class Form:
    """How a column's values lie: ``flat`` items one after another, behind offsets of ``offset_bytes`` if not 0.

    ``flat`` is None for strings and binaries: bytes behind offsets. ``extended``: Python has values of its own for this
    type, which are not those of its storage.
    """

    flat: Flat | None
    offset_bytes: int
    text: bool = False
    extended: bool = False

    @classmethod
    def of(cls, kind: pa.DataType, stored: pa.DataType) -> Form | None:
        """None for what only Arrow reads: structs, maps, unions, decimals, lists of strings or lists."""
        extended = has_own_values(kind)
        kind = plain_type(kind)
        flat = Flat.of(kind)
        if flat is not None:
            return cls(flat, 0, extended=extended)
        offsets = offset_width(stored)
        if pa.types.is_string(stored) or pa.types.is_large_string(stored):
            return cls(None, offsets, text=True, extended=extended)
        if pa.types.is_binary(stored) or pa.types.is_large_binary(stored):
            return cls(None, offsets, extended=extended)
        if pa.types.is_list(stored) or pa.types.is_large_list(stored):
            items = Flat.of(kind.value_type)
            if items is not None and items.stored != np.bool_ and items.axes is None:
                return cls(items, offsets)
        return None

    @property
    def width(self) -> int:
        """Bytes of an item; 1 for the bytes of strings."""
        if self.flat is None:
            return 1
        return self.flat.stored.itemsize * int(np.prod(self.flat.shape, dtype=np.int64))

    def locate(self, array: pa.Array) -> tuple[int, int, int, int]:
        """Addresses of values, validity and offsets (0: none), and whether items have nulls (1) of their own."""
        validity = _address(array, 0) if array.null_count else 0
        offsets = 0
        if self.offset_bytes:
            offsets = _address(array, 1)
            if self.flat is None:
                return _address(array, 2), validity, offsets, 0
            array = array.values
        awkward = bool(self.offset_bytes and array.null_count)
        for _ in range(self.flat.depth if self.flat is not None else 0):
            array = array.values
            awkward = awkward or array.null_count > 0
        return _address(array, 1), validity, offsets, int(awkward)


@dataclass(frozen=True)
class Places:
    """One column in all blocks; each array has shape (blocks,). Everything is relative to the chart's ``low``.

    Row r of block b: without offsets its value is unit ``values[b] + r * (width / unit)``; with offsets these are items
    ``offsets[b] + r`` and ``+ 1``, and count from byte ``values[b]``. Bit ``valid[b] + r`` says whether it is null,
    where ``nullable[b]``.
    """

    values: Rows
    valid: Rows
    offsets: Rows
    nullable: NDArray[np.bool_]
    awkward: NDArray[np.bool_]
    any_nullable: bool
    any_awkward: bool


@dataclass(frozen=True)
class Chart:
    """A snapshot, never changed. ``bounds`` of shape (blocks + 1,) are rows; unknown blocks are gaps."""

    bounds: Rows
    known: NDArray[np.bool_]
    places: Mapping[str, Places]
    low: int
    high: int
    maps: tuple[pa.Buffer, ...]
    """Keeps mapped what the addresses lead to."""
    complete: bool
    _table: Rows
    _shift: int
    _hops: int

    @classmethod
    def draw(cls, forms: Mapping[str, Form], rows: int, blocks: _Blocks, maps: tuple[pa.Buffer, ...]) -> Chart:
        bounds = np.unique(np.concatenate([np.array([0, rows]), blocks.firsts, blocks.stops]))
        number = np.searchsorted(bounds, blocks.firsts)
        known = np.zeros(bounds.size - 1, np.bool_)
        known[number] = True
        low = min((buffer.address for buffer in maps), default=ALIGNMENT) // ALIGNMENT * ALIGNMENT
        high = max((buffer.address + buffer.size for buffer in maps), default=2 * ALIGNMENT)
        places = {
            name: _places(form, bounds.size - 1, number, blocks.firsts, blocks.addresses[:, position], low)
            for position, (name, form) in enumerate(forms.items())
        }
        shift = max(rows.bit_length() - TABLE_ENTRIES.bit_length() + 1, 0)
        table = np.searchsorted(bounds, np.arange((rows >> shift) + 2, dtype=np.int64) << shift, "right") - 1
        hops = int(np.diff(table).max(initial=0))
        return cls(bounds, known, places, low, high, maps, bool(known.all()), table, shift, hops)

    def blocks(self, rows: Rows) -> Rows:
        """Number of the block, or gap, that holds each of these rows."""
        if self._hops > MAX_HOPS:
            return np.searchsorted(self.bounds, rows, "right") - 1
        # Searching costs 30 to 60 ns a row, more than gathering a number; this takes 5.
        found = self._table.take(rows >> self._shift)
        for _ in range(self._hops):
            found += rows >= self.bounds.take(found + 1)
        return found


@dataclass(frozen=True)
class _Blocks:
    """Known blocks, in any order: ``addresses`` has shape (blocks, columns, 4), see `Form.locate`."""

    firsts: Rows
    stops: Rows
    shards: Rows
    addresses: Rows

    @classmethod
    def none(cls, columns: int) -> _Blocks:
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, np.empty((0, columns, 4), np.int64))

    def chosen(self, which: NDArray[np.bool_]) -> _Blocks:
        return _Blocks(self.firsts[which], self.stops[which], self.shards[which], self.addresses[which])

    def joined(self, other: _Blocks) -> _Blocks:
        return _Blocks(
            np.concatenate([self.firsts, other.firsts]),
            np.concatenate([self.stops, other.stops]),
            np.concatenate([self.shards, other.shards]),
            np.concatenate([self.addresses, other.addresses]),
        )


Waiting = Callable[[], AbstractContextManager[None]]
"""Entered while blocks are waited for."""


class Charts:
    """The charts of a split's groups in this process; blocks are added when rows of them are first asked for."""

    def __init__(
        self, vault: Vault, groups: Sequence[GroupShards], logical: pa.Schema, rows: int, waiting: Waiting
    ) -> None:
        self._vault = vault
        self._waiting = waiting
        self._groups = [_GroupChart(group, logical, rows) for group in groups]
        self._adding = threading.Lock()
        self._closings = 0

    def covering(self, rows: Rows) -> list[tuple[GroupShards, Chart, Rows]]:
        """Per group a chart on which all these rows are known, and the number of each row's block."""
        if self._vault.look() != self._closings:
            with self._adding:
                self._closings = self._vault.look()
                for own in self._groups:
                    own.drop_closed()
        found = [(own.group, own.chart, own.chart.blocks(rows)) for own in self._groups]
        if all(chart.complete or chart.known.take(blocks).all() for _, chart, blocks in found):
            return found
        with self._adding:
            with self._waiting():
                wanted = [own.wanted(self._vault, rows) for own in self._groups]
                self._vault.ensure((shard, blocks) for of_group in wanted for _, shard, blocks in of_group)
            for own, of_group in zip(self._groups, wanted, strict=True):
                own.add(self._vault, of_group, rows)
            return [(own.group, own.chart, own.chart.blocks(rows)) for own in self._groups]


_Wanted = list[tuple[int, OpenShard, list[int]]]
"""Number of a shard, the shard, and some of its blocks."""


class _GroupChart:
    def __init__(self, group: GroupShards, logical: pa.Schema, rows: int) -> None:
        self.group = group
        forms = {name: Form.of(logical.field(name).type, group.stored.field(name).type) for name in group.columns}
        self._forms = {name: form for name, form in forms.items() if form is not None}
        self._rows = rows
        self._blocks = _Blocks.none(len(self._forms))
        self._maps: dict[int, list[pa.Buffer]] = {}
        self._shards: dict[int, set[OpenShard]] = {}
        self.chart = Chart.draw(self._forms, rows, self._blocks, ())

    def wanted(self, vault: Vault, rows: Rows) -> _Wanted:
        """Blocks that hold these rows and are not known yet."""
        missing = np.unique(rows[~self.chart.known.take(self.chart.blocks(rows))])
        found: _Wanted = []
        while missing.size:
            number = int(np.searchsorted(self.group.firsts, missing[0], "right")) - 1
            stop = int(np.searchsorted(missing, self.group.firsts[number + 1], "left"))
            shard = vault.shard(self.group, number)
            local = missing[:stop] - self.group.firsts[number]
            found.append((number, shard, np.unique(np.searchsorted(shard.firsts, local, "right")).tolist()))
            missing = missing[stop:]
        return found

    def add(self, vault: Vault, wanted: _Wanted, rows: Rows) -> None:
        """Blocks that are here now. ``rows`` are those that a chart of bounded size must keep."""
        if self._blocks.firsts.size + sum(len(blocks) for _, _, blocks in wanted) > MAX_BLOCKS:
            self._forget(rows)  # before the maps of what is wanted are kept: no block of theirs is on the chart yet
        fresh = self._located(vault, wanted)
        self._blocks = self._blocks.joined(fresh)
        self._draw()

    def drop_closed(self) -> None:
        """Forget the blocks of shards that the vault has closed."""
        closed = [number for number, opened in self._shards.items() if any(shard.closed for shard in opened)]
        if closed:
            self._keep_blocks(~np.isin(self._blocks.shards, closed))
            self._draw()

    def _draw(self) -> None:
        maps = tuple(buffer for buffers in self._maps.values() for buffer in buffers)
        self.chart = Chart.draw(self._forms, self._rows, self._blocks, maps)

    def _located(self, vault: Vault, wanted: _Wanted) -> _Blocks:
        firsts, stops, shards, addresses = [], [], [], []
        for number, shard, blocks in wanted:
            self._shards.setdefault(number, set()).add(shard)
            for block in blocks:
                entry = shard.table.blocks[block]
                batch, mapped = vault.opened(shard, block)
                self._keep(number, mapped)
                firsts.append(int(self.group.firsts[number]) + entry.first_row)
                stops.append(firsts[-1] + entry.rows)
                shards.append(number)
                addresses.append([form.locate(batch.column(name)) for name, form in self._forms.items()])
        shape = (len(firsts), len(self._forms), 4)
        return _Blocks(
            np.array(firsts, np.int64),
            np.array(stops, np.int64),
            np.array(shards, np.int64),
            np.array(addresses, np.int64).reshape(shape),
        )

    def _keep(self, number: int, mapped: pa.Buffer) -> None:
        """A shard that became whole is mapped anew: both maps have blocks on the chart."""
        kept = self._maps.setdefault(number, [])
        if all(buffer.address != mapped.address for buffer in kept):
            kept.append(mapped)

    def _forget(self, rows: Rows) -> None:
        needed = np.zeros(self.chart.known.size, np.bool_)
        needed[self.chart.blocks(rows)] = True
        self._keep_blocks(needed[np.searchsorted(self.chart.bounds, self._blocks.firsts)])

    def _keep_blocks(self, which: NDArray[np.bool_]) -> None:
        self._blocks = self._blocks.chosen(which)
        left = set(self._blocks.shards.tolist())
        self._maps = {number: buffers for number, buffers in self._maps.items() if number in left}
        self._shards = {number: opened for number, opened in self._shards.items() if number in left}


def _places(form: Form, count: int, number: Rows, firsts: Rows, found: Rows, low: int) -> Places:
    """``found`` has shape (known blocks, 4). Addresses become relative to ``low`` and to the split's first row."""
    values, valid, offsets, nullable, awkward = (np.zeros(count, np.int64) for _ in range(5))
    if form.offset_bytes:
        values[number] = found[:, 0] - low
        offsets[number] = (found[:, 2] - low) // form.offset_bytes - firsts
    elif form.flat is not None and form.flat.stored == np.bool_:
        values[number] = (found[:, 0] - low) * 8 - firsts
    elif form.width:
        unit = unit_of(form.width)
        values[number] = (found[:, 0] - low) // unit - firsts * (form.width // unit)
    nullable[number] = found[:, 1] != 0
    valid[number] = np.where(found[:, 1] != 0, (found[:, 1] - low) * 8 - firsts, 0)
    awkward[number] = found[:, 3]
    marked, odd = nullable.astype(np.bool_), awkward.astype(np.bool_)
    return Places(values, valid, offsets, marked, odd, bool(marked.any()), bool(odd.any()))


def _address(array: pa.Array, number: int) -> int:
    buffer = array.buffers()[number]
    return buffer.address if buffer is not None else 0
