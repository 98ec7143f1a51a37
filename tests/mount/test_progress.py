"""The progress bar of a loop: what it counts, and what it says."""

from __future__ import annotations

import io
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import dhtdata
from dhtdata.mount.meter import Held, Meter
from dhtdata.mount.progress import progress
from dhtdata.mount.speed import SPAN_S, Speedometer
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.mount.conftest import ROWS, sample_table
from tests.mount.making import put_dataset
from tests.mount.swarm import peer_of, seed


@given(st.lists(st.tuples(st.floats(0.001, 2.0), st.floats(0.0, 1.0)), min_size=1, max_size=300))
@settings(deadline=None, max_examples=60)
def test_a_speedometer_counts_all_and_looks_back_a_few_seconds(steps: list[tuple[float, float]]) -> None:
    meter, now_s, log = Speedometer(0.0), 0.0, [(0.0, 0.0)]
    for took_s, waited in steps:
        now_s += took_s
        meter.received(now_s, 3, took_s * waited)
        log.append((now_s, took_s * waited))
    assert (meter.items, meter.rows) == (len(steps), 3 * len(steps))
    speed = meter.speed()
    assert 0 <= speed.waiting <= 1
    # Marks are not at every item: the span is a little more than asked for, or all there is.
    rates = []
    for first, (since_s, _) in enumerate(log[:-1]):
        if now_s - since_s >= min(SPAN_S, now_s):
            rates.append((len(steps) - first) * 3 / (now_s - since_s))
    assert min(rates) * 0.99 <= speed.rows_s <= max(rates) * 1.01


@pytest.mark.parametrize(("waited", "verdict"), [(0.9, "input-bound"), (0.1, "compute-bound")])
def test_the_verdict_is_what_the_loop_spends_its_time_on(waited: float, verdict: str) -> None:
    meter = Speedometer(0.0)
    for step in range(1, 100):
        meter.received(step * 0.1, 64, 0.1 * waited)
    speed = meter.speed()
    assert speed.verdict == verdict
    assert speed.waiting == pytest.approx(waited) and speed.rows_s == pytest.approx(640)


def _stall_and_hold(meter: Meter, slot: int) -> None:
    with meter.stalled(slot):
        pass
    meter.hold(slot, 1000)


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_figures_of_other_processes_are_seen(context: str) -> None:
    meter = Meter()
    process = (
        multiprocessing.get_context("fork") if context == "fork" else multiprocessing.get_context("spawn")
    ).Process
    workers = [process(target=_stall_and_hold, args=(meter, slot)) for slot in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    total = meter.total()
    assert total.ahead_bytes == 2000 and 0 < total.stalled_s < 5


@pytest.mark.parametrize("loaded", [False, True])
def test_the_bar_shows_epoch_items_and_rates_of_a_dataset_or_loader(made: str, home: Path, loaded: bool) -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=160)
    dataset = dhtdata.mount(made, home=home, batch_size=10, columns=["number"])
    dataset.set_epoch(3)
    batches = list(progress(DataLoader(dataset) if loaded else dataset, console=console))
    assert sum(len(batch["number"]) for batch in batches) == ROWS
    text = drawn.getvalue()
    assert "epoch 3" in text and "23/23" in text and "rows/s" in text and "-bound)" in text and "all is stored" in text


def test_nothing_is_drawn_where_there_is_no_terminal_and_a_resumed_epoch_counts_on(made: str, home: Path) -> None:
    drawn = io.StringIO()
    mounted = partial(dhtdata.mount, made, home=home, batch_size=10, columns=["number"])
    dataset = mounted()
    iterator = progress(dataset, console=Console(file=drawn))
    for _ in range(5):
        next(iterator)
    assert drawn.getvalue() == ""
    after = mounted()
    after.load_state_dict(dataset.state_dict())
    shown = io.StringIO()
    rest = list(progress(after, console=Console(file=shown, force_terminal=True, width=160)))
    assert len(rest) == 18 and "23/23" in shown.getvalue()


@pytest.mark.slow_e2e
@pytest.mark.timeout(60)
def test_what_comes_from_a_peer_is_seen_as_stalls_and_as_bytes_ahead(tmp_path: Path) -> None:
    with Store.open(tmp_path / "seed" / "store") as store:
        made = put_dataset(store, sample_table(5000), block_rows=50, shard_blocks=10, range_rows=500)
    with seed(tmp_path / "seed", made) as (ticket, _), peer_of(tmp_path / "home"):
        with dhtdata.mount(ticket, home=tmp_path / "home", batch_size=10, shuffle=True, timeout=20) as dataset:
            before = dataset.held()
            held = [dataset.held() for _ in dataset]
            assert before == Held(0.0, 0)
            assert held[-1].stalled_s > 0
