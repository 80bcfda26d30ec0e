"""Runs whose logs have snapshots only here and there, and the same runs with one of every step."""

from __future__ import annotations

import zlib

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from replay import Task
from tracer import TracingOptimizer
from tracer.log import schema

STEPS = 12


class Attention(nn.Module):
    """A block of attention with dropout over sequences of numbers."""

    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(4, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        """Return scores of three classes."""
        return self.out(self.block(self.inward(x.view(len(x), 3, 4))).mean(1))


class Recurrent(nn.Module):
    """An LSTM over sequences of numbers."""

    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        """Return scores of three classes."""
        return self.out(self.cells(x.view(len(x), 3, 4))[0][:, -1])


def mlp():
    """Return a net with dropout."""
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3))


def cnn():
    """Return a convolutional net with BatchNorm and dropout."""
    body = (
        nn.Conv2d(1, 4, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
    )
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *body, nn.Linear(24, 3))


MODELS = {"mlp": mlp, "cnn": cnn, "attention": Attention, "lstm": Recurrent}


def _muon(parameters):
    return torch.optim.Muon([p for p in parameters if p.dim() == 2], lr=0.02)


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "heavy-ball": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.8, 0.9)),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.01),
    "muon": _muon,
    "sgd-foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.5, foreach=True),
    "adam-fused": lambda ps: torch.optim.Adam(ps, lr=torch.tensor(0.01), fused=True),
}


def data():
    """Return inputs and labels of 40 examples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 12, generator=generator)
    return x, torch.randint(3, (40,), generator=generator)


def loss(model, batch):
    """Return each example's cross entropy."""
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def task(model="mlp"):
    """Return the task of a run."""
    x, y = data()
    train = list(zip(x, y, strict=True))
    return Task(model=MODELS[model], loss=loss, train=train, test=train[:5])


def trace(
    path,
    model="mlp",
    optimizer="sgd",
    *,
    steps=STEPS,
    parts=1,
    clip=None,
    size=6,
    after=None,
    **how,
):
    """Train and trace a run; it is the same whatever ``how`` its log is written."""
    torch.manual_seed(7)
    net, (x, y) = MODELS[model](), data()
    inner = OPTIMIZERS[optimizer](list(net.parameters()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.9)
    with TracingOptimizer(inner, net, path, **how) as tracing:
        for t in range(steps):
            tracing.epoch = t // 5
            tracing.zero_grad()
            for _ in range(parts):
                ids = torch.randperm(40)[:size]
                tracing.observe(ids)
                (loss(net, (x[ids], y[ids])).mean() / parts).backward()
            if clip == "inside":
                tracing.clip_grad_norm_(0.3)
            elif clip == "outside":
                nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            tracing.step()
            scheduler.step()
            if after is not None:
                after(t, net)
    return net


CNN = task("cnn")


def tampered(path, part, t):
    """Change step ``t`` of a log as somebody would who knows its checksums."""
    with h5py.File(path, "r+") as file:
        rows = file[schema.META][:]
        if part == "steps/ids":
            start, end = rows["ids"][t], rows["ids"][t] + 8
            file[part][start:end] = file[part][start:end][::-1]
            rows["ids_crc"][t] = zlib.crc32(file[part][start:end].tobytes())
        elif part == "snap/rng":
            row = int(file["steps/micro"][rows["micro"][t]]["rng"])
            file[part][row] = file[part][row - 1]
            rows["rng_crc"][t] = zlib.crc32(file[part][row].tobytes())
        else:
            rows[part][t + 1] ^= 1  # of the parameters before the next step
        file[schema.META][:] = np.concatenate(
            [np.frombuffer(schema.packed_meta(row.item()), schema.META_DTYPE) for row in rows]
        )
