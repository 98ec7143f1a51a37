"""Where an epoch stands: one small dict, the same on every rank, that any number of ranks and workers can go on from.

``{"version": 1, "contents": <digest>, "order": {"algorithm", "filter", "shuffle", "split", "window"}, "seed", "epoch",
"rows", "global_batch", "lanes"}``; ``rows`` are the rows that all ranks together have consumed of the epoch. All values
are JSON. The key ``order`` spells out what fixes the sequence, so that a mismatch is named rather than suspected.

``global_batch`` is for information: another one continues with exactly the rows that are left, but other batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dhtdata.errors import ConfigError

VERSION = 1
ALGORITHM = 1
MAX_LANES = 1 << 14
MAX_EPOCHS = 1 << 56
_COUNTS = ("seed", "epoch", "rows", "global_batch", "lanes")


@dataclass(frozen=True)
class OrderKey:
    """What fixes the sequence of a split's rows, besides seed, epoch and lanes. Without shuffle ``window`` is 0."""

    split: str
    shuffle: bool
    window: int
    filter: str = ""
    algorithm: int = ALGORITHM


@dataclass(frozen=True)
class State:
    contents: str
    key: OrderKey
    seed: int
    epoch: int
    rows: int
    global_batch: int
    lanes: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "contents": self.contents,
            "order": asdict(self.key),
            **{name: getattr(self, name) for name in _COUNTS},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, contents: str, key: OrderKey, seed: int) -> State:
        """A saved state. ConfigError says in what it differs from the dataset, order and seed it is loaded into."""
        if not isinstance(value, Mapping) or "version" not in value:
            raise ConfigError("this is not a state: expected the dict that state_dict() returned")
        if "mix" in value:
            raise ConfigError("this is the state of a mix, not of one dataset")
        if type(value["version"]) is not int or value["version"] != VERSION:
            raise ConfigError(f"the state has version {value['version']!r}, which this dhtdata does not read")
        order = value.get("order")
        if not isinstance(order, Mapping) or any(
            isinstance(value.get(name), bool) or not isinstance(value.get(name), int) or value[name] < 0
            for name in _COUNTS
        ):
            raise ConfigError(f"the state is damaged: expected order and counts {', '.join(_COUNTS)}")
        if value.get("contents") != contents:
            raise ConfigError(
                f"the state belongs to another dataset: its contents are {value.get('contents')}, these {contents}"
            )
        expected = asdict(key)
        for name in sorted(expected.keys() | order.keys(), key=str):
            if order.get(name) != expected.get(name):
                raise ConfigError(
                    f"the state was saved with {name}={order.get(name)!r}, this mount has {expected.get(name)!r}"
                )
        if value["seed"] != seed:
            raise ConfigError(f"the state was saved with seed={value['seed']}, this mount has seed={seed}")
        if not 1 <= value["lanes"] <= MAX_LANES or not value["global_batch"]:
            raise ConfigError(f"the state is damaged: no batch, or lanes that are not in 1 to {MAX_LANES}")
        if value["epoch"] >= MAX_EPOCHS:
            raise ConfigError("the state is damaged: its epoch is beyond 2^56")
        return cls(contents, key, *(value[name] for name in _COUNTS))
