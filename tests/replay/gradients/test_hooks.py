"""Hooks change gradients on their way: what is read is what reaches the parameters, or an error."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from tests.helpers.functions import own_gradients, written_out
from tests.helpers.layers import Block
from tracer.errors import GradientError

HOOKS = {
    "scales": lambda g: 0.1 * g,
    "clips-values": lambda g: g.clamp(-0.01, 0.01),
    "couples": lambda g: g - g.mean(0),
}


def losses(s, x, y, mask=1.0):
    h = s.a(x)
    if s.hook is not None and h.requires_grad:
        h.register_hook(s.hook)
    return mask * F.cross_entropy(s.b(torch.relu(h)), y, reduction="none")


def network(hook=None):
    torch.manual_seed(0)
    model = Block(None, a=nn.Linear(4, 5), b=nn.Linear(5, 3)).double()
    model.hook = hook
    return model


def zero_head(model):
    nn.init.zeros_(model.b.weight)


def dead(model):
    nn.init.constant_(model.a.bias, -50.0)


def alive(model):
    pass


def batches(kind, n):
    """Four batches; the first has no gradient, is all alike, or is as the others."""
    for t in range(4):
        x, y = torch.randn(n, 4).double(), torch.randint(0, 3, (n,))
        if kind == "alike" and t == 0:
            x, y = x[:1].expand(n, -1), y[:1].expand(n)
        yield x, y, float(kind != "masked" or t > 0)


def step(model, parameters, row):
    parts = torch.split(row, [p.numel() for p in parameters.values()])
    with torch.no_grad():
        for (name, p), g in zip(parameters.items(), parts, strict=True):
            p -= g.view_as(p)
            if name == "a.bias" and float(p[0]) < -40:  # alive again
                p.fill_(0.1)


@pytest.mark.parametrize("first", ["usual", "masked", "alike", "alone"])
@pytest.mark.parametrize("start", [zero_head, dead, alive], ids=lambda start: start.__name__)
@pytest.mark.parametrize("hook", [None, *HOOKS])
def test_each_pass_is_exact(hook, start, first):
    """Whatever the first pass shows, and however seldom is an audit."""
    n = 1 if first == "alone" else 8
    model, engine = network(HOOKS.get(hook)), Engine(audit=1000)
    start(model)
    parameters, weights = dict(model.named_parameters()), torch.full((n,), 1 / n).double()
    for x, y, mask in batches(first, n):
        forward = partial(losses, model, x, y, mask)
        found = engine.of_batch(parameters, forward, weights, budget=1 << 20)
        expected = own_gradients(forward, parameters, weights)
        gap = (written_out(found, parameters) - expected).norm()
        assert gap <= 1e-12 * expected.norm()
        step(model, parameters, expected.sum(0))


def clipping(scale):
    return lambda g: g * min(1.0, scale / float(g.norm() + 1e-300))


@pytest.mark.parametrize("where", ["result", "parameter"])
def test_clipping_by_a_hook_is_told(where):
    """By the norm: gradients of the examples are clipped otherwise than their sum."""
    model, engine = network(clipping(0.05) if where == "result" else None), Engine()
    if where == "parameter":
        model.a.weight.register_hook(clipping(0.05))
    parameters, x, y = (
        dict(model.named_parameters()),
        torch.randn(8, 4).double(),
        torch.arange(8) % 3,
    )
    with pytest.raises(GradientError, match=r"step 7: .* batch's gradient of 'a\.weight', .* hook"):
        engine.of_batch(
            parameters, partial(losses, model, x, y), torch.ones(8), budget=1 << 20, where="step 7"
        )


def test_clipping_that_begins_later_is_told():
    """Large gradients only are clipped: not those of the first pass, which is proven."""
    model, engine = network(), Engine(audit=1000)
    model.a.weight.register_hook(lambda g: g.clamp(-1.0, 1.0))
    parameters, x, y = (
        dict(model.named_parameters()),
        torch.randn(8, 4).double(),
        torch.arange(8) % 3,
    )

    def go(weight):
        forward = partial(losses, model, x, y)
        return engine.of_batch(parameters, forward, torch.full((8,), weight), budget=1 << 20)

    go(0.01)
    go(0.01)
    with pytest.raises(GradientError, match=r"do not add up .* of 'a\.weight'"):
        go(10.0)


@pytest.mark.parametrize("where", ["result", "parameter"])
def test_examples_alone_are_exact_where_clipping_begins_later(where):
    """No plain gradient is at hand there; the first pass is looked at large, too."""
    clip = clipping(0.5)
    model, engine = network(clip if where == "result" else None), Engine(audit=1000)
    if where == "parameter":
        model.a.weight.register_hook(clip)
    parameters, x, y = (
        dict(model.named_parameters()),
        torch.randn(4, 4).double(),
        torch.arange(4) % 3,
    )
    for scale in (1e-3, 1e-3, 10.0):

        def alone(i, scale=scale):
            return scale * losses(model, x[i : i + 1], y[i : i + 1])

        found = engine.of_independent(
            parameters, lambda scale=scale: scale * losses(model, x, y), alone, agree=lambda: True
        )
        expected = [own_gradients(partial(alone, i), parameters, [1.0])[0] for i in range(4)]
        gap = (written_out(found, parameters) - torch.stack(expected)).norm()
        assert gap <= 1e-12 * torch.stack(expected).norm()


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_parts_are_compared_with_the_plain_gradient_at_every_pass(factor):
    """A hook on a parameter that changes its mind, by what a proof cannot foresee."""
    model, engine, factors = network(), Engine(audit=1000), [1.0]
    model.b.weight.register_hook(lambda g: factors[0] * g)
    parameters, x, y = (
        dict(model.named_parameters()),
        torch.randn(8, 4).double(),
        torch.arange(8) % 3,
    )
    forward, weights = partial(losses, model, x, y), torch.ones(8).double()
    engine.of_batch(parameters, forward, weights, budget=1 << 20)
    factors[0] = factor
    found = engine.of_batch(parameters, forward, weights, budget=1 << 20)
    expected = own_gradients(forward, parameters, weights)
    assert (written_out(found, parameters) - expected).norm() <= 1e-13 * expected.norm()
    assert engine.paths["b.weight"].startswith("complete") == (factor != 1)
