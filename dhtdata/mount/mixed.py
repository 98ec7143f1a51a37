"""Several datasets as one supply of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhtdata.gather.columns import copied_bytes
from dhtdata.gather.parcels import Items, Parcel, Reading
from dhtdata.gather.weave import MixGatherer
from dhtdata.mount.loop import Loop
from dhtdata.mount.pipeline import Pipeline
from dhtdata.mount.view import View
from dhtdata.order import Dealt
from dhtdata.order.mixing import coded, split

Rows = NDArray[np.int64]


class MixSupply:
    """The supply of a mix; a row has its source in its number, see `dhtdata.order.mixing`."""

    def __init__(
        self, views: Sequence[tuple[View, int]], parts: Sequence[int], logical: pa.Schema, column: str | None
    ) -> None:
        self.views = views
        bytes_by_source = (part * view.byte_count / view.num_rows for part, (view, _) in zip(parts, views, strict=True))
        self.row_bytes = sum(bytes_by_source) / sum(parts)
        self.copied_bytes = copied_bytes(logical)
        self._logical = logical
        self._column = column

    def rows(self, positions: Rows) -> Rows:
        if all(view.selection() is None for view, _ in self.views):
            return positions
        sources, own = split(positions)
        rows = np.empty_like(positions)
        for source in np.flatnonzero(np.bincount(sources)).tolist():
            place = sources == source
            rows[place] = coded(source, self.views[source][0].rows(own[place]))
        return rows

    def gather(self, dealt: Dealt, reading: Reading, batched: bool) -> tuple[Parcel, Dealt]:
        gatherer = MixGatherer(lambda source: self.views[source][0].gatherer(), self._logical, self._column)
        return reading.read(gatherer, dealt, batched)


@dataclass(frozen=True)
class InTurn:
    """Parcels whose items take turns: item i is the next one of ``parcels[turns[i]]``."""

    parcels: tuple[Any, ...]
    turns: tuple[int, ...]

    def unpack(self) -> Iterator[Any]:
        items = [parcel.unpack() for parcel in self.parcels]
        return (next(items[turn]) for turn in self.turns)

    def pin_memory(self) -> InTurn:
        """See `dhtdata.torch.parcels.Tensors`."""
        pins = [getattr(parcel, "pin_memory", None) for parcel in self.parcels]
        pinned = (parcel if pin is None else pin() for parcel, pin in zip(self.parcels, pins, strict=True))
        return InTurn(tuple(pinned), self.turns)


class TurnPipeline(Pipeline):
    """Makes parcels of a mix whose steps are of one source each: every source's as that source's loop wants them."""

    def __init__(
        self, supply: MixSupply, loop: Loop, sources: Sequence[tuple[MixSupply, Loop]], format: str | None
    ) -> None:
        super().__init__(supply, loop, format)
        self._sources = [Pipeline(of_source, own, self._reading.format) for of_source, own in sources]

    def _make(self, dealt: Dealt) -> Parcel:
        sources, _ = split(dealt.rows)
        by_step = sources[np.asarray(dealt.bounds[:-1], np.int64)]
        present = np.flatnonzero(np.bincount(by_step)).tolist()
        parcels = [self._sources[source]._make(_of_source(dealt, sources, by_step, source)) for source in present]
        made: Parcel = InTurn(tuple(parcels), tuple(np.searchsorted(present, by_step).tolist()))
        if any(isinstance(parcel, Items) for parcel in parcels):
            made = Items(list(made.unpack()))
        transform = self._loop.transform
        return made if transform is None else transform.apply(made, dealt, self._reading, self._loop.batched)


def _of_source(dealt: Dealt, sources: NDArray[np.uint16], by_step: NDArray[np.uint16], source: int) -> Dealt:
    """The steps that are of this source."""
    mine = sources == source
    sizes = np.diff(dealt.bounds)[by_step == source]
    bounds = (0, *np.cumsum(sizes).tolist())
    return replace(
        dealt, rows=dealt.rows[mine], bounds=bounds, valid=None if dealt.valid is None else dealt.valid[mine]
    )
