"""Examples that depend on their company at some states only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.evaluate.company import _Watch, deciding
from tests.helpers.alone import trace
from tests.helpers.cases import CASES, cross_entropy
from tracer.errors import GradientError

X = torch.randn(24, 4, generator=torch.manual_seed(0)).double()
DATA = [(x, k % 3) for k, x in enumerate(X)]
IDS = [*range(16)]


class Experts(nn.Module):
    """Two experts; in eval mode the second one takes four examples at most."""

    def __init__(self, capacity):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.capacity = nn.Linear(4, 2), capacity
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        nn.init.zeros_(self.gate.weight)
        self.gate.bias.data[:] = torch.tensor([0.3, 0.0])

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        best, y = shares.argmax(-1), x.new_zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
            rows = (best == k).nonzero().squeeze(1)
            if k == 1 and not self.training:
                rows = rows[: self.capacity]
            y = y.index_add(0, rows, expert(x[rows]) * shares[rows, k, None])
        return y


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "run.h5"
    task = Task(lambda: Experts(4).double(), cross_entropy, DATA, DATA[:16])
    trace(path, task, steps=12, size=8, lr=2.0)
    return lambda **options: Replay(path, task, **options)


def drops(run, ids=IDS):
    return run.drops(ids, progress=False).sum(0)


def test_experts_with_a_capacity(run, monkeypatch):
    """More than four come at states 2, 3 and 10; the first, middle and last are 0, 6 and 12."""
    for ask in (
        drops,
        lambda one: one.influence(IDS, methods=("tracin",), progress=False),
        lambda one: one.influence(
            IDS, methods=("tracincp",), checkpoints=[1, 3], train_ids=[0], progress=False
        ),
    ):
        with pytest.raises(
            GradientError,
            match=r"(step|checkpoint) \d+: .*capacity.*\n  1. Evaluate .* alone: memory=1",
        ):
            ask(run())
    alone = drops(run(memory=1))
    assert np.allclose(alone, [drops(run(), [k])[0] for k in IDS], rtol=1e-12, atol=1e-14)
    monkeypatch.setattr("replay.evaluate.looks.deciding", lambda *_: set())
    assert abs(drops(run()) - alone).max() == 0  # both ends are as they should be,
    steps = run().drops(IDS, progress=False)  # and what is between them is wrong
    assert abs(steps - run(memory=1).drops(IDS, progress=False)).max() > 0.01


def test_nothing_is_compared_again_where_nothing_decides(tmp_path, monkeypatch):
    """Of ordinary models: no more passes than there were."""
    found = {}

    def watched(examples, state):
        found[case.name] = found.get(case.name, set()) | deciding(examples, state)
        return found[case.name]

    monkeypatch.setattr("replay.evaluate.looks.deciding", watched)
    for case in CASES:
        if case.name in ("mlp", "convolutional-groupnorm", "transformer-tied", "bare-parameter"):
            task = case.trace(tmp_path / f"{case.name}.h5")
            Replay(tmp_path / f"{case.name}.h5", task).drops([0, 1, 2], progress=False)
    assert found
    assert not any(found.values()), found


def test_watching_a_pass_does_not_import_the_compiler():
    """Torch wraps a mode's dispatch so that the first call imports its compiler, for a second."""
    assert not hasattr(_Watch.__torch_dispatch__, "__wrapped__")
