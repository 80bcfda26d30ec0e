"""Per-example gradients and their products against one backward an example."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients import products
from replay.gradients.factors import Factors, inner
from replay.gradients.per_example import of_batch, of_independent


def rows(module, losses, weights):
    """Return every weighted gradient as one row, by plain backwards."""
    parameters = list(module.parameters())
    found = []
    for loss, weight in zip(losses, weights, strict=True):
        gradients = torch.autograd.grad(
            weight * loss, parameters, retain_graph=True, allow_unused=True
        )
        found.append(
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for g, p in zip(gradients, parameters, strict=True)
                ]
            )
        )
    return torch.stack(found)


class InPlace(nn.Module):
    """An in-place activation right on a layer's output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(F.relu_(self.a(x)))


class Sequence(nn.Module):
    """Tokens; the inner layer sees (b, T, ·)."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.a, self.b = tokens, nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        x = torch.stack([x * (k + 1) for k in range(self.tokens)], 1)
        return self.b(torch.tanh(self.a(x))).mean(1)


def coupled():
    """BatchNorm: the layers before it are coupled, the one after it is not."""
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 4),
    "no-bias": (lambda: nn.Linear(4, 3, bias=False), 1),
    "in-place": (InPlace, 4),
    "tokens-2": (lambda: Sequence(2), 3),
    "tokens-40": (lambda: Sequence(40), 3),
    "batchnorm": (coupled, 2),
    "layernorm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), 4),
}


@pytest.mark.parametrize("budget", [1, 1 << 30], ids=["recomputed", "stored"])
@pytest.mark.parametrize("name", MODELS)
def test_products_equal_plain_backwards(name, budget):
    torch.manual_seed(0)
    build, hooked = MODELS[name]
    model = build().double()
    parameters = dict(model.named_parameters())
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    test = torch.randn(4, 4, dtype=torch.float64)
    weights = torch.rand(6, dtype=torch.float64)
    weights[2] = 0
    scale = {n: 0.5 + k for k, n in enumerate(parameters)}
    vector = torch.cat([torch.full((p.numel(),), scale[n]) for n, p in parameters.items()])

    def forward():
        return F.cross_entropy(model(x), y, reduction="none")

    def measured(columns):
        return F.cross_entropy(model(test[columns]), y[columns], reduction="none")

    expected = rows(model, forward(), weights)
    train = of_batch(model, parameters, forward, weights, budget=budget)
    assert len(train.factors) + len(train.biases) == hooked
    model.eval()
    q = rows(model, measured([0, 1, 2, 3]), torch.ones(4))
    independent = of_independent(
        model, parameters, lambda: measured([0, 1, 2, 3]), lambda i: measured([i])
    )
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(
        products.inner(train, independent, scale), (expected * vector) @ q.T, **close
    )
    assert torch.allclose(
        products.inner(independent, train, scale), (q * vector) @ expected.T, **close
    )
    total = dict(zip(parameters, _split(expected.sum(0), parameters), strict=True))
    assert all(torch.allclose(train.total[n], total[n], **close) for n in parameters)
    direction = {n: torch.randn_like(p) for n, p in parameters.items()}
    flat = torch.cat([d.flatten() for d in direction.values()])
    assert torch.allclose(products.project(train, [direction])[0], expected @ flat, **close)
    assert torch.allclose(products.project(independent, [direction])[0], q @ flat, **close)
    names = set(parameters)
    assert torch.allclose(products.squared_norms(train, names), expected.square().sum(1), **close)


def _split(vector, parameters):
    parts = torch.split(vector, [p.numel() for p in parameters.values()])
    return [part.view_as(p) for part, p in zip(parts, parameters.values(), strict=True)]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (5, 40)])
@pytest.mark.parametrize(("rows_", "columns"), [(1, 1), (1, 3), (4, 4), (60, 50)])
def test_factors(n, m, rows_, columns):
    torch.manual_seed(n + m)
    left = Factors(torch.randn(n, rows_, 3).double(), torch.randn(n, rows_, 2).double())
    right = Factors(torch.randn(m, columns, 3).double(), torch.randn(m, columns, 2).double())
    g = torch.einsum("ntp,ntd->npd", left.deltas, left.inputs)
    h = torch.einsum("ntp,ntd->npd", right.deltas, right.inputs)
    assert torch.allclose(inner(left, right), torch.einsum("npd,mpd->nm", g, h), rtol=1e-11)
    assert torch.allclose(left.squared_norms(), g.square().sum((1, 2)), rtol=1e-11)
    assert torch.allclose(left.total(), g.sum(0), rtol=1e-11)


def test_pairwise_losses_are_found_coupled():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 4, dtype=torch.float64)
    weights = torch.full((5,), 0.2, dtype=torch.float64)

    def forward():
        z = model(x)
        return -torch.log_softmax(z @ z.T, 1).diagonal()

    found = of_batch(model, parameters, forward, weights, budget=1 << 20)
    assert set(found.complete) == {"weight", "bias"}
    expected = rows(model, forward(), weights)
    gram = products.inner(found, found, {"weight": 1.0, "bias": 1.0})
    assert torch.allclose(gram, expected @ expected.T, rtol=1e-11)
