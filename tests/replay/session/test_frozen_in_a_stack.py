"""Products of steps that are taken together, where a step does not move a parameter."""

from __future__ import annotations

import torch
from torch import nn

from replay import Replay, Task
from replay.path.step_path import StepPath
from tests.helpers.cases import cross_entropy
from tracer import TracingOptimizer


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_norms_are_of_what_a_step_moved(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(6, generator=draw, dtype=torch.float64), torch.tensor(k % 3)) for k in range(9)
    ]
    task = Task(build, cross_entropy, data, data[:4])
    model = task.model()
    model[0].requires_grad_(False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5", snapshot_every=1) as optimizer:
        for t in range(4):
            optimizer.zero_grad()
            ids = [t, t + 1, t + 2]
            task.loss(model, task.collate([data[i] for i in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    seen, meet = [], StepPath.meet_end

    def met(line, u, shares, parts, norms):
        alone = line._node(float(u), line.ends[u], list(range(4)))
        for found, own in zip(
            (shares, parts, norms), (alone.shares, alone.parts, alone.norms), strict=True
        ):
            torch.testing.assert_close(found, own, rtol=1e-10, atol=1e-14)
        seen.append(u)
        meet(line, u, shares, parts, norms)

    monkeypatch.setattr(StepPath, "meet_end", met)
    Replay(tmp_path / "run.h5", task).influence([0, 1, 2, 3], methods=("ideal",), progress=False)
    assert len(seen) == 8
