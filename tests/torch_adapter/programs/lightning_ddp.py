"""Train with Lightning on two processes that it starts itself: HOME DATASET OUT EARLY. Ranks write the rows they saw.

With EARLY "early" the dataset is mounted before there are ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

import dhtdata
import dhtdata.torch

home, made, out, when = sys.argv[1:5]


def mounted() -> dhtdata.StreamingDataset:
    return dhtdata.mount(made, home=home, columns=["number"], batch_size=12, shuffle=True)


class Model(LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def train_dataloader(self) -> Any:
        return dhtdata.torch.DataLoader(early or mounted())

    def training_step(self, batch: Any, number: int) -> Any:
        self.seen.append(batch["number"][batch.get("_valid", slice(None))].tolist())
        return self.layer(batch["number"][:, None].float()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


# The process that Lightning starts has WORLD_SIZE but no RANK: there an early mount is refused at once.
early = mounted() if when == "early" else None
model = Model()
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
)  # fmt: skip
trainer.fit(model)
Path(out, f"rows-{trainer.global_rank}.json").write_text(json.dumps([model.seen]))
