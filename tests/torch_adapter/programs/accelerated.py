"""Train with Accelerate: HOME DATASET OUT. Every rank writes the rows that it saw, by epoch; then resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import dhtdata
import dhtdata.torch
from dhtdata.errors import ConfigError

home, made, out = sys.argv[1:4]
accelerator = Accelerator(cpu=True)


def mounted() -> dhtdata.StreamingDataset:
    return dhtdata.mount(made, home=home, columns=["number", "text"], batch_size=12, shuffle=True, remainder="pad")


def prepared() -> tuple[Any, Any, Any]:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return accelerator.prepare(model, optimizer, dhtdata.torch.DataLoader(mounted(), num_workers=1))  # type: ignore[no-any-return]


def trained(model: Any, optimizer: Any, loader: Any, steps: int | None = None) -> list[list[int]]:
    seen = []
    for step, batch in enumerate(loader, start=1):
        with accelerator.accumulate(model):
            accelerator.backward(model(batch["number"][:, None].float()).mean())
            optimizer.step()
            optimizer.zero_grad()
        seen.append(batch["number"][batch["_valid"]].tolist())
        if step == steps:
            break
    return seen


model, optimizer, loader = prepared()
seen = [trained(model, optimizer, loader), trained(model, optimizer, loader, 3)]
accelerator.save_state(f"{out}/checkpoint")
accelerator.wait_for_everyone()
accelerator.free_memory()
model, optimizer, loader = prepared()
accelerator.load_state(f"{out}/checkpoint")
seen[1] += trained(model, optimizer, loader)

refused = accelerator.prepare(torch.utils.data.DataLoader(mounted(), batch_size=None))
try:
    next(iter(refused))
    told = ""
except ConfigError as failure:
    told = str(failure)
Path(out, f"rows-{accelerator.process_index}.json").write_text(json.dumps(seen))
Path(out, f"told-{accelerator.process_index}.json").write_text(json.dumps(told))
accelerator.end_training()
