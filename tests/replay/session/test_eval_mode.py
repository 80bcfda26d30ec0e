"""Models that do more in eval mode than set a flag: what is evaluated is what was loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.alone import trace
from tests.helpers.cases import cross_entropy
from tracer import open_log
from tracer.errors import TaskError

X = torch.randn(12, 4, generator=torch.manual_seed(0)).double()
DATA = [(x, k % 3) for k, x in enumerate(X)]
METHODS = ("tracin", "ideal", "tracincp")


class Adapted(nn.Module):
    """A layer with an update of low rank; ``train`` and ``eval`` do what ``how`` says."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.left, self.right = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.randn(2, 4))
        self.how, self.merged, self.kept = how, False, None
        self.lists = {"kept": []}

    def train(self, mode=True):
        super().train(mode)
        if self.how == "merges" and self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.left.data @ self.right.data
            self.merged = not mode
        if self.how == "merges into another" and self.merged == mode:
            other = nn.Parameter(self.whole().detach())
            self.plain, self.weight = (None, self.plain) if mode else (self.weight, other)
            self.merged = not mode
        if self.how in ("derives", "needs it"):
            self.kept = None if mode else self.whole().detach()
        if self.how == "keeps" and mode:
            self.kept = None
        return self

    def whole(self):
        return self.weight + self.left @ self.right

    def forward(self, x):
        if self.training or self.how in ("plain", "derives", "merges", "merges into another"):
            known = self.weight if self.merged else self.kept
            return F.linear(x, self.whole() if known is None else known)
        if self.how in ("keeps", "keeps for good") and self.kept is None:
            self.kept = self.whole()
        if self.how == "keeps in a list" and not self.lists["kept"]:
            self.lists["kept"].append(self.whole())
        kept = self.lists["kept"][0] if self.how == "keeps in a list" else self.kept
        return F.linear(x, kept + 0)


def replayed(path, how):
    task = Task(lambda: Adapted(how).double(), cross_entropy, DATA, DATA[:4])
    trace(path, task, lr=0.3)
    return Replay(path, task)


def drops(path):
    """Return values of φ at each state by plain torch, whose differences the drops are."""
    values = []
    with open_log(path) as log, torch.no_grad():
        for t in range(len(log) + 1):
            w = log.parameters(t)
            whole = w["weight"] + w["left"] @ w["right"]
            y = torch.tensor([y for _, y in DATA[:4]])
            values.append(F.cross_entropy(X[:4] @ whole.T, y, reduction="none").numpy())
    return -np.diff(np.array(values), axis=0)


@pytest.mark.parametrize("how", ["merges", "merges into another", "derives", "keeps"])
def test_scores_are_those_of_the_model_that_does_nothing(tmp_path, how):
    found, expected = (
        replayed(tmp_path / f"{one}.h5", one).influence(
            [0, 1, 3], methods=METHODS, checkpoints=[0, 2, 5], progress=False
        )
        for one in (how, "plain")
    )
    for name in METHODS:
        assert np.allclose(found.scores[name], expected.scores[name], rtol=1e-9, atol=1e-13)
    measured = drops(tmp_path / f"{how}.h5")[:, [0, 1, 3]]
    assert np.allclose(found.terms["ideal"]["measured"], measured, rtol=1e-9, atol=1e-13)
    assert abs(measured).max() > 0.01


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("needs it", r"step 5: eval\(\) changes 'kept' of the model, so gradients cannot be taken"),
        ("keeps for good", r"step 0 before, .* fresh one: it keeps .* weights \(kept\)"),
        ("keeps in a list", r"step 0 before, .* fresh one: it keeps .* earlier weights"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(tmp_path, how, message):
    run = replayed(tmp_path / "run.h5", how)
    run.verify(progress=False)
    with pytest.raises(TaskError, match=message):
        run.influence([0], methods=("tracin",), progress=False)
    with pytest.raises(TaskError, match=message):
        run.drops([0, 1], progress=False)
