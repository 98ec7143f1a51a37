from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dhtdata.store import Store


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Stores by folder name, opened outside of any event loop, with these datasets published into them."""
    with ExitStack() as stack:

        def open_one(name: str) -> Store:
            return stack.enter_context(Store.open(tmp_path / name))

        yield open_one
