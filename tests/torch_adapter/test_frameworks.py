"""Frameworks around the loader: real processes, gloo over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

import dhtdata
from dhtdata.errors import ConfigError
from dhtdata.torch import DataLoader
from tests.torch_adapter.conftest import ROWS, batches

PROGRAMS = Path(__file__).parent / "programs"
pytestmark = [pytest.mark.slow_e2e, pytest.mark.timeout(180)]
Seen = list[list[list[list[int]]]]
"""By rank, epoch and step."""


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env=kept | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip


def torchrun(ranks: int, program: str, *arguments: str) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    done = run(
        [*launcher, "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", str(PROGRAMS / program)], *arguments
    )
    assert done.returncode == 0, done.stderr


def written(out: Path, ranks: int) -> Seen:
    return [json.loads((out / f"rows-{rank}.json").read_text()) for rank in range(ranks)]


def exact(seen: Seen, epoch: int) -> list[list[int]]:
    """Global batches of an epoch that was seen whole: equal steps, every row once."""
    assert len({len(of_rank[epoch]) for of_rank in seen}) == 1
    together: list[list[int]] = [sum(parts, []) for parts in zip(*(of_rank[epoch] for of_rank in seen), strict=True)]
    assert sorted(sum(together, [])) == list(range(ROWS))
    return together


def test_two_ranks_of_ddp_see_every_row_once_and_one_goes_on_from_their_state(
    made: str, home: Path, tmp_path: Path
) -> None:
    torchrun(2, "ddp.py", str(home), made, str(tmp_path))
    seen = written(tmp_path, 2)
    exact(seen, 0)
    states = [(tmp_path / f"state-{rank}.json").read_text() for rank in range(2)]
    assert states[0] == states[1]
    rest = tmp_path / "rest"
    rest.mkdir()
    alone = dhtdata.mount(made, home=home, columns=["number"], global_batch_size=24, shuffle=True, seed=7)
    alone.load_state_dict(json.loads(states[0]))
    together = [a + b for a, b in zip(seen[0][1], seen[1][1], strict=True)] + batches(alone)
    alone.set_epoch(1)
    assert together == batches(alone)


@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_leaves_our_loader_as_it_is_and_keeps_its_state(
    made: str, home: Path, tmp_path: Path, ranks: int
) -> None:
    torchrun(ranks, "accelerated.py", str(home), made, str(tmp_path))
    seen = written(tmp_path, ranks)
    assert exact(seen, 0) != exact(seen, 1)
    for rank in range(ranks):
        assert "which accelerator.prepare leaves as it is" in json.loads((tmp_path / f"told-{rank}.json").read_text())


def test_lightning_starts_ranks_that_see_every_row_once(made: str, home: Path, tmp_path: Path) -> None:
    done = run([str(PROGRAMS / "lightning_ddp.py")], str(home), made, str(tmp_path), "late")
    assert done.returncode == 0, done.stderr
    exact(written(tmp_path, 2), 0)


def test_a_mount_from_before_there_were_ranks_is_refused(made: str, home: Path, tmp_path: Path) -> None:
    done = run([str(PROGRAMS / "lightning_ddp.py")], str(home), made, str(tmp_path), "early")
    assert done.returncode != 0 and "mount once torch.distributed is initialised" in done.stderr


@pytest.mark.filterwarnings("ignore")  # what Lightning and its use of torch and Python warn of, on import and later
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_goes_on_from_its_checkpoint(made: str, home: Path, tmp_path: Path, workers: int) -> None:
    import lightning.pytorch as lightning
    import torch

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[list[int]] = []

        def training_step(self, batch: Any, number: int) -> Any:
            self.seen.append(batch["number"].tolist())
            return self.layer(batch["number"][:, None].float()).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    def fitted(resumed: Path | None = None) -> list[list[int]]:
        saving = lightning.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1, save_on_train_epoch_end=False
        )
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, callbacks=[saving], enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        model = Model()
        dataset = dhtdata.mount(made, home=home, batch_size=16, shuffle=True, columns=["number"])
        trainer.fit(model, DataLoader(dataset, num_workers=workers), ckpt_path=resumed)
        return model.seen

    alone = dhtdata.mount(made, home=home, batch_size=16, shuffle=True, columns=["number"])
    expected = sum((batches(alone) for _ in range(3)), [])
    assert fitted() == expected
    assert fitted(tmp_path / "step=20.ckpt") == expected[20:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("steps", [0, 5, 15])
def test_torchdatas_stateful_loader_goes_on_with_as_many_workers(
    made: str, home: Path, workers: int, persistent: bool, steps: int
) -> None:
    def loader() -> Any:
        dataset = dhtdata.mount(made, home=home, batch_size=16, shuffle=True, columns=["number"])
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=persistent)

    alone = dhtdata.mount(made, home=home, batch_size=16, shuffle=True, columns=["number"])
    expected = [batches(alone) for _ in range(4)]
    before = loader()
    assert batches(before) == expected[0]
    iterator = iter(before)
    received = batches(next(iterator) for _ in range(steps))
    state = before.state_dict()
    after = loader()
    after.load_state_dict(state)
    rest = batches(after)
    if workers == 0 and steps == 15:
        # All that was left of epoch 1 is received: the next one is what is left.
        assert (received, rest) == (expected[1], expected[2])
        return
    assert received + rest == expected[1]
    assert batches(after) == expected[2]
    finished = loader()
    finished.load_state_dict(after.state_dict())
    assert batches(finished) == expected[3]


def test_a_workers_state_goes_nowhere_else(made: str, home: Path) -> None:
    dataset = dhtdata.mount(made, home=home, batch_size=16)
    state = dataset.state_dict() | {"worker": 1, "workers": 2}
    with pytest.raises(ConfigError, match=r"worker 1 of 2 .* dhtdata.torch.DataLoader"):
        dataset.load_state_dict(state)


def test_ranks_that_came_after_mounting_are_noticed(made: str, home: Path) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    early = dhtdata.mount(made, home=home, batch_size=16)
    told = dhtdata.mount(made, home=home, batch_size=16, rank=0, world_size=1)
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        for source in (early, DataLoader(early)):
            with pytest.raises(ConfigError, match="mounted as rank 0 of 1, .* says rank 1 of 2"):
                next(iter(source))
        assert len(batches(told)) == 15
    finally:
        distributed.destroy_process_group()
