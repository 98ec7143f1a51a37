"""Arguments as users give them, from Python, numpy or torch."""

from __future__ import annotations

import operator

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
