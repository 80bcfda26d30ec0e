"""A resumed run has the zero gradients of the uninterrupted one: they move parameters, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracer import TracingOptimizer

STEPS = 8
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def zeros_first(model, optimizer, way):
    way(model, optimizer)
    yield
    optimizer.step(batch_ids=[0])


def zeros_last(model, optimizer, way):
    yield
    optimizer.step(batch_ids=[0])
    way(model, optimizer)


WAYS = {
    "zeros": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "zeros of the model": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "none": lambda model, optimizer: optimizer.zero_grad(),
}


def train(path, order, way, rule, start, stop):
    """Train layers of which the first is frozen after two steps, the second used at times."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
    inner = RULES[rule](model.parameters())
    with TracingOptimizer(inner, model, path, resume=start > 0, state_every=3) as optimizer:
        assert optimizer.position[0] == start
        for t in range(start, stop):
            if t >= 2:
                model[0].requires_grad_(False)
            turn = order(model, optimizer, WAYS[way])
            next(turn)
            x = model[0](torch.full((2, 3), 1.0 + t))
            x = x if t % 3 == 0 else model[1](x)
            model[2](x).square().mean().backward()
            next(turn, None)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [zeros_first, zeros_last], ids=lambda order: order.__name__)
def test_the_resumed_run_is_the_uninterrupted_one(tmp_path, order, way, rule):
    expected = train(tmp_path / "whole.h5", order, way, rule, 0, STEPS)
    for stop in (3, 5):
        path = tmp_path / f"{stop}.h5"
        train(path, order, way, rule, 0, stop)
        assert torch.equal(train(path, order, way, rule, stop, STEPS), expected), stop
