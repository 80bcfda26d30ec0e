"""Models in which data say what examples do to each other, and a check of every pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine

N, D, K = 6, 4, 3


class Model(nn.Module):
    """Two layers, with something between them that data control."""

    def __init__(self, run, width=5):
        super().__init__()
        self.a, self.b = nn.Linear(D, width), nn.Linear(width, K)
        self.e, self.width = nn.Embedding(N, width), width
        self.run = run

    def forward(self, x, told):
        return self.run(self, x, told)


def back(rows, order):
    return rows[torch.argsort(order)]


def indexed(s, x, order):
    return back(s.b(torch.tanh(s.a(x[order]))), order)


ORDERS = [torch.arange(N), torch.tensor([3, 1, 0, 5, 4, 2]), torch.arange(N)]


def exact_at_every_pass(model, passes, engine=None):
    engine = engine or Engine(audit=1000)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for x, told, y in passes:

        def forward(x=x, told=told, y=y):
            return F.cross_entropy(model(x, told), y, reduction="none")

        weights = torch.ones(len(y), dtype=torch.float64)
        found = engine.of_batch(parameters, forward, weights, budget=1 << 20)
        losses = forward()
        for i in range(len(y)):
            own = torch.autograd.grad(
                losses[i], list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for (name, p), g in zip(parameters.items(), own, strict=True):
                expected = torch.zeros_like(p) if g is None else g
                row = found.rows(name, torch.tensor([i]))[0] if name in found.names else 0 * p
                gap = (row.flatten() - expected.flatten()).norm()
                assert gap <= 1e-12 * max(1.0, float(expected.norm())), (name, i)
    return engine


def made(run, told, rows=N, width=5):
    torch.manual_seed(0)
    model = Model(run, width).double()
    targets = [torch.randint(0, K, (N if len(t) == N else len(t),)) for t in told]
    xs = [torch.randn(rows, D, dtype=torch.float64) for _ in told]
    return model, list(zip(xs, told, targets, strict=True))
