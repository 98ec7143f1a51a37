"""The bytes of every format are fixed: what is on disks and wires today is read by every later version."""

from __future__ import annotations

import pytest

from dhtdata.formats.records import decode
from dhtdata.formats.ticket import Ticket
from tests.formats.samples import GOLDEN, SAMPLES, SIGNED, TICKETS

WHOLE = {name: sample.data for name, sample in SAMPLES.items() if name not in SIGNED}
WHOLE |= {name: signed.data for name, signed in SIGNED.items()}


@pytest.mark.parametrize("name", WHOLE)
def test_a_value_has_the_bytes_that_it_always_had(name: str) -> None:
    assert WHOLE[name] == bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_that_it_always_had_are_read(name: str) -> None:
    golden = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
    if name in SIGNED:
        assert decode(golden) == SIGNED[name]
    else:
        assert SAMPLES[name].encode(SAMPLES[name].decode(golden)) == golden


@pytest.mark.parametrize("name", TICKETS)
def test_a_ticket_has_the_text_that_it_always_had(name: str) -> None:
    golden = (GOLDEN / f"{name}.txt").read_text().strip()
    assert str(TICKETS[name]) == golden
    assert Ticket.parse(golden) == TICKETS[name]
