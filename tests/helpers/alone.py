"""A short run whose losses may change their batch, and a loss."""

from __future__ import annotations

import copy

import torch

from tracer import TracingOptimizer

CHOSEN = {"checkpoints": [0, 2, 5], "progress": False}


def trace(path, task, steps=5, size=3, lr=0.1):
    """Train a few steps."""
    torch.manual_seed(1)
    model = task.model()
    inner = torch.optim.SGD(model.parameters(), lr=lr)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(steps):
            ids = [(size * t + k) % len(task.train) for k in range(size)]
            optimizer.zero_grad()
            batch = task.collate([copy.deepcopy(task.train[i]) for i in ids])
            task.loss(model, batch).mean().backward()
            optimizer.step(batch_ids=ids)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square()
