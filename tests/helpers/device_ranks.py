"""A run of two ranks on two devices of their own, traced and not: NCCL's, where there are GPUs.

python -m tests.helpers.device_ranks FOLDER nccl cuda
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from replay import Task
from tests.helpers.ranks import joined
from tracer import TracingOptimizer

DRAW = torch.Generator().manual_seed(0)
DATA = [(torch.randn(6, generator=DRAW), torch.tensor(k % 3)) for k in range(16)]


def build():
    """Return the model; it draws random numbers, of its device's generator."""
    return nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.3), nn.Tanh(), nn.Linear(9, 3))


def loss(model, batch):
    """Return the loss of each example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


TASK = Task(build, loss, DATA, DATA)


def train(device, rank, log=None):
    """Train; return the parameters."""
    torch.manual_seed(7)
    model = DistributedDataParallel(
        build().to(device), device_ids=[device] if device.type == "cuda" else None
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    torch.manual_seed(rank)
    if log is not None:
        optimizer = TracingOptimizer(optimizer, model, log, snapshot_every=3)
    for t in range(6):
        ids = [(8 * t + 4 * rank + k) % 16 for k in range(4)]
        batch = [part.to(device) for part in TASK.collate([DATA[i] for i in ids])]
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        options = {} if log is None else {"batch_ids": ids}
        optimizer.step(**options)
    if log is not None:
        optimizer.close()
    return [p.detach().cpu() for p in model.parameters()]


def main(folder, backend, kind):
    """Train twice, and say whether tracing changed a bit."""
    rank = joined(folder, "store", backend)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    plain, traced = train(device, rank), train(device, rank, folder / "run.h5")
    same = all(map(torch.equal, plain, traced))
    (folder / f"what-{rank}.json").write_text(json.dumps({"bitwise": same}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
