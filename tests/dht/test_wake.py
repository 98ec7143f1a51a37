"""Clocks that are wrong, machines that slept: what a node notices, and that it works again soon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dhtdata.dht.clock import MAX_WITNESSES, MIN_WITNESSES, ClockWatch
from dhtdata.formats.records import CLOCK_TOLERANCE_S, PROVIDER_LIFETIME_S
from dhtdata.signing import substitute
from tests.dht.claims import KEY, claim, holding, now_s, signers_found_by
from tests.simulation.clock import run
from tests.simulation.signer import FastScheme
from tests.simulation.swarm import Swarm, swarm

DAY_S = 24 * 3_600
MINUTE_S = 60


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with substitute(FastScheme()):
        yield


def test_a_clock_is_wrong_if_the_median_of_enough_witnesses_says_so() -> None:
    watch = ClockWatch()
    for witness in range(MIN_WITNESSES - 1):
        watch.told(bytes([witness]) * 20, 1_000.0, 100_000.0)
    assert not watch.wrong and watch.ahead_s == 0
    watch.told(b"one more" * 2, 1_000.0, 100_000.0)
    assert watch.wrong and watch.ahead_s == 99_000.0
    watch.forget()
    assert not watch.wrong and watch.witnesses == 0


def test_a_minority_of_liars_moves_no_clock_however_often_they_answer() -> None:
    watch = ClockWatch()
    for witness in range(10):
        watch.told(bytes([witness]) * 20, 1_000.0, 1_000.0)
    for _ in range(1_000):
        for liar in range(9):
            watch.told(bytes([100 + liar]) * 20, 1e9, 1_000.0)
    assert not watch.wrong and watch.witnesses == 19
    for witness in range(1_000):
        watch.told(witness.to_bytes(20, "big"), 1_000.0, 1_000.0)
    assert watch.witnesses == MAX_WITNESSES


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_off_by_a_day_is_noticed_and_told(by_s: int) -> None:
    async def story() -> None:
        async with swarm(12, seed=1) as network:
            wrong, right = network.nodes[4], network.nodes[5]
            assert not wrong.status().clock_wrong and abs(wrong.status().clock_ahead_s) < 2
            network.jump_clock(network.ip(wrong), by_s)
            await asyncio.sleep(3 * MINUTE_S)
            here_s = int(network.clock(network.ip(wrong))())
            # What it signs by its own clock, others refuse.
            assert await wrong.announce(KEY, claim(wrong, at_s=here_s)) == 0
            assert holding([node for node in network.nodes if node is not wrong]) == []
            status = wrong.status()
            assert status.clock_wrong and abs(status.clock_ahead_s - by_s) < 2
            assert not any(node.status().clock_wrong for node in network.nodes if node is not wrong)
            await right.announce(KEY, claim(right))
            assert await signers_found_by(network.nodes[6]) == {right.key.public}
            # Set right, it is right.
            network.jump_clock(network.ip(wrong), -by_s)
            await asyncio.sleep(3 * MINUTE_S)
            assert not wrong.status().clock_wrong
            assert await wrong.announce(KEY, claim(wrong)) >= 10

    run(story())


def test_clocks_within_the_tolerance_harm_nobody() -> None:
    async def story() -> None:
        async with swarm(12, seed=2) as network:
            for number, node in enumerate(network.nodes):
                network.jump_clock(network.ip(node), (number % 3 - 1) * (CLOCK_TOLERANCE_S / 2 - 5))
            await asyncio.sleep(3 * MINUTE_S)
            for node in network.nodes:
                own_s = int(network.clock(network.ip(node))())
                assert await node.announce(KEY, claim(node, at_s=own_s)) == 11
            assert await signers_found_by(network.nodes[0]) == {node.key.public for node in network.nodes}
            assert not any(node.status().clock_wrong for node in network.nodes)

    run(story())


def wakes(network: Swarm) -> dict[int, int]:
    """Counts how often each node woke, from now on."""
    counts = dict.fromkeys(range(len(network.nodes)), 0)

    def counter(number: int) -> None:
        counts[number] += 1

    for number, node in enumerate(network.nodes):
        node.on_wake = lambda number=number: counter(number)  # type: ignore[misc]
    return counts


def test_a_machine_that_slept_a_day_notices_and_asks_everybody_anew() -> None:
    async def story() -> None:
        async with swarm(25, seed=3) as network:
            woken = wakes(network)
            sleeper, publisher = network.nodes[4], network.nodes[5]
            # Asleep: cut off for as long as others need to forget it. Its own timers see none of that.
            network.partition([network.ip(sleeper)])
            await asyncio.sleep(40 * MINUTE_S)
            assert not sleeper.nodes()
            network.heal()
            network.jump_clock(network.ip(sleeper), DAY_S)
            network.clock_jump_s += DAY_S
            network.jump_clock(network.ip(sleeper), -DAY_S)
            await asyncio.sleep(3 * MINUTE_S)
            assert woken[4] == 1
            await publisher.announce(KEY, claim(publisher, at_s=now_s() + DAY_S))
            assert await signers_found_by(sleeper) == {publisher.key.public}
            assert len(sleeper.nodes()) >= 15 and sleeper.serves
            assert await sleeper.announce(KEY, claim(sleeper, at_s=now_s() + DAY_S)) >= 15

    run(story())


def test_after_a_wake_every_contact_is_asked_anew_within_minutes() -> None:
    async def story() -> None:
        async with swarm(25, seed=4) as network:
            await asyncio.sleep(20 * MINUTE_S)
            sleeper = network.nodes[4]
            dead = [node for node in network.nodes if node is not sleeper][:6]
            for node in dead:
                network.kill(node)
            network.jump_clock(network.ip(sleeper), 3_600)
            woken = wakes(network)
            await asyncio.sleep(8 * MINUTE_S)
            assert woken[4] == 1
            assert all(known.seen_s_ago < 9 * MINUTE_S for known in sleeper.nodes())
            assert not {known.id for known in sleeper.nodes()} & {node.id for node in dead}

    run(story())


def test_when_everybody_slept_a_day_what_has_expired_is_gone_and_all_goes_on_within_minutes() -> None:
    async def story() -> None:
        async with swarm(20, seed=5) as network:
            woken = wakes(network)
            publisher = network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            network.clock_jump_s += DAY_S
            await asyncio.sleep(3 * MINUTE_S)
            assert set(woken.values()) == {1}
            assert await signers_found_by(network.nodes[9]) == set() and holding(network.nodes) == []
            assert await publisher.announce(KEY, claim(publisher, 2, at_s=now_s() + DAY_S)) >= 17
            assert await signers_found_by(network.nodes[9]) == {publisher.key.public}
            assert not any(node.status().clock_wrong for node in network.nodes)

    run(story())


def test_a_clock_that_is_corrected_a_little_wakes_nobody() -> None:
    async def story() -> None:
        async with swarm(6, seed=6) as network:
            woken = wakes(network)
            for by_s in (60, -90, 100, -30):
                network.jump_clock(network.ip(network.nodes[2]), by_s)
                await asyncio.sleep(5 * MINUTE_S)
            assert set(woken.values()) == {0}

    run(story())


def test_a_clock_that_goes_back_a_day_does_not_keep_records_for_ever() -> None:
    async def story() -> None:
        async with swarm(12, seed=7) as network:
            holder, publisher = network.nodes[3], network.nodes[0]
            await publisher.announce(KEY, claim(publisher))
            network.jump_clock(network.ip(holder), -DAY_S)
            await asyncio.sleep(3 * MINUTE_S)
            # To others its records are as old as they are.
            network.jump_clock(network.ip(holder), DAY_S)
            network.clock_jump_s += PROVIDER_LIFETIME_S + CLOCK_TOLERANCE_S
            await asyncio.sleep(3 * MINUTE_S)
            assert holding(network.nodes) == []

    run(story())
