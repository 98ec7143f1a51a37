"""The stock package runs unmodified in the simulated network."""

from __future__ import annotations

import logging

import pytest

from tests.simulation.clock import run
from tests.simulation.links import WAN
from tests.simulation.network import SimulatedNetwork
from tests.simulation.stock import stock_swarm


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def latencies(seed: int) -> tuple[list[float], list[float]]:
    """(get with everybody alive, get with 30% dead), in virtual seconds."""
    network = SimulatedNetwork(seed, WAN)
    async with stock_swarm(30, network) as stock:
        for number in range(10):
            await stock.set(f"key {number}", f"value {number}")
        alive = [await stock.get(f"key {number}") for number in range(10)]
        stock.kill(9)
        dead = [await stock.get(f"key {number}") for number in range(10)]
        assert len(stock.living()) == 21
        assert [value for value, _ in alive] == [f"value {number}" for number in range(10)]
        return [took_s for _, took_s in alive], [took_s for _, took_s in dead]


def test_it_finds_what_it_set_and_waits_five_seconds_for_the_dead() -> None:
    alive, dead = run(latencies(1))
    assert max(alive) < 1
    assert max(dead) >= 5


def test_it_repeats_exactly() -> None:
    assert run(latencies(2)) == run(latencies(2))
