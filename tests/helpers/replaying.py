"""A small run with a hook, and its replay."""

from __future__ import annotations

import dataclasses

import torch

from replay import Replay
from tests.helpers.cases import Case, mlp
from tracer import TracingSGD


def influence(path, task, **options):
    """Replay with two test examples."""
    return Replay(path, task=task).influence([0, 2], progress=False, **options)


def changed(task, **parts):
    return dataclasses.replace(task, **parts)


def trained(path, task, make=None, between=None, wrapper=TracingSGD, steps=3):
    """Train three steps with a hook between backward and step."""
    model = task.model()
    inner = make(model) if make else torch.optim.SGD(model.parameters(), lr=0.1)
    with wrapper(inner, model, path) as optimizer:
        for t in range(steps):
            ids = [t, t + 1, t + 2]
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            if between is not None:
                between(t, model, optimizer)
            optimizer.step(batch_ids=ids)
    return task


TASK = Case("mlp", mlp).task()
