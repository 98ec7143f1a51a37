"""What may be mixed: which arguments of `dhtdata.mount` must be alike, and what the sources' transforms become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dhtdata.errors import ConfigError
from dhtdata.gather.columns import plain_type
from dhtdata.gather.shaping import Shaping
from dhtdata.mount.dataset import StreamingDataset
from dhtdata.mount.transform import ON_ERROR, Transform

PLACE = "the mix"
_HIDDEN = "\0source"


def pairs_of(sources: Iterable[tuple[StreamingDataset, float]]) -> tuple[tuple[StreamingDataset, ...], list[float]]:
    found, weights = [], []
    for number, pair in enumerate(sources):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], StreamingDataset):
            raise ConfigError(f"source {number} is {pair!r}: expected (what dhtdata.mount returns, weight)")
        try:
            weights.append(float(pair[1]))
        except (TypeError, ValueError):
            raise ConfigError(f"the weight of source {number} is {pair[1]!r}: weights are positive numbers") from None
        found.append(pair[0])
    if len(found) < 2:
        raise ConfigError(f"a mix needs two or more sources, not {len(found)}")
    return tuple(found), weights


def check_alike(sources: Sequence[StreamingDataset]) -> None:
    """ConfigError names the argument of `dhtdata.mount` in which sources differ that must be the same for all."""
    first = sources[0].loop
    lanes = max(source.lanes for source in sources)
    for number, source in enumerate(sources):
        loop = source.loop
        pairs = {
            "batch_size": (first.batch_size, loop.batch_size),
            "format": (first.format, loop.format),
            "rank": (first.crew.rank, loop.crew.rank),
            "world_size": (first.crew.ranks, loop.crew.ranks),
            "lanes": (lanes, source.lanes if loop.shuffle else lanes),
        }
        for name, (expected, found) in pairs.items():
            if found != expected:
                raise ConfigError(
                    f"source {number} is mounted with {name}={found!r}, others with {expected!r}: the sources of a mix "
                    f"have the same {name}"
                )


@dataclass(frozen=True)
class BySource:
    """A function on rows of a mix: each source's own, then the mix's. ``column`` tells the source."""

    functions: tuple[Callable[[Any], Any] | None, ...]
    column: str
    kept: bool
    then: Callable[[Any], Any] | None

    def __call__(self, sample: Mapping[str, Any]) -> Any:
        number = sample[self.column]
        source = int(number.as_py() if isinstance(number, pa.Scalar) else number)
        given = sample if self.kept else {name: value for name, value in sample.items() if name != self.column}
        function = self.functions[source]
        made = given if function is None else function(given)
        return made if self.then is None else self.then(made)


class Modes:
    """What the transforms and shapes of the sources become in a mix. ConfigError names what does not go together."""

    def __init__(
        self, sources: Sequence[StreamingDataset], per_source: bool, column: str | None, on_error: str | None
    ) -> None:
        self._loops = [source.loop for source in sources]
        self._per_source = per_source
        self._kept = column is not None
        self._dispatches = not per_source and any(loop.transform is not None for loop in self._loops)
        self.column = column if column is not None or not self._dispatches else _HIDDEN
        self.skips = self._skips(on_error)
        if not per_source:
            self._check(sources)

    def transform(self, own: Transform | None) -> Transform | None:
        """What is done with batches or rows of the mix; ``own`` is what the mix was given."""
        if self._per_source and own is not None and own.level == "sample" and self._loops[0].batched:
            raise ConfigError(
                "transform_on='sample' with batching='per_source': mount the sources with it, or take batches"
            )
        if not self._dispatches:
            return own
        by_sample = own is not None and own.level == "sample"
        function = BySource(
            tuple(None if loop.transform is None else loop.transform.function for loop in self._loops),
            self.column or _HIDDEN,
            self._kept,
            own.function if own is not None and by_sample else None,
        )
        return Transform(function, "sample", self.skips, PLACE, None if by_sample else own)

    def shaping(self) -> Shaping:
        """The sources' common one; under "per_source" each has its own."""
        return replace(self._loops[0].shaping, place=PLACE, skips=self.skips)

    def _skips(self, on_error: str | None) -> bool:
        if on_error is not None and on_error not in ON_ERROR:
            raise ConfigError(f"on_error: {on_error!r} is none of {', '.join(ON_ERROR)}")
        skips = None if on_error is None else on_error == "skip"
        if self._per_source:
            return bool(skips)
        for number, loop in enumerate(self._loops):
            if loop.transform is None and not loop.shaping.decodes:
                continue
            found = loop.transform.skips if loop.transform is not None else loop.shaping.skips
            if skips is not None and found != skips:
                raise ConfigError(
                    f"source {number} is mounted with on_error={ON_ERROR[found]!r}, the mix or other sources have "
                    f"{ON_ERROR[skips]!r}: rows of one batch fail alike, or use batching='per_source'"
                )
            skips = found
        return bool(skips)

    def _check(self, sources: Sequence[StreamingDataset]) -> None:
        shaping, schema = self._loops[0].shaping, sources[0].schema
        exact = self._loops[0].format == "arrow"
        for number, source in enumerate(sources):
            loop = source.loop
            if loop.transform is not None and loop.transform.level == "batch":
                raise ConfigError(
                    f"source {number} is mounted with a transform on batches, and batches of this mix have rows of "
                    "several sources: mount it with transform_on='sample', give the transform to the mix, or use "
                    "batching='per_source'"
                )
            if (loop.shaping.collates, loop.shaping.decodes) != (shaping.collates, shaping.decodes):
                raise ConfigError(f"source {number} is mounted with another collate or decode than source 0")
            _check_schema(number, source.schema, schema, exact)


def _check_schema(number: int, schema: pa.Schema, expected: pa.Schema, exact: bool) -> None:
    instead = "choose columns that are alike, or use batching='per_source'"
    names, others = set(schema.names), set(expected.names)
    if names != others:
        missing = ", ".join(sorted(others - names)) or "nothing"
        raise ConfigError(
            f"source {number} has other columns than source 0: {missing} is missing, "
            f"{', '.join(sorted(names - others)) or 'nothing'} is added; {instead}"
        )
    for field in expected:
        kind = schema.field(field.name).type
        if kind != field.type and (exact or _form(kind) != _form(field.type)):
            raise ConfigError(
                f"column {field.name!r} is {kind} in source {number}, {field.type} in source 0: {instead}"
            )


def _form(kind: pa.DataType) -> pa.DataType:
    """The same for types that look the same outside Arrow."""
    kind = plain_type(kind)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def fitting_ahead(sources: Sequence[StreamingDataset]) -> list[int]:
    """Bytes to read ahead of each source: as they were mounted, less if a store's limit is too small for all at once.

    ConfigError says what the limit must be.
    """
    ahead = [source.loop.predownload_bytes or 0 for source in sources]
    by_store: dict[Path, list[int]] = {}
    rooms = [source.view.room() for source in sources]
    for number, source in enumerate(sources):
        if rooms[number] is not None:
            by_store.setdefault(source.view.store_path, []).append(number)
    for together in by_store.values():
        limit_bytes, kept_bytes = rooms[together[0]] or (0, 0)
        needs = {number: sources[number].needs() for number in together}
        least = kept_bytes + sum(each.bytes_for(0) for each in needs.values())
        if least > limit_bytes:
            raise ConfigError(
                f"a cache limit of {limit_bytes} bytes is too small for the windows of {len(together)} sources at "
                f"once: it must be at least {least} bytes (cache_limit or DHTDATA_CACHE_LIMIT), or choose a smaller "
                "shuffle_window"
            )
        while kept_bytes + sum(each.bytes_for(ahead[number]) for number, each in needs.items()) > limit_bytes:
            for number in together:
                ahead[number] //= 2
    return ahead
