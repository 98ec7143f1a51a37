"""Which worker of torch's DataLoader this process is."""

from __future__ import annotations

from torch.utils import data as torch_data


def joined_worker() -> tuple[int, int, int] | None:
    """(number, number of workers, base seed of the iteration in which it was started), or None in other processes."""
    info = torch_data.get_worker_info()
    return None if info is None else (info.id, info.num_workers, info.seed - info.id)
