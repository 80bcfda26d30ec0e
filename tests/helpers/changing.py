"""A model and its steps for tests of what a user may change."""

from __future__ import annotations

import torch
from torch import nn

from tracer import TracingOptimizer


def build():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(optimizer, model, ids=(0, 1, 2, 3)):
    optimizer.zero_grad()
    model(torch.ones(4, 3, dtype=next(model.parameters()).dtype)).square().mean().backward()
    optimizer.step(batch_ids=list(ids))


def traced(model, path):
    return TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path)
