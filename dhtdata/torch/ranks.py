"""Rank and world size of a process group that somebody else initialised."""

from __future__ import annotations

import torch.distributed


def joined_ranks() -> tuple[int, int] | None:
    """(rank, world size), or None if no process group is initialised."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
