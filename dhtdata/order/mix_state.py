"""Where an epoch of a mix stands: the same on every rank, and any number of ranks and workers goes on from it.

``{"version": 1, "mix": {"algorithm", "batching", "stop", "weights"}, "seed", "epoch", "rows", "global_batch",
"sources": [...]}``; ``rows`` are those that all ranks together have consumed of the epoch of the mix, ``weights`` the
parts of `shares`. Each source has the state (`state`) at which its stream stands. These follow from the rest, as long
as the datasets are the same, and are checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dhtdata.errors import ConfigError
from dhtdata.order.state import MAX_EPOCHS, State

VERSION = 1
ALGORITHM = 1
_COUNTS = ("seed", "epoch", "rows", "global_batch")


@dataclass(frozen=True)
class MixKey:
    """What fixes the sequence of a mix's rows, besides its seed and its sources."""

    batching: str
    stop: str
    weights: tuple[int, ...]
    algorithm: int = ALGORITHM

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"weights": list(self.weights)}


@dataclass(frozen=True)
class MixState:
    key: MixKey
    seed: int
    epoch: int
    rows: int
    global_batch: int
    sources: tuple[State, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "mix": self.key.as_dict(),
            **{name: getattr(self, name) for name in _COUNTS},
            "sources": [source.as_dict() for source in self.sources],
        }

    @property
    def lanes(self) -> int:
        return self.sources[0].lanes

    @classmethod
    def from_dict(
        cls,
        value: Mapping[str, Any],
        *,
        key: MixKey,
        seed: int,
        readers: Sequence[Callable[[Mapping[str, Any]], State]],
    ) -> MixState:
        """A saved state. ``readers`` read the sources'. ConfigError says in what it differs from this mix."""
        if not isinstance(value, Mapping) or not isinstance(value.get("mix"), Mapping):
            raise ConfigError("this is not the state of a mix: expected the dict that its state_dict() returned")
        if value.get("version") != VERSION:
            raise ConfigError(f"the state has version {value.get('version')!r}, which this dhtdata does not read")
        sources = value.get("sources")
        if not isinstance(sources, list) or any(
            isinstance(value.get(name), bool) or not isinstance(value.get(name), int) or value[name] < 0
            for name in _COUNTS
        ):
            raise ConfigError(f"the state of the mix is damaged: expected sources and counts {', '.join(_COUNTS)}")
        if len(sources) != len(readers):
            raise ConfigError(f"the state is of a mix of {len(sources)} sources, this one has {len(readers)}")
        saved, expected = value["mix"], key.as_dict()
        for name in sorted(expected.keys() | saved.keys(), key=str):
            if saved.get(name) != expected.get(name):
                raise ConfigError(
                    f"the state was saved with {name}={saved.get(name)!r}, this mix has {expected.get(name)!r}"
                )
        if value["seed"] != seed:
            raise ConfigError(f"the state was saved with seed={value['seed']}, this mix has seed={seed}")
        read = tuple(_read(number, *pair) for number, pair in enumerate(zip(readers, sources, strict=True)))
        if value["epoch"] >= MAX_EPOCHS:
            raise ConfigError("the state of the mix is damaged: its epoch is beyond 2^56")
        if len({source.lanes for source in read}) > 1 or not value["global_batch"]:
            raise ConfigError("the state of the mix is damaged: no batch, or sources with different lanes")
        return cls(key, seed, value["epoch"], value["rows"], value["global_batch"], read)


def _read(number: int, reader: Callable[[Mapping[str, Any]], State], source: Mapping[str, Any]) -> State:
    try:
        return reader(source)
    except ConfigError as failure:
        raise ConfigError(f"source {number}: {failure}") from failure
