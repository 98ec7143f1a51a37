"""Rows that are left out are told, but not every one for ever."""

from __future__ import annotations

import logging

import pytest

from dhtdata.gather.leaving import TOLD, Leaving


def test_the_first_are_told_one_by_one_and_later_ones_at_every_doubling(caplog: pytest.LogCaptureFixture) -> None:
    leaving = Leaving()
    with caplog.at_level(logging.WARNING, "dhtdata"):
        for row in range(1000):
            leaving.tell(f"row {row} is broken")
    told = [record.getMessage() for record in caplog.records]
    assert told[:TOLD] == [f"row {row} is broken: left out" for row in range(TOLD)]
    assert [line.split(",")[0] for line in told[TOLD:]] == [
        f"row {count - 1} is broken: left out" for count in (16, 32, 64, 128, 256, 512)
    ]
