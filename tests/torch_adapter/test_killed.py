"""A training run that is killed leaves no workers behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import dhtdata
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.mount.making import put_dataset
from tests.torch_adapter.conftest import batches

_TRAINING = """
import os, sys
import dhtdata
from dhtdata.torch import DataLoader

home, made, context = sys.argv[1:]
if __name__ == "__main__":
    dataset = dhtdata.mount(made, home=home, batch_size=50)
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context=context)
    for batch in loader:
        print(flush=True)
        sys.stdin.readline()
"""


@pytest.mark.slow_e2e
@pytest.mark.timeout(90)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_end_when_their_loader_is_killed_though_nobody_takes_what_they_made(
    tmp_path: Path, context: str
) -> None:
    rows = 2_000
    table = pa.table({"text": [str(number) * 500 for number in range(rows)]})
    with Store.open(tmp_path / "store") as store:
        made = put_dataset(store, table, block_rows=100)
    program = tmp_path / "training.py"
    program.write_text(_TRAINING)
    command = [sys.executable, str(program), str(tmp_path), str(made), context]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as training:
        try:
            assert training.stdout is not None
            assert training.stdout.readline() == b"\n"
            children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
            watched = [os.pidfd_open(int(child)) for child in children]
        finally:
            training.kill()
    assert len(watched) >= 2
    for descriptor in watched:
        assert select.select([descriptor], [], [], 30)[0], "a worker outlives the process that started it"
        os.close(descriptor)


@pytest.mark.slow_e2e
@pytest.mark.timeout(90)
def test_persistent_workers_that_died_are_started_anew(made: str, home: Path) -> None:
    # With a transform workers begin with a few batches, so that most are not made yet when they die.
    dataset = dhtdata.mount(made, home=home, columns=["number"], batch_size=16, transform=lambda batch: batch)
    loader = DataLoader(dataset, num_workers=2, persistent_workers=True)
    expected = batches(loader)
    items = iter(loader)
    first = next(items)
    assert loader._iterator is not None
    for worker in loader._iterator._workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        list(items)
    assert first["number"].tolist() == expected[0]
    assert batches(loader) == expected
