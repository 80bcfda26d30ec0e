"""float32 runs in which gradients cancel: what is left of them is rounding, and no error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from tracer import TracingOptimizer


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_what_is_left_of_cancelling_gradients_is_rounding(tmp_path, rule):
    """A float32 fit that converges: the sum goes to zero, the examples' gradients do not."""
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), 3 * torch.randn(50, 3)
    data = list(zip(x, y, strict=True))

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean(1)

    task = Task(lambda: nn.Linear(4, 3), loss, data, data)
    model, rules = task.model(), {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    inner = rules[rule](model.parameters(), lr=0.5 if rule == "sgd" else 0.1)
    with TracingOptimizer(inner, model, tmp_path / "run.h5") as optimizer:
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()  # in another order than the task's
            optimizer.step(batch_ids=range(50))
    found = Replay(tmp_path / "run.h5", task=task).influence([0], progress=False)
    assert found.attributes["steps_scaled_outside"] == 0
    assert np.abs(found.terms["tracin"]["rounding"]).max() < 1e-5


def test_a_group_whose_gradient_is_zero_is_not_scaled(tmp_path):
    """A bias before a norm: what is left of its gradient is rounding, of the others'."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    data = [(one, k % 4) for k, one in enumerate(x)]

    def build():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(128, 4))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task, model = Task(build, loss, data, data), build()
    groups = [{"params": [p]} for p in model.parameters()]
    sgd = torch.optim.SGD(groups, lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for t in range(20):
            ids = [(t + k) % 16 for k in range(8)]
            optimizer.zero_grad()
            batch = task.collate([task.train[i] for i in ids])
            parts = [loss(model, [z[k::2] for z in batch]).sum() for k in range(2)]
            (sum(parts) / 8).backward()
            optimizer.step(batch_ids=ids)
    found = Replay(tmp_path / "run.h5", task=task).influence([0], progress=False)
    assert found.attributes["steps_scaled_outside"] == 0
