"""`StreamingDataset`: a split as a training loop iterates over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.formats.statistics import ColumnStatistics
from dhtdata.gather.parcels import VALID, Parcel, Skipped
from dhtdata.mount.epochs import Epochs, Run
from dhtdata.mount.frames import to_pandas, to_polars
from dhtdata.mount.loop import Loop
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.meter import Held
from dhtdata.mount.pipeline import Pipeline
from dhtdata.mount.plain import marked_batch, refuse_second_dealing
from dhtdata.mount.ranks import Worker, find_worker
from dhtdata.mount.view import View
from dhtdata.order import EpochOrder, OrderKey, Pieces, Share, State, Steps
from dhtdata.vault.horizon import Needs
from dhtdata.vault.readahead import usual_ahead_bytes

if TYPE_CHECKING:
    from dhtdata.mount.frames import PandasFrame, PolarsFrame


class StreamingDataset:
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
        ahead_bytes = view.look_ahead(self._needs(), loop.predownload_bytes, self._usual_ahead())
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

    @property
    def batch_size(self) -> int | None:
        return self._loop.batch_size

    @property
    def rows_per_item(self) -> int:
        """Rows of a whole batch, 1 without batches."""
        return self._loop.batch_size or 1

    @property
    def format(self) -> str:
        return self._loop.format

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

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()

    def iterate(self, format: str | None = None) -> Iterator[Any]:
        """The next epoch in ``format``, by default that of the mount. In a worker of a DataLoader, its part of it."""
        worker = find_worker()
        if worker is not None:
            return self._worked(self._epochs.begin_with(worker), worker, format)
        self._epochs.expect()
        return self._counted(format)

    def __getitem__(self, key: object) -> NoReturn:
        """ConfigError: torch's own DataLoader asks for rows by number of whatever is not torch's IterableDataset."""
        raise ConfigError(
            "a streamed dataset has no rows by number: use map_style(); with torch's DataLoader import torch before "
            "mounting, or use dhtdata.torch.DataLoader"
        )

    def iter_numpy(self) -> Iterator[Any]:
        """The next epoch as numpy arrays, whatever ``format`` the mount has; epochs and state count on.

        Arrays of numbers are contiguous (but those of a permuted FixedShapeTensor) and in native byte order, as
        ``jax.numpy.asarray`` takes them.
        """
        return self.iterate("numpy")

    def iter_arrow(self) -> Iterator[Any]:
        """The next epoch as Arrow's record batches, or dicts of its scalars, of the types that were published.

        Nothing is collated or decoded. Epochs and state count on.
        """
        self._loop.check_transform("arrow")
        return self.iterate("arrow")

    def map_style(self) -> MapStyleDataset:
        """Random access to all rows of the split, in source order."""
        return MapStyleDataset(self._view, self._loop.reading_by_number())

    def to_arrow(self) -> pa.Table:
        """The whole split as one table. Fetches all of it, and maps it from disk unless a filter leaves out rows."""
        from dhtdata.tables.logical import to_logical_table

        if self._view.selection() is not None:
            at_once = Pipeline(self._view, replace(self._loop, batch_size=None)).steps_at_once
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

    # Where it stands

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its start."""
        if not 0 <= epoch < 1 << 56:
            raise ConfigError(f"epoch: {epoch} is not in 0 to 2^56")
        refuse_second_dealing(self)
        self._epochs.choose(Run(epoch, 0, self._lanes))

    def state_dict(self) -> dict[str, Any]:
        """What has been handed out: small, JSON, the same on every rank. ConfigError while a DataLoader iterates.

        In a worker of a DataLoader (torchdata's StatefulDataLoader asks there) it is this worker's own position, which
        only the same worker of as many goes on from, at the same global batch.
        """
        worker = find_worker()
        if worker is None:
            return self.state_at(self._epochs.standing())
        return self.state_at(self._epochs.at) | {"worker": worker.number, "workers": worker.workers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from a state, saved by any number of ranks and workers."""
        found = State.from_dict(
            state, contents=str(self._view.dataset.contents_digest), key=self._key(), seed=self._loop.seed
        )
        if found.rows > self.num_rows:
            raise ConfigError(f"the state has consumed {found.rows} rows, this split has {self.num_rows}")
        if "worker" in state:
            self._check_worker(state, found.global_batch)
        self._epochs.choose(Run(found.epoch, found.rows, found.lanes))

    def _check_worker(self, state: Mapping[str, Any], global_batch: int) -> None:
        """A worker's position counts the steps of that worker: what is left is its part only among as many workers."""
        worker = find_worker()
        here = None if worker is None else (worker.number, worker.workers, self._loop.global_batch)
        if (state["worker"], state.get("workers"), global_batch) != here:
            raise ConfigError(
                f"the state is that of worker {state['worker']} of {state.get('workers')} at a global batch of "
                f"{global_batch}, and nobody else can go on from it: use as many workers and rows, or save the state "
                "of a dhtdata.torch.DataLoader, which any number goes on from"
            )

    def held(self) -> Held:
        """What all processes that read for this dataset waited for, and hold ahead of their loops."""
        return self._view.held()

    def standing(self) -> tuple[int, int]:
        """Epoch of the latest iteration, and how many items of that epoch this rank has had."""
        at = self.position
        return at.epoch, at.rows // self._loop.global_batch

    def close(self) -> None:
        """Unmap all shards and leave the peer. Arrays that were handed out stay valid."""
        self._view.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For loaders that spread steps over workers

    def begin(self, *, led: bool = False) -> Run:
        """Start the next iteration. ``led``: somebody else counts what is handed out, by `moved`."""
        self._loop.crew.confirm()
        return self._epochs.begin(led=led)

    def steps(self, run: Run, worker: int = 0, workers: int = 1) -> Steps:
        """This rank's steps of an iteration, those of one worker to be dealt."""
        order = EpochOrder(
            self._pieces,
            seed=self._loop.seed,
            epoch=run.epoch,
            shuffle=self._loop.shuffle,
            window=self._loop.window,
            lanes=run.lanes,
        )
        return self._cut(order, self._share(worker, workers), run.rows)

    def finish(self, run: Run) -> None:
        """The loader that led an iteration has handed everything out, or gives it up."""
        self._epochs.finish(run)

    def state_at(self, run: Run) -> dict[str, Any]:
        return State(
            contents=str(self._view.dataset.contents_digest),
            key=self._key(),
            seed=self._loop.seed,
            epoch=run.epoch,
            rows=run.rows,
            global_batch=self._loop.global_batch,
            lanes=run.lanes,
        ).as_dict()

    @property
    def position(self) -> Run:
        """Where the latest iteration stands."""
        return self._epochs.at

    def parcels(self, steps: Steps, format: str | None = None) -> Iterator[Parcel]:
        """What the steps of one worker yield, several together: see `Steps.parcels`."""
        pipeline = Pipeline(self._view, self._loop, format)
        return pipeline.parcels(steps, steps.parcels(pipeline.steps_at_once))

    def _counted(self, format: str | None) -> Iterator[Any]:
        """It begins when its first item is asked for: loaders make iterators that they never use."""
        run = self.begin()
        steps = self.steps(run)
        yield from self._shown(self.counted(run, steps, self.parcels(steps, format)))

    def _worked(self, run: Run, worker: Worker, format: str | None) -> Iterator[Any]:
        """One worker's turns."""
        steps = self.steps(run, worker.number, worker.workers)
        pipeline = Pipeline(self._view, self._loop, format)
        parcels = pipeline.parcels(steps, steps.turns(pipeline.steps_at_once))
        yield from self._shown(self.counted(run, steps, parcels))
        self._epochs.finish_with(worker)

    def _shown(self, items: Iterator[Any]) -> Iterator[Any]:
        mark = marked_batch() if self._loop.batched else None
        return items if mark is None else (mark(item) for item in items)

    def counted(self, run: Run, steps: Steps, parcels: Iterable[Parcel]) -> Iterator[Any]:
        """The items of all parcels of an iteration; this dataset knows where it stands."""
        done = 0
        for parcel in parcels:
            for item in parcel.unpack():
                done += 1
                self._epochs.moved(run, steps, done)
                if item is not Skipped.ITEM:
                    yield item
        self._epochs.moved(run, steps, steps.count)

    def _usual_ahead(self) -> int:
        """Bytes of one window: the next one must be here when the loop enters it, or the loop waits."""
        window = self._loop.window if self._loop.shuffle else 0
        return usual_ahead_bytes(self._view.byte_count, len(self._view.ranges), window)

    def _needs(self) -> Needs:
        crew = self._loop.crew
        lanes = min(-(-crew.nodes * crew.local // crew.ranks), self._lanes)
        window = self._loop.window if self._loop.shuffle else 1
        return Needs.of(self._view.groups, self._pieces, window, lanes, self._view.selection())

    def _share(self, worker: int = 0, workers: int = 1) -> Share:
        return Share(self._loop.crew.rank, self._loop.crew.ranks, worker, workers)

    def _cut(self, order: EpochOrder, share: Share, consumed: int) -> Steps:
        return Steps(
            order, share, global_batch=self._loop.global_batch, remainder=self._loop.remainder, consumed=consumed
        )

    def _key(self) -> OrderKey:
        return self._loop.key(self._view.split.name, self._view.filter_key)
