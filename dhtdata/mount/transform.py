"""A user's function on batches or samples, and what becomes of rows on which it fails.

Under ``on_error="skip"`` a row that fails is left out. Its place is never lost: the position that a state counts moves
on, and where ranks must make equal steps the row is replaced by one of its batch and marked in ``_valid``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from dhtdata.errors import ConfigError
from dhtdata.gather.leaving import Leaving
from dhtdata.gather.parcels import VALID, Items, Parcel, Reading, Skipped, with_gaps
from dhtdata.order import Dealt

LEVELS = ("batch", "sample")
ON_ERROR = ("raise", "skip")


@dataclass(frozen=True)
class Transform:
    """``function`` on every ``level``: "batch" is what the loop would get, "sample" a row of it, put together again.

    ``place`` says in messages where the rows are; ``then`` takes what this one makes.
    """

    function: Callable[[Any], Any]
    level: str
    skips: bool
    place: str
    then: Transform | None = None
    leaving: Leaving = field(default_factory=Leaving, compare=False)

    @classmethod
    def of(
        cls, function: Callable[[Any], Any] | None, level: str | None, skips: bool, *, batched: bool, place: str
    ) -> Transform | None:
        """From the arguments of `dhtdata.mount`. ConfigError names what makes no sense."""
        if level is not None and level not in LEVELS:
            raise ConfigError(f"transform_on: {level!r} is none of {', '.join(LEVELS)}")
        if function is None:
            if level is not None:
                raise ConfigError("transform_on says what becomes of a transform: give transform, too")
            return None
        if not callable(function):
            raise ConfigError(f"transform: {function!r} is not a function")
        if level == "batch" and not batched:
            raise ConfigError("transform_on='batch' needs batches: give batch_size")
        return cls(function, level or ("batch" if batched else "sample"), skips, place)

    def check(self, format: str, batched: bool, ranks: int) -> None:
        """ConfigError if this cannot work with that format or keep so many ranks in step."""
        if self.level == "sample" and batched and format == "arrow":
            raise ConfigError("transform_on='sample' cannot put Arrow batches together: mount with another format")
        if self.skips and ranks > 1 and not (self.level == "sample" and batched):
            raise ConfigError(
                "on_error='skip' would give ranks unequal steps here: mount with batch_size and transform_on='sample'"
            )

    @property
    def reads_batches(self) -> bool:
        """Whether it takes batches as the loop would; else rows."""
        return self.level == "batch"

    def apply(self, parcel: Parcel, dealt: Dealt, reading: Reading, batched: bool) -> Items:
        """What the loop gets. ``parcel`` has batches or rows, as `reads_batches` says; a step may have no rows left."""
        if batched and not self.reads_batches:
            rows = list(parcel.unpack())
            made = [self._joined(rows, dealt, span, reading) for span in pairwise(dealt.bounds)]
        else:
            made = self._each(with_gaps(parcel, dealt.bounds).unpack(), dealt)
        return Items(made if self.then is None else self.then._each(made, dealt))

    def _each(self, items: Iterable[Any], dealt: Dealt) -> list[Any]:
        return [self._one(item, dealt, span) for item, span in zip(items, pairwise(dealt.bounds), strict=True)]

    def _one(self, item: Any, dealt: Dealt, span: tuple[int, int]) -> Any:
        if item is Skipped.ITEM:
            return item
        try:
            return self.function(item)
        except Exception as failure:
            told = f"transform raised {type(failure).__name__}: {failure} ({dealt.named(*span)} of {self.place})"
            if not self.skips:
                raise ConfigError(told) from failure
            self.leaving.tell(told)
            return Skipped.ITEM

    def _joined(self, rows: Sequence[Any], dealt: Dealt, span: tuple[int, int], reading: Reading) -> Any:
        """One batch out of its transformed rows."""
        kept, valid = [], []
        first, stop = span
        if first == stop:
            return Skipped.ITEM
        for row in range(first, stop):
            sample = {name: value for name, value in rows[row].items() if name != VALID}
            made = self._one(sample, dealt, (row, row + 1))
            if made is not Skipped.ITEM:
                kept.append(made)
                valid.append(dealt.valid is None or bool(dealt.valid[row]))
        if dealt.valid is None:
            return self._together(kept, dealt, span, reading) if kept else Skipped.ITEM
        if not kept:
            raise ConfigError(
                f"transform failed on all {stop - first} rows of a batch of {self.place}: nothing is left to "
                "keep this rank in step with the others"
            )
        missing = stop - first - len(kept)
        batch = self._together([*kept, *kept[:1] * missing], dealt, span, reading)
        if not isinstance(batch, dict):
            raise ConfigError(
                f"transform returned a {type(kept[0]).__name__}: remainder='pad' needs a dict for {VALID}"
            )
        return batch | {VALID: collate([*valid, *[False] * missing], reading.format)}

    def _together(self, made: Sequence[Any], dealt: Dealt, span: tuple[int, int], reading: Reading) -> Any:
        try:
            return joined(made, reading)
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as failure:
            raise ConfigError(
                f"what transform returned makes no batch: {type(failure).__name__}: {failure} ({dealt.named(*span)} of "
                f"{self.place}). It must return the same keys and types for every row"
            ) from failure


def joined(samples: Sequence[Any], reading: Reading) -> Any:
    """Samples as one batch, as `collate` makes it; columns for which a shape was asked have that shape.

    ValueError and the like if they do not go together.
    """
    fields = {", ".join(sorted(sample)) if isinstance(sample, Mapping) else "no dict" for sample in samples}
    if len(fields) > 1:
        raise ValueError(f"the rows of a batch have different fields ({'; '.join(sorted(fields))})")
    shaping = reading.shaping
    if not shaping.collates:
        return collate(samples, reading.format)
    first = samples[0]
    if not isinstance(first, Mapping) or not shaping.collates.keys() <= first.keys():
        raise ConfigError(f"collate: the transform returns no dict with {', '.join(sorted(shaping.collates))}")
    batch: dict[str, Any] = {}
    for name in first:
        members = [sample[name] for sample in samples]
        if name in shaping.collates:
            batch |= reading.shown(shaping.joined(name, members))
        else:
            batch[name] = collate(members, reading.format)
    return batch


def collate(samples: Sequence[Any], format: str) -> Any:
    """Samples as one batch: dicts and tuples by member, arrays and numbers stacked if they fit, else a list."""
    if format == "torch":
        from dhtdata.torch.tensors import collate_tensors

        return collate_tensors(samples)
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: collate([sample[name] for sample in samples], format) for name in first}
    if isinstance(first, tuple):
        return tuple(collate(members, format) for members in zip(*samples, strict=True))
    if format == "python":
        return list(samples)
    if isinstance(first, np.ndarray | np.generic | bool | int | float) and len({np.shape(one) for one in samples}) == 1:
        return np.stack(samples)
    return np.fromiter(samples, dtype=object, count=len(samples))
