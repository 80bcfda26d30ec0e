"""A generator and a discriminator, smooth, in float64: each has an optimizer and a loss."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import softplus

from replay import Task
from tests.helpers.accounts import had
from tests.helpers.rules import O, Rule, Run
from tracer import TracingOptimizer

DISCRIMINATOR, GENERATOR = "discriminator", "generator"


class Adversaries(nn.Module):
    """Makes points of noise, and tells them from those that are real."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x, detached=False):
        """Return the discriminator's scores of real points and of others made of noise."""
        noise = torch.randn(len(x), 3, dtype=x.dtype) if self.training else x[:, [0, 1, 0]]
        made = self.generator(noise)
        made = made.detach() if detached else made
        return self.discriminator(x)[:, 0], self.discriminator(made)[:, 0]


def discriminating(model, x):
    """Return the discriminator's losses."""
    real, made = model(x)
    return softplus(-real) + softplus(made)


def discriminating_detached(model, x):
    """Return the same, which has the same gradient for the discriminator."""
    real, made = model(x, True)
    return softplus(-real) + softplus(made)


def generating(model, x):
    """Return the generator's losses."""
    return softplus(-model(x)[1])


def measure(model, x):
    """Return what both have to do with."""
    real, made = model(x)
    return softplus(-real) + made


def task():
    """Return the task: 12 training and 2 test examples."""
    data = list(torch.randn(14, 2, generator=torch.Generator().manual_seed(5)).double())

    def model():
        torch.manual_seed(0)
        return Adversaries().double()

    losses = {DISCRIMINATOR: discriminating, GENERATOR: generating}
    return Task(model, losses, data[:12], data[12:], measure=measure, collate=torch.stack)


class Alternating:
    """The rules of both, as ``rules.Rule`` is that of one."""

    parts: ClassVar = {
        DISCRIMINATOR: Rule("heavy-ball", O.SGD, {"lr": 0.2, "momentum": 0.8}),
        GENERATOR: Rule("adam", O.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    }

    def of(self, name):
        """Return the rule of a parameter."""
        return self.parts[name.partition(".")[0]]

    def made(self, model):
        """Return both optimizers, by name."""
        modules = dict(model.named_children())
        return {key: rule.made(modules[key].parameters()) for key, rule in self.parts.items()}


def train(
    run, model, inner, optimizers, steps, *,
    start=0, critics=1, clip=None, scales=None, traced=True,
):  # fmt: skip
    """Take turns, as loops do: the generator's backward pass leaves the other one gradients.

    Args:
        run: The run; gets what torch had.
        model: The model.
        inner: The optimizers, by name.
        optimizers: Those that the loop steps.
        steps: How many.
        start: Of which so many were taken before.
        critics: Steps of the discriminator for each one of the generator.
        clip: Norm to which the gradients of the optimizer that steps are clipped.
        scales: Of each example's losses, ``(12,)``.
        traced: Whether ``optimizers`` take IDs.
    """
    scales = torch.ones(12, dtype=torch.float64) if scales is None else scales
    generator = torch.Generator().manual_seed(3)
    turns = [*[DISCRIMINATOR] * critics, GENERATOR]
    names = {p: n for n, p in model.named_parameters()}
    for t in range(steps):
        key = turns[t % len(turns)]
        optimizer, ids = optimizers[key], torch.randperm(12, generator=generator)[:4].tolist()
        if t < start:
            continue
        own = [p for group in inner[key].param_groups for p in group["params"]]
        before = {p: (copy.deepcopy(inner[key].state.get(p, {})), p.detach().clone()) for p in own}
        optimizer.zero_grad()
        losses = run.task.loss[key](model, torch.stack([run.task.train[i] for i in ids]))
        (losses * scales[ids]).mean().backward()
        if clip and traced:
            optimizer.clip_grad_norm_(clip)
        elif clip:
            nn.utils.clip_grad_norm_(own, clip)
        optimizer.step(**({"batch_ids": ids} if traced else {}))
        (group,), kind = inner[key].param_groups, run.rule.parts[key].kind
        run.had.append({
            names[p]: had(kind, state, inner[key].state.get(p, {}), group, w, p.grad)
            for p, (state, w) in before.items()
        })  # fmt: skip


def untraced(*, steps=6, **loop):
    """Return the model that the same loop trains."""
    run = Run(Alternating(), task(), None)
    model = run.task.model()
    inner = run.rule.made(model)
    torch.manual_seed(7)
    train(run, model, inner, inner, steps, traced=False, **loop)
    return model


def trace(path, *, steps=6, how=None, **loop):
    """Trace a run of so many steps of either."""
    run = Run(Alternating(), task(), path)
    model = run.task.model()
    inner = run.rule.made(model)
    torch.manual_seed(7)
    with TracingOptimizer(inner, model, path, **(how or {})) as optimizer:
        train(run, model, inner, optimizer, steps, **loop)
    return run, model
