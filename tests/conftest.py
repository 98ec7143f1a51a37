"""Every test runs under blockbuster: a blocking call of ours on an event loop fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    detector = BlockBuster(scanned_modules=["dhtdata"])
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()
