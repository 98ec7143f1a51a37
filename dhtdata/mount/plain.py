"""Loaded by torch's own DataLoader: nothing here imports torch unless somebody else did."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def meet_torch(kind: type) -> None:
    """Make torch iterate over datasets of this class, if it is imported."""
    if "torch" in sys.modules:
        from dhtdata.torch.plain import register

        register(kind)


def marked_batch() -> Callable[[Any], Any] | None:
    """What turns a batch into one that torch does not make batches of; None where torch is not imported."""
    if "torch" not in sys.modules:
        return None
    from dhtdata.torch.plain import Batch

    return lambda batch: Batch(batch) if type(batch) is dict else batch


def refuse_second_dealing(dataset: object) -> None:
    """ConfigError if a framework is about to deal to ranks what the mount dealt to them."""
    if "torch" in sys.modules:
        from dhtdata.torch.sharding import refuse_second_dealing as refuse

        refuse(dataset)
