"""How a split is iterated over: the arguments of `dhtdata.mount` that the loop is made of, checked."""

from __future__ import annotations

from dataclasses import dataclass

from dhtdata.errors import ConfigError
from dhtdata.mount.parcels import reader_of
from dhtdata.mount.ranks import Ranks
from dhtdata.mount.transform import Transform
from dhtdata.order import REMAINDERS, OrderKey

MAX_THREADS = 64


@dataclass(frozen=True)
class Loop:
    """``batch_size`` is per rank; None iterates over rows. ``threads`` gather ahead of the loop; 0: none do."""

    batch_size: int | None
    shuffle: bool
    seed: int
    window: int
    remainder: str
    format: str
    predownload_bytes: int | None
    crew: Ranks
    threads: int = 0
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size: {self.batch_size} is less than 1")
        if self.window < 1:
            raise ConfigError(f"shuffle_window: {self.window} row ranges are less than 1")
        if not 0 <= self.seed < 1 << 56:
            raise ConfigError(f"seed: {self.seed} is not in 0 to 2^56")
        if self.remainder not in REMAINDERS:
            raise ConfigError(f"remainder: {self.remainder!r} is none of {', '.join(REMAINDERS)}")
        if self.predownload_bytes is not None and self.predownload_bytes < 0:
            raise ConfigError("predownload: less than no bytes")
        if not 0 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads: {self.threads} is not in 0 to {MAX_THREADS}")
        reader_of(self.format)
        if self.transform is not None:
            self.transform.check(self.format, self.batched, self.crew.ranks)

    @property
    def batched(self) -> bool:
        return self.batch_size is not None

    @property
    def global_batch(self) -> int:
        return (self.batch_size or 1) * self.crew.ranks

    def key(self, split: str) -> OrderKey:
        return OrderKey(split, self.shuffle, self.window if self.shuffle else 0)
