"""A generator and a discriminator in Lightning, whose optimizers are wrapped by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: make test-integrations")

from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from replay import Replay, Task
from tests.integrations import modules as m
from tracer import TracingOptimizer, with_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::tracer.errors.TracingWarning")
ROWS = [row for row, _ in m.DATA]


def discriminating(module, rows):
    made = module.generator(torch.randn(len(rows), 2))
    return F.softplus(-module.judge(rows)[:, 0]) + F.softplus(module.judge(made)[:, 0])


def generating(module, rows):
    return F.softplus(-module.judge(module.generator(torch.randn(len(rows), 2)))[:, 0])


def judging(module, rows):
    return module.judge(rows)[:, 0]


LOSSES = {"discriminator": discriminating, "generator": generating}


class Adversaries(m.L.LightningModule):
    """Its optimizers take turns; with a log, they are traced."""

    def __init__(self, log=None):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
        self.judge = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        self.log_path = log

    def training_step(self, batch, number):
        ids, rows = batch if self.log_path else (None, batch)
        for one, loss in zip(self.optimizers(), LOSSES.values(), strict=True):
            one.zero_grad()
            if self.log_path:
                one.observe(ids)  # before the loss draws
            self.manual_backward(loss(self, rows).mean())
            one.step()

    def configure_optimizers(self):
        parts = {"discriminator": self.judge, "generator": self.generator}
        ours = {k: torch.optim.Adam(part.parameters(), lr=0.01) for k, part in parts.items()}
        if self.log_path:
            self.wrapper = TracingOptimizer(ours, self, self.log_path)
            return [self.wrapper[name] for name in ours]
        return list(ours.values())

    def on_train_end(self):
        if self.log_path:
            self.wrapper.close()


def fitted(folder, log=None):
    torch.manual_seed(1)
    module = Adversaries(log)
    torch.manual_seed(2)
    data = with_ids(ROWS) if log else ROWS
    m.trainer(folder).fit(module, DataLoader(data, 4, shuffle=True))
    return module


def test_turns(tmp_path):
    plain, found = fitted(tmp_path), fitted(tmp_path, tmp_path / "run.h5")
    assert m.same_bits(plain, found)
    task = Task(Adversaries, LOSSES, ROWS, ROWS, measure=judging)
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False).steps == range(24)
    assert run.influence([0], methods=["tracin"], progress=False).scores["tracin"].any()
