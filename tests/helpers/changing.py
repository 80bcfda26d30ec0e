"""A model and its steps for tests of what a user may change."""

from __future__ import annotations

import torch
from torch import nn

from tracer import TracingOptimizer


def build():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(optimizer, model, ids=(0, 1, 2, 3), *, closure=False):
    """Take one step, of a traced optimizer or a plain one."""
    given = {"batch_ids": list(ids)} if isinstance(optimizer, TracingOptimizer) else {}

    def evaluate():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3, dtype=next(model.parameters()).dtype)).square().mean()
        loss.backward()
        return loss

    if closure:
        optimizer.step(evaluate, **given)
    else:
        evaluate()
        optimizer.step(**given)


def traced(model, path):
    return TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path)
