"""When shard claims are put again: at once, spread over the cycle, resumed, caught up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhtdata.dht.schedule import RETRY_S, SLICES, SweepSchedule, load, save
from dhtdata.digest import domain_key
from dhtdata.errors import FormatError, StoreError

START_S = 1_800_000_000.0
CYCLE_S = 39_600.0


def keys(count: int, label: str = "key") -> list[bytes]:
    return [domain_key(label, number.to_bytes(4, "big")) for number in range(count)]


def schedule(seed: int = 1) -> SweepSchedule:
    return SweepSchedule(random.Random(seed), CYCLE_S)


def live(plan: SweepSchedule, since_s: float, until_s: float, put: dict[bytes, list[float]]) -> None:
    """Announce what is due, as a seed does, until a time."""
    now_s = since_s
    while now_s < until_s:
        while chosen := plan.due(now_s, 1_000):
            for key in chosen:
                put.setdefault(key, []).append(now_s)
            plan.settle(chosen, chosen, now_s)
        now_s += max(plan.next_s(now_s), 1.0)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 800), seed=st.integers(0, 1_000))
def test_every_key_is_put_at_once_and_then_at_least_once_a_cycle(count: int, seed: int) -> None:
    plan, put = schedule(seed), dict[bytes, list[float]]()
    plan.want(keys(count))
    live(plan, START_S, START_S + 3 * CYCLE_S, put)
    assert set(put) == set(keys(count))
    for times in put.values():
        assert times[0] == START_S
        gaps = [later - earlier for earlier, later in zip(times, [*times[1:], START_S + 3 * CYCLE_S], strict=True)]
        assert max(gaps) <= CYCLE_S + 2


def test_renewals_are_spread_over_the_cycle() -> None:
    plan, put = schedule(), dict[bytes, list[float]]()
    plan.want(keys(5_000))
    live(plan, START_S, START_S + 4 * CYCLE_S, put)
    hours = [0] * 11
    for times in put.values():
        for when in times:
            if when >= START_S + 2 * CYCLE_S:
                hours[int((when - START_S) % CYCLE_S // (CYCLE_S / 11))] += 1
    assert max(hours) < 2 * sum(hours) / 11 and min(hours) > 0


def test_new_keys_are_put_alone_and_removed_ones_not_again() -> None:
    plan = schedule()
    plan.want(keys(500))
    plan.settle(plan.due(START_S, 50), keys(500), START_S)
    plan.want([*keys(400), *keys(30, "new")])
    chosen = plan.due(START_S + 1, 50)
    assert chosen == sorted(keys(30, "new"))
    plan.settle(chosen, chosen, START_S + 1)
    assert plan.due(START_S + 2, 50) == [] and plan.key_count == 430
    later = plan.due(START_S + CYCLE_S + 1, 1)
    assert set(later) == {*keys(400), *keys(30, "new")}


def test_what_nobody_keeps_is_tried_again_soon() -> None:
    plan = schedule()
    plan.want(keys(300))
    chosen = plan.due(START_S, 50)
    plan.settle(chosen, set(chosen[10:]), START_S)
    assert 0 < plan.next_s(START_S) <= RETRY_S
    assert set(chosen[:10]) <= set(plan.due(START_S + RETRY_S, 1))


def test_a_restart_goes_on_and_an_absence_is_caught_up_longest_first(tmp_path: Path) -> None:
    path = tmp_path / "announced.json"
    plan = schedule()
    plan.want(keys(2_000))
    live(plan, START_S, START_S + CYCLE_S, {})
    save(path, plan.encode())
    again = schedule(2)
    load(path, again)
    again.want(keys(2_000))
    now_s = START_S + CYCLE_S + 60
    assert len(again.due(now_s, 1_000)) < 500
    away_s = now_s + 86_400
    assert again.behind_s(away_s) > 80_000
    first = again.due(away_s, 10_000)
    before_s = again.behind_s(away_s)
    again.settle(first, first, away_s)
    assert again.behind_s(away_s) <= before_s
    put: dict[bytes, list[float]] = {}
    live(again, away_s, away_s + 1, put)
    assert set(put) | set(first) == set(keys(2_000)) and again.behind_s(away_s) == 0


def test_other_keys_than_were_put_are_announced_at_once_after_a_restart() -> None:
    plan = schedule()
    plan.want(keys(400))
    plan.settle(plan.due(START_S, 50), keys(400), START_S)
    again = schedule()
    again.resume(plan.encode())
    again.want([*keys(400), *keys(1, "more")])
    (more,) = keys(1, "more")
    chosen = again.due(START_S + 1, 50)
    assert more in chosen and {key[0] for key in chosen} == {more[0]}


@pytest.mark.parametrize("data", [b"", b"{}", b'{"slices":[],"version":1}', b'{"slices":[],"version":2}', b"\xff"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "announced.json").write_bytes(data)
    plan = schedule()
    with pytest.raises(FormatError):
        plan.resume(data)
    load(tmp_path / "announced.json", plan)
    plan.want(keys(3))
    assert plan.due(START_S, 1) == sorted(keys(3))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    load(tmp_path / "missing.json", schedule())
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path, schedule())
    with pytest.raises(StoreError, match="cannot be written"):
        save(tmp_path / "no" / "folder.json", schedule().encode())
    assert len(schedule().encode()) < 64 << 10 and SLICES == 256
