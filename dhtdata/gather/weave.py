"""Rows of several datasets as one: gathered from each, then put into the order of a mix, column by column."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.gather.columns import Column
from dhtdata.gather.gatherer import Gatherer, Placed
from dhtdata.gather.ragged import Ragged
from dhtdata.gather.texts import Woven
from dhtdata.order.mixing import split

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Weave:
    """Where the rows of each source go: value i of the whole is value ``at[i]`` of part ``which[i]``."""

    which: NDArray[np.uint16]
    at: Rows
    places: tuple[Rows, ...]

    @classmethod
    def of(cls, which: NDArray[np.uint16], count: int) -> Weave:
        """``which`` of the ``count`` parts each value is of; parts have their values in this order."""
        places = tuple(np.flatnonzero(which == part) for part in range(count))
        at = np.empty(which.size, np.int64)
        for place in places:
            at[place] = np.arange(place.size)
        return cls(which, at, places)

    def column(self, parts: Sequence[Any], later: bool = False) -> Any:
        """One column out of that of each part: arrays, masked ones, dicts of these, lists end to end, sequences.

        ``later``: see `Gathers.numpy`.
        """
        first = parts[0]
        if all(isinstance(part, Placed) and part.flat == first.flat for part in parts):
            return self._placed(parts).settled(later)
        parts = [part.taken() if isinstance(part, Placed) else part for part in parts]
        first = parts[0]
        if len(parts) == 1:
            return first
        if isinstance(first, dict):
            return {name: self.column([part[name] for part in parts]) for name in first}
        if isinstance(first, Ragged):
            return self._ragged(parts)
        if not all(isinstance(part, np.ndarray) for part in parts):
            return Woven(tuple(parts), self.which, self.at)
        if any(isinstance(part, np.ma.MaskedArray) for part in parts):
            mask = self._array([np.ma.getmaskarray(part) for part in parts])
            return np.ma.MaskedArray(self._array([np.ma.getdata(part) for part in parts]), mask=mask)
        return self._array(parts)

    def batch(self, parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(part.num_rows for part in parts[:-1])])
        return pa.concat_batches(parts).take(pa.array(before[self.which] + self.at))

    def _placed(self, parts: Sequence[Placed]) -> Placed:
        """Where all values lie: they are copied once, whichever part they are of."""
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        valid = None
        if any(part.valid is not None for part in parts):
            valid = self._array(
                [np.ones(part.units.size, np.bool_) if part.valid is None else part.valid for part in parts]
            )
        return replace(
            parts[0],
            low=low,
            high=high,
            maps=tuple(buffer for part in parts for buffer in part.maps),
            units=self._array([part.behind(low) for part in parts]),
            valid=valid,
        )

    def _array(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        made = np.empty((self.which.size, *parts[0].shape[1:]), parts[0].dtype)
        for part, place in zip(parts, self.places, strict=True):
            made[place] = part
        return made

    def _ragged(self, parts: Sequence[Ragged]) -> Ragged:
        before = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
        starts = self._array([part.bounds[:-1] + shift for part, shift in zip(parts, before, strict=True)])
        lengths = self._array([part.lengths for part in parts])
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        index = np.repeat(starts - bounds[:-1], lengths) + np.arange(bounds[-1])
        masked = any(isinstance(part.values, np.ma.MaskedArray) for part in parts)
        values = (np.ma.concatenate if masked else np.concatenate)([part.values for part in parts])
        return Ragged(values[index], bounds)


class MixGatherer:
    """`Gathers` rows of a mix. ``logical`` is the schema that the sources share; ``column`` gets their numbers."""

    def __init__(self, gatherers: Callable[[int], Gatherer], logical: pa.Schema, column: str | None) -> None:
        self._gatherers = gatherers
        self._column = column
        self._names = logical.names
        self.logical = logical if column is None else logical.append(pa.field(column, pa.int64(), nullable=False))

    def numpy(
        self, rows: Rows, ragged: Container[str] = (), later: bool = False
    ) -> dict[str, Column | Ragged | Placed]:
        return self._woven(rows, lambda gatherer, own: gatherer.placed(own, ragged), lambda sources: sources, later)

    def python(self, rows: Rows) -> dict[str, Sequence[Any]]:
        return self._woven(rows, lambda gatherer, own: gatherer.python(own), lambda sources: sources.tolist())

    def stored(self, rows: Rows) -> pa.RecordBatch:
        weave, parts, sources = self._taken(rows, lambda gatherer, own: gatherer.stored(own).select(self._names))
        batch = weave.batch(parts)
        return batch if self._column is None else batch.append_column(self._column, pa.array(sources))

    def _woven(
        self,
        rows: Rows,
        take: Callable[[Gatherer, Rows], Mapping[str, Any]],
        numbers: Callable[[Rows], Any],
        later: bool = False,
    ) -> dict[str, Any]:
        weave, parts, sources = self._taken(rows, take)
        columns = {name: weave.column([part[name] for part in parts], later) for name in self._names}
        if self._column is not None:
            columns[self._column] = numbers(sources)
        return columns

    def _taken(self, rows: Rows, take: Callable[[Gatherer, Rows], Any]) -> tuple[Weave, list[Any], Rows]:
        """What is taken of each source that has rows here, how these go together, and the source of each row."""
        sources, own = split(rows)
        present = np.flatnonzero(np.bincount(sources))
        weave = Weave.of(np.searchsorted(present, sources).astype(np.uint16), present.size)
        parts = [
            take(self._gatherers(source), own[place])
            for source, place in zip(present.tolist(), weave.places, strict=True)
        ]
        return weave, parts, sources.astype(np.int64)
