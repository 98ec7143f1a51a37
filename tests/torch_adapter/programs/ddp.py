"""Train with plain DDP under torchrun: HOME DATASET OUT [STATE]. Every rank writes the rows that it saw, by epoch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dhtdata
import dhtdata.torch

home, made, out = sys.argv[1:4]
dist.init_process_group("gloo")
rank = dist.get_rank()
ds = dhtdata.mount(made, home=home, columns=["number"], global_batch_size=24, shuffle=True, seed=7)
loader = dhtdata.torch.DataLoader(ds, num_workers=1)
if len(sys.argv) > 4:
    loader.load_state_dict(json.loads(Path(sys.argv[4]).read_text()))
model = DistributedDataParallel(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
seen: list[list[list[int]]] = []
for epoch in range(2):
    seen.append([])
    for step, batch in enumerate(loader):
        model(batch["number"][:, None].float()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen[epoch].append(batch["number"][batch["_valid"]].tolist())
        if epoch == 1 and step == 3:
            break
Path(out, f"rows-{rank}.json").write_text(json.dumps(seen))
Path(out, f"state-{rank}.json").write_text(json.dumps(loader.state_dict()))
dist.destroy_process_group()
