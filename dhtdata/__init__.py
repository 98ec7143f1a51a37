"""Share machine-learning datasets without a central repository.

    import dhtdata

    dhtdata.publish("rows.parquet", name="my-dataset")
    for batch in dhtdata.mount("my-dataset", batch_size=64):
        ...

Names are imported when they are first used, so that ``import dhtdata`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhtdata.config import Settings, load_settings
    from dhtdata.digest import Digest
    from dhtdata.errors import (
        ConfigError,
        DhtDataError,
        FormatError,
        IntegrityError,
        NotFoundError,
        PeerError,
        StoreError,
    )
    from dhtdata.mount import MapStyleDataset, Mix, StreamingDataset, mount
    from dhtdata.mount.progress import progress
    from dhtdata.publish import Published, publish

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DhtDataError",
    "Digest",
    "FormatError",
    "IntegrityError",
    "MapStyleDataset",
    "Mix",
    "NotFoundError",
    "PeerError",
    "Published",
    "Settings",
    "StoreError",
    "StreamingDataset",
    "load_settings",
    "mount",
    "progress",
    "publish",
]

_HOMES = {
    "config": ("Settings", "load_settings"),
    "digest": ("Digest",),
    "errors": (
        "ConfigError",
        "DhtDataError",
        "FormatError",
        "IntegrityError",
        "NotFoundError",
        "PeerError",
        "StoreError",
    ),
    "mount": ("MapStyleDataset", "Mix", "StreamingDataset", "mount"),
    "mount.progress": ("progress",),
    "publish": ("Published", "publish"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dhtdata' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dhtdata.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])


class _Package(ModuleType):
    """``dhtdata.mount`` and ``dhtdata.publish`` are functions: importing packages of these names must not hide them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
