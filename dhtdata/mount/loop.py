"""How a split is iterated over: the arguments of `dhtdata.mount` that the loop is made of, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.gather.parcels import Reading
from dhtdata.gather.shaping import AS_STORED, Shaping
from dhtdata.mount.ranks import Ranks
from dhtdata.mount.transform import Transform
from dhtdata.order import REMAINDERS, OrderKey

MAX_THREADS = 64
MAX_BATCH = 1 << 28


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
    shaping: Shaping = AS_STORED

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size: {self.batch_size} is less than 1")
        if self.batch_size is not None and self.batch_size > MAX_BATCH:
            raise ConfigError(f"batch_size: {self.batch_size} rows are more than {MAX_BATCH}: choose a smaller batch")
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
        self.reading()
        self.check_transform(self.format)

    def check_transform(self, format: str) -> None:
        """ConfigError if the transform cannot work with that format or keep the ranks in step."""
        if self.transform is not None:
            self.transform.check(format, self.batched, self.crew.ranks)

    def shaped(self, schema: pa.Schema, collate: Any, decode: Any, skips: bool, place: str) -> Loop:
        """This with the shapes that arguments of `dhtdata.mount` ask for. ConfigError names what does not fit."""
        made = self.transform is not None and not self.transform.reads_batches
        shaping = Shaping.of(schema, self.format, collate, decode, made)
        if shaping.collates and not self.batched:
            raise ConfigError("collate says what becomes of lists in a batch: give batch_size, too")
        in_step = self.crew.ranks > 1
        if shaping.decodes and skips and in_step and not self.batched:
            raise ConfigError("on_error='skip' would give ranks unequal steps here: mount with batch_size")
        return replace(self, shaping=replace(shaping, skips=skips, in_step=in_step, place=place))

    def reading(self, format: str | None = None) -> Reading:
        """How rows are read, in another format maybe."""
        return Reading(format or self.format, self.shaping)

    def reading_by_number(self) -> Reading:
        """For rows asked for by number: no transform changes them, and none that was asked for is left out."""
        made = self.transform is not None and not self.transform.reads_batches
        shaping = replace(self.shaping, skips=False, collates={} if made else self.shaping.collates)
        return Reading(self.format, shaping)

    @property
    def batched(self) -> bool:
        return self.batch_size is not None

    @property
    def global_batch(self) -> int:
        return (self.batch_size or 1) * self.crew.ranks

    def key(self, split: str, filter: str) -> OrderKey:
        return OrderKey(split, self.shuffle, self.window if self.shuffle else 0, filter)
