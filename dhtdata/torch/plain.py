"""What torch's own DataLoader must know about a mounted dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch.utils import data as torch_data
from torch.utils.data._utils.collate import default_collate_fn_map

from dhtdata.errors import ConfigError


class Batch(dict[str, Any]):
    """A batch, which torch's collate function tells from a row by its type."""


def register(kind: type) -> None:
    """Instances are iterated over, not asked for rows by number: torch decides that by their class."""
    torch_data.IterableDataset.register(kind)


def _collate(batches: Sequence[Batch], *, collate_fn_map: object = None) -> NoReturn:
    raise ConfigError(
        "torch's DataLoader makes batches of batches here, because its batch_size is 1 unless told otherwise: give it "
        "batch_size=None, as dhtdata.mount(..., batch_size=...) makes the batches, or use dhtdata.torch.DataLoader"
    )


default_collate_fn_map[Batch] = _collate
