"""Every test runs under blockbuster: a blocking call of ours on an event loop fails the test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster

# A shell without job control starts background jobs with interrupts ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    detector = BlockBuster(scanned_modules=["dhtdata"])
    # On sockets that do not block, of files that were seen to be in memory.
    detector.functions["os.sendfile"].can_block_in("dhtdata/transfer/sending.py", "send")
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()
