"""`Stream`: what a training loop iterates over, whatever it is made of: epochs, steps, a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

from dhtdata.errors import ConfigError
from dhtdata.gather.parcels import Parcel, Skipped
from dhtdata.mount.arguments import whole
from dhtdata.mount.epochs import Epochs, Run
from dhtdata.mount.loop import Loop
from dhtdata.mount.meter import Held
from dhtdata.mount.pipeline import Pipeline
from dhtdata.mount.plain import marked_batch, refuse_second_dealing
from dhtdata.mount.ranks import Worker, find_worker
from dhtdata.order import MAX_EPOCHS, Share, Turns


class Stream(ABC):
    """Rows (dicts) or batches, epoch after epoch."""

    _loop: Loop
    _epochs: Epochs

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

    # Where it stands

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its start."""
        epoch = whole("epoch", epoch)
        if not 0 <= epoch < MAX_EPOCHS:
            raise ConfigError(f"epoch: {epoch} is not in 0 to 2^56")
        refuse_second_dealing(self)
        self._epochs.choose(self._epochs.start_of(epoch))

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
        run, global_batch = self._read(state)
        if "worker" in state:
            self._check_worker(state, global_batch)
        self._epochs.choose(run)

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

    def standing(self) -> tuple[int, int]:
        """Epoch of the latest iteration, and how many items of that epoch this rank has had."""
        at = self.position
        return at.epoch, at.rows // self._loop.global_batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def __len__(self) -> int:
        """Items that a whole epoch yields on this rank."""

    @abstractmethod
    def held(self) -> Held:
        """What all processes that read for this waited for, and hold ahead of their loops."""

    @abstractmethod
    def close(self) -> None:
        """Unmap all shards and leave the peer. Arrays that were handed out stay valid."""

    # For loaders that spread steps over workers

    @abstractmethod
    def steps(self, run: Run, worker: int = 0, workers: int = 1) -> Turns:
        """This rank's steps of an iteration, those of one worker to be dealt."""

    @abstractmethod
    def state_at(self, run: Run) -> dict[str, Any]:
        """The state of who stands there."""

    @abstractmethod
    def _read(self, state: Mapping[str, Any]) -> tuple[Run, int]:
        """Where a state stands, and its global batch. ConfigError names what does not fit."""

    @abstractmethod
    def _pipeline(self, steps: Turns, format: str | None) -> Pipeline:
        """What makes the parcels of these steps."""

    def begin(self, *, led: bool = False) -> Run:
        """Start the next iteration. ``led``: somebody else counts what is handed out, by `counted`."""
        self._loop.crew.confirm()
        return self._epochs.begin(led=led)

    def finish(self, run: Run) -> None:
        """The loader that led an iteration has handed everything out, or gives it up."""
        self._epochs.finish(run)

    @property
    def position(self) -> Run:
        """Where the latest iteration stands."""
        return self._epochs.at

    def parcels(self, steps: Turns, format: str | None = None) -> Iterator[Parcel]:
        """What the steps of one worker yield, several together: see `Turns.parcels`."""
        pipeline = self._pipeline(steps, format)
        return pipeline.parcels(steps, steps.parcels(pipeline.steps_at_once, pipeline.steps_at_first))

    def _counted(self, format: str | None) -> Iterator[Any]:
        """It begins when its first item is asked for: loaders make iterators that they never use."""
        run = self.begin()
        steps = self.steps(run)
        yield from self._shown(self.counted(run, steps, self.parcels(steps, format)))

    def _worked(self, run: Run, worker: Worker, format: str | None) -> Iterator[Any]:
        """One worker's turns."""
        steps = self.steps(run, worker.number, worker.workers)
        pipeline = self._pipeline(steps, format)
        parcels = pipeline.parcels(steps, steps.turns(pipeline.steps_at_once))
        yield from self._shown(self.counted(run, steps, parcels))
        self._epochs.finish_with(worker)

    def _shown(self, items: Iterator[Any]) -> Iterator[Any]:
        mark = marked_batch() if self._loop.batched else None
        return items if mark is None else (mark(item) for item in items)

    def counted(self, run: Run, steps: Turns, parcels: Iterable[Parcel]) -> Iterator[Any]:
        """The items of all parcels of an iteration; this dataset knows where it stands."""
        standing = self._epochs.follow(run, steps)
        for parcel in parcels:
            for item in parcel.unpack():
                standing.done += 1
                if item is not Skipped.ITEM:
                    yield item
        standing.done = steps.count

    def _share(self, worker: int = 0, workers: int = 1) -> Share:
        return Share(self._loop.crew.rank, self._loop.crew.ranks, worker, workers)
