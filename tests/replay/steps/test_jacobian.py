"""The derivative of a step, against differences of torch's own steps."""

from __future__ import annotations

import pytest
import torch

from replay.steps.jacobian import BUFFER, GRADIENT, Before, W, jacobian, step
from tests.helpers.rules import RULES
from tracer.rules.table import RULES as TABLE

STEPS, SIZE = 4, 5


def numbers_of(optimizer):
    """Return a group's hyperparameters as a log has them."""
    (group,) = optimizer.param_groups
    found = {}
    for key, value in group.items():
        if key == "betas":
            found |= {"betas.0": value[0], "betas.1": value[1]}
        elif key != "params" and key != "differentiable":
            found[key] = float("nan") if value is None else float(value)
    return found


def moved(rule, first, gradients):
    """Return the parameter after each step of torch's, and the optimizer."""
    w = first.clone().requires_grad_()
    optimizer, found = rule.kind([w], **rule.options), []
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
        found.append(w.detach().clone())
    return found, optimizer


def difference(rule, vectors, k, h=1e-5):
    """Return the derivative of the last parameter by the k-th vector: rules are element-wise."""
    ends = []
    for sign in (1, -1):
        first, *gradients = (x + sign * h * (i == k) for i, x in enumerate(vectors))
        ends.append(moved(rule, first, gradients)[0][-1])
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("rule", [r for r in RULES if TABLE[r.kind.__name__].smooth], ids=str)
def test_several_steps(rule):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(SIZE, generator=generator, dtype=torch.float64)  # noqa: E731
    first, *gradients = vectors = [draw() for _ in range(STEPS + 1)]
    expected, optimizer = moved(rule, first, gradients)
    description, numbers = TABLE[rule.kind.__name__], numbers_of(optimizer)
    sign = -1.0 if rule.options.get("maximize") else 1.0
    moments = description.initial(first, numbers) if description.adapts else {}
    counts = {k: v for k, v in moments.items() if k in description.counts}
    moments = {k: v for k, v in moments.items() if k not in counts}
    now, chain = Before(first, gradients[0], None, moments, counts), []
    for k, w in enumerate(expected):
        chain.append(jacobian(description, now, numbers, sign))
        after, counts = step(description, now, numbers, sign)
        assert torch.allclose(after[W], w, rtol=1e-14, atol=1e-15)
        kept = {key: v for key, v in after.items() if key not in (W, BUFFER)}
        now = Before(after[W], gradients[(k + 1) % STEPS], after.get(BUFFER), kept, counts)
    found = {W: torch.ones(1, SIZE, dtype=torch.float64)}
    for k in reversed(range(STEPS)):
        found = chain[k].transposed(found)
        close(found.pop(GRADIENT)[0], difference(rule, vectors, k + 1))
    close(found[W][0], difference(rule, vectors, 0))


def close(found, expected):
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_a_gradient_that_was_always_zero(name):
    """Then the step is the buffer over ε, to first order."""
    kind = getattr(torch.optim, name)
    w, eps = torch.ones(1, dtype=torch.float64), 1e-3
    numbers = numbers_of(kind([w.requires_grad_()], lr=0.5, eps=eps))
    rule = TABLE[name]
    moments = rule.initial(w.detach(), numbers)
    counts = {"step": moments.pop("step")}
    now = Before(w.detach(), torch.zeros(1).double(), None, moments, counts)
    found = jacobian(rule, now, numbers, 1.0).transposed({W: torch.ones(1, 1).double()})
    assert torch.allclose(found[GRADIENT], torch.tensor(-0.5 / eps).double(), rtol=1e-12)
    assert all(torch.isfinite(v).all() for v in found.values())
