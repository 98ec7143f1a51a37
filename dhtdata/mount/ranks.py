"""Which rank and which worker of how many this process is, and how many nodes there are. Sets up no process group.

Arguments, else ``torch.distributed`` if somebody initialised it, else ``RANK``, ``WORLD_SIZE`` and
``LOCAL_WORLD_SIZE`` as torchrun sets them, else one rank. Batch systems' own variables are not read: a shell on a
cluster has them too.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass

from dhtdata.config import launched_ranks
from dhtdata.errors import ConfigError
from dhtdata.order import MAX_LANES


@dataclass(frozen=True)
class Ranks:
    """``local`` ranks run on this machine. ``given``: by arguments, so that nobody else may know better."""

    rank: int
    ranks: int
    nodes: int
    local: int
    given: bool = False

    def confirm(self) -> None:
        """ConfigError if ``torch.distributed`` was initialised after mounting and knows of other ranks."""
        joined = None if self.given else _joined()
        if joined is not None and joined != (self.rank, self.ranks):
            raise ConfigError(
                f"mounted as rank {self.rank} of {self.ranks}, but by now torch.distributed says rank {joined[0]} of "
                f"{joined[1]}: mount after it is initialised, or give rank and world_size"
            )


@dataclass(frozen=True)
class Worker:
    """A process of torch's DataLoader. ``base_seed`` tells the workers of one loader from those of another."""

    number: int
    workers: int
    base_seed: int


def find_ranks(rank: int | None, world_size: int | None, lanes: int | None) -> Ranks:
    """ConfigError if the arguments or surroundings contradict themselves. ``lanes`` overrides the number of nodes."""
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size: give both or none")
    joined = _joined()
    try:
        launched = launched_ranks()
    except ConfigError:
        if rank is None and joined is None:
            raise
        launched = None  # Lightning's own launcher sets WORLD_SIZE alone
    if rank is not None and world_size is not None:
        found = (rank, world_size)
    elif joined is not None:
        if launched is not None and launched[:2] != joined:
            raise ConfigError(
                f"torch.distributed says rank {joined[0]} of {joined[1]}, RANK and WORLD_SIZE say {launched[0]} of "
                f"{launched[1]}: give rank and world_size"
            )
        found = joined
    else:
        found = launched[:2] if launched is not None else (0, 1)
    if not 0 <= found[0] < found[1]:
        raise ConfigError(f"rank {found[0]} of world size {found[1]}: ranks count from 0")
    if lanes is not None and not 1 <= lanes <= MAX_LANES:
        raise ConfigError(f"lanes: {lanes} is not in 1 to {MAX_LANES}")
    local = launched[2] if launched is not None and launched[1] == found[1] else found[1]
    nodes = found[1] // local if found[1] % local == 0 else 1
    return Ranks(*found, lanes if lanes is not None else nodes, local, given=rank is not None)


def whole(name: str, value: object) -> int:
    """An int, also from numpy or torch. ConfigError names the argument that is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ConfigError(f"{name}: {value!r} is not a whole number")


def find_worker() -> Worker | None:
    """Which worker this process is; None if it is none."""
    if "torch" not in sys.modules:
        return None
    from dhtdata.torch.workers import joined_worker

    joined = joined_worker()
    return None if joined is None else Worker(*joined)


def _joined() -> tuple[int, int] | None:
    if "torch" not in sys.modules:
        return None
    from dhtdata.torch.ranks import joined_ranks

    return joined_ranks()
