"""Columns as tensors (door of ``torch``). The mapping is in `dhtdata.gather.columns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dhtdata.errors import ConfigError
from dhtdata.gather.columns import Cut
from dhtdata.gather.gatherer import Placed
from dhtdata.torch.lying import Lying


def to_tensor(name: str, column: Any) -> Any:
    """A numpy column, or one row's value of it, as tensors that share its memory; a list where no tensor can be.

    ConfigError names a column with nulls that no tensor can hold.
    """
    if isinstance(column, Placed):
        return Lying(column)
    if isinstance(column, Cut):
        return Cut([to_tensor(name, piece) for piece in column.pieces])
    if isinstance(column, dict):
        return {field: to_tensor(f"{name}.{field}", child) for field, child in column.items()}
    if isinstance(column, np.ma.MaskedArray):
        raise _nulls(name)
    if isinstance(column, np.ndarray):
        if column.dtype.kind == "O":
            return [to_tensor(name, value) if isinstance(value, np.ndarray) else value for value in column]
        if column.dtype.kind in "mM":
            if np.isnat(column).any():
                raise _nulls(name)
            column = column.view(np.int64)
        return torch.from_numpy(column)
    if isinstance(column, np.generic):
        return to_tensor(name, np.asarray(column)[None])[0]
    return column


def _nulls(name: str) -> ConfigError:
    return ConfigError(
        f"column {name!r} has nulls, which no tensor of its type can hold: leave it out of columns, "
        'or mount with format="numpy", which masks them'
    )


def collate_tensors(samples: Sequence[Any]) -> Any:
    """Samples as one batch: dicts and tuples by member, arrays and numbers stacked if they fit, else a list."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: collate_tensors([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple):
        return tuple(collate_tensors(members) for members in zip(*samples, strict=True))
    if isinstance(first, torch.Tensor | np.ndarray | np.generic | bool | int | float):
        tensors = [torch.as_tensor(sample) for sample in samples]
        if len({tensor.shape for tensor in tensors}) == 1:
            return torch.stack(tensors)
        return tensors
    return list(samples)
