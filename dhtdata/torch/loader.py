"""`DataLoader`: torch's, with steps dealt to workers, tensors out, and a state that counts what the loop received."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils import data as torch_data

from dhtdata.errors import ConfigError
from dhtdata.gather.parcels import Items, Parcel, Skipped
from dhtdata.mount.epochs import Run
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.meter import Held
from dhtdata.mount.stream import Stream
from dhtdata.torch.arenas import Inbox, address
from dhtdata.torch.parcels import as_is

_OURS = {
    "batch_size": "dhtdata.mount(..., batch_size=...)",
    "shuffle": "dhtdata.mount(..., shuffle=True)",
    "drop_last": 'dhtdata.mount(..., remainder="drop")',
    "sampler": "dhtdata.mount(..., shuffle=True), or torch's DataLoader over dataset.map_style()",
    "batch_sampler": "dhtdata.mount(..., batch_size=...), or torch's DataLoader over dataset.map_style()",
}


_Collate = Callable[[Any], Any]
_NONE = -1


class _Turns(torch_data.IterableDataset[Any]):  # type: ignore[misc]  # torch is not typed here
    """One worker's parcels of the run that the loader began.

    ``run`` is set while workers start: those of every iteration have a copy of their own. Persistent workers start only
    once, so theirs is shared memory, where each iteration's run is written. Without either (somebody built another
    loader around this dataset) workers agree on the next epoch among themselves. ``inbox`` is where parcels go.
    """

    def __init__(self, dataset: Stream, collate: _Collate | None, *, persistent: bool) -> None:
        self.dataset = dataset
        self._collate = collate
        self.run: Run | None = None
        self.shared = torch.full((3,), _NONE).share_memory_() if persistent else None
        self.inbox = _NONE

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        run = self.run
        if self.shared is not None and int(self.shared[0]) != _NONE:
            run = Run(*self.shared.tolist())
        if run is None:
            items = self.dataset.iterate("torch")
            return items if self._collate is None else map(self._collate, items)
        worker = torch_data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        steps = self.dataset.steps(run, number, workers)
        finished = map(self._finished, self.dataset.parcels(steps, "torch"))
        if worker is None:
            return finished
        address(self.inbox)
        return map(_sent, finished)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def _finished(self, parcel: Parcel) -> Parcel | list[Any]:
        """A list if its items are made already, because torch knows how to pin a list."""
        if self._collate is not None:
            items, collate = parcel.unpack(), self._collate
            return [item if item is Skipped.ITEM else collate(item) for item in items]
        return parcel.items if isinstance(parcel, Items) else parcel


def _sent(parcel: Parcel | list[Any]) -> Parcel | list[Any]:
    return _Made(parcel) if isinstance(parcel, list) else parcel


class _Made(list[Any]):
    """What a user's function made, on its way out of a worker: pickled, or the error that says why it cannot be.

    torch pickles in a thread that prints an error and drops what it was given, and the loop would wait for ever.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return pickle.loads, (bytes(ForkingPickler.dumps(list(self))),)
        except Exception as failure:  # objects pickle themselves, and may raise anything
            told = ConfigError(
                f"what transform or collate_fn returned cannot be sent by a worker ({type(failure).__name__}: "
                f"{failure}): return values that can be pickled, or load without workers"
            )
            return as_is, (ExceptionWrapper((ConfigError, told, None), "in a worker of the DataLoader"),)


class DataLoader(torch_data.DataLoader[Any]):  # type: ignore[misc]
    """Loads a mounted dataset; takes torch's keywords but those that `dhtdata.mount` decides. Always yields tensors.

    Workers make a few steps at a time (`dhtdata.gather.parcels`), take turns, and all arrives in order: any number of
    workers yields the same batches. ``prefetch_factor`` counts such parcels; ``collate_fn`` gets one item.
    ``state_dict()`` tells what the loop has received of the latest iteration, not what workers made ahead;
    ``load_state_dict()`` before an iteration goes on from there, with any number of workers and ranks. Works under fork
    and spawn, and with ``persistent_workers``; every iteration is the next epoch.
    """

    _is_accelerate_prepared = True
    """Accelerate's ``prepare`` leaves the loader as it is: its batches are dealt to ranks already."""

    use_stateful_dataloader = True
    """Accelerate's ``save_state`` and ``load_state`` keep this loader's state."""

    def __init__(self, dataset: Stream, **options: Any) -> None:
        if not isinstance(dataset, Stream):
            instead = ": torch.utils.data.DataLoader takes it" if isinstance(dataset, MapStyleDataset) else ""
            raise ConfigError(f"expected what dhtdata.mount returns, not a {type(dataset).__name__}{instead}")
        for option, instead in _OURS.items():
            if option in options:
                raise ConfigError(f"{option} is not the loader's to decide: use {instead}")
        if not options.get("in_order", True):
            raise ConfigError("in_order=False would lose count of what the loop has received: leave it out")
        collate = options.pop("collate_fn", None)
        self._streaming = dataset
        self._turns = _Turns(dataset, collate, persistent=options.get("persistent_workers", False))
        self._latest: Run | None = None
        self._kept_inbox: Inbox | None = None
        super().__init__(self._turns, batch_size=None, collate_fn=as_is, **options)

    def __iter__(self) -> Any:
        self._let_go_of_the_dead()
        run = self._latest = self._streaming.begin(led=True)
        turns = self._turns
        inbox = self._inbox()
        turns.run, turns.inbox = run, inbox.number
        if turns.shared is not None:
            turns.shared.copy_(torch.tensor([run.epoch, run.rows, run.lanes]))
        try:
            # torch's own iterator of the main process adds 10 to 20 microseconds an item, and only pins.
            parcels = iter(turns) if self.num_workers == 0 and not self.pin_memory else super().__iter__()
        except BaseException:
            self._streaming.finish(run)
            raise
        finally:
            turns.run = None
        return self._counted(run, parcels, inbox)

    def _let_go_of_the_dead(self) -> None:
        """Persistent workers of which one has died (Ctrl-C reaches all) are started anew, not asked again for ever."""
        kept: Any = getattr(self, "_iterator", None)
        if kept is not None and not all(worker.is_alive() for worker in kept._workers):
            kept._shutdown_workers()
            self._iterator = self._kept_inbox = None

    def _inbox(self) -> Inbox:
        """Where workers of the next iteration send to; persistent ones go on using their arenas."""
        if not self.persistent_workers:
            return Inbox()
        if self._kept_inbox is None:
            self._kept_inbox = Inbox()
        return self._kept_inbox

    @property
    def rows_per_item(self) -> int:
        return self._streaming.rows_per_item

    def held(self) -> Held:
        """See `dhtdata.StreamingDataset.held`."""
        return self._streaming.held()

    def standing(self) -> tuple[int, int]:
        """See `dhtdata.StreamingDataset.standing`."""
        return self._streaming.standing()

    def state_dict(self) -> dict[str, Any]:
        """What the loop has received: small, JSON, the same on every rank."""
        return self._streaming.state_at(self._streaming.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there. ConfigError names what does not fit."""
        self._streaming.load_state_dict(state)

    def _counted(self, run: Run, parcels: Iterator[Any], inbox: Inbox) -> Iterator[Any]:
        """``inbox`` lives as long as this goes on."""
        try:
            for item in self._streaming.counted(run, self._streaming.steps(run), self._received(run, parcels)):
                self._check_latest(run)
                yield item
        finally:
            self._streaming.finish(run)

    def _received(self, run: Run, parcels: Iterator[Any]) -> Iterator[Parcel]:
        while True:
            try:
                parcel = next(parcels, None)
            except Exception as failure:
                if not self.num_workers:
                    raise
                # torch raises what happened in a worker from a frame that refers to it, below one that refers to its
                # iterator. Such a circle ends when the collector comes by, which takes the workers' queues first: then
                # nobody tells the workers to end, and 5 seconds are waited for each.
                raise failure.with_traceback(None) from failure.__cause__
            self._check_latest(run)
            if parcel is None:
                return
            yield Items(parcel) if isinstance(parcel, list) else parcel

    def _check_latest(self, run: Run) -> None:
        if self.persistent_workers and run is not self._latest:
            raise ConfigError(
                "a newer iteration of this loader has taken over its persistent workers: give every iteration that "
                "goes on at the same time a loader of its own, or leave out persistent_workers"
            )
