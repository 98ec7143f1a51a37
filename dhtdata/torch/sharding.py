"""Frameworks that deal a loader's batches to ranks, though they are dealt already (door of ``accelerate``)."""

from __future__ import annotations

import sys

from dhtdata.errors import ConfigError


def refuse_second_dealing(dataset: object) -> None:
    """ConfigError if Accelerate is about to iterate over what it made of a torch DataLoader over ``dataset``.

    It announces every iteration by ``set_epoch``, after it noted which loader is iterated over.
    """
    if "accelerate" not in sys.modules:
        return
    from accelerate.state import GradientState

    found = GradientState().active_dataloader
    while found is not None and found is not dataset:
        found = getattr(found, "dataset", None)
    if found is not None:
        raise ConfigError(
            "Accelerate would deal the batches of this loader to ranks again, and count epochs on its own: load with "
            "dhtdata.torch.DataLoader, which accelerator.prepare leaves as it is, or prepare model and optimizer only"
        )
