"""`StreamingDataset`: a split as a training loop iterates over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.formats.statistics import ColumnStatistics
from dhtdata.gather.parcels import VALID
from dhtdata.mount.epochs import Epochs, Run
from dhtdata.mount.frames import to_pandas, to_polars
from dhtdata.mount.loop import Loop
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.meter import Held
from dhtdata.mount.pipeline import Pipeline, Single
from dhtdata.mount.stream import Stream
from dhtdata.mount.view import View
from dhtdata.order import EpochOrder, OrderKey, Pieces, Share, State, Steps, Turns
from dhtdata.vault.horizon import Needs
from dhtdata.vault.readahead import usual_ahead_bytes

if TYPE_CHECKING:
    from dhtdata.mount.frames import PandasFrame, PolarsFrame


class StreamingDataset(Stream):
    """Rows (dicts), or batches if mounted with ``batch_size``, in the order of `dhtdata.order`.

    Each iteration is the next epoch, unless `set_epoch` or `load_state_dict` said which. ``len()`` is the number of
    items that a whole epoch yields on this rank. Under "pad" every item has ``_valid``, which is False where a row
    only fills a batch. `dhtdata.torch.DataLoader` loads it with workers and keeps the state. torch's own DataLoader
    loads it too, with ``batch_size=None``; nobody knows then how much a loop has received from its workers.
    """

    def __init__(self, view: View, loop: Loop) -> None:
        self._view = view
        self._loop = loop
        self._pieces = Pieces(view.ranges)
        self._lanes = loop.crew.nodes if loop.shuffle else 1
        self._epochs = Epochs(Run(0, 0, self._lanes))
        if loop.remainder == "pad" and VALID in view.schema.names:
            raise ConfigError(
                f"column {VALID!r} collides with the mark of padding: mount with remainder='drop' or 'uneven'"
            )
        kept = f" that filter {view.filter_key} keeps" if view.filter_key else ""
        if loop.remainder == "uneven" and view.num_rows < loop.crew.ranks:
            raise ConfigError(
                f"split {view.split.name!r} has {view.num_rows} rows{kept}, fewer than the {loop.crew.ranks} ranks, "
                "and remainder='uneven' would leave some without a step: choose remainder='pad' or fewer ranks"
            )
        if not len(self):
            raise ConfigError(
                f"split {view.split.name!r} has {view.num_rows} rows{kept}, fewer than one global batch of "
                f"{loop.global_batch}, and remainder={loop.remainder!r} leaves none: choose a smaller batch_size"
            )
        ahead_bytes = view.look_ahead(self.needs(), loop.predownload_bytes, self._usual_ahead())
        self._loop = replace(loop, predownload_bytes=ahead_bytes)

    # What it is

    @property
    def schema(self) -> pa.Schema:
        """Columns with the types that were published."""
        return self._view.schema

    @property
    def num_rows(self) -> int:
        """Rows of the whole split, as far as the filter keeps them, all ranks together."""
        return self._view.num_rows

    def __len__(self) -> int:
        order = EpochOrder(self._pieces, seed=0, epoch=0, shuffle=False)
        return len(self._cut(order, self._share(), 0))

    def __repr__(self) -> str:
        columns = ", ".join(self.schema.names)
        split = self._view.split.name
        return f"<StreamingDataset {self._view.dataset.title} split {split}: {self.num_rows} rows of {columns}>"

    def stats(self) -> dict[str, ColumnStatistics]:
        """Statistics of this split by column, as far as the publisher kept them; of all its rows, filter or not."""
        names = set(self.schema.names)
        for split in self._view.statistics().splits:
            if split.name == self._view.split.name:
                return {column.name: column for column in split.columns if column.name in names}
        return {}

    # Reading

    def map_style(self) -> MapStyleDataset:
        """Random access to all rows of the split, in source order. ConfigError under a transform, which loops have."""
        if self._loop.transform is not None:
            raise ConfigError(
                "transform belongs to loops: for random access mount without it, and call the function on what you take"
            )
        return MapStyleDataset(self._view, self._loop.reading_by_number())

    def to_arrow(self) -> pa.Table:
        """The whole split as one table. Fetches all of it, and maps it from disk unless a filter leaves out rows."""
        from dhtdata.tables.logical import to_logical_table

        if self._view.selection() is not None:
            at_once = Pipeline(Single(self._view, self._loop), replace(self._loop, batch_size=None)).steps_at_once
            cuts = ((first, min(first + at_once, self.num_rows)) for first in range(0, self.num_rows, at_once))
            return to_logical_table(self._view.stored(cuts), self.schema)
        columns: dict[str, pa.ChunkedArray] = {}
        for group in self._view.groups:
            table = pa.Table.from_batches(list(self._view.batches(group)))
            columns |= dict(zip(table.column_names, table.columns, strict=True))
        table = pa.table({name: columns[name] for name in self.schema.names})
        return to_logical_table(table.to_batches(), self.schema)

    def to_pandas(self, **options: Any) -> PandasFrame:
        """The whole split as a DataFrame; ``options`` are those of ``pyarrow.Table.to_pandas``. Fetches all of it."""
        return to_pandas(self.to_arrow(), options)

    def to_polars(self) -> PolarsFrame:
        """The whole split as a Polars frame. Fetches all of it; what Polars stores as Arrow does stays mapped."""
        return to_polars(self.to_arrow())

    # What a stream is

    def held(self) -> Held:
        return self._view.held()

    def close(self) -> None:
        self._view.close()

    def steps(self, run: Run, worker: int = 0, workers: int = 1) -> Steps:
        return self._cut(self.order(run.epoch, run.lanes), self._share(worker, workers), run.rows)

    @property
    def view(self) -> View:
        """What is read."""
        return self._view

    @property
    def loop(self) -> Loop:
        """How it is read."""
        return self._loop

    @property
    def lanes(self) -> int:
        """Lanes of an epoch that begins here."""
        return self._lanes

    def order(self, epoch: int, lanes: int) -> EpochOrder:
        """Which rows come when."""
        loop = self._loop
        return EpochOrder(
            self._pieces, seed=loop.seed, epoch=epoch, shuffle=loop.shuffle, window=loop.window, lanes=lanes
        )

    def state_at(self, run: Run) -> dict[str, Any]:
        return self.state_of(run).as_dict()

    def state_of(self, run: Run) -> State:
        """The state of who stands there."""
        return State(
            contents=str(self._view.dataset.contents_digest),
            key=self._key(),
            seed=self._loop.seed,
            epoch=run.epoch,
            rows=run.rows,
            global_batch=self._loop.global_batch,
            lanes=run.lanes,
        )

    def read_state(self, state: Mapping[str, Any]) -> State:
        """A state of this dataset. ConfigError names what does not fit."""
        found = State.from_dict(
            state, contents=str(self._view.dataset.contents_digest), key=self._key(), seed=self._loop.seed
        )
        if found.rows > self.num_rows:
            raise ConfigError(f"the state has consumed {found.rows} rows, this split has {self.num_rows}")
        return found

    def _read(self, state: Mapping[str, Any]) -> tuple[Run, int]:
        found = self.read_state(state)
        return Run(found.epoch, found.rows, found.lanes), found.global_batch

    def _pipeline(self, steps: Turns, format: str | None) -> Pipeline:
        return Pipeline(Single(self._view, self._loop), self._loop, format)

    def _usual_ahead(self) -> int:
        """Bytes of one window: the next one must be here when the loop enters it, or the loop waits."""
        window = self._loop.window if self._loop.shuffle else 0
        return usual_ahead_bytes(self._view.byte_count, len(self._view.ranges), window)

    def needs(self) -> Needs:
        """What a loop over this must hold at once."""
        crew = self._loop.crew
        lanes = min(-(-crew.nodes * crew.local // crew.ranks), self._lanes)
        window = self._loop.window if self._loop.shuffle else 1
        return Needs.of(self._view.groups, self._pieces, window, lanes, self._view.selection())

    def _cut(self, order: EpochOrder, share: Share, consumed: int) -> Steps:
        return Steps(
            order, share, global_batch=self._loop.global_batch, remainder=self._loop.remainder, consumed=consumed
        )

    def _key(self) -> OrderKey:
        return self._loop.key(self._view.split.name, self._view.filter_key)
