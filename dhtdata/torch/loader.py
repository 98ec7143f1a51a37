"""`DataLoader`: torch's, with steps dealt to workers, tensors out, and a state that counts what the loop received."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import data as torch_data

from dhtdata.errors import ConfigError
from dhtdata.mount.dataset import Run, StreamingDataset
from dhtdata.mount.map_style import MapStyleDataset
from dhtdata.mount.parcels import Items, Parcel
from dhtdata.mount.transform import Skipped

_OURS = {
    "batch_size": "dhtdata.mount(..., batch_size=...)",
    "shuffle": "dhtdata.mount(..., shuffle=True)",
    "drop_last": 'dhtdata.mount(..., remainder="drop")',
    "sampler": "dhtdata.mount(..., shuffle=True), or torch's DataLoader over dataset.map_style()",
    "batch_sampler": "dhtdata.mount(..., batch_size=...), or torch's DataLoader over dataset.map_style()",
}


_Collate = Callable[[Any], Any]


class _Turns(torch_data.IterableDataset[Any]):  # type: ignore[misc]  # torch is not typed here
    """One worker's parcels. ``run`` is shared memory: persistent workers read there which epoch comes next."""

    def __init__(self, dataset: StreamingDataset, collate: _Collate | None) -> None:
        self.dataset = dataset
        self._collate = collate
        self.run = torch.zeros(3, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        worker = torch_data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        steps = self.dataset.steps(Run(*self.run.tolist()), number, workers)
        return map(self._finished, self.dataset.parcels(steps, "torch"))

    def _finished(self, parcel: Parcel) -> Parcel | list[Any]:
        """A list if its items are made already, because torch knows how to pin a list."""
        if self._collate is not None:
            items, collate = parcel.unpack(), self._collate
            return [item if item is Skipped.ITEM else collate(item) for item in items]
        return parcel.items if isinstance(parcel, Items) else parcel


def _as_is(item: Any) -> Any:
    return item


class DataLoader(torch_data.DataLoader[Any]):  # type: ignore[misc]
    """Loads a mounted dataset; takes torch's keywords but those that `dhtdata.mount` decides. Always yields tensors.

    Workers make a few steps at a time (`dhtdata.mount.parcels`), take turns, and all arrives in order: any number of
    workers yields the same batches. ``prefetch_factor`` counts such parcels; ``collate_fn`` gets one item.
    ``state_dict()`` tells what this loop has received, not what workers made ahead; ``load_state_dict()`` before an
    epoch goes on from there, with any number of workers and ranks. Works under fork and spawn, and with
    ``persistent_workers``; every iteration is the next epoch.
    """

    def __init__(self, dataset: StreamingDataset, **options: Any) -> None:
        if not isinstance(dataset, StreamingDataset):
            instead = ": torch.utils.data.DataLoader takes it" if isinstance(dataset, MapStyleDataset) else ""
            raise ConfigError(f"expected what dhtdata.mount returns, not a {type(dataset).__name__}{instead}")
        for option, instead in _OURS.items():
            if option in options:
                raise ConfigError(f"{option} is not the loader's to decide: use {instead}")
        if not options.get("in_order", True):
            raise ConfigError("in_order=False would lose count of what the loop has received: leave it out")
        collate = options.pop("collate_fn", None)
        self._streaming = dataset
        super().__init__(_Turns(dataset, collate), batch_size=None, collate_fn=_as_is, **options)

    def __iter__(self) -> Any:
        run = self._streaming.begin(led=True)
        turns = self.dataset
        if not isinstance(turns, _Turns):
            raise ConfigError("the loader's dataset was replaced: make a new loader")
        turns.run.copy_(torch.tensor([run.epoch, run.rows, run.lanes]))
        # torch's own iterator of the main process adds 10 to 20 microseconds an item, and only pins.
        parcels = iter(turns) if self.num_workers == 0 and not self.pin_memory else super().__iter__()
        return self._counted(run, parcels)

    def state_dict(self) -> dict[str, Any]:
        """What the loop has received: small, JSON, the same on every rank."""
        return self._streaming.state_at(self._streaming.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there. ConfigError names what does not fit."""
        self._streaming.load_state_dict(state)

    def _counted(self, run: Run, parcels: Iterator[Any]) -> Iterator[Any]:
        made = (Items(parcel) if isinstance(parcel, list) else parcel for parcel in parcels)
        yield from self._streaming.counted(run, self._streaming.steps(run), made)
        self._streaming.finish()
