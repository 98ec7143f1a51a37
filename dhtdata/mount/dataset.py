"""`StreamingDataset`: a split as a training loop iterates over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.formats.statistics import ColumnStatistics
from dhtdata.mount.loop import Loop
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.parcels import VALID, Parcel
from dhtdata.mount.pipeline import Pipeline
from dhtdata.mount.transform import Skipped
from dhtdata.mount.view import View
from dhtdata.order import EpochOrder, OrderKey, Pieces, Share, State, Steps


@dataclass(frozen=True)
class Run:
    """One iteration: an epoch from a row on."""

    epoch: int
    rows: int
    lanes: int


class StreamingDataset:
    """Rows (dicts), or batches if mounted with ``batch_size``, in the order of `dhtdata.order`.

    Each iteration is the next epoch, unless `set_epoch` or `load_state_dict` said which. ``len()`` is the number of
    items that a whole epoch yields on this rank. Under "pad" every item has ``_valid``, which is False where a row
    only fills a batch. With DataLoader workers use `dhtdata.torch.DataLoader`, which also keeps the state.
    """

    def __init__(self, view: View, loop: Loop) -> None:
        self._view = view
        self._loop = loop
        self._pieces = Pieces(view.ranges)
        self._lanes = loop.crew.nodes if loop.shuffle else 1
        self._next = Run(0, 0, self._lanes)
        self._at: Run | tuple[Run, Steps, int] = self._next
        self._led = False
        if loop.remainder == "pad" and VALID in view.schema.names:
            raise ConfigError(
                f"column {VALID!r} collides with the mark of padding: mount with remainder='drop' or 'uneven'"
            )
        if not len(self):
            raise ConfigError(
                f"split {view.split.name!r} has {view.split.rows} rows, fewer than one global batch of "
                f"{loop.global_batch}, and remainder={loop.remainder!r} leaves none: choose a smaller batch_size"
            )

    # What it is

    @property
    def schema(self) -> pa.Schema:
        """Columns with the types that were published."""
        return self._view.schema

    @property
    def num_rows(self) -> int:
        """Rows of the whole split, all ranks together."""
        return self._view.split.rows

    @property
    def batch_size(self) -> int | None:
        return self._loop.batch_size

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
        """Statistics of this split by column, as far as the publisher kept them."""
        names = set(self.schema.names)
        for split in self._view.statistics().splits:
            if split.name == self._view.split.name:
                return {column.name: column for column in split.columns if column.name in names}
        return {}

    # Reading

    def __iter__(self) -> Iterator[Any]:
        run = self.begin()
        return self._counted(run)

    def __getitem__(self, key: object) -> NoReturn:
        """ConfigError: torch's own DataLoader asks for rows by number of whatever is not torch's IterableDataset."""
        raise ConfigError(
            "a streamed dataset has no rows by number: use map_style(), or load it with dhtdata.torch.DataLoader"
        )

    def map_style(self) -> MapStyleDataset:
        """Random access to all rows of the split, in source order."""
        return MapStyleDataset(self._view, self._loop.format)

    def to_arrow(self) -> pa.Table:
        """The whole split as one table, mapped from disk. Fetches all of it."""
        from dhtdata.tables.logical import to_logical_table

        columns: dict[str, pa.ChunkedArray] = {}
        for group in self._view.groups:
            table = pa.Table.from_batches(list(self._view.batches(group)))
            columns |= dict(zip(table.column_names, table.columns, strict=True))
        table = pa.table({name: columns[name] for name in self.schema.names})
        return to_logical_table(table.to_batches(), self.schema)

    # Where it stands

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its start."""
        if not 0 <= epoch < 1 << 56:
            raise ConfigError(f"epoch: {epoch} is not in 0 to 2^56")
        self._next = self._at = Run(epoch, 0, self._lanes)

    def state_dict(self) -> dict[str, Any]:
        """What has been handed out: small, JSON, the same on every rank. ConfigError while a DataLoader iterates."""
        if self._led:
            raise ConfigError("workers iterate over this dataset: ask the loader for state_dict() instead")
        return self.state_at(self.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from a state, saved by any number of ranks and workers."""
        found = State.from_dict(
            state, contents=str(self._view.dataset.contents_digest), key=self._key(), seed=self._loop.seed
        )
        if found.rows > self.num_rows:
            raise ConfigError(f"the state has consumed {found.rows} rows, this split has {self.num_rows}")
        self._next = self._at = Run(found.epoch, found.rows, found.lanes)

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
        run = self._next
        self._at, self._next = run, self._after(run)
        self._led = led
        return run

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

    def finish(self) -> None:
        """The loader that led an iteration has handed everything out."""
        self._led = False

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
        if isinstance(self._at, Run):
            return self._at
        run, steps, done = self._at
        return Run(run.epoch, steps.position(done), run.lanes) if done < steps.count else self._after(run)

    def parcels(self, steps: Steps, format: str | None = None) -> Iterator[Parcel]:
        """What the steps of one worker yield, several together: see `Steps.parcels`."""
        pipeline = Pipeline(self._view, self._loop, format)
        return pipeline.parcels(steps, steps.parcels(pipeline.steps_at_once))

    def _counted(self, run: Run) -> Iterator[Any]:
        steps = self.steps(run)
        return self.counted(run, steps, self.parcels(steps))

    def counted(self, run: Run, steps: Steps, parcels: Iterable[Parcel]) -> Iterator[Any]:
        """The items of all parcels of an iteration; this dataset knows where it stands."""
        done = 0
        for parcel in parcels:
            for item in parcel.unpack():
                done += 1
                self._at = (run, steps, done)
                if item is not Skipped.ITEM:
                    yield item
        self._at = (run, steps, steps.count)

    def _after(self, run: Run) -> Run:
        return Run(run.epoch + 1, 0, self._lanes)

    def _share(self, worker: int = 0, workers: int = 1) -> Share:
        return Share(self._loop.crew.rank, self._loop.crew.ranks, worker, workers)

    def _cut(self, order: EpochOrder, share: Share, consumed: int) -> Steps:
        return Steps(
            order, share, global_batch=self._loop.global_batch, remainder=self._loop.remainder, consumed=consumed
        )

    def _key(self) -> OrderKey:
        return self._loop.key(self._view.split.name)
