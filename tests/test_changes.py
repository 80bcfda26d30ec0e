"""What a user may do to model and optimizer: it is logged as it is, or is a clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tracer import TracingOptimizer, open_log


class Optimizer(torch.optim.SGD):
    """SGD with further hyperparameters that it does not use."""

    def __init__(self, parameters, **more):
        super().__init__(parameters, lr=0.1)
        self.defaults.update(more)
        for group in self.param_groups:
            group.update(more)


def build():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def step(optimizer, model, ids=(0, 1, 2, 3)):
    optimizer.zero_grad()
    model(torch.ones(4, 3, dtype=next(model.parameters()).dtype)).square().mean().backward()
    optimizer.step(batch_ids=list(ids))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"eps": (None, 1e-3)}, {"eps.0": np.nan, "eps.1": 1e-3}),
        ({"betas": ((0.9, 0.8), 0.99)}, {"betas.1": 0.99}),
        ({"names": ["a", "b"], "mode": "fast"}, {}),
        ({"sizes": (torch.ones(3), torch.tensor(2.0)), "x": torch.ones(3)}, {"sizes.1": 2.0}),
        ({"c": np.float32(0.5), "b": np.True_}, {"c": 0.5, "b": 1.0}),
    ],
    ids=["none", "nested", "text", "tensors", "scalars"],
)
def test_only_numbers_are_logged_of_the_groups(path, more, expected):
    model = build()
    with TracingOptimizer(Optimizer(model.parameters(), **more), model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        found = log.step(0).groups[0].hyperparameters
    found = {key: value for key, value in found.items() if key.split(".")[0] in more}
    assert found == pytest.approx(expected, nan_ok=True)


def test_adafactor(path):
    model = build()
    inner = torch.optim.Adafactor(model.parameters())
    with TracingOptimizer(inner, model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        assert log.step(0).groups[0].hyperparameters["eps.1"] == 1e-3
        assert torch.equal(log.parameters(1)["weight"], model.weight)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array])
def test_numpy_learning_rate(path, kind):
    model = build()
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    rate = kind(0.5)
    with TracingOptimizer(inner, model, path) as optimizer:
        for t in range(3):
            optimizer.param_groups[0]["lr"] = rate
            step(optimizer, model)
            if t == 1 and isinstance(rate, np.ndarray):
                rate *= 0.5  # the same object
    with open_log(path) as log:
        last = 0.25 if isinstance(rate, np.ndarray) else 0.5
        assert [log.learning_rate(t) for t in range(3)] == [(0.5,), (0.5,), (last,)]


def test_parameter_without_elements(path):
    model = build()
    model.empty = nn.Parameter(torch.empty(0, 3))
    with TracingOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as optimizer:
        step(optimizer, model)
    with open_log(path) as log:
        assert log.parameters(1)["empty"].shape == (0, 3)
        assert torch.equal(log.parameters(1)["weight"], model.weight)
