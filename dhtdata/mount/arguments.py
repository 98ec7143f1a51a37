"""Arguments as users give them, from Python, numpy or torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np

from dhtdata.errors import ConfigError


def whole(name: str, value: object) -> int:
    """An int, also from numpy or torch. ConfigError names the argument that is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ConfigError(f"{name}: {value!r} is not a whole number")


def flag(name: str, value: bool) -> bool:
    """True or False, also numpy's or as 1 and 0. ConfigError for anything else: other libraries name orders there."""
    if isinstance(value, bool | int | np.bool_) and value in (True, False):
        return bool(value)
    raise ConfigError(f"{name}: {value!r} is neither True nor False")


def refuse_foreign(given: Iterable[str]) -> None:
    """ConfigError for arguments that `dhtdata.mount` does not have, with what other libraries' users look for."""
    for name in given:
        if name in _FOREIGN:
            raise ConfigError(f"mount has no argument {name!r}: {_FOREIGN[name]}")
        raise ConfigError(f"mount has no argument {name!r}: see help(dhtdata.mount)")


_LOADER = "give it to dhtdata.torch.DataLoader"
_STORE = "datasets lie in the store, which store=... or DHTDATA_STORE names"
_EPOCH = "every loop is the next epoch; set_epoch chooses another"
_FOREIGN = {
    "batch": "use batch_size=..., rows of each rank",
    "buffer_size": "use shuffle_window=..., row ranges that are shuffled together",
    "cache_dir": _STORE,
    "collate_fn": _LOADER,
    "drop_last": 'use remainder="drop"',
    "epoch": _EPOCH,
    "input_dir": "the first argument says what to mount",
    "limit": "filter the rows, or stop the loop",
    "local": _STORE,
    "max_cache_size": "use cache_limit=...",
    "num_workers": _LOADER,
    "pin_memory": _LOADER,
    "prefetch": "use predownload=..., bytes to fetch ahead of the loop",
    "prefetch_factor": _LOADER,
    "remote": "the first argument says what to mount; web_seeds=... are mirrors to fetch from as well",
    "revision": "name the version in the first argument, as dhtdata://PUBLISHER/NAME@SEQUENCE or by its digest",
    "sampler": "use shuffle=True, or torch's DataLoader over map_style()",
    "select": "use columns=... or filter=...",
    "shuffle_block_size": "use shuffle_window=..., row ranges that are shuffled together",
    "shuffle_seed": "use seed=...",
    "streaming": "every mount streams",
    "version": "name it in the first argument, as dhtdata://PUBLISHER/NAME@SEQUENCE or by its digest",
    "where": "use filter=...",
}
"""What users of torch, MosaicML Streaming, LitData and Hugging Face datasets call things."""
