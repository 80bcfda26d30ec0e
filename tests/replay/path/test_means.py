"""Means of test gradients and their products with vectors, against rows that are written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay.gradients.engine import Engine
from replay.path.test_means import Projections, WeightedGradients, gradient_of

M, COLUMNS = 5, torch.tensor([1, 2, 4])


@pytest.fixture
def mean():
    """Two points of a line: all test examples at the first, three at the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    parameters = dict(model.named_parameters())
    parts, rows = [], {name: torch.zeros(M, p.numel()).double() for name, p in parameters.items()}
    for columns, weights in ((torch.arange(M), torch.rand(M)), (COLUMNS, torch.rand(3))):
        x, y = torch.randn(len(columns), 4).double(), torch.randint(0, 2, (len(columns),))

        def one(i, x=x, y=y):
            return F.cross_entropy(model(x[i : i + 1]), y[i : i + 1], reduction="none")

        def run(x=x, y=y):
            return F.cross_entropy(model(x), y, reduction="none")

        found = Engine().of_independent(parameters, run, one)
        parts.append(WeightedGradients(found, columns, weights.double()))
        for k, column in enumerate(columns.tolist()):
            own = torch.autograd.grad(one(k).sum(), list(parameters.values()))
            for name, g in zip(parameters, own, strict=True):
                rows[name][column] += weights[k].double() * g.flatten()
        with torch.no_grad():
            model[0].weight += 0.1
    directions = [
        {name: torch.randn_like(p) for name, p in parameters.items() if name not in left_out}
        for left_out in ((), ("0.weight",), ("2.bias",))
    ]
    return parts, rows, directions


@pytest.mark.parametrize("given", [(), ("0.weight", "2.bias")])
def test_products_with_directions(mean, given):
    parts, rows, directions = mean
    along = Projections(directions, M, torch.device("cpu"))
    for name in given:
        for block in (slice(0, 3), slice(3, M)):
            gradients = gradient_of(parts, name, block.start, block.stop)
            assert torch.allclose(gradients, rows[name][block], rtol=1e-12)
            along.add(name, gradients, block)
    for part in parts:
        along.add_others(part)
    expected = torch.stack(
        [sum(rows[name] @ v.detach().flatten() for name, v in one.items()) for one in directions]
    )
    assert torch.allclose(along.products, expected, rtol=1e-12)
